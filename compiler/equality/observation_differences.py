"""Differences between observations of two modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.observation import Look, Observation
from compiler.usercode.difference import scale_of, structures_equal, tensor_difference
from compiler.usercode.error_text import first_lines
from ir.errors import GraphwrightError
from passes.rewrite.bounds.tolerance import Bounds, Tolerance, allowed_text


@attrs.frozen
class Pick:
    """Selects one tensor of an observation.

    Attributes:
        of: selects it.
        intended: its bound among those of a program; of gradients, that of the whole.
    """

    of: Callable[[Observation], Any]
    intended: Callable[[Bounds], Tolerance | None] = lambda bounds: bounds.whole

    def __call__(self, seen: Observation) -> Any:
        """Select it."""
        return self.of(seen)


Judge = Callable[[Any, Any, Pick], str | None]
"""Takes a value of the original and one to judge; says how they differ by more than is allowed, or None."""


def within(relative: float) -> Judge:
    """Return a judge that allows a difference relative to the largest magnitude of the original."""
    return in_bounds(None, lambda a, b, _, __: tensor_difference(a, b, exact=False, bound=relative * magnitude(a)))


def in_bounds(bounds: Bounds | None, judge: Callable[[Any, Any, Pick, Tolerance | None], str | None]) -> Judge:
    """Return what asks a judge that takes also how far a place may differ on purpose."""

    def judged(a: Any, b: Any, pick: Pick) -> str | None:
        tolerance = None if bounds is None else pick.intended(bounds)
        problem = judge(a, b, pick, tolerance)
        return None if problem is None else problem + allowed_text(tolerance, bounds)

    return judged


def magnitude(tensor: Any) -> float:
    """Return the largest magnitude in a tensor; 0 where there are no numbers."""
    return scale_of(tensor) if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta" else 0.0


def differences(
    a: Observation,
    b: Observation,
    *,
    judge: Judge,
    slopes: Judge | None = None,
    names: ParameterMap | None = None,
    unwritten: bool = False,
    noise: float = 0.0,
) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each difference from the original.

    The properties are "errors", "structure", "values", "types", "strides", "gradients", "sharing", "inputs", "random
    numbers" and "state". Not all are promised of all modules: the caller chooses.

    Args:
        a: of the original.
        b: of what it became, run on the same inputs in the same precision.
        judge: compares values.
        slopes: compares gradients; `judge` by default.
        names: of the emitted module; without it, both have the same names.
        unwritten: whether to compare also parameters and buffers that neither call changed.
        noise: gradients in float64 that count as none where the original has none.
    """
    names = ParameterMap({}) if names is None else names
    if a.error is not None or b.error is not None:
        problem = _unlike_errors(a.error, b.error)
        if problem is not None:
            yield "errors", problem
        return
    if not structures_equal(a.structure, b.structure) or len(a.results) != len(b.results):
        yield "structure", f"{a.structure} became {b.structure}"
        return
    for i, (x, y) in enumerate(zip(a.results, b.results, strict=True)):
        problem = judge(x, y, _result(i, len(a.results)))
        if problem is not None:
            yield "values", f"result {i}: {problem}"
    for i, (p, q) in enumerate(zip(a.looks, b.looks, strict=True)):
        if p is not None and q is not None:
            yield from _unlike_looks(i, p, q, names)
    for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
        problem = judge(x, y, Pick(lambda seen, i=i: seen.inputs[i], Bounds.of_arguments))  # type: ignore[misc]
        if problem is not None:
            yield "inputs", f"input {i} afterwards: {problem}"
    if not torch.equal(a.drawn, b.drawn):
        yield "random numbers", "another count is drawn"
    if a.drawn_elsewhere != b.drawn_elsewhere:
        yield "random numbers", "another count of Python's or numpy's is drawn"
    yield from _unlike_state(a, b, names, judge, unwritten=unwritten)
    yield from _unlike_slopes(a, b, names, slopes or judge, noise)


