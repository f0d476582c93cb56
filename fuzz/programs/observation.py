"""What can be seen of a program (results, strides, sharing, what it writes, gradients), and how two of them differ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from compiler.equality.observation import seeded
from compiler.equality.observation_differences import is_no_slope
from compiler.usercode.difference import precision_floor, tensor_difference
from compiler.usercode.tensors import meaningful_strides
from fuzz.programs.rounding import Rounding
from ir.errors import EvaluationError
from ir.evaluate import evaluate
from ir.program import Program
from ir.types import TensorType


@attrs.frozen(eq=False)
class Observation:
    """What one run of a program shows."""

    results: tuple[Any, ...]
    sharing: frozenset[tuple[str, str]]
    """Pairs among inputs, weights and results that share storage; one of each is a result."""
    written: Mapping[str, torch.Tensor]
    """What operations in training wrote in place of weights."""
    gradients: Mapping[str, torch.Tensor] | None
    """Gradients by input and weight, absent where no gradient flows; None where they were not asked for."""
    drawn: torch.Tensor
    """The state of the random generator afterwards."""


def widened(tensor: Any) -> Any:
    """Return a tensor in float64 (complex128), other things as they are."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def observe(
    program: Program, inputs: Sequence[Any], *, double: bool = False, gradients: bool = False, seed: int = 0
) -> Observation:
    """Run a program and return what can be seen of the run.

    Args:
        program: the program; its weights are not written.
        inputs: one tensor or number for each input; not written.
        double: whether to run in float64.
        gradients: whether to compute the gradients of a random linear form in the results.
        seed: seeds what operations draw.

    Raises:
        EvaluationError: when an operation fails.
    """
    weights = {name: w.data.detach() for name, w in program.weights.items() if w.data is not None}
    if double:
        inputs = [widened(x) for x in inputs]
        twins: dict[Any, torch.Tensor] = {}  # weights that are one tensor stay one tensor
        weights = {name: twins.setdefault(_place(w), widened(w)) for name, w in weights.items()}
    leaves: dict[str, torch.Tensor] = {}
    if gradients:
        inputs = [_leaf(x, f"input {i}", leaves) for i, x in enumerate(inputs)]
        weights = {
            name: _leaf(w, name, leaves) if program.weights[name].requires_grad else w for name, w in weights.items()
        }
    written: dict[str, torch.Tensor] = {}
    with seeded(seed), torch.set_grad_enabled(gradients), quiet():
        results = evaluate(program, inputs, weights, written=written)
        drawn = torch.default_generator.get_state()
        slopes = _gradients(results, leaves) if gradients else None
    results = [r.detach() if isinstance(r, torch.Tensor) else r for r in results]
    written = {name: w.detach() for name, w in written.items()}
    return Observation(tuple(results), _sharing(inputs, weights, results), written, slopes, drawn)


_NO_SLOPE = 1e-12
"""What counts as no gradient in float64: the last places of numbers of usual size."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of kernels about operands that a strategy chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _leaf(tensor: Any, name: str, leaves: dict[str, torch.Tensor]) -> Any:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return tensor
    leaves[name] = tensor.detach().requires_grad_()
    return leaves[name]


def _gradients(results: Sequence[Any], leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with_gradient = [r for r in results if isinstance(r, torch.Tensor) and r.requires_grad]
    if not with_gradient or not leaves:
        return {}
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in with_gradient]
    try:
        slopes = torch.autograd.grad(with_gradient, list(leaves.values()), directions, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:  # an operator without a derivative
        raise EvaluationError(f"the gradient failed: {error}") from error
    return {name: slope for name, slope in zip(leaves, slopes, strict=True) if slope is not None}


def _place(tensor: torch.Tensor) -> Any:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.numel() or id(tensor)


def _sharing(
    inputs: Sequence[Any], weights: Mapping[str, torch.Tensor], results: Sequence[Any]
) -> frozenset[tuple[str, str]]:
    given = {**{f"input {i}": x for i, x in enumerate(inputs)}, **{f"weight {k}": w for k, w in weights.items()}}
    places: dict[int, list[str]] = {}
    for name, tensor in given.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            # by its first name: a new weight may be a view of an old one
            places.setdefault(tensor.untyped_storage().data_ptr(), [name])
    pairs = []
    for i, result in enumerate(results):
        if isinstance(result, torch.Tensor) and result.numel():
            others = places.setdefault(result.untyped_storage().data_ptr(), [])
            pairs += [(other, f"result {i}") for other in others]
            others.append(f"result {i}")
    return frozenset(pairs)


# ---- comparison ----


def differences(
    before: Observation, after: Observation, *, exact: bool, rounding: Rounding[Observation] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each property in which two observations of what should be one program differ.

    Args:
        before: of the original.
        after: of the changed program, run on the same inputs in the same precision.
        exact: whether results must have the same bits; else they may differ by `RELATIVE_BOUND`.
        rounding: of the original, for results that cancel; None where `before` is no run in float64.
    """
    yield from _walk(
        before,
        after,
        lambda a, b, pick: _judge(a, b, exact, rounding, pick),
        lambda a, b, pick: _judge(a, b, False, rounding, pick),
    )


