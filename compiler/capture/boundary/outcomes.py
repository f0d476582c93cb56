"""Differences between two calls that should be equal: structure, results, inputs and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch.utils import _pytree as pytree

from compiler.capture.boundary.runs import Outcome
from compiler.usercode.difference import OF_VALUES, RELATIVE_BOUND, scale_of, structures_equal, tensor_difference
from ir.text.specs import ADDRESS
from passes.rewrite.bounds.tolerance import Bounds, Tolerance, allowed_text

ROUNDING: Mapping[torch.dtype, float] = {
    torch.float64: RELATIVE_BOUND,
    torch.complex128: RELATIVE_BOUND,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""Differences that are surely rounding, relative to the largest magnitude; larger ones are judged against float64."""


@attrs.frozen
class Difference:
    """One way in which an outcome differs from the original's."""

    message: str
    is_of_values: bool = False
    """Whether two tensors differ in nothing but finite values, so that it may be rounding."""
    is_result: bool = False
    """Whether it is one of results; otherwise of what the call leaves."""
    is_bounded: bool = False
    """Whether a difference is allowed there on purpose."""


def difference(a: Outcome, b: Outcome, names: Mapping[str, str] | None = None) -> str | None:
    """Return the first way in which an outcome differs from the original's by more than rounding, or None.

    `names` maps its names of buffers to those of the original; None where they are the same.
    """
    return next((each.message for each in differences(a, b, names)), None)


def differences(
    a: Outcome, b: Outcome, names: Mapping[str, str] | None = None, bounds: Bounds | None = None
) -> Iterator[Difference]:
    """Yield each way in which two outcomes differ by more than rounding in their dtypes, and by what is intended."""
    if a.error is not None or b.error is not None:
        if type(a.error) is not type(b.error):
            yield Difference(f"{_end(a)} became {_end(b)}")
        return
    left, structure = pytree.tree_flatten(a.results)
    right, other = pytree.tree_flatten(b.results)
    problem = _structure_difference(structure, other)
    if problem is not None:
        yield Difference(problem)
        return
    intended = [None] * len(left) if bounds is None else bounds.of_results(len(left))
    for i, (x, y, tolerance) in enumerate(zip(left, right, intended, strict=True)):
        place = f"output {i}" if len(left) > 1 else "the output"
        yield from _value_difference(place, x, y, tolerance, bounds, is_result=True)
    tolerance = None if bounds is None else bounds.of_arguments()
    for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
        yield from _value_difference(f"input {i} after the call", x, y, tolerance, bounds)
    if [before is after for before, after in a.tracked] != [before is after for before, after in b.tracked]:
        yield Difference("another input requires gradients after the call")
    yield from _buffer_differences(a, b, names, bounds)


def _structure_difference(structure: pytree.TreeSpec, other: pytree.TreeSpec) -> str | None:
    if structure != other:
        here, there = (ADDRESS.sub("", str(each)) for each in (structure, other))
        if here == there:
            return f"the result's structure {here} holds an object (a key, or a factory) that is another in each call"
        return f"the result's structure {here} became {there}"
    if not structures_equal(structure, other):
        return f"the keys of the result {structure} are of other classes"
    return None


def _value_difference(
    place: str, a: Any, b: Any, tolerance: Tolerance | None, bounds: Bounds | None, *, is_result: bool = False
) -> Iterator[Difference]:
    problem = value_difference(a, b, tolerance)
    if problem is not None:
        allowed = allowed_text(tolerance, bounds)
        of_values = problem.startswith(OF_VALUES)
        yield Difference(f"{place}: {problem}{allowed}", of_values, is_result, tolerance is not None)


def _end(outcome: Outcome) -> str:
    error = outcome.error
    return "a result" if error is None else f"{type(error).__name__} ({error})"


def value_difference(a: Any, b: Any, tolerance: Tolerance | None = None) -> str | None:
    """Return how two results differ by more than rounding in their dtype, and a tolerance, or None."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        if isinstance(a, (bool, int, float, complex, str, type(None), torch.Size)):
            return tensor_difference(a, b, exact=False)
        return None if type(a) is type(b) else f"a {type(a).__qualname__} became a {type(b).__qualname__}"
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return tensor_difference(a.to_dense(), b.to_dense(), exact=False)
    if a.device.type != b.device.type:
        return f"on {a.device} became on {b.device}"
    if not a.numel() or a.shape != b.shape or a.dtype != b.dtype:
        return tensor_difference(a, b, exact=False)
    scale = scale_of(a)
    intended = 0.0 if tolerance is None else tolerance.allows(scale)
    return tensor_difference(a, b, exact=False, bound=ROUNDING.get(a.dtype, 0.0) * scale + intended)


def _buffer_differences(
    a: Outcome, b: Outcome, names: Mapping[str, str] | None, bounds: Bounds | None
) -> Iterator[Difference]:
    keys = {name: name for name in b.buffers} if names is None else names
    changed = {keys[key]: value for key, value in b.buffers.items() if key in keys}
    attached = {keys[key] for key in b.attached if key in keys}
    assigned = {keys[key] for key in b.assigned if key in keys}
    for name, value in a.buffers.items():
        if name in changed:
            tolerance = None if bounds is None else bounds.of_buffer(name)
            found = list(_value_difference(f"buffer {name!r} after the call", value, changed[name], tolerance, bounds))
            yield from found
            if found:
                continue
            if a.settings == b.settings and (name in a.attached) is not (name in attached):
                here, there = ("a", "none") if name in a.attached else ("no", "one")
                yield Difference(
                    f"buffer {name!r} after the call has {here} gradient from this call, and {there} in the other"
                )
            elif (name in a.assigned) is not (name in assigned):
                here, there = ("replaced", "mutated") if name in a.assigned else ("mutated", "replaced")
                yield Difference(f"buffer {name!r} is {here} by the original, and {there} by the other")
        else:
            yield Difference(f"buffer {name!r} is changed by the original, and not by the other")
    for name in changed:
        if name not in a.buffers:
            yield Difference(f"buffer {name!r} is changed, and not by the original")