def _unlike_errors(a: Exception | None, b: Exception | None) -> str | None:
    """Return how two calls differ in what they raise. Where the original raises, one of our errors is allowed."""
    if a is not None and b is not None and (type(a) is type(b) or isinstance(b, GraphwrightError)):
        return None
    x, y = ("no error" if e is None else f"{type(e).__name__} ({first_lines(e, 1)})" for e in (a, b))
    return f"{x} became {y}"


def _unlike_looks(index: int, a: Look, b: Look, names: ParameterMap) -> Iterator[tuple[str, str]]:
    for what, property_, x, y in zip(
        ("shape", "dtype", "strides", "requires_grad", "is a Parameter"),
        ("types", "types", "strides", "gradients", "structure"),
        a.facts,
        b.facts,
        strict=True,
    ):
        if x != y:
            yield property_, f"result {index}: {what}: {x} became {y}"
    for what, xs, ys in (("inputs", a.inputs, b.inputs), ("results", a.results, b.results)):
        if xs != ys:
            yield "sharing", f"result {index} shares memory with {what} {list(xs)}, and now with {list(ys)}"
    sources = frozenset(source for key in b.weights for source in names.get(key, (key,)))
    # a tied weight may have lost some of its names
    if bool(sources) != bool(a.weights) or not sources <= a.weights:
        yield (
            "sharing",
            f"result {index} shares memory with weights {sorted(a.weights)}, and now with {sorted(sources)}",
        )


def _unlike_state(
    a: Observation, b: Observation, names: ParameterMap, judge: Judge, *, unwritten: bool
) -> Iterator[tuple[str, str]]:
    covered: set[str] = set()
    for key, value in b.state.items():
        sources = names.get(key, (key,))
        covered.update(sources)
        if not set(sources) - names.constants <= set(a.state):
            if sources != (key,) or key in b.written:
                yield "state", f"{key} comes from {sources}, which are not in the original"
            continue  # a constant
        if not unwritten and key not in b.written and a.written.isdisjoint(sources):
            continue
        problem = judge(heir(names, key, a.state), value, _state(names, key))
        if problem is not None:
            yield "state", f"{key} afterwards: {problem}"
        elif (key in b.attached) is a.attached.isdisjoint(sources):
            yield "gradients", f"{key} afterwards: {'one' if key in b.attached else 'none'} to what the next call reads"
        elif (key in b.replaced) is a.replaced.isdisjoint(sources):
            yield (
                "sharing",
                f"{key} afterwards: {'replaced' if key in b.replaced else 'mutated'}, unlike the original's",
            )
    kept = {id(a.state[name]) for name in covered & set(a.state)}  # what is tied may have lost some of its names
    for name in sorted(a.written - covered):
        if id(a.state[name]) not in kept:
            yield "state", f"{name} is changed by the original, and gone"


def _unlike_slopes(
    a: Observation, b: Observation, names: ParameterMap, judge: Judge, noise: float
) -> Iterator[tuple[str, str]]:
    covered = {source for key in (*b.state, *b.slopes) for source in names.get(key, (key,))}
    absorbed = {source for key in names for source in names[key]} - set(names)
    for key, value in b.slopes.items():
        if value is None and key in absorbed:
            continue  # a program still has it, to name what is computed from it
        sources = (key,) if key.startswith("input ") else names.get(key, (key,))
        if not a.slopes.keys() >= set(sources):
            if not is_no_slope(value, noise):
                yield "gradients", f"of {key}, which the original has not"
            continue
        if len(sources) > 1:
            yield from _unlike_slope_of_several(a, key, value, names, judge)
            continue
        (source,) = sources
        if key not in names and _is_same(a.slopes[source], value):
            continue
        # the gradient of an overwritten value is zero, times a factor that may be infinite
        finite_slope = None if a.slopes[source] is None else a.slopes[source].nan_to_num(0.0, 0.0, 0.0)  # type: ignore[union-attr]
        if is_no_slope(finite_slope) and is_no_slope(value, noise):
            continue
        if a.slopes[source] is None or value is None:
            if a.slopes[source] is not value:
                yield "gradients", f"of {key}: there is {'none now' if value is None else 'one now, and none before'}"
            continue
        expected = heir(names, key, a.slopes)
        # where a gradient is infinite, the order of a sum decides whether it is NaN
        finite = expected.isfinite()
        if expected.shape == value.shape:
            expected, value = expected[finite], value[finite]
        problem = judge(expected, value, _slope(names, key, finite))
        if problem is not None:
            yield "gradients", f"of {key}: {problem}"
    tied = {id(a.state[name]) for name in covered & set(a.state)}  # what is tied may have lost some of its names
    for name in sorted(set(a.slopes) - covered):
        if not is_no_slope(a.slopes[name]) and id(a.state.get(name)) not in tied:
            yield "gradients", f"of {name}: there is none now, and one before"


