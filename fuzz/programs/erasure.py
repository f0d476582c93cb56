"""Programs with unknown or partly known types and computed sizes, as from `torch.fx.symbolic_trace`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from fuzz.calls.types import draw_integer, one_in_four, without_parts
from fuzz.programs.retyping import retype
from ir.core import Operation, Value
from ir.errors import InferenceError
from ir.program import Program
from ir.types import UNKNOWN_TENSOR, TensorType, Type
from passes.rewrite.rewriter import Rewriter

_BOOLEANS = st.booleans()
_COMPUTED_ONE_IN = 6
"""In how many programs that lose types one computes a size."""
_WAYS = st.sampled_from(("all", "batch", "some", "some"))  # the first is drawn most often

_SIZES = ("shape", "size", "output_size")
"""The attributes that hold sizes."""
_Place = tuple[Operation, str, int, Value, int]
"""A number in an attribute of an operation, and an input with the dimension that has this size."""


def erase_types(draw: st.DrawFn, program: Program, *, always: bool = False, unknown: str = "") -> Program:
    """Erase types of a program once in four times, and return the program.

    It erases the types of all inputs, or their first size (the batch), or all or part of the type of each input. All
    other types are inferred again. Weights keep their types, and so do inputs whose sizes are symbols or determine a
    number of results. Some of these programs compute a size first.

    Args:
        draw: of hypothesis.
        program: the program; it is changed. Draw tensors for its inputs first.
        always: whether types are erased each time.
        unknown: `batch` or `all`, where it is said what is erased.
    """
    if program.symbols or not (always or unknown or one_in_four(draw)):
        return program
    if not always and not unknown and draw_integer(draw, 0, _COMPUTED_ONE_IN - 1) == _COMPUTED_ONE_IN - 1:
        _compute_size(draw, program)
    how = unknown or draw(_WAYS)
    types = [value.type for value in program.graph.inputs]
    _erase(program, [_erased(draw, type_, how) if isinstance(type_, TensorType) else type_ for type_ in types])
    return program


def erase_inputs(program: Program, unknown: str) -> None:
    """Erase the first size (`batch`) or all of the types of the inputs, and infer all other types again."""
    types = [value.type for value in program.graph.inputs]
    _erase(program, [_without(type_, unknown) if isinstance(type_, TensorType) else type_ for type_ in types])


def _erase(program: Program, erased: Sequence[Type]) -> None:
    """Give the inputs these types and infer all others again; where that fails, inputs that need theirs keep them."""
    graph = program.graph
    known: list[Type | None] = [value.type for value in graph.inputs]
    if _takes(program, erased):
        return
    kept = list(known)
    for number, type_ in enumerate(erased):
        tried = [*kept[:number], type_, *kept[number + 1 :]]
        if _takes(program, tried):
            kept = tried
    retype(graph, kept)


with_erased_types = st.composite(erase_types)
"""A strategy that erases types of a program once in four times: of a test, which draws from strategies."""


def _erased(draw: st.DrawFn, type_: TensorType, how: str) -> TensorType:
    if how == "some":
        return UNKNOWN_TENSOR if draw(_BOOLEANS) else without_parts(draw, type_)
    return _without(type_, how)


def _without(type_: TensorType, unknown: str) -> TensorType:
    if unknown == "all":
        return UNKNOWN_TENSOR
    return attrs.evolve(type_, shape=(None, *type_.shape[1:])) if type_.shape else type_


def _takes(program: Program, types: Sequence[Type | None]) -> bool:
    try:
        retype(program.graph, types)
    except InferenceError:
        return False
    return True


def _compute_size(draw: st.DrawFn, program: Program) -> None:
    """Replace a number among the sizes that an operation is given by an equal size of an input, asked for before it.

    Less is known of the types that depend on it: they are inferred again. Nothing changes where that fails.
    """
    places = _places(program)
    if not places:
        return
    op, name, at, x, dim = places[draw_integer(draw, 0, len(places) - 1)]
    rewriter = Rewriter(program)
    sizes: tuple[Any, ...] = op.attributes[name]
    with rewriter.at(op):
        asked = rewriter.op("aten.sym_size.int", x, dim)
        grouped = zip(op.opdef.operand_params, op.grouped_operands(), strict=True)
        given: dict[str, Any] = {param.name: value for param, value in grouped}
        given |= op.attributes | {name: (*sizes[:at], asked.result, *sizes[at + 1 :])}
        try:
            made = rewriter.op(op.opdef, **given)
        except InferenceError:
            rewriter.erase(asked)
            return
    rewriter.replace(op, *made.results)
    retype(program.graph, [None] * len(program.graph.inputs))


def _places(program: Program) -> list[_Place]:
    inputs = [value for value in program.graph.inputs if isinstance(value.type, TensorType)]
    return [
        (op, name, at, x, dim)
        for op in program.graph.operations()
        if op.body is None and len(op.operands) == len(op.opdef.operand_params)
        for name in _SIZES
        if isinstance(op.attributes.get(name), tuple)
        for at, size in enumerate(op.attributes[name])
        if type(size) is int and size > 0
        for x in inputs
        for dim, other in enumerate(x.tensor_type.shape or ())
        if type(other) is int and other == size
    ]
