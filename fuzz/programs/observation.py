"""The observable behaviour of a program, and differences between two programs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from compiler.emitted.parameter_map import ParameterMap
from compiler.equality import observation_differences
from compiler.equality.observation import Observation, looks_of, seeded, slopes_of
from compiler.equality.observation_differences import Judge, Pick
from compiler.equality.widened import widened
from compiler.usercode.difference import tensor_difference
from fuzz.programs.budget import Budget
from ir.errors import EvaluationError
from ir.evaluate import evaluate
from ir.opdef import Trait
from ir.program import Program
from ir.types import TensorType


def observe(
    program: Program, inputs: Sequence[Any], *, double: bool = False, gradients: bool = False, seed: int = 0
) -> Observation:
    """Run a program and return what is observable; `state` has the weights that training replaces.

    Args:
        program: the program; its weights are not mutated.
        inputs: one tensor or number for each input; not mutated.
        double: whether to run in float64.
        gradients: whether to compute gradients of a random linear form in the results.
        seed: of the random numbers that operations draw.

    Raises:
        EvaluationError: when an operation fails.
    """
    weights = {name: w.data.detach() for name, w in program.weights.items() if w.data is not None}
    if double:
        twins: dict[Any, torch.Tensor] = {}  # what is one tensor stays one tensor
        inputs = [twins.setdefault(id(x), widened(x)) if isinstance(x, torch.Tensor) else x for x in inputs]
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
        try:
            slopes = slopes_of(results, leaves) if gradients else {}
        except (RuntimeError, NotImplementedError) as error:  # an operator without a derivative
            raise EvaluationError(f"the gradient failed: {error}") from error
    return Observation(
        structure=len(results),
        results=tuple(r.detach() if isinstance(r, torch.Tensor) else r for r in results),
        looks=looks_of(results, [x for x in inputs if isinstance(x, torch.Tensor)], weights),
        inputs=(),
        drawn=drawn,
        state={name: w.detach() for name, w in written.items()},
        written=frozenset(written),
        attached=frozenset(),
        replaced=frozenset(),
        slopes=slopes,
    )


_NO_SLOPE = 1e-12
"""Gradients in float64 that count as none: the last places of ordinary numbers."""


_IGNORES_ALL = ("ignore", None, Warning, None, 0)
"""What `simplefilter("ignore")` puts first."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of kernels about drawn operands."""
    if warnings.filters and warnings.filters[0] == _IGNORES_ALL:
        yield  # a block around this one does so
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _leaf(tensor: Any, name: str, leaves: dict[str, torch.Tensor]) -> Any:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return tensor
    leaves[name] = tensor.detach().requires_grad_()
    return leaves[name]


def _place(tensor: torch.Tensor) -> Any:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.numel() or id(tensor)


def differences(
    before: Observation,
    after: Observation,
    budget: Budget[Observation] | None = None,
    names: ParameterMap | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each difference between a changed program and the original.

    The budget is the differences in values that are allowed; None if results must have the same bits. `names` has the
    weights that are computed and trained.
    """
    slopes: Judge = Budget[Observation]().difference if budget is None else budget.difference
    judge = _judge_bits if budget is None else slopes
    return observation_differences.differences(before, after, judge=judge, slopes=slopes, names=names, noise=_NO_SLOPE)


def _judge_bits(a: Any, b: Any, pick: Pick) -> str | None:
    return tensor_difference(a, b, exact=True)


def without_gradients(seen: Observation) -> Observation:
    """Return what a run with gradients shows of a run without."""
    looks = [look and attrs.evolve(look, facts=(*look.facts[:3], False, *look.facts[4:])) for look in seen.looks]
    return attrs.evolve(seen, looks=tuple(looks), slopes={})


def under_names(seen: Observation, names: Mapping[str, str]) -> Observation:
    """Return an observation with other names for the weights whose storage results share."""
    looks = [
        look and attrs.evolve(look, weights=frozenset(names.get(weight, weight) for weight in look.weights))
        for look in seen.looks
    ]
    return attrs.evolve(seen, looks=tuple(looks))


def coarsest_dtype(program: Program) -> torch.dtype:
    """Return the float dtype with the fewest digits in a program; float32 where all have more."""
    types = [v.type for v in program.values()]
    dtypes = [t.dtype for t in types if isinstance(t, TensorType) and t.dtype is not None and t.dtype.is_floating_point]
    return max([torch.float32, *dtypes], key=lambda dtype: torch.finfo(dtype).eps)


def fixes_dtypes(program: Program) -> bool:
    """Return whether an operation fixes a float dtype of its results, so that no run is in float64 throughout."""
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


def has_coarse_derivative(program: Program) -> bool:
    """Whether PyTorch rounds the derivative of an operation to float32, whatever the dtype is."""
    return any(op.opdef.has(Trait.COARSE_DERIVATIVE) for op in program.graph.operations())
