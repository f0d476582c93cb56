"""A case as text: a comment with the fault and the facts, then the program.

    # A copy of an input that is an output: the caller may write to it.
    #
    # rules: NoCopy
    # properties: exact, not modes
    # fires: no
    # %var in [0.5, 2.0]

    program "case" {
      ...
    }

The last paragraph of the comment has one fact per line. `rules` (names, or `package.module:Class`) or `pipeline` are
applied, in the order number `order`; `properties` must hold; `fires` says whether the program must change. Inputs and
weights are random by `seed`, except those with a range (`%var in [0.5, 2.0]`) or a value (`%x = f32[2] [1.0, -inf]`).
The expected program follows a line `==== expected`, a program that is equal by construction a line `==== original`;
with `one text: yes`, canonicalization must give both the same text, and the property `canonical` is demanded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import torch

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.properties import Properties
from fuzz.rules.names import find_rule
from ir.errors import GraphwrightError, ParseError, VerificationError
from ir.program import Program
from ir.spelling import known_names
from ir.text.lexer import Lexer
from ir.text.literals import Literals, expect_end, format_attribute
from ir.text.parser import parse_program
from ir.text.printer import format_name
from ir.types import CPU, TensorType, Type, type_of_tensor
from ir.verify import verify

SUFFIX = ".gw"
"""The suffix of case files, and of dumps of programs."""
EXPECTED = "==== expected"
_ORIGINAL = "==== original"
_DEMANDS = Properties.demands()


@attrs.frozen(eq=False)
class CaseFile:
    """The contents of a case file."""

    about: str
    """What was wrong."""
    subject: Any
    """The rules or the pipeline to apply."""
    case: Case
    order: int = 0
    """The number of the order in which rules are tried; 0 is the given one."""
    properties: Properties = attrs.field(factory=Properties)
    fires: bool | None = None
    """Whether the program must change; None for either."""
    expected: str | None = None
    """The text of the expected program, if the file has one."""


def read_case(path: Path) -> CaseFile:
    """Read a case file.

    Raises:
        ParseError: when it is ill-formed: a fact or a rule is unknown, the program is missing or does not parse. The
            message names the file and the line.
    """
    return _Reader(path).case_file()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise self._error(line, f"the file is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
        self.lines = text.split("\n")
        if not self.lines[-1]:
            del self.lines[-1]
        self.subject: Any = None
        self.properties = Properties()
        self.demands: dict[str, bool] = {}
        """The properties that the file names."""
        self.fires: bool | None = None
        self.order = self.seed = 0
        self.one_text = False
        self.bounds: dict[str, tuple[float, float]] = {}
        self.values: dict[str, Any] = {}
        self.facts: dict[str, Callable[[str], None]] = {
            "rules": lambda text: self._applied(tuple(find_rule(name.strip()) for name in text.split(","))),
            "pipeline": lambda text: self._applied(parse_pipeline(text)),
            "order": lambda text: setattr(self, "order", _int_within(text, 0)),
            "properties": self._properties,
            "fires": lambda text: setattr(self, "fires", _yes_or_no(text)),
            "seed": lambda text: setattr(self, "seed", _int_within(text, -(2**63))),
            "one text": lambda text: setattr(self, "one_text", _yes_or_no(text)),
        }

    def case_file(self) -> CaseFile:
        lines = self.lines
        end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        start = max((i + 1 for i in range(end) if lines[i].strip() == "#"), default=0)
        about = "\n".join(line[1:].strip() for line in lines[:start]).strip()
        if not about:
            raise self._error(1, "the file does not begin with a comment that says what was wrong, and then the facts")
        seen: dict[str, int] = {}
        for number in range(start, end):
            self._fact(number + 1, seen)
        if self.subject is None:
            raise self._error(end, "no fact says what is applied", "write a line `# rules: ...` or `# pipeline: ...`")
        sections = self._sections(end)
        for text in sections.values():
            self._parsed(text)
        if self.one_text:
            self._demand_one_text(sections, seen)
        program = self._parsed(sections[""])
        known = {value.name: value.type for value in program.graph.inputs}
        known |= {name: weight.type for name, weight in program.weights.items()}
        for name in (*self.bounds, *self.values):
            if name not in known:
                raise self._error(
                    seen[f"%{name}"], f"the program has no input or weight {name!r}; {known_names(name, known)}"
                )
            self._check_type(name, known[name], seen[f"%{name}"])
        try:
            case = Case.seeded(sections[""].strip(), seed=self.seed, bounds=self.bounds, values=self.values)
        except GraphwrightError as error:
            raise self._error(end + 1, error.message, error.remedy) from error
        case = attrs.evolve(case, original=sections.get(_ORIGINAL, "").strip(), one_text=self.one_text)
        expected = sections[EXPECTED].strip() if EXPECTED in sections else None
        return CaseFile(about, self.subject, case, self.order, self.properties, self.fires, expected)

    def _error(self, line: int, message: str, remedy: str | None = "see fuzz/corpus/README.md") -> ParseError:
        return ParseError(f"{self.path}, line {line}: {message}", line=line, remedy=remedy)

    def _parsed(self, text: str) -> Program:
        try:
            program = parse_program(text)
        except ParseError as error:
            message = f"{self.path}, {error.message}"
            raise ParseError(message, line=error.line, column=error.column, remedy=error.remedy) from error
        try:
            verify(program)
        except VerificationError as error:
            start = len(text) - len(text.lstrip("\n"))
            raise self._error(start + 1, error.message, "correct the program, or what printed it") from error
        return program

    def _demand_one_text(self, sections: Mapping[str, str], seen: Mapping[str, int]) -> None:
        """Demand the property that `one text` states."""
        place = seen["one text"]
        if _ORIGINAL not in sections:
            raise self._error(place, f"`one text: yes` needs a program after a line `{_ORIGINAL}`")
        if self.demands.get("canonical") is False:
            raise self._error(place, "`one text: yes` contradicts `properties: not canonical`")
        self.properties = attrs.evolve(self.properties, canonical=True)

    def _check_type(self, name: str, type_: Type, number: int) -> None:
        """Check that a range or a value fits the type of its input or weight."""
        dtype = type_.dtype if isinstance(type_, TensorType) else None
        if name in self.bounds and dtype is not None and not dtype.is_floating_point:
            raise self._error(number, f"%{name} has type {type_}: only floating-point numbers are drawn from a range")
        value = self.values.get(name)
        if dtype is not None and isinstance(value, torch.Tensor) and value.dtype != dtype:
            raise self._error(number, f"%{name} has type {type_}, and its value has dtype {value.dtype}")

    def _sections(self, start: int) -> dict[str, str]:
        """Return the programs by the line before each; blank lines in front keep line numbers right."""
        found: dict[str, list[str]] = {"": [""] * start}
        name = ""
        for number, line in enumerate(self.lines[start:], start + 1):
            if not line.startswith("===="):
                found[name].append(line)
                continue
            name = line.rstrip()
            if name not in (EXPECTED, _ORIGINAL) or name in found:
                wanted = f"write `{EXPECTED}` or `{_ORIGINAL}`, each once at most"
                raise self._error(number, f"no part of a case begins with {name!r}", wanted)
            found[name] = [""] * number
        if not any(found[""]):
            raise self._error(start + 1, "the program is missing")
        return {name: "\n".join(lines) for name, lines in found.items()}

    # Facts

    def _fact(self, number: int, seen: dict[str, int]) -> None:
        line = self.lines[number - 1][1:].strip()
        if line.startswith("%"):
            key = f"%{self._value(number)}"
        else:
            key, colon, text = line.partition(":")
            read = self.facts.get(key)
            if read is None or not colon:
                raise self._error(number, f"{line!r} is not a fact; {known_names(key, self.facts)}")
            if key in seen:
                raise self._error(number, f"{key!r} is said twice")
            try:
                read(text.strip())
            except GraphwrightError as error:
                raise self._error(number, error.message, error.remedy) from error
            except ValueError as error:
                raise self._error(number, f"`{key}`: {error}") from error
        if key in seen:
            raise self._error(number, f"{key!r} is said twice")
        seen[key] = number

    def _applied(self, subject: Any) -> None:
        if self.subject is not None:
            raise ValueError("rules and a pipeline are two subjects")
        self.subject = subject

    def _properties(self, text: str) -> None:
        for word in filter(None, map(str.strip, text.split(","))):
            name = word.removeprefix("not ")
            if name not in _DEMANDS:
                raise ValueError(f"{name!r} is not a property; {known_names(name, _DEMANDS)}")
            if name in self.demands:
                raise ValueError(f"{name!r} is said twice")
            self.demands[name] = name == word
        self.properties = attrs.evolve(self.properties, **cast("dict[str, Any]", self.demands))

    def _value(self, number: int) -> str:
        """Read the range or the value of an input or weight; return its name."""
        try:
            lexer = Lexer("\n" * (number - 1) + " " + self.lines[number - 1][1:])
            literals = Literals(lexer)
            name = lexer.expect_value()
            if lexer.accept("in"):
                place = lexer.index
                bounds = literals.attribute()
                if not (
                    isinstance(bounds, tuple) and len(bounds) == 2 and all(type(b) in (int, float) for b in bounds)
                ):
                    raise lexer.error("expected a range, such as `[0.5, 2.0]`", index=place)
                if not bounds[0] <= bounds[1] or not all(map(math.isfinite, bounds)):
                    raise lexer.error("no number is drawn from this range", index=place)
                self.bounds[name] = bounds
            else:
                lexer.expect("=")
                self.values[name] = _read_value(literals)
            expect_end(lexer)
        except ParseError as error:
            message = f"{self.path}, {error.message}"
            raise ParseError(message, line=error.line, column=error.column, remedy=error.remedy) from error
        return name


def _int_within(text: str, lowest: int) -> int:
    number = int(text)
    if not lowest <= number < 2**63:
        raise ValueError(f"{text} is not in [{lowest}, {2**63 - 1}]")
    return number


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither yes nor no")
    return text == "yes"


def _read_value(literals: Literals) -> Any:
    """Read a number, or a tensor: its type, its elements and, if they are not standard, its strides."""
    lexer = literals.lexer
    if lexer.kind != "name" or lexer.texts[lexer.index + 1] != "[":
        return literals.constant()
    place = lexer.index
    type_: Any = literals.type()
    if isinstance(type_, TensorType) and type_.device not in (None, CPU):
        raise lexer.error(f"a tensor of a case is in the memory of the CPU, not on {type_.device}", index=place)
    elements = literals.constant()
    strides = tuple(literals.dims()) if lexer.accept("strides") else None
    try:
        shape = [int(size) for size in type_.shape]
        tensor = torch.tensor(elements, dtype=type_.dtype).reshape(shape)
        return tensor if strides is None else torch.empty_strided(shape, strides, dtype=type_.dtype).copy_(tensor)
    except (RuntimeError, TypeError, ValueError) as error:
        raise lexer.error(f"not a tensor: {error}", index=place) from error


def _format_value(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return format_attribute(value)
    text = f"{type_of_tensor(value)} {format_attribute(tuple(value.detach().reshape(-1).tolist()))}"
    standard = not value.numel() or value.stride() == torch.empty(value.shape).stride()
    return text if standard else f"{text} strides {format_attribute(value.stride())}"


def format_case(about: str, subject: str, case: Case, properties: Properties, *, order: int = 0) -> str | None:
    """Return the text of a file for a case, or None if the names of its inputs and weights are not unique.

    Args:
        about: what was wrong.
        subject: the fact `rules: ...` or `pipeline: ...`.
        case: the case.
        properties: the properties that must hold.
        order: the number of the order in which rules are tried.
    """
    program = parse_program(case.program)
    names = [*(value.name for value in program.graph.inputs), *program.weights]
    if len(set(names)) != len(names) or case.weights.keys() != program.weights.keys():
        return None
    demands = [
        name if value else f"not {name}"
        for name, default in _DEMANDS.items()
        if (value := getattr(properties, name)) != default
    ]
    facts = [subject]
    facts += [f"order: {order}"] * bool(order)
    facts += [f"properties: {', '.join(demands)}"] * bool(demands)
    facts += ["one text: yes"] * (case.one_text and properties.canonical)
    values = [*case.inputs, *(case.weights[name] for name in program.weights)]
    facts += [f"{format_name(name)} = {_format_value(value)}" for name, value in zip(names, values, strict=True)]
    comment = "\n".join(f"# {line}".rstrip() for line in (*about.splitlines(), "", *facts))
    text = f"{comment}\n\n{case.program.strip()}\n"
    return f"{text}{_ORIGINAL}\n{case.original.strip()}\n" if case.original else text


def with_expected(text: str, program: str) -> str:
    """Return the text of a file with another expected program."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.rstrip() == EXPECTED) + 1
    rest = next((i for i in range(start, len(lines)) if lines[i].startswith("====")), len(lines))
    kept = "\n".join(lines[rest:])
    return "\n".join(lines[:start]) + "\n" + newline.join([*program.split("\n"), kept])
