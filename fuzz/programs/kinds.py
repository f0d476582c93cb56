"""Whether regions compute what their kind means, on random operands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from compiler.equality.observation import seeded
from compiler.equality.widened import is_float, widest
from compiler.usercode.difference import tensor_difference
from ir.attributes import Attribute, map_leaves
from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.errors import EvaluationError, PatternError
from ir.evaluate import evaluate_graph
from ir.program import Program
from ir.types import UNKNOWN_TENSOR, TensorType
from passes.fuse.kinds import Meaning, Region, meanings_of
from passes.manager.manager import Pass


def other_than_its_kind(program: Program, typed: Program) -> str | None:
    """Return the first region that does not compute what its kind means, and how; None if all do.

    Args:
        program: the program, with the types that its rules saw.
        typed: the same with its types on some inputs; regions with unknown sizes are skipped.
    """
    for op, twin in zip(program.graph.operations(), typed.graph.operations(), strict=True):
        meanings = meanings_of(op) if op.results else ()  # dead code has no results
        operands = _stand_ins(twin) if meanings else None
        if operands is not None and twin.body is not None:
            double = _in_float64(op)
            problem = _difference(double, double if twin is op else _in_float64(twin), operands, meanings)
            if problem is not None:
                return problem
    return None


def other_points(program: Program, pass_: Pass) -> str | None:
    """Return the first region that has other quantization points than a rule of the pass declares; None if none."""
    rules = getattr(pass_, "rules", ())
    if not isinstance(rules, tuple):
        return None  # a pass that makes its rules has no fusions
    declared = {getattr(rule, "kind", ""): getattr(rule, "quantization_points", None) for rule in rules}
    for op in program.graph.operations():
        points = declared.get(op.attributes.get("kind", "")) if op.body is not None else None
        if points is not None and tuple(points) != op.attributes["quantization_points"]:
            return f"{op.name} has the quantization points {op.attributes['quantization_points']}, not {points}"
    return None


@contextmanager
def _floats_are_float64() -> Iterator[None]:
    """Make what integers become, times 0.5 or in a division, float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_float64(op: Operation) -> Operation:
    """Return a copy of a region whose body is in float64 throughout: no operation asks for another floating dtype."""
    graph = Graph([(f"x{i}", UNKNOWN_TENSOR) for i in range(len(op.operands))])
    copy = copy_into(op, graph, {}, graph.inputs)
    assert copy.body is not None
    for inner in copy.body.operations():
        for name, value in inner.attributes.items():
            inner.set_attribute(name, map_leaves(value, _widest))
    return copy


def _widest(leaf: Attribute) -> Attribute:
    return widest(leaf) if isinstance(leaf, torch.dtype) and is_float(leaf) else leaf


def _difference(
    op: Operation, twin: Operation, operands: Sequence[torch.Tensor], meanings: Sequence[Meaning]
) -> str | None:
    body = twin.body
    assert body is not None
    try:
        with seeded(0), torch.no_grad(), _floats_are_float64():
            results = evaluate_graph(body, [x.clone() for x in operands], {}, {})
    except EvaluationError as error:
        return f"{op.name} at `{op.location.where}` does not run: {error}"
    names = [value.name for value in body.inputs]
    # a division by 0 gives NaN elsewhere if it is moved
    finite = all(bool(x.isfinite().all()) for x in results if isinstance(x, torch.Tensor))
    problems = []
    for meaning in meanings:
        given = {name: x.clone() for name, x in zip(names, operands, strict=True)}
        try:
            with seeded(0), torch.no_grad(), _floats_are_float64():
                wanted = meaning(Region(op, given, [result.shape for result in results]))
        except PatternError as error:
            problems.append(error.message)
            continue
        except (EvaluationError, RuntimeError) as error:
            problems.append(f"{op.name} at `{op.location.where}`: its kind does not take its operands: {error}")
            continue
        expected = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
        found = _compare(expected, results)
        if found is None or not finite:
            return None
        said = (meaning.__doc__ or "").strip().partition("\n")[0]
        problems.append(f"{op.name} at `{op.location.where}` is not {said}: {found}")
    return problems[0]


def _compare(expected: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> str | None:
    if len(expected) != len(results):
        return f"it has {len(results)} results, not {len(expected)}"
    for i, (a, b) in enumerate(zip(expected, results, strict=True)):
        problem = tensor_difference(a, b, exact=False)
        if problem is not None:
            return f"result {i}: {problem}"
    return None


def _stand_ins(op: Operation) -> list[torch.Tensor] | None:
    """Return a random tensor for each operand of a region, one per value; None where sizes are unknown."""
    assert op.body is not None
    positive = {
        inner.operand("running_var") for inner in op.body.operations() if "running_var" in inner.opdef.operand_index
    }
    generator = torch.Generator().manual_seed(len(op.operands))
    made: dict[Value, torch.Tensor] = {}
    for value, inner in zip(op.operands, op.body.inputs, strict=True):
        type_ = None if value is None else value.type
        if value is None or not isinstance(type_, TensorType) or not type_.is_static or type_.numel == 0:
            return None
        if value not in made:
            made[value] = _random(type_, generator, positive=inner in positive)
    return [made[value] for value in op.operands if value is not None]


def _random(type_: TensorType, generator: torch.Generator, *, positive: bool) -> torch.Tensor:
    shape = [size for size in type_.shape or () if isinstance(size, int)]
    if type_.dtype is torch.bool:
        mask = torch.rand(shape, generator=generator) < 0.5
        if shape:
            mask[..., 0] = True  # what is masked throughout is no number
        return mask
    if type_.dtype is None or not (type_.dtype.is_floating_point or type_.dtype.is_complex):
        return torch.zeros(shape, dtype=type_.dtype)
    tensor = torch.randn(shape, generator=generator, dtype=widest(type_.dtype))
    return tensor.abs() + 0.5 if positive else tensor
