"""The accuracy of an emitted module: its error against float64 beside that of the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from compiler.capture.boundary.fast_path import ordinary_call
from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.observation import copied_arguments, flatten, foreign_seeded, seeded
from compiler.equality.widened import ALL_FLOATS, copied_module, double_twin, is_float, precision_of, widened
from compiler.usercode.difference import RELATIVE_BOUND, allowed_error, dense, precision_floor, tensor_difference
from ir.errors import GraphwrightError
from passes.rewrite.bounds.tolerance import Bounds, Tolerance, as_bounds

_Read = Callable[[nn.Module, Any, Any], list[torch.Tensor | None]]
"""Returns the leaves to compare, given a module that was called, the arguments and what it returned.

None stands for what is no tensor."""


class MeasurementError(GraphwrightError):
    """The error of a module cannot be measured: it does not run, or not in float64."""


@attrs.frozen
class OutputAccuracy:
    """Errors of one output tensor against the original module in float64.

    Each is the largest absolute difference over the elements that are finite in the reference and in the original's
    own precision.
    """

    scale: float
    """Largest magnitude among these elements of the reference."""
    original_error: float
    """Of the original in its own precision."""
    emitted_error: float
    """Of the emitted module in its own precision."""
    difference: float
    """Of the emitted module in float64."""
    same_nonfinite: bool
    """Whether NaN and infinity sit in the same places."""
    floor: float = 1e-6
    """The error that is always allowed, relative to the scale: eight units in the last place, at least 1e-6."""
    is_mixed: bool = False
    """Whether a module rounds to another precision on purpose, so that its run in float64 does too."""
    intended: float = 0.0
    """The difference that passes and rules make on purpose, as far as they say."""

    @property
    def allowed(self) -> float:
        """The bound for `emitted_error`: twice the error of the original, plus the floor, plus what is intended."""
        return allowed_error(self.original_error, self.scale, self.floor) + self.intended

    @property
    def is_within_bound(self) -> bool:
        """Whether the emitted module is as accurate as the original, up to `allowed`."""
        return self.same_nonfinite and self.emitted_error <= self.allowed

    @property
    def difference_allowed(self) -> float:
        """The bound for `difference`: 1e-9 of the scale, plus what is intended, where all is computed in float64."""
        return self.allowed if self.is_mixed else RELATIVE_BOUND * max(self.scale, 1e-30) + self.intended


@attrs.frozen
class Accuracy:
    """Errors of the floating-point outputs of one call, and whether the other outputs are equal.

    Attributes:
        outputs: one entry for each tensor among the outputs, in their order.
    """

    dtype: str
    """The dtypes of the outputs, mostly `float32`."""
    outputs: tuple[OutputAccuracy, ...]
    others_equal: bool = True
    """Whether all elements of the other outputs (integers, bools) are equal."""

    @property
    def worst(self) -> OutputAccuracy | None:
        """The output with the largest error relative to its bound; None without floating-point outputs."""
        return max(self.outputs, key=_strain, default=None)

    @property
    def is_within_bound(self) -> bool:
        """Whether every output is within its bound."""
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
    parameter_map: ParameterMap | None = None,
    seed: int = 0,
    tolerance: Tolerance | Bounds | None = None,
) -> Accuracy:
    """Run both modules on one input, in their own precision and in float64, and compare the results.

    The run in float64 ignores casts to the modules' own precision (`x.float()`). Each run is on a deep copy that is
    freed before the next, and starts from the same random state. Modules, inputs and random state are not changed.

    Args:
        original: the module that was compiled.
        emitted: the emitted module.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        parameter_map: of the emitted module. With it, derived weights are recomputed in float64, so that their rounding
            does not count.
        seed: of the random numbers that the modules draw.
        tolerance: how far the emitted module differs on purpose: `result.bounds` for each result as far as it says, or
            one tolerance for all results.

    Raises:
        MeasurementError: when a module cannot be copied or run.
    """
    source = original.module() if isinstance(original, ExportedProgram) else original
    arguments, reads = (tuple(args), dict(kwargs or {})), (_results, _results)
    bounds = as_bounds(tolerance)
    intended = None if bounds is None else bounds.of_results
    return _measure(source, emitted, arguments, parameter_map, seed, reads, intended)


def measure_effects(
    original: nn.Module,
    emitted: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    buffers: Mapping[str, str],
    bounds: Bounds | None = None,
) -> Accuracy:
    """Measure what one call leaves in its arguments and in buffers, as `measure_accuracy` does with the results.

    Args:
        original: the module that was compiled.
        emitted: the emitted module.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        buffers: names of buffers of the emitted module -> those of the original.
        bounds: how far the emitted module differs on purpose.

    Raises:
        MeasurementError: when a module cannot be copied or run.
    """
    reads = partial(_effects, list(buffers.values())), partial(_effects, list(buffers))

    def intended(count: int) -> list[Tolerance | None]:
        assert bounds is not None
        left = [bounds.of_buffer(name) for name in buffers]
        return [bounds.of_arguments()] * (count - len(left)) + left

    given = None if bounds is None else intended
    return _measure(original, emitted, (tuple(args), dict(kwargs)), None, 0, reads, given)


def _results(_: nn.Module, __: Any, results: Any) -> list[torch.Tensor | None]:
    return [leaf.detach() if isinstance(leaf, torch.Tensor) else None for leaf in flatten(results)[0]]


def _effects(names: Sequence[str], module: nn.Module, arguments: Any, _: Any) -> list[torch.Tensor | None]:
    buffers = dict(module.named_buffers(remove_duplicate=False))
    inputs = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    return [tensor.detach() for tensor in (*inputs, *(buffers[name] for name in names))]


def _measure(
    source: nn.Module,
    emitted: nn.Module,
    arguments: Any,
    parameter_map: ParameterMap | None,
    seed: int,
    reads: tuple[_Read, _Read],
    intended: Callable[[int], list[Tolerance | None]] | None,
) -> Accuracy:
    own = _run("the original", "as it is", lambda: copied_module(source), arguments, seed, reads[0])
    new = _run("the emitted module", "as it is", lambda: copied_module(emitted), arguments, seed, reads[1])
    reference, new_double, is_mixed = _run_both_double(source, emitted, arguments, parameter_map, seed, reads)
    where = [i for i, each in enumerate(own) if each is not None]
    if any([i for i, each in enumerate(seen) if each is not None] != where for seen in (reference, new, new_double)):
        count = sum(each is not None for each in new)
        raise MeasurementError(f"the original returns {len(where)} tensors, the emitted module {count}")
    tolerances = [None] * len(own) if intended is None else intended(len(own))
    outputs, others_equal, dtypes = [], True, []
    for exact, a, b, c, tolerance in zip(reference, own, new, new_double, tolerances, strict=True):
        if exact is None or a is None or b is None or c is None:
            continue
        if a.shape != b.shape:
            raise MeasurementError(
                f"an output of the original has shape {tuple(a.shape)}, of the emitted {tuple(b.shape)}"
            )
        if is_float(exact.dtype):
            outputs.append(compare_output(exact, a, b, c, is_mixed=is_mixed, tolerance=tolerance))
            dtypes.append(str(a.dtype).removeprefix("torch."))
        else:
            others_equal &= (
                tensor_difference(a, b, exact=True) is None and tensor_difference(exact, c, exact=True) is None
            )
    return Accuracy(", ".join(dict.fromkeys(dtypes)) or "no floating-point output", tuple(outputs), others_equal)


def _run_both_double(
    original: nn.Module,
    emitted: nn.Module,
    arguments: Any,
    parameter_map: ParameterMap | None,
    seed: int,
    reads: tuple[_Read, _Read],
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None], bool]:
    """Return the results of both modules in float64, and whether one rounds to another precision on purpose."""
    wide = widened(arguments)
    failure: MeasurementError | None = None
    for precision, *modes in precision_of(arguments, original).attempts():
        own = partial(double_twin, original, precision)
        new = partial(double_twin, emitted, precision, original, parameter_map)
        try:
            reference = _run("the original", "in float64", own, wide, seed, reads[0], modes[0])
            results = _run("the emitted module", "in float64", new, wide, seed, reads[1], modes[1])
        except MeasurementError as error:
            failure = error
            continue
        if modes[0].met_autocast and precision.narrow != ALL_FLOATS:
            continue
        return reference, results, any(mode.has_kept for mode in modes)
    assert failure is not None
    raise failure


def _run(
    what: str,
    how: str,
    make: Callable[[], nn.Module],
    arguments: Any,
    seed: int,
    read: _Read,
    mode: AbstractContextManager[Any] | None = None,
) -> list[torch.Tensor | None]:
    try:
        twin = make()
        args, kwargs = copied_arguments(arguments)
        with ordinary_call(), seeded(seed), foreign_seeded(seed), nullcontext() if mode is None else mode:
            results = twin(*args, **kwargs)
        return read(twin, (args, kwargs), results)
    except Exception as error:
        raise MeasurementError(f"{what} does not run {how}: {type(error).__name__}: {error}") from error


def compare_output(
    exact: torch.Tensor,
    original: torch.Tensor,
    emitted: torch.Tensor,
    emitted_double: torch.Tensor,
    *,
    is_mixed: bool = False,
    tolerance: Tolerance | None = None,
) -> OutputAccuracy:
    """Return the errors of one output; `exact` and `emitted_double` are in float64, the others in their own dtype."""
    floor = precision_floor(original.dtype)
    exact, original, emitted, emitted_double = map(dense, (exact, original, emitted, emitted_double))
    # where the original overflows, its error is infinite, and would allow any
    finite = exact.isfinite() & original.isfinite()
    values = exact[finite]
    scale = _largest(values)
    return OutputAccuracy(
        scale=scale,
        original_error=_largest(original[finite] - values),
        emitted_error=_largest(emitted[finite] - values),
        difference=_largest(emitted_double[finite] - values),
        same_nonfinite=_same_nonfinite(original, emitted) and _same_nonfinite(exact, emitted_double),
        floor=floor,
        is_mixed=is_mixed,
        intended=0.0 if tolerance is None else tolerance.allows(scale),
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
