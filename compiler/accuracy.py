"""How exact an emitted module is: its error against float64 beside the original's own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ir.errors import GraphwrightError


class MeasurementError(GraphwrightError):
    """The error of a module cannot be measured: it does not run as it is, or not in float64."""


@attrs.frozen
class OutputAccuracy:
    """Errors of one output tensor; the reference is the original module, run in float64.

    All are largest absolute differences over the elements that are finite in the reference.
    """

    scale: float
    """Largest magnitude in the reference."""
    original_error: float
    """The original module in its own precision against the reference."""
    emitted_error: float
    """The emitted module in its own precision against the reference."""
    difference: float
    """The emitted module in float64 against the reference."""
    same_nonfinite: bool
    """Whether NaN and infinity sit in the same places."""

    @property
    def allowed(self) -> float:
        """The bound for `emitted_error`: twice the original's own error, and 1e-6 of the scale."""
        return 2 * self.original_error + 1e-6 * self.scale

    @property
    def is_within_bound(self) -> bool:
        """Whether the emitted module is as exact as the original, up to `allowed`."""
        return self.same_nonfinite and self.emitted_error <= self.allowed


@attrs.frozen
class Accuracy:
    """Errors of all floating-point outputs of one call, and whether all other outputs are equal."""

    dtype: str
    """The precision in which the modules ran: that of the inputs and weights, `float32` mostly."""
    outputs: tuple[OutputAccuracy, ...]
    others_equal: bool = True
    """Whether outputs of other types (integers, bools) are equal element by element."""

    @property
    def worst(self) -> OutputAccuracy | None:
        """The output with the largest error relative to its bound; None when there is no floating-point output."""
        return max(self.outputs, key=_strain, default=None)

    @property
    def is_within_bound(self) -> bool:
        """Whether every output is."""
        return self.others_equal and all(output.is_within_bound for output in self.outputs)


def _strain(output: OutputAccuracy) -> float:
    if not output.same_nonfinite or math.isnan(output.emitted_error):
        return math.inf
    if output.allowed == 0:
        return math.inf if output.emitted_error else 0.0
    return output.emitted_error / output.allowed


def measure_accuracy(
    original: nn.Module | ExportedProgram,
    emitted: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Accuracy:
    """Run both modules on one input, as they are and in float64, and compare the results.

    Each run is on a deep copy that is freed before the next, and starts from the same random state; the modules, the
    inputs and the global random state stay as they are.

    Args:
        original: the module that was compiled.
        emitted: the module that it became.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        seed: seeds what the modules draw.

    Raises:
        MeasurementError: when a module cannot be copied or run, in float64 for example because it names float32.
    """
    source = original.module() if isinstance(original, ExportedProgram) else original
    reference = _run("the original", source, args, kwargs, seed, double=True)
    own = _run("the original", source, args, kwargs, seed, double=False)
    new = _run("the emitted module", emitted, args, kwargs, seed, double=False)
    new_double = _run("the emitted module", emitted, args, kwargs, seed, double=True)
    if not len(reference) == len(own) == len(new) == len(new_double):
        raise MeasurementError(f"the original returns {len(own)} tensors, the emitted module {len(new)}")
    outputs, others_equal, dtypes = [], True, []
    for exact, a, b, c in zip(reference, own, new, new_double, strict=True):
        if a.shape != b.shape:
            raise MeasurementError(
                f"an output of the original has shape {tuple(a.shape)}, of the emitted {tuple(b.shape)}"
            )
        if exact.is_floating_point() or exact.is_complex():
            outputs.append(_compare(exact, a, b, c))
            dtypes.append(str(a.dtype).removeprefix("torch."))
        else:
            others_equal &= torch.equal(a, b) and torch.equal(exact, c)
    return Accuracy(", ".join(dict.fromkeys(dtypes)) or "no floating-point output", tuple(outputs), others_equal)


def _run(
    what: str, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, seed: int, *, double: bool
) -> list[torch.Tensor]:
    precision = "in float64" if double else "as it is"
    try:
        twin = _copied(module)
        if double:
            twin = twin.double()
        inputs, named = pytree.tree_map_only(
            torch.Tensor,
            lambda tensor: _widened(tensor) if double else tensor.clone(),
            (tuple(args), dict(kwargs or {})),
        )
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(twin)):
            torch.manual_seed(seed)
            result = twin(*inputs, **named)
    except Exception as error:
        raise MeasurementError(f"{what} does not run {precision}: {type(error).__name__}: {error}") from error
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _copied(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        # The specs inside an exported module warn of their own class when they are copied.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)


def _devices(module: nn.Module) -> list[torch.device]:
    """Return the devices other than the CPU whose random state a run may advance."""
    return list(dict.fromkeys(p.device for p in module.parameters() if p.device.type != "cpu"))


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    return tensor.detach().double() if tensor.is_floating_point() else tensor.clone()


def _compare(
    exact: torch.Tensor, original: torch.Tensor, emitted: torch.Tensor, emitted_double: torch.Tensor
) -> OutputAccuracy:
    finite = exact.isfinite()
    values = exact[finite]
    return OutputAccuracy(
        scale=_largest(values),
        original_error=_largest(original[finite] - values),
        emitted_error=_largest(emitted[finite] - values),
        difference=_largest(emitted_double[finite] - values),
        same_nonfinite=_same_nonfinite(original, emitted) and _same_nonfinite(exact, emitted_double),
    )


def _same_nonfinite(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    marks = [
        torch.where(t.isfinite(), torch.zeros_like(t), t).nan_to_num(nan=2.0, posinf=1.0, neginf=-1.0) for t in (a, b)
    ]
    return torch.equal(*marks)


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
