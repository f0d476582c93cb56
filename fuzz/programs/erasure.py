"""Programs with unknown or partly known types, as from `torch.fx.symbolic_trace`."""

from __future__ import annotations

import attrs
from hypothesis import strategies as st

from fuzz.calls.types import ONE_IN_FOUR, forgetful
from fuzz.programs.retyping import retype
from ir.errors import InferenceError
from ir.program import Program
from ir.types import UNKNOWN_TENSOR, TensorType, Type


@st.composite
def with_erased_types(draw: st.DrawFn, program: Program, *, always: bool = False) -> Program:
    """Return a strategy that erases types of a program once in four times.

    It erases the types of all inputs, or their first size (the batch), or all or part of the type of each input. All
    other types are inferred again. Weights keep their types, and so do inputs whose sizes are symbols or determine a
    number of results.

    Args:
        draw: of hypothesis.
        program: the program; it is changed. Draw tensors for its inputs first.
        always: whether types are erased each time.
    """
    graph = program.graph
    if program.symbols or not (always or draw(ONE_IN_FOUR)):
        return program
    known: list[Type | None] = [value.type for value in graph.inputs]
    how = draw(st.sampled_from(("all", "batch", "some", "some")))  # the first is drawn most often
    erased = [draw(_erased(type_, how)) if isinstance(type_, TensorType) else type_ for type_ in known]
    if _takes(program, erased):
        return program
    kept = list(known)
    for number, type_ in enumerate(erased):
        tried = [*kept[:number], type_, *kept[number + 1 :]]
        if _takes(program, tried):
            kept = tried
    retype(graph, kept)
    return program


@st.composite
def _erased(draw: st.DrawFn, type_: TensorType, how: str) -> TensorType:
    if how == "all" or (how == "some" and draw(st.booleans())):
        return UNKNOWN_TENSOR
    if how == "batch":
        return attrs.evolve(type_, shape=(None, *type_.shape[1:])) if type_.shape else type_
    return draw(forgetful(type_))


def _takes(program: Program, types: list[Type | None]) -> bool:
    try:
        retype(program.graph, types)
    except InferenceError:
        return False
    return True
