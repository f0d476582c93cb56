"""Validation of a result: emitted and original module compared over several calls, modes and precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram

from compiler.capture.boundary.fast_path import ordinary_call
from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.accuracy import compare_output
from compiler.equality.observation import Observation, observe, state_kept
from compiler.equality.observation_differences import Pick, differences, freezes, in_bounds, magnitude
from compiler.equality.unit_strides import is_definite
from compiler.equality.widened import ALL_FLOATS, double_twin, is_float, precision_of, widened
from compiler.usercode.difference import tensor_difference
from compiler.usercode.tensors import map_tensors, meaningful_strides
from ir.errors import InputError, ValidationError
from passes.rewrite.bounds.tolerance import Bounds, Tolerance

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
_Allowing = Callable[[Any, Any, Pick, Tolerance | None], str | None]
"""A judge that takes also how far a place may differ on purpose."""
Calls = dict[str, Observation]
"""Label of a call -> its observation, for calls in a row."""

_REMEDY = '`validate="each"` names the rewrite that did it, if it was one; please report it'
_OF_NUMBERS = frozenset({"values", "inputs", "state", "structure", "errors"})
"""The properties that are compared in float64; others are compared in the modules' own precision."""


def validate_result(
    original: nn.Module | ExportedProgram,
    emitted: nn.Module,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    parameter_map: ParameterMap | None = None,
    trials: int = 2,
    bounds: Bounds | None = None,
) -> None:
    """Compare the emitted module with the original on random inputs of the example's types.

    Floating-point inputs are drawn anew. Others are permuted, so that indices stay in range. The first trial makes two
    calls in a row, one in the other mode if the emitted module has it, and one after the switch back. Compared are
    results (structure, types, strides, sharing of storage, values), mutations of inputs and buffers, random numbers and
    errors, in the modules' own precision and in float64.

    Args:
        original: the module that was compiled.
        emitted: the emitted module.
        args: positional arguments of the example.
        kwargs: keyword arguments of the example.
        parameter_map: of the emitted module.
        trials: the number of inputs to try.
        bounds: how far the emitted module differs on purpose, which is allowed in addition: of results, and of what a
            call leaves behind.

    Raises:
        InputError: when there are no example inputs.
        ValidationError: when a result differs by more than rounding explains.
    """
    if args is None and kwargs is None:
        raise InputError('validate="final" needs example inputs', remedy="pass `example_inputs` to transform")
    source = original.module() if isinstance(original, ExportedProgram) else original
    names = ParameterMap({}) if parameter_map is None else parameter_map
    trains = not freezes(names, source) and all(len(names[key]) == 1 for key in names.untrained)
    switches = trains and source is original and _can_switch(source) and _can_switch(emitted)
    for trial in range(trials):
        arguments = _draw((tuple(args or ()), dict(kwargs or {})), seed=trial)
        comparison = _Comparison(source, emitted, names, arguments, trial, trial == 0, switches, trains, bounds)
        for label, property_, message in comparison.differences():
            raise ValidationError(f"the emitted module differs ({property_}, {label}): {message}", remedy=_REMEDY)


def _can_switch(module: nn.Module) -> bool:
    """Return whether the module's own `train()` or `eval()` switches its mode."""
    with state_kept(module):
        try:
            _put_into(module, mode=not module.training)
        except Exception:  # noqa: BLE001 - a module may refuse in any way
            return False
    return True


def _put_into(module: nn.Module, *, mode: bool) -> None:
    """Switch a module as users do: it may override either method."""
    if mode:
        module.train()
    else:
        module.eval()


