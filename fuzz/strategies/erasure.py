"""Programs of which types are not known, wholly or in part: as `torch.fx.symbolic_trace` gives them."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzz.retyping import retype
from fuzz.strategies.types import forgetful
from ir.errors import InferenceError
from ir.program import Program
from ir.types import UNKNOWN_TENSOR, TensorType, Type

ERASED_ONE_IN = 6
"""One in so many programs loses types."""


@st.composite
def with_erased_types(draw: st.DrawFn, program: Program, *, always: bool = False) -> Program:
    """Return a strategy for a program as it is or, now and then, without types that it had.

    The types of inputs are erased, mostly wholly: all of them, or some; or sizes, the rank, the dtype. The others are
    inferred anew. Weights keep theirs, and so do inputs whose sizes are symbols, or tell how many results there are.

    Args:
        draw: given by hypothesis.
        program: the program; it is changed. Draw tensors for its inputs first.
        always: whether types are erased each time.
    """
    graph = program.graph
    if program.symbols or not (always or draw(st.integers(0, ERASED_ONE_IN - 1)) == ERASED_ONE_IN - 1):
        return program
    known: list[Type | None] = [value.type for value in graph.inputs]
    whole = draw(st.integers(0, 3)) < 2
    erased: list[Type | None] = []
    for type_ in known:
        if not isinstance(type_, TensorType):
            erased.append(type_)
        else:
            erased.append(UNKNOWN_TENSOR if whole or draw(st.booleans()) else draw(forgetful(type_)))
    if _takes(program, erased):
        return program
    kept = list(known)
    for number, type_ in enumerate(erased):
        tried = [*kept[:number], type_, *kept[number + 1 :]]
        if _takes(program, tried):
            kept = tried
    retype(graph, kept)
    return program


def _takes(program: Program, types: list[Type | None]) -> bool:
    try:
        retype(program.graph, types)
    except InferenceError:
        return False
    return True
