"""The tokens of the text form, and errors that point at them."""

from __future__ import annotations

import json
import re

from ir.errors import ParseError

_TOKEN = re.compile(
    r"""
    [ \t\r\n]* (?:\#[^\n]*[ \t\r\n]*)*
    (?:
      (?P<value>%(?:[A-Za-z0-9_.$]+|"(?:[^"\\\n]|\\.)*"))
    | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
    | (?P<float>\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    | (?P<int>\d+)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<mark>\*\*|//|<=|>=|[-+*/<>(){}\[\],:=@?])
    | (?P<end>\Z)
    )
    """,
    re.VERBOSE | re.ASCII,
)

_BLANK = re.compile(r"[ \t\r\n]*(?:\#[^\n]*[ \t\r\n]*)*")

END = "end"
"""Kind of the token after the last."""


class Lexer:
    """The tokens of a text, and the place of the next one.

    Kinds are `value`, `name`, `float`, `int`, `string`, `mark` and `end`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.starts: list[int] = []
        self.index = 0
        self._scan()

    def _scan(self) -> None:
        source = self.source
        kinds, texts, starts = self.kinds, self.texts, self.starts
        position = 0
        for match in _TOKEN.finditer(source):
            kind = match.lastgroup
            assert kind is not None
            if match.start() != position or kind == END:
                break
            position = match.end()
            kinds.append(kind)
            texts.append(match[kind])
            starts.append(match.start(kind))
        rest = _BLANK.match(source, position)
        assert rest is not None
        if rest.end() != len(source):
            raise self.error_at(rest.end(), f"unexpected character {source[rest.end()]!r}")
        kinds.append(END)
        texts.append("")
        starts.append(len(source.rstrip()))

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

    def expect_kind(self, kind: str, meaning: str) -> str:
        """Step over a token of a kind and return its text.

        Raises:
            ParseError: when something else is next.
        """
        if self.kinds[self.index] != kind:
            raise self.error(f"expected {meaning}, found {self.describe()}")
        return self.next()

    def expect_string(self, meaning: str) -> str:
        """Step over a string in quotes and return what it stands for.

        Raises:
            ParseError: when something else is next, or an escape in it is unknown.
        """
        start = self.starts[self.index]
        return self.unquote(self.expect_kind("string", meaning), start)

    def expect_int(self, meaning: str) -> int:
        """Step over an int, which may be negative, and return it.

        Raises:
            ParseError: when something else is next.
        """
        sign = -1 if self.accept("-") else 1
        return sign * int(self.expect_kind("int", meaning))

    def expect_value(self) -> str:
        """Step over the name of a value and return it without `%` and quotes.

        Raises:
            ParseError: when something else is next.
        """
        start = self.starts[self.index]
        text = self.expect_kind("value", "the name of a value (%name)")[1:]
        return self.unquote(text, start + 1) if text.startswith('"') else text

    def unquote(self, text: str, start: int) -> str:
        """Return what a string in quotes, found at `start`, stands for.

        Raises:
            ParseError: when an escape in it is unknown.
        """
        if "\\" not in text and text.isprintable():
            return text[1:-1]
        try:
            return str(json.loads(text))
        except json.JSONDecodeError as error:
            raise self.error_at(start + error.pos, f"not a string: {error.msg}") from None

    def describe(self) -> str:
        """Return what to call the next token in a message."""
        return "the end of the text" if self.kind == END else repr(self.text)

    def error(self, message: str, *, index: int | None = None, remedy: str | None = None) -> ParseError:
        """Return an error that points at the next token, or at token number `index`."""
        return self.error_at(self.starts[self.index if index is None else index], message, remedy=remedy)

    def error_at(self, position: int, message: str, *, remedy: str | None = None) -> ParseError:
        """Return an error that points at a position of the text."""
        source = self.source
        line = source.count("\n", 0, position) + 1
        begin = source.rfind("\n", 0, position) + 1
        end = source.find("\n", position)
        shown = source[begin : len(source) if end < 0 else end]
        column = position - begin + 1
        # tabs stay tabs, so that the caret stands below its character
        padding = "".join("\t" if c == "\t" else " " for c in shown[: column - 1])
        return ParseError(
            f"line {line}, column {column}: {message}\n    {shown}\n    {padding}^",
            line=line,
            column=column,
            remedy=remedy,
        )
