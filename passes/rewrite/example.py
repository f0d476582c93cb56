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

_SIZES = (2, 3, 4, 5)
"""What the sizes of an example are, in the order in which they occur, where nobody says otherwise."""


def _without_indent(text: str) -> str:
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
        for old, new in changes:
            if old not in text:
                raise PatternError(f"an example has no {old!r}:\n{text}")
            text = text.replace(old, new)
        return Example(text, refused, unknown)

    def program(self, size: Callable[[str], int] | None = None) -> Program:
        """Return the program, whose weights have no data, with all types known.

        Args:
            size: returns the number for the name of a size, each time that it occurs; 2, 3, 4, 5 in turn by default.

        Raises:
            PatternError: when the text is not well-formed, or does not take the default sizes.
            GraphwrightError: when it does not take the sizes that are given.
        """
        text = f'program "example" {{\n{self.text}\n}}'
        if size is not None:
            return parse_program(text, size)
        numbers: dict[str, int] = {}
        try:
            return parse_program(text, lambda name: numbers.setdefault(name, _SIZES[len(numbers) % len(_SIZES)]))
        except GraphwrightError as error:
            raise PatternError(f"an example is no program: {error.message}\n{self}", remedy=error.remedy) from error

    @override
    def __str__(self) -> str:
        notes = {"unknown": self.unknown, "refused": self.refused}
        return "\n".join([self.text, *(f"{name}: {note}" for name, note in notes.items() if note)])
