"""The text form holds everything: parse(print(p)) == p, and printing again gives the same text."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.programs.check import check_text
from fuzz.programs.emission import check_emission
from fuzz.strategies import programs, tensor_types
from ir.attributes import attributes_equal
from ir.compare import programs_equal
from ir.core import Graph
from ir.parameters import NO_DEFAULT, ParameterKind, ParameterSpec
from ir.program import CallingConvention, Program
from ir.text.literals import parse_type
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import TensorType


@given(st.one_of(programs(), programs(symbolic=True)))
def test_parsing_the_text_gives_an_equal_program(program: Program) -> None:
    text = print_program(program)
    parsed = parse_program(text)
    assert programs_equal(parsed, program) is None
    assert print_program(parsed) == text


@given(st.one_of(programs(), programs(symbolic=True)))
def test_what_is_emitted_from_the_text_is_the_same(program: Program) -> None:
    check_emission(program, check_text(program, print_program(program)))


@st.composite
def constants(draw: st.DrawFn, depth: int = 2) -> Any:
    if depth and draw(st.booleans()):
        inner = constants(depth - 1)
        return draw(
            st.one_of(
                st.lists(inner, max_size=3).map(tuple),
                st.lists(inner, max_size=3),
                st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.booleans()), inner, max_size=3),
            )
        )
    number = st.one_of(st.integers(), st.floats(), st.complex_numbers())
    torch_constant = st.sampled_from((torch.float16, torch.device("cuda", 1), torch.strided, torch.channels_last))
    return draw(st.one_of(st.none(), st.booleans(), number, st.text(), torch_constant))


@given(st.lists(st.tuples(st.sampled_from(ParameterKind), st.one_of(st.just(NO_DEFAULT), constants())), max_size=6))
def test_signatures_round_trip(drawn: list[tuple[ParameterKind, Any]]) -> None:
    program = Program("p", Graph(), CallingConvention(None, None))
    parameters = [ParameterSpec(f"p{i}", kind, default) for i, (kind, default) in enumerate(drawn)]
    program.convention.parameters = _valid(parameters)
    parsed = parse_program(print_program(program))
    assert programs_equal(parsed, program) is None
    for mine, other in zip(program.convention.parameters, parsed.convention.parameters, strict=True):
        assert (mine.name, mine.kind) == (other.name, other.kind)
        assert attributes_equal(mine.default, other.default)


def _valid(parameters: list[ParameterSpec]) -> tuple[ParameterSpec, ...]:
    """The parameters in the order that Python allows."""
    found: list[ParameterSpec] = []
    for parameter in sorted(parameters, key=lambda each: each.kind.value):
        single = parameter.kind in (ParameterKind.VAR_POSITIONAL, ParameterKind.VAR_KEYWORD)
        if single and any(each.kind is parameter.kind for each in found):
            continue
        positional = parameter.kind in (ParameterKind.POSITIONAL_ONLY, ParameterKind.POSITIONAL_OR_KEYWORD)
        late = positional and any(each.default is not NO_DEFAULT for each in found)
        if single or (late and parameter.default is NO_DEFAULT):
            parameter = attrs.evolve(parameter, default=NO_DEFAULT if single else None)
        found.append(parameter)
    return tuple(found)


@given(programs(), programs())
def test_different_programs_have_different_texts(a: Program, b: Program) -> None:
    assert (programs_equal(a, b) is None) == (print_program(a) == print_program(b))


@given(tensor_types(symbolic=True, unknown=True))
def test_types_round_trip(type_: TensorType) -> None:
    assert parse_type(str(type_)) == type_
