"""The text form holds everything: parse(print(p)) == p, and printing again gives the same text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuzz.strategies import programs, tensor_types
from ir.compare import programs_equal
from ir.literals import parse_type
from ir.parser import parse_program
from ir.printer import print_program
from ir.program import Program
from ir.types import TensorType


@given(st.one_of(programs(), programs(symbolic=True)))
def test_parsing_the_text_gives_an_equal_program(program: Program) -> None:
    text = print_program(program)
    parsed = parse_program(text)
    assert programs_equal(parsed, program) is None
    assert print_program(parsed) == text


@given(programs(), programs())
def test_different_programs_have_different_texts(a: Program, b: Program) -> None:
    assert (programs_equal(a, b) is None) == (print_program(a) == print_program(b))


@given(tensor_types(symbolic=True, unknown=True))
def test_types_round_trip(type_: TensorType) -> None:
    assert parse_type(str(type_)) == type_