def _unlike_slope_of_several(
    a: Observation, key: str, value: torch.Tensor | None, names: ParameterMap, judge: Judge
) -> Iterator[tuple[str, str]]:
    """Yield how the gradient of a weight that is made of several trained ones differs from theirs, put together.

    Where some of these have no gradient, none is put together.
    """
    given = [a.slopes[name] for name in names[key]]
    if all(slope is None for slope in given) and not is_no_slope(value):
        yield "gradients", f"of {key}: there is one now, and none before"
    if any(slope is None for slope in given):
        return
    expected = heir(names, key, a.slopes)
    if value is None:
        if not is_no_slope(expected):
            yield "gradients", f"of {key}: there is none now"
        return
    finite = expected.isfinite()
    problem = judge(expected[finite], value[finite], _slope(names, key, finite))
    if problem is not None:
        yield "gradients", f"of {key}: {problem}"


def heir(names: ParameterMap, key: str, tensors: Mapping[str, torch.Tensor | None]) -> Any:
    """Return the expected tensor of the emitted module: a weight may have been transposed or reshaped."""
    sources = names.get(key, (key,))
    if key not in names or any(tensors.get(source) is None for source in set(sources) - names.constants):
        return tensors.get(sources[0])
    return names.heir(key, tensors)


def freezes(names: ParameterMap, original: nn.Module) -> bool:
    """Return whether the emitted module does not train something that is computed from what the original trains."""
    trained = {name for name, each in original.named_parameters(remove_duplicate=False) if each.requires_grad}
    return any(not trained.isdisjoint(names[key]) for key in names.untrained)


def _is_same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Return whether two gradients hold equal numbers, the common case, which takes one operation."""
    if a is None or b is None:
        return a is b
    if (a.dtype, a.device, a.layout, b.layout) != (b.dtype, b.device, torch.strided, torch.strided):
        return False
    return a.device.type != "meta" and torch.equal(a, b)


def is_no_slope(slope: torch.Tensor | None, noise: float = 0.0) -> bool:
    """Return whether a gradient is absent or zero throughout: overwritten values have one or the other.

    In float64, `noise` counts as zero: terms that cancel inside of a kernel leave their last places.
    """
    if slope is None or not bool((slope != 0).any()):
        return True
    return slope.dtype is torch.float64 and float(slope.abs().max()) <= noise


def _result(index: int, count: int) -> Pick:
    return Pick(lambda seen: seen.results[index], lambda bounds: bounds.of_results(count)[index])


def _state(names: ParameterMap, key: str) -> Pick:
    return Pick(lambda seen: heir(names, key, seen.state), lambda bounds: bounds.of_buffer(key))


def _slope(names: ParameterMap, key: str, finite: torch.Tensor) -> Pick:
    def pick(seen: Observation) -> Any:
        slope = heir(names, key, seen.slopes)
        return None if slope is None or slope.shape != finite.shape else slope[finite]

    return Pick(pick)