Pick = Callable[[Observation], torch.Tensor | None]
"""Takes one tensor out of an observation."""
Judge = Callable[[Any, Any, Pick], str | None]
"""Says how two results differ by more than is allowed, or None."""


def _walk(before: Observation, after: Observation, judge: Judge, judge_slope: Judge) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each property in which two observations differ, as judges of values say."""
    if len(before.results) != len(after.results):
        yield "values", f"{len(before.results)} results became {len(after.results)}"
        return
    for i, (a, b) in enumerate(zip(before.results, after.results, strict=True)):
        problem = judge(a, b, _result(i))
        if problem is not None:
            yield "values", f"result {i}: {problem}"
        elif isinstance(a, torch.Tensor) and meaningful_strides(a) != meaningful_strides(b):
            yield "strides", f"result {i} of shape {tuple(a.shape)}: {a.stride()} became {b.stride()}"
    if before.sharing != after.sharing:
        gone, new = sorted(before.sharing - after.sharing), sorted(after.sharing - before.sharing)
        yield "sharing", f"memory that is not shared any more: {gone}; memory that is shared now: {new}"
    for name, a, b in _pairs(before.written, after.written):
        problem = judge(a, b, _written(name))
        if problem is not None:
            yield "statistics", f"what is written to {name}: {problem}"
    masks = _finite(before.gradients)
    for name, a, b in _pairs(_masked(before.gradients, masks), _masked(after.gradients, masks)):
        problem = judge_slope(a, b, _gradient(name, masks))
        # one that is zero throughout may as well be absent
        if problem is not None and not (is_no_slope(a) and _is_noise(b)):
            yield "gradients", f"of {name}: {problem}"
    if not torch.equal(before.drawn, after.drawn):
        yield "random numbers", "another count is drawn"


def _judge(
    a: Any,
    b: Any,
    exact: bool,
    rounding: Rounding[Observation] | None,
    pick: Pick,
) -> str | None:
    if a is None and b is None:
        return None  # a result that is no tensor
    if a is None or b is None:
        return "is gone" if b is None else "was not there before"
    problem = tensor_difference(a, b, exact=exact)
    if problem is None or exact or rounding is None or not isinstance(a, torch.Tensor) or not a.is_floating_point():
        return problem
    problem = tensor_difference(a, b, exact=False, bound=rounding.bound(a, pick))
    if problem is None:
        return None
    return tensor_difference(a, b, exact=False, bound=rounding.first_order(pick, torch.finfo(a.dtype).eps))


def _result(index: int) -> Pick:
    return lambda seen: seen.results[index]


def _written(name: str) -> Pick:
    return lambda seen: seen.written.get(name)


def _gradient(name: str, masks: Mapping[str, torch.Tensor]) -> Pick:
    return lambda seen: _masked(seen.gradients, masks).get(name)


def _pairs(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor | None, torch.Tensor | None]]:
    for name in dict.fromkeys((*before, *after)):
        yield name, before.get(name), after.get(name)


def _is_noise(slope: torch.Tensor | None) -> bool:
    """Return whether a gradient that should be zero throughout is.

    Terms that cancel inside of a kernel leave their last places (a layer norm over one number). The original need not
    have them, so that they cannot be measured in it. Asked of float64 alone, where these are far below any real slope.
    """
    if slope is None or is_no_slope(slope):
        return True
    return slope.dtype is torch.float64 and float(slope.abs().max()) <= _NO_SLOPE


def _finite(gradients: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return where those gradients are finite that are not throughout; elsewhere nothing is compared.

    Where a value has several users its gradient is a sum, and a factor that is infinite makes a NaN of it or not
    depending on whether the sum is formed before or after the factor: merging equal operations moves it.
    """
    masks = {name: slope.isfinite() for name, slope in (gradients or {}).items()}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def _masked(
    gradients: Mapping[str, torch.Tensor] | None, masks: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    if not masks:
        return gradients or {}
    return {
        name: slope[masks[name]] if name in masks and slope.shape == masks[name].shape else slope
        for name, slope in (gradients or {}).items()
    }


def budgeted_differences(
    before: Observation,
    after: Observation,
    exact: Observation,
    rounding: Rounding[Observation],
    coarsest: torch.dtype = torch.float32,
) -> Iterator[tuple[str, str]]:
    """Yield (property, message) as `differences` does, where both may be as far from `exact` as `before` is, twice.

    Args:
        before: of the original, in its own precision.
        after: of the changed program, in its own precision.
        exact: of the original, in float64.
        rounding: of the original in its own precision, for results that cancel.
        coarsest: the float dtype with the fewest digits on the way.
    """

    def judge(a: Any, b: Any, pick: Pick) -> str | None:
        return _judge_in_budget(a, b, exact, rounding, coarsest, pick)

    yield from _walk(before, after, judge, judge)


def _judge_in_budget(
    a: Any,
    b: Any,
    exact: Observation,
    rounding: Rounding[Observation],
    coarsest: torch.dtype,
    pick: Pick,
) -> str | None:
    if a is None or b is None:
        return None if a is b else "is gone" if b is None else "was not there before"
    reference = pick(exact)
    bound = own_error(a, reference, coarsest)
    if isinstance(a, torch.Tensor) and isinstance(reference, torch.Tensor) and a.shape == b.shape == reference.shape:
        # where the original overflows and float64 does not, its own error has no limit
        kept = a.isfinite() | ~reference.isfinite()
        if not bool(kept.all()):
            a, b, pick = a[kept], b[kept], _kept(pick, kept)
    problem = tensor_difference(a, b, exact=False, bound=bound)
    if problem is None or not isinstance(a, torch.Tensor) or not a.is_floating_point() or a.shape != b.shape:
        return problem
    bound = max(bound, rounding.bound(a, pick, relative=max(map(rounding_limit, (a.dtype, coarsest)))))
    problem = tensor_difference(a, b, exact=False, bound=bound)
    if problem is not None:
        eps = max(torch.finfo(dtype).eps for dtype in (a.dtype, coarsest))
        bound = max(bound, rounding.first_order(pick, eps))
        problem = tensor_difference(a, b, exact=False, bound=bound)
    return None if problem is None else f"{problem}, of which {bound:.3g} is allowed"


def _kept(
    pick: Callable[[Observation], torch.Tensor | None], kept: torch.Tensor
) -> Callable[[Observation], torch.Tensor | None]:
    def picked(seen: Observation) -> torch.Tensor | None:
        tensor = pick(seen)
        return tensor[kept] if tensor is not None and tensor.shape == kept.shape else None

    return picked


def own_error(own: Any, reference: Any, coarsest: torch.dtype = torch.float32) -> float:
    """Return twice the distance from a reference in float64, and 1e-6 of its scale.

    1e-6 is eight units in the last place of float32. Of dtypes with fewer digits it is as many of theirs: the distance
    may be 0 by chance, and another order of the same operations still moves the last place.
    """
    if not isinstance(own, torch.Tensor) or not isinstance(reference, torch.Tensor) or not own.is_floating_point():
        return 0.0
    gap = (own.double() - reference.double()).abs()
    gap, scale = gap[gap.isfinite()], reference[reference.isfinite()].abs()
    floor = max(map(precision_floor, (own.dtype, coarsest))) * (float(scale.max()) if scale.numel() else 0.0)
    return 2 * (float(gap.max()) if gap.numel() else 0.0) + floor


def rounding_limit(dtype: torch.dtype) -> float:
    """Return the most that measured rounding may excuse, relative to the largest magnitude on the way.

    With the few digits of half precision, comparisons tip over so often (the sign that a ReLU's gradient depends on)
    that what rounding does to the original is all there is to go by.
    """
    return math.inf if dtype.itemsize < 4 else precision_floor(dtype)


def coarsest_dtype(program: Program) -> torch.dtype:
    """Return the float dtype with the fewest digits in a program; float32 where all have more."""
    types = [v.type for v in program.values()]
    dtypes = [t.dtype for t in types if isinstance(t, TensorType) and t.dtype is not None and t.dtype.is_floating_point]
    return max([torch.float32, *dtypes], key=lambda dtype: torch.finfo(dtype).eps)


def fixes_dtypes(program: Program) -> bool:
    """Return whether an operation makes floats of a dtype of its own, so that a run in float64 is not so throughout."""
    for op in program.graph.operations():
        if any(isinstance(value, torch.dtype) and value.is_floating_point for value in op.attributes.values()):
            return True
        made = [r.type for r in op.results if isinstance(r.type, TensorType) and r.type.dtype is not None]
        sources = [v.type for v in op.operand_values if isinstance(v.type, TensorType) and v.type.dtype is not None]
        if any(t.dtype.is_floating_point for t in made if t.dtype) and not any(
            t.dtype.is_floating_point for t in sources if t.dtype
        ):
            return True
    return False
