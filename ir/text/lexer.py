"""Tokens of the text form, and errors that point at them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from itertools import islice

from ir.errors import ParseError

# With a single group `findall` is several times faster; the kind of a token follows from its first character.
_TOKEN = re.compile(
    r"""
    [ \t\r\n]* (?:\#[^\n]*[ \t\r\n]*)*
    (
      %(?:[A-Za-z0-9_.$]+|"(?:[^"\\\n]|\\.)*")        # the name of a value
    | [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*                 # a name
    | \d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+  # a number
    | "(?:[^"\\\n]|\\.)*"                            # a string
    | \*\*|//|<=|>=|[-+*/<>(){}\[\],:=@?]            # a mark
    | \Z
    | .                                              # no token
    )
    """,
    re.VERBOSE | re.ASCII,
)

MAX_DEPTH = 100
"""Maximal nesting of brackets and the like."""
MAX_DIGITS = 77
"""Digits of a number below 2**256, more than any size or attribute has."""


def is_readable(number: int) -> bool:
    """Return whether text may hold a number."""
    return bool(abs(number) < 10**MAX_DIGITS)


END = "end"
"""Kind of the token after the last."""
_KINDS = {
    "%": "value",
    '"': "string",
    **dict.fromkeys(string.ascii_letters + "_", "name"),
    **dict.fromkeys(string.digits, "int"),
    **dict.fromkeys("-+*/<>(){}[],:=@?", "mark"),
}
"""Kind of a token, by its first character; a number may also be a float."""


class Lexer:
    """The tokens of a text, and the place of the next one.

    Kinds are `value`, `name`, `float`, `int`, `string`, `mark` and `end`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.texts: list[str] = _TOKEN.findall(source)
        texts, find = self.texts, _KINDS.get
        del texts[texts.index("") + 1 :]
        self.kinds: list[str] = [
            kind if (kind := find(text[:1], END)) != "int" or text.isdigit() else "float" for text in texts
        ]
        self.index = 0
        self._depth = 0
        self._matches = _TOKEN.finditer(source)
        self._starts: list[int] = []
        wrong = [self.kinds.index(END), *(texts.index(mark) for mark in ("%", '"') if mark in texts)]
        if min(wrong) < len(texts) - 1:
            raise self.error_at(self.start(min(wrong)), f"unexpected character {texts[min(wrong)]!r}")

    def start(self, index: int) -> int:
        """Return the position of token number `index` in the text; computed on demand."""
        if index == len(self.texts) - 1:
            return len(self.source.rstrip())
        missing = index + 1 - len(self._starts)
        self._starts += [match.start(1) for match in islice(self._matches, max(0, missing))]
        return self._starts[index]

    @property
    def kind(self) -> str:
        """Kind of the next token."""
        return self.kinds[self.index]

    @property
    def text(self) -> str:
        """Text of the next token."""
        return self.texts[self.index]

    def next(self) -> str:
        """Step over the next token and return its text."""
        text = self.texts[self.index]
        self.index += 1
        return text

    def at(self, text: str) -> bool:
        """Return whether the next token is the mark or name `text`."""
        return self.texts[self.index] == text

    def accept(self, text: str) -> bool:
        """Step over the next token if it is the mark or name `text`."""
        if self.texts[self.index] == text:
            self.index += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Step over the mark or name `text`.

        Raises:
            ParseError: when something else is next.
        """
        if self.texts[self.index] != text:
            raise self.error(f"expected {text!r}, found {self.describe()}")
        self.index += 1

    def items(self, end: str) -> Iterator[None]:
        """Yield before each of the comma-separated items up to the mark `end`; a trailing comma is allowed."""
        while not self.accept(end):
            yield
            if not self.at(end):
                self.expect(",")

    def expect_kind(self, kind: str, meaning: str) -> str:
        """Step over a token of a kind and return its text.

        Raises:
            ParseError: when something else is next.
        """
        if self.kinds[self.index] != kind:
            raise self.error(f"expected {meaning}, found {self.describe()}")
        return self.next()

    def expect_string(self, meaning: str) -> str:
        """Step over a string in quotes and return its value.

        Raises:
            ParseError: when something else is next, or an escape in it is unknown.
        """
        return self._unquote(self.expect_kind("string", meaning), self.index - 1)

    def expect_int(self, meaning: str) -> int:
        """Step over an int, which may be negative, and return it.

        Raises:
            ParseError: when something else is next.
        """
        sign = -1 if self.accept("-") else 1
        self.expect_kind("int", meaning)
        return sign * self._int(self.index - 1)

    def next_int(self) -> int:
        """Step over the next token, an int, and return it.

        Raises:
            ParseError: when it is too long.
        """
        self.index += 1
        return self._int(self.index - 1)

    def _int(self, index: int) -> int:
        text = self.texts[index]
        if len(text) > MAX_DIGITS:
            raise self.error(f"a number of more than {MAX_DIGITS} digits", index=index)
        return int(text)

    def enter(self) -> None:
        """Enter a level of nesting, until `leave`.

        Raises:
            ParseError: when it is so deep that reading on could overflow the stack.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(f"nested more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        """Leave a level of nesting."""
        self._depth -= 1

    def expect_value(self) -> str:
        """Step over the name of a value and return it without `%` and quotes.

        Raises:
            ParseError: when something else is next.
        """
        text = self.expect_kind("value", "the name of a value (%name)")[1:]
        return self._unquote(text, self.index - 1, 1) if text.startswith('"') else text

    def _unquote(self, text: str, index: int, offset: int = 0) -> str:
        """Return the value of a string in quotes: token number `index` without its first `offset` characters."""
        if "\\" not in text and text.isprintable():
            return text[1:-1]
        try:
            return str(json.loads(text))
        except json.JSONDecodeError as error:
            raise self.error_at(self.start(index) + offset + error.pos, f"not a string: {error.msg}") from None

    def describe(self) -> str:
        """Return the name of the next token in a message."""
        return "the end of the text" if self.kind == END else repr(self.text)

    def error(self, message: str, *, index: int | None = None, remedy: str | None = None) -> ParseError:
        """Return an error that points at the next token, or at token number `index`."""
        return self.error_at(self.start(self.index if index is None else index), message, remedy=remedy)

    def error_at(self, position: int, message: str, *, remedy: str | None = None) -> ParseError:
        """Return an error that points at a position of the text."""
        line, column, shown = point_at(self.source, position, "    ")
        return ParseError(f"line {line}, column {column}: {message}\n{shown}", line=line, column=column, remedy=remedy)


def point_at(source: str, position: int, indent: str) -> tuple[int, int, str]:
    """Return line and column of a position, from 1, and the text of the line with a caret below the position."""
    begin = source.rfind("\n", 0, position) + 1
    end = source.find("\n", position)
    shown = source[begin : len(source) if end < 0 else end]
    column = position - begin + 1
    # tabs stay tabs, to keep the caret below its character
    padding = "".join("\t" if c == "\t" else " " for c in shown[: column - 1])
    return source.count("\n", 0, position) + 1, column, f"{indent}{shown}\n{indent}{padding}^"