@attrs.frozen(eq=False)
class _Comparison:
    """Two modules and the arguments of their calls."""

    original: nn.Module
    emitted: nn.Module
    names: ParameterMap
    arguments: Arguments
    seed: int
    several: bool
    """Whether more than one call is made."""
    switches: bool
    """Whether one is made in the other mode."""
    trains: bool
    bounds: Bounds | None

    def differences(self) -> Iterator[tuple[str, str, str]]:
        """Yield (call, property, message) for each difference."""
        own, new = self._calls(self.original, self.arguments), self._calls(self.emitted, self.arguments)
        double = self._calls_in_double(own)
        for label, seen in own.items():
            if double is None:
                rounding = torch.finfo(precision_of(self.arguments, self.original).spoken).eps ** 0.5
                judge = in_bounds(self.bounds, _within(rounding))
            else:
                judge = in_bounds(self.bounds, _beside(double.reference[label]))
            for property_, message in differences(seen, new[label], judge=judge, names=self.names):
                if self._is_promised(property_, seen):
                    yield label, property_, message
            if double is None:
                continue
            judge = in_bounds(self.bounds, _in_double(seen, is_mixed=double.is_mixed))
            for property_, message in differences(
                double.reference[label], double.emitted[label], judge=judge, names=self.names
            ):
                if property_ in _OF_NUMBERS:
                    yield f"{label}, in float64", property_, message

    def _calls(self, module: nn.Module, arguments: Arguments, mode: AbstractContextManager[Any] | None = None) -> Calls:
        """Observe calls in a row; the module is restored afterwards."""

        def call() -> Observation:
            return observe(module, *arguments, seed=self.seed, mode=mode)

        with state_kept(module), ordinary_call():
            calls = {"first call": call()}
            if not self.several:
                return calls
            calls["second call"] = call()
            if self.switches:
                usual = module.training
                _put_into(module, mode=not usual)
                calls[f"put into {'eval' if usual else 'training'} mode"] = call()
                _put_into(module, mode=usual)
                calls[f"put back into {'training' if usual else 'eval'} mode"] = call()
        return calls

    def _calls_in_double(self, own: Calls) -> _Double | None:
        """Observe the calls of both modules in float64; None where the original does not run in float64."""
        arguments = widened(self.arguments)
        for precision, *modes in precision_of(self.arguments, self.original).attempts():
            try:
                twin = double_twin(self.original, precision)
            except Exception:  # noqa: BLE001 - a module that cannot be copied, or converted
                return None
            reference = self._calls(twin, arguments, modes[0])
            del twin
            if any(reference[label].error is not None and seen.error is None for label, seen in own.items()):
                continue
            if modes[0].met_autocast and precision.narrow != ALL_FLOATS:
                continue
            twin = double_twin(self.emitted, precision, self.original, self.names)
            emitted = self._calls(twin, arguments, modes[1])
            if precision.narrow == ALL_FLOATS or all(seen.error is None for seen in emitted.values()):
                return _Double(reference, emitted, any(mode.has_kept for mode in modes))
        return None

    def _is_promised(self, property_: str, seen: Observation) -> bool:
        """Return whether the emitted module promises to keep a property."""
        if property_ == "gradients":
            return self.trains
        return property_ not in ("strides", "sharing") or self._has_definite_strides(seen)

    def _has_definite_strides(self, seen: Observation) -> bool:
        """Return whether the strides of the results do not depend on those of size-1 dimensions on the way."""

        def show(mode: AbstractContextManager[Any]) -> list[Any]:
            with state_kept(self.original), ordinary_call():
                other = observe(self.original, *self.arguments, seed=self.seed, mode=mode)
            return list(map(_strides, other.results))

        return show(nullcontext()) == list(map(_strides, seen.results)) and is_definite(show)


@attrs.frozen(eq=False)
class _Double:
    """Observations of both modules in float64."""

    reference: Calls
    emitted: Calls
    is_mixed: bool
    """Whether either rounds to another precision on purpose."""


def _strides(result: Any) -> list[int] | None:
    return meaningful_strides(result) if isinstance(result, torch.Tensor) else None


def _within(relative: float) -> _Allowing:
    """Return the judge where nothing runs in float64: a share of the largest magnitude counts as rounding."""

    def judge(a: Any, b: Any, pick: Pick, tolerance: Tolerance | None) -> str | None:
        scale = magnitude(a)
        intended = 0.0 if tolerance is None else tolerance.allows(scale)
        return tensor_difference(a, b, exact=False, bound=relative * scale + intended)

    return judge


def _beside(reference: Observation) -> _Allowing:
    """Return the judge in the modules' own precision: the error may be twice that of the original.

    The reference is the original in float64.
    """

    def judge(a: Any, b: Any, pick: Pick, tolerance: Tolerance | None) -> str | None:
        exact = pick(reference)
        if not _are_comparable(a, b, exact):
            return tensor_difference(a, b, exact=False)
        output = compare_output(exact, a, b, exact, tolerance=tolerance)
        if output.is_within_bound:
            return None
        return (
            f"its error in {str(a.dtype).removeprefix('torch.')} is {output.emitted_error:.3g}, the original's own "
            f"{output.original_error:.3g} (largest magnitude {output.scale:.3g}); NaN and infinity in place: "
            f"{output.same_nonfinite}"
        )

    return judge


def _in_double(own: Observation, *, is_mixed: bool) -> _Allowing:
    """Return the judge in float64: only rounding on purpose, and what is intended, may make a difference.

    That is measured by the original in its own precision, `own`.
    """

    def judge(a: Any, b: Any, pick: Pick, tolerance: Tolerance | None) -> str | None:
        narrow = pick(own)
        if not _are_comparable(a, b, narrow):
            return tensor_difference(a, b, exact=False)
        bound = 0.0
        if is_mixed or tolerance is not None:
            output = compare_output(a, narrow, narrow, b, is_mixed=is_mixed, tolerance=tolerance)
            bound = output.difference_allowed
        return tensor_difference(a, b, exact=False, bound=bound)

    return judge


def _are_comparable(*tensors: Any) -> bool:
    """Return whether all are floating-point tensors of one shape."""
    first, *others = tensors
    if not isinstance(first, torch.Tensor) or not is_float(first.dtype) or first.device.type == "meta":
        return False
    return all(isinstance(t, torch.Tensor) and t.shape == first.shape and is_float(t.dtype) for t in others)


def _draw(tree: Any, seed: int) -> Any:
    """Return random tensors of the same types in the structure of `tree`; one object stays one object."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            return tensor
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            return torch.empty_like(tensor, requires_grad=False).copy_(noise).requires_grad_(tensor.requires_grad)
        flat = tensor.reshape(-1)
        order = torch.randperm(flat.numel(), generator=generator).to(tensor.device)
        return flat[order].reshape(tensor.shape)

    return map_tensors(tree, draw)
