"""The text form of pipelines: `canonicalize,convert{patterns=A,B},fixpoint(a,b){max-rounds=4}`.

The parser knows no pass by itself: it is told the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ir.errors import GraphwrightError, ParseError
from ir.spelling import known_names
from ir.text.lexer import point_at
from passes.manager.options import options_of, takes_passes
from passes.rewrite.bounds.tolerance import Tolerance, parse_tolerance
from passes.rewrite.pattern import scoped
from passes.rewrite.scope import UnreadableKeyError, parse_keys

_WORD = re.compile(r"[\w-]*")
_OPTION = re.compile(r"[^\s}]+")
_KEYS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s(){}"])*')
"""The keys of a scope; in quotes they may hold anything."""
_PATTERN = re.compile(r"[^\s,(){}]*")
_MAX_DEPTH = 50
"""How deep managers may be nested, far below what would overflow the stack when they are run."""


class PipelineParser:
    """Recursive descent over `name{option=value ...}` and `name(passes){options}`.

    Args:
        text: the pipeline.
        passes: the pass classes (attrs classes) by name.
        patterns: the patterns that options may name, by name: one or several.
    """

    def __init__(self, text: str, passes: Mapping[str, type[Any]], patterns: Mapping[str, tuple[Any, ...]]) -> None:
        self.text, self.passes, self.patterns = text, passes, patterns
        self.at = 0
        self.depth = 0

    def parse(self) -> list[Any]:
        """Return the passes that the text describes.

        Raises:
            ParseError: when the text is ill-formed or names what is not known.
        """
        passes = self._sequence()
        if self.at != len(self.text):
            raise self._error("unexpected text")
        return passes

    def _error(self, message: str, at: int | None = None, remedy: str | None = None) -> ParseError:
        line, column, shown = point_at(self.text, self.at if at is None else at, "  ")
        place = f"line {line}, column {column}" if "\n" in self.text else f"column {column}"
        return ParseError(f"pipeline text, {place}: {message}\n{shown}", line=line, column=column, remedy=remedy)

    def _peek(self) -> str:
        self.at = len(self.text) - len(self.text[self.at :].lstrip())
        return self.text[self.at : self.at + 1]

    def _sequence(self) -> list[Any]:
        if self._peek() in ("", ")"):
            return []
        passes = [self._pass()]
        while self._peek() == ",":
            self.at += 1
            passes.append(self._pass())
        return passes

    def _pass(self) -> Any:
        self._peek()
        start = self.at
        name = _WORD.match(self.text, start)[0]  # type: ignore[index]
        self.at += len(name)
        if not name:
            raise self._error(f"the name of a pass is missing; {known_names('', self.passes)}")
        cls = self.passes.get(name)
        if cls is None:
            raise self._error(f"no pass is named {name!r}; {known_names(name, self.passes)}", start)
        args: tuple[Any, ...] = ()
        if takes_passes(cls):
            if self._peek() != "(":
                raise self._error(f"`{name}` needs its passes in parentheses: `{name}(canonicalize)`")
            self.at += 1
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise self._error(f"passes are nested more than {_MAX_DEPTH} deep")
            args = (self._sequence(),)
            self.depth -= 1
            if self._peek() != ")":
                raise self._error("expected `)`")
            self.at += 1
        elif self._peek() == "(":
            raise self._error(f"`{name}` holds no other passes; its options go in braces")
        options = self._options(cls) if self._peek() == "{" else {}
        try:
            return cls(*args, **options)
        except GraphwrightError as error:
            raise self._error(error.message, start, error.remedy) from error
        except (TypeError, ValueError) as error:
            raise self._error(f"pass `{name}`: {error}", start) from error

    def _options(self, cls: type[Any]) -> dict[str, Any]:
        opened = self.at
        fields = {field.name.replace("_", "-"): field for field in options_of(cls)}
        self.at += 1
        options: dict[str, Any] = {}
        while self._peek() != "}":
            at = self.at
            if at == len(self.text):
                raise self._error("`{` is never closed", opened)
            found = _OPTION.match(self.text, at)
            key, equals, value = (found[0] if found is not None else "").partition("=")
            field = fields.get(key.replace("_", "-"))
            if field is None:
                raise self._error(f"pass `{cls.name}` has no option {key!r}; {known_names(key, fields)}", at)
            if not equals:
                raise self._error(f"option {key!r} has no value: write `{key}=...`, without spaces", at)
            if field.name in options:
                raise self._error(f"option {key!r} is given twice", at)
            self.at += len(key) + 1
            if field.metadata.get("keys"):
                options[field.name] = self._keys()
            elif field.metadata.get("patterns"):
                options[field.name] = self._pattern_names()
            else:
                options[field.name] = self._option(field, value, self.at)
                self.at += len(value)
        self.at += 1
        return options

    def _option(self, field: Any, text: str, at: int) -> Any:
        default = field.default
        try:
            if field.metadata.get("tolerance"):
                return self._tolerance(text, at)
            if isinstance(default, bool):
                return {"true": True, "false": False}[text]
            if isinstance(default, int):
                return int(text)
            if isinstance(default, float):
                return float(text)
        except (KeyError, ValueError):
            wanted = "`true` or `false`" if isinstance(default, bool) else f"of type {type(default).__name__}"
            wanted = "a bound: `0.001` of the largest magnitude, or `0.001,1e-6`" if default is None else wanted
            raise self._error(f"option {field.name.replace('_', '-')!r}: {text!r} is not {wanted}", at) from None
        if isinstance(default, tuple):
            return tuple(part for part in text.split(",") if part)
        return text

    def _tolerance(self, text: str, at: int) -> Tolerance:
        try:
            return parse_tolerance(text)
        except GraphwrightError as error:
            raise self._error(error.message, at, error.remedy) from error

    def _keys(self) -> tuple[str, ...]:
        """Read the keys of a scope."""
        start = self.at
        text = _KEYS.match(self.text, start)[0]  # type: ignore[index]
        self.at += len(text)
        try:
            if self.text.startswith('"', self.at):
                raise UnreadableKeyError("the quote is never closed", len(text))
            if not text:
                raise UnreadableKeyError("expected a glob of module paths, or `class:` and a name", 0)
            return parse_keys(text)
        except UnreadableKeyError as error:
            raise self._error(error.message, start + error.at) from None

    def _pattern_names(self) -> tuple[Any, ...]:
        """Read names of patterns, or of lists of them, each perhaps with scopes: `A(skip=head),B`."""
        found: list[Any] = []
        while True:
            at = self.at
            name = _PATTERN.match(self.text, at)[0]  # type: ignore[index]
            self.at += len(name)
            if name and name not in self.patterns:
                raise self._error(f"no pattern is named {name!r}; {known_names(name, self.patterns)}", at)
            patterns = self.patterns.get(name, ())
            while self.text.startswith("(", self.at):
                scope = self._scope()
                patterns = tuple([scoped(pattern, **scope) for pattern in patterns])
            found.extend(patterns)
            if not self.text.startswith(",", self.at):
                return tuple(found)
            self.at += 1

    def _scope(self) -> dict[str, tuple[str, ...]]:
        """Read the scope of a pattern: `(only=layer4.* skip=layer4.0)`."""
        opened = self.at
        self.at += 1
        scope: dict[str, tuple[str, ...]] = {}
        while self._peek() != ")":
            key = _WORD.match(self.text, self.at)[0]  # type: ignore[index]
            if key not in ("only", "skip") or self.text[self.at + len(key) :][:1] != "=":
                if self.at == len(self.text):
                    raise self._error("`(` is never closed", opened)
                raise self._error("expected `only=`, `skip=` or `)`")
            if key in scope:
                raise self._error(f"{key!r} is given twice")
            self.at += len(key) + 1
            scope[key] = self._keys()
        self.at += 1
        return scope
