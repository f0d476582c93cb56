"""A copy of a program is equal to it, verifies, and is independent of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import attrs
import pytest
import sympy
import torch

from ir.compare import programs_equal
from ir.parameters import ParameterSpec
from ir.program import CallingConvention, InputLeaf, Mutation, OutputLeaf, Program, Surrounding, Weight, copy_program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import make_symbol
from ir.verify import verify
from tests.ir.programs import rich_program
from tests.ir.test_compare import CHANGES


def test_a_copy_is_equal() -> None:
    program = rich_program()
    program.weights["bn.var"].data = torch.ones(4)
    program.graph.revision = 0
    copy = copy_program(program)
    verify(copy)
    assert programs_equal(program, copy) is None
    assert print_program(copy) == print_program(program)
    assert copy.weights["bn.var"].data is program.weights["bn.var"].data
    assert copy.opaques["roi"] is program.opaques["roi"]
    assert program.graph.revision == 0


@pytest.mark.parametrize("changed", ["copy", "original"])
@pytest.mark.parametrize("change", [change for change, _ in CHANGES], ids=[message for _, message in CHANGES])
def test_the_other_stays(change: Callable[[Program], object], changed: str) -> None:
    program = rich_program()
    copy = copy_program(program)
    change(copy if changed == "copy" else program)
    other = program if changed == "copy" else copy
    verify(other)
    assert print_program(other) == print_program(rich_program())


def test_users_are_those_of_the_copy() -> None:
    program = rich_program()
    copy = copy_program(program)
    mine, theirs = (set(p.graph.operations()) | {p.graph.return_op} for p in (program, copy))
    assert not mine & theirs
    for value in program.values():
        assert set(value.users) <= mine
    for value in copy.values():
        assert set(value.users) <= theirs


def test_notes_are_separate() -> None:
    program = rich_program()
    copy = copy_program(program)
    copy.constraints = (*copy.constraints, *copy.constraints)
    copy.weights["bn.var"].data = torch.zeros(4)
    assert program.weights["bn.var"].data is None


ELSEWHERE = {"graph", "convention", "weights", "derivation", "inputs", "outputs"}
"""Fields whose parts are looked at, or that are compared as graphs."""
WITHOUT_TEXT = {"data", "opaques"}


def parts_of(program: Program) -> dict[type, list[Any]]:
    convention = program.convention
    return {
        Program: [program],
        CallingConvention: [convention],
        InputLeaf: list(convention.inputs),
        OutputLeaf: list(convention.outputs),
        ParameterSpec: list(convention.parameters),
        Mutation: list(convention.mutations),
        Surrounding: list(program.surroundings.values()),
        Weight: list(program.weights.values()),
    }


def test_no_field_is_left_behind() -> None:
    """Whoever adds a field has to print, parse, compare and copy it, and to give it a value in `rich_program`."""
    program = rich_program()
    program.constraints = (sympy.Eq(make_symbol("n"), 2),)
    others = (copy_program(program), parse_program(print_program(program)))
    for cls, parts in parts_of(program).items():
        fields = [f for f in attrs.fields(cls) if f.init and f.name not in ELSEWHERE | WITHOUT_TEXT]
        for field in fields:
            mine = [getattr(part, field.name) for part in parts]
            if field.default is not attrs.NOTHING:
                default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default
                assert any(value != default for value in mine), f"rich_program has no {cls.__name__}.{field.name}"
            for other in others:
                theirs = [getattr(part, field.name) for part in parts_of(other)[cls]]
                assert mine == theirs, f"{cls.__name__}.{field.name} is lost"


def test_deepcopy_and_pickle() -> None:
    program = rich_program()
    program.graph.revision = 0
    for twin in (deepcopy(program), deepcopy([program])[0]):
        verify(twin)
        assert programs_equal(program, twin) is None
        assert print_program(twin) == print_program(program)
    with pytest.raises(TypeError, match="save its text"):
        pickle.dumps(program)


def test_a_deep_copy_of_a_graph_has_the_same_operators() -> None:
    graph = rich_program().graph
    twin = deepcopy(graph)
    assert [op.opdef for op in twin.operations()] == [op.opdef for op in graph.operations()]
    assert twin.return_op.opdef is graph.return_op.opdef
