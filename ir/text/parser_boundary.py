"""Parsing of what a program has beside its graph: calling convention, modes, refused surroundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from ir.attributes import Ref
from ir.parameters import NO_DEFAULT, ParameterKind, ParameterSpec, are_in_order
from ir.program import ARGUMENT_KINDS, SWITCHES, Mutation, Surrounding
from ir.text.lexer import Lexer
from ir.text.literals import Literals
from ir.types import Dim


class BoundaryParser:
    """Reads the statements of a program other than weights, symbols and the graph."""

    def __init__(self, text: str, refer: Callable[[], Ref], symbol: Callable[[str], Dim]) -> None:
        self.lexer = Lexer(text)
        self.literals = Literals(self.lexer, refer, symbol)

    def _strings(self, meaning: str) -> tuple[str, ...]:
        found = [self.lexer.expect_string(meaning)]
        while self.lexer.accept(","):
            found.append(self.lexer.expect_string(meaning))
        return tuple(found)

    def _bracketed_strings(self) -> tuple[str, ...]:
        self.lexer.expect("[")
        if self.lexer.accept("]"):
            return ()
        found = self._strings("the name of a weight")
        self.lexer.expect("]")
        return found

    def _leaf(self, keyword: str) -> tuple[int | None, Any]:
        lexer = self.lexer
        if lexer.accept(keyword):
            return lexer.expect_int(f"the number of an {keyword}"), None
        return None, self.literals.constant()

    def _accepts(self) -> tuple[str, ...]:
        kinds: list[str] = []
        while self.lexer.accept("or"):
            place = self.lexer.index
            kinds.append(self.lexer.expect_kind("name", "what else the argument may be"))
            if kinds[-1] not in ARGUMENT_KINDS:
                known = ", ".join(ARGUMENT_KINDS)
                raise self.lexer.error(
                    f"an argument cannot be {kinds[-1]!r}", index=place, remedy=f"write one of {known}"
                )
        return tuple(kinds)

    def _surrounding(self) -> Surrounding:
        lexer = self.lexer
        answers: tuple[bool | tuple[int, ...], ...] = ()
        if lexer.accept("answers"):
            place = lexer.index
            answers = self.literals.attribute()
            if not isinstance(answers, tuple) or not all(map(_is_answer, answers)):
                raise lexer.error("the answers are True, False or dimensions, in brackets", index=place)
        return Surrounding(answers, lexer.expect_string("the place") if lexer.accept("place") else "")

    def _switch(self, names: Sequence[str] = SWITCHES) -> str:
        place = self.lexer.index
        expected = " or ".join(f"`{name}`" for name in names)
        switch = self.lexer.expect_kind("name", expected)
        if switch not in names:
            raise self.lexer.error(f"there is no mode {switch!r}", index=place, remedy=f"write {expected}")
        return switch

    def _add_modes(self, modes: dict[str, bool]) -> None:
        training = self._switch(("train", "eval")) == "train"
        place = self.lexer.index
        for path in self._strings("a module path"):
            if path in modes:
                raise self.lexer.error(f"the mode of module {path!r} is said twice", index=place)
            modes[path] = training

    def _one_of(self, names: Sequence[str], meaning: str) -> str:
        place = self.lexer.index
        name = self.lexer.expect_string(meaning)
        if name not in names:
            raise self.lexer.error(f"{name!r} is not {meaning}", index=place, remedy=f"write one of {', '.join(names)}")
        return name

    def _parameters(self) -> tuple[ParameterSpec, ...]:
        lexer = self.lexer
        found: list[ParameterSpec] = []
        kind = ParameterKind.POSITIONAL_OR_KEYWORD
        first = lexer.index
        while True:
            place = lexer.index
            if lexer.accept("/"):
                plain = ParameterKind.POSITIONAL_OR_KEYWORD
                if not found or {kind, *(each.kind for each in found)} != {plain}:
                    raise lexer.error("`/` follows the parameters that are passed by position alone", index=place)
                found = [attrs.evolve(each, kind=ParameterKind.POSITIONAL_ONLY) for each in found]
            elif lexer.accept("**"):
                found.append(ParameterSpec(self._parameter_name(), ParameterKind.VAR_KEYWORD))
            elif lexer.accept("*"):
                kind = ParameterKind.KEYWORD_ONLY
                if lexer.kind == "string":
                    found.append(ParameterSpec(self._parameter_name(), ParameterKind.VAR_POSITIONAL))
            else:
                name = self._parameter_name()
                default = self.literals.constant() if lexer.accept("=") else NO_DEFAULT
                found.append(ParameterSpec(name, kind, default))
            if not lexer.accept(","):
                break
        if not are_in_order(found):
            raise lexer.error("parameters stand in an order that Python does not allow", index=first)
        return tuple(found)

    def _parameter_name(self) -> str:
        return self.lexer.expect_string("the name of a parameter")

    def _mutation(self) -> Mutation:
        lexer = self.lexer
        buffer: str | None = None
        input_: int | None = None
        if lexer.accept("input"):
            input_ = lexer.expect_int("the number of an input")
        else:
            buffer = lexer.expect_string("the name of a buffer, or `input`")
        lexer.expect("=")
        return Mutation(self._output_number(), buffer, input_, bool(lexer.accept("assigned")))

    def _output_number(self) -> int:
        self.lexer.expect("output")
        return self.lexer.expect_int("the number of an output")


def _is_answer(value: Any) -> bool:
    return type(value) is bool or (isinstance(value, tuple) and all(type(item) is int for item in value))
