"""Example programs of a rule: what it is for, and what it must leave alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Literal

import attrs
from typing_extensions import override

from ir.errors import GraphwrightError, PatternError
from ir.program import Program
from ir.text.parser import parse_program
from ir.types import CPU, Dim, TensorType

_SIZES = (2, 3, 4, 5)
"""What the sizes of an example are, in the order in which they occur, where nobody says otherwise."""


def _in_turn(numbers: dict[str, int]) -> Callable[[str], int]:
    """Return a function that gives names their sizes, and keeps them in `numbers`."""
    return lambda name: numbers.setdefault(name, _SIZES[len(numbers) % len(_SIZES)])


def _without_indent(text: str) -> str:
    if not isinstance(text, str):
        raise PatternError(f"an example is made of {text!r}", remedy="pass the text of a program")
    return textwrap.dedent(text).strip()


@attrs.frozen
class Example:
    """A program in which a rule fires or, with `refused`, a near miss.

    The text is that of a program without its header: weights, then the graph. Result types may be left out. Sizes may
    be names, and expressions over them: `graph(%x : f32[n, c, h, w]) { %y = aten.reshape(%x) {shape=[n, c*h*w]} ... }`.

    Attributes:
        text: the text, in which indentation means nothing.
    """

    text: str = attrs.field(converter=_without_indent)
    refused: str = ""
    """A part of the reason why the rule leaves a near miss alone; empty where the rule fires."""
    unknown: Literal["", "batch", "all"] = ""
    """What the rule is not told of the inputs: their first size, or all of their types, as of a traced FX graph."""

    def __attrs_post_init__(self) -> None:
        if self.unknown not in ("", "batch", "all"):
            raise PatternError(f"an example has unknown={self.unknown!r}", remedy='write "batch" or "all"')

    def changed(
        self, *changes: tuple[str, str], refused: str = "", unknown: Literal["", "batch", "all"] = ""
    ) -> Example:
        """Return another example: the text with each (old, new) replaced, wherever it stands.

        Args:
            changes: the replacements.
            refused: as of an example.
            unknown: as of an example.

        Raises:
            PatternError: when the text has no such part.
        """
        text = self.text
        for change in changes:
            if not (isinstance(change, (tuple, list)) and [type(part) for part in change] == [str, str]):
                raise PatternError(f"{change!r} is not an (old, new) pair", remedy='write `changed(("old", "new"))`')
            old, new = change
            if old not in text:
                raise PatternError(f"an example has no {old!r}:\n{text}")
            text = text.replace(old, new)
        return Example(text, refused, unknown)

    @property
    def size_names(self) -> tuple[str, ...]:
        """The names of its sizes, in the order in which they occur."""
        numbers: dict[str, int] = {}
        self.program(_in_turn(numbers))
        return tuple(numbers)

    def program(self, size: Callable[[str], Dim] | None = None) -> Program:
        """Return the program, whose weights have no data, with all types known.

        Args:
            size: returns the number for the name of a size (or a symbol), each time that it occurs; 2, 3, 4, 5 in turn
                by default.

        Raises:
            PatternError: when the text is not well-formed, does not take the default sizes, returns nothing, or does
                not say the dtype and the sizes of an input or a weight.
            GraphwrightError: when it does not take the sizes that are given.
        """
        text = f'program "example" {{\n{self.text}\n}}'
        try:
            program = parse_program(text, size or _in_turn({}))
        except GraphwrightError as error:
            if size is not None:
                raise
            raise PatternError(f"an example is no program: {error.message}\n{self}", remedy=error.remedy) from error
        for value in (*program.graph.inputs, *(weight.value for weight in program.weights.values())):
            type_ = value.type
            if not isinstance(type_, TensorType) or not type_.is_known:
                fault, remedy = (
                    f"has type {type_}",
                    "give it a dtype and sizes; `unknown=` hides them",
                )
            elif type_.device not in (None, CPU):
                fault, remedy = f"is on {type_.device}: examples run on the CPU", "leave its device out"
            else:
                continue
            raise PatternError(f"%{value.name} of an example {fault}\n{self}", remedy=remedy)
        if not any(value is not None for value in program.graph.outputs):
            raise PatternError(f"an example returns nothing\n{self}", remedy="return what the rule replaces")
        return program

    @override
    def __str__(self) -> str:
        notes = {"unknown": self.unknown, "refused": self.refused}
        return "\n".join([self.text, *(f"{name}: {note}" for name, note in notes.items() if note)])
