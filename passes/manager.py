"""Passes and their managers: built in Python or from text, edited functionally, nested, instrumented on one seam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import attrs

from ir.errors import DidNotConverge, GraphwrightError, InputError, ParseError, PassError
from ir.program import Program
from ir.verify import verify
from passes.driver import RewriteLog
from passes.pattern import Pattern, instantiate
from passes.remarks import GraphwrightWarning


@attrs.define(eq=False)
class PassContext:
    """What the passes of one run share."""

    log: RewriteLog = attrs.field(factory=RewriteLog)
    instruments: tuple[Instrument, ...] = ()
    results: list[PassResult] = attrs.field(factory=list)


@attrs.frozen
class PassResult:
    """What one pass did: measured, not claimed."""

    name: str
    changed: bool
    seconds: float
    operations_before: int
    operations_after: int


class Instrument:
    """Observes the seam between passes; override what is of interest."""

    def before(self, pass_: Pass, program: Program) -> None:
        """Called before a pass runs."""

    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Called after a pass ran."""


@attrs.frozen
class Pass:
    """One pass: a frozen record with a kebab-case `name`, its options as fields, and `run`.

    Subclass it with `@attrs.frozen`; override `run`, and `requires`/`ensures` where there is something to demand of
    the program before, or to promise of it after.
    """

    name: ClassVar[str] = "pass"

    def run(self, program: Program, context: PassContext) -> None:
        """Change the program in place."""
        raise NotImplementedError

    def requires(self, program: Program) -> str | None:
        """Return why the pass cannot run on this program, or None."""
        return None

    def ensures(self, program: Program) -> str | None:
        """Return what is wrong with the program after the pass, or None."""
        return None

    def __str__(self) -> str:
        options = []
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if value != field.default:
                options.append(f"{field.name.replace('_', '-')}={_format_option(value)}")
        return self.name + (f"{{{' '.join(options)}}}" if options else "")


def _format_option(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_format_option(item) for item in value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Pattern):
        return value.name
    return str(value)


def run_pass(pass_: Pass, program: Program, context: PassContext) -> PassResult:
    """Run one pass under its contract and the instruments.

    Raises:
        PassError: when the pass breaks its contract, or raised something that is not of our own.
        GraphwrightError: whatever the pass raised of our own, with a note that names the pass.
    """
    reason = pass_.requires(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` cannot run: {reason}", location=program.location)
    for instrument in context.instruments:
        instrument.before(pass_, program)
    graph = program.graph
    revision, before, start = graph.revision, graph.num_operations, time.perf_counter()
    try:
        returned = pass_.run(program, context)  # type: ignore[func-returns-value]
    except GraphwrightError as error:
        error.add_note(f"in pass `{pass_}`")
        raise
    except GraphwrightWarning:
        raise  # the user made warnings errors: it is the warning that must reach them
    except Exception as error:
        raise PassError(
            f"pass `{pass_.name}` raised {type(error).__name__}: {error}",
            location=program.location,
            remedy="this is a bug in the pass",
        ) from error
    seconds = time.perf_counter() - start
    if returned is not None:
        raise PassError(
            f"pass `{pass_.name}` returned {returned!r}", remedy="change the program in place, return nothing"
        )
    reason = pass_.ensures(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` broke its promise: {reason}", location=program.location)
    result = PassResult(pass_.name, graph.revision != revision, seconds, before, graph.num_operations)
    context.results.append(result)
    for instrument in context.instruments:
        instrument.after(pass_, program, result)
    return result


# A bare `tuple` as converter would lose the element type for the type checker.
def _tuple_of_passes(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    return tuple(passes)


def _tuple_of_instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    return tuple(instruments)


@attrs.frozen
class PassManager(Pass):
    """A sequence of passes, which is a pass itself.

    `str(manager)` is its text, `PassManager.parse(text)` the way back. The editing methods return new managers; they
    find passes by name, in nested managers too.
    """

    name: ClassVar[str] = "sequence"
    passes: tuple[Pass, ...] = attrs.field(converter=_tuple_of_passes, default=())
    instruments: tuple[Instrument, ...] = attrs.field(
        converter=_tuple_of_instruments, default=(), kw_only=True, eq=False
    )

    @passes.validator
    def _check_passes(self, attribute: Any, value: tuple[Any, ...]) -> None:
        for entry in value:
            if not isinstance(entry, Pass):
                raise InputError(
                    f"{entry!r} is not a Pass", remedy="pass instances of Pass: `PassManager([Canonicalize()])`"
                )

    def run(self, program: Program, context: PassContext) -> None:
        """Run the passes in order."""
        inner = attrs.evolve(context, instruments=(*context.instruments, *self.instruments))
        for pass_ in self.passes:
            run_pass(pass_, program, inner)

    def __call__(self, program: Program, context: PassContext | None = None) -> PassContext:
        """Run on a program, in place; return the context with remarks, matches and statistics."""
        context = context or PassContext()
        run_pass(self, program, context)
        return context

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def with_instruments(self, *instruments: Instrument) -> Self:
        """Return this manager with more instruments."""
        return attrs.evolve(self, instruments=(*self.instruments, *instruments))

    def insert_before(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` before every pass called `name`."""
        return self._edit(name, lambda found: (*passes, found))

    def insert_after(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` after every pass called `name`."""
        return self._edit(name, lambda found: (found, *passes))

    def replace(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` in place of every pass called `name`."""
        return self._edit(name, lambda found: passes)

    def without(self, name: str) -> Self:
        """Return a manager without the passes called `name`."""
        return self._edit(name, lambda found: ())

    def append(self, *passes: Pass) -> Self:
        """Return a manager with `passes` at the end."""
        return attrs.evolve(self, passes=(*self.passes, *passes))

    def _edit(self, name: str, edit: Callable[[Pass], Sequence[Pass]]) -> Self:
        result, count = self._edited(name, edit)
        if not count:
            raise InputError(f"there is no pass named {name!r} in `{self}`", remedy="`print(manager)` shows the names")
        return result

    def _edited(self, name: str, edit: Callable[[Pass], Sequence[Pass]]) -> tuple[Self, int]:
        passes: list[Pass] = []
        count = 0
        for pass_ in self.passes:
            if pass_.name == name:
                passes.extend(edit(pass_))
                count += 1
            elif isinstance(pass_, PassManager):
                inner, found = pass_._edited(name, edit)
                passes.append(inner)
                count += found
            else:
                passes.append(pass_)
        return attrs.evolve(self, passes=tuple(passes)), count

    @classmethod
    def parse(
        cls, text: str, *, passes: Sequence[type[Pass]] = (), patterns: Sequence[type[Pattern]] = ()
    ) -> PassManager:
        """Return the manager that `text` describes: `canonicalize,convert{patterns=A,B},fixpoint(a,b){max-rounds=4}`.

        `passes` are the pass classes that may occur, `patterns` the pattern classes that options may name.

        Raises:
            ParseError: when the text is ill-formed or names what is not given.
        """
        classes: tuple[type[Pass], ...] = (*passes, PassManager, Fixpoint)
        known = {p.name: p for p in classes}
        return _Parser(text, known, {p.__name__: p for p in patterns}).parse()


@attrs.frozen
class Fixpoint(PassManager):
    """Runs its passes in rounds until a round changes nothing."""

    name: ClassVar[str] = "fixpoint"
    max_rounds: int = attrs.field(default=16, kw_only=True)

    def run(self, program: Program, context: PassContext) -> None:
        """Run rounds of the passes.

        Raises:
            DidNotConverge: when round number `max_rounds` still changes the program.
        """
        changing: list[str] = []
        for _ in range(self.max_rounds):
            revision = program.graph.revision
            start = len(context.results)
            PassManager.run(self, program, context)
            changing = [result.name for result in context.results[start:] if result.changed]
            if program.graph.revision == revision:
                return
        raise DidNotConverge(
            f"`{self}` still changes the program after {self.max_rounds} rounds; passes that take turns: "
            + ", ".join(dict.fromkeys(changing)),
            location=program.location,
        )

    def __str__(self) -> str:
        options = f"{{max-rounds={self.max_rounds}}}" if self.max_rounds != 16 else ""
        return f"fixpoint({PassManager.__str__(self)}){options}"


class _Parser:
    """Recursive descent over `name{option=value ...}` and `name(passes){options}`."""

    def __init__(self, text: str, passes: Mapping[str, type[Pass]], patterns: Mapping[str, type[Pattern]]) -> None:
        self.text, self.passes, self.patterns = text, passes, patterns
        self.at = 0

    def parse(self) -> PassManager:
        manager = PassManager(self._sequence())
        if self.at != len(self.text):
            raise self._error("unexpected text")
        return manager

    def _error(self, message: str) -> ParseError:
        return ParseError(f"pipeline text, column {self.at + 1}: {message}\n  {self.text}\n  {' ' * self.at}^")

    def _peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _sequence(self) -> list[Pass]:
        passes: list[Pass] = []
        if self._peek() in ("", ")"):
            return passes
        passes.append(self._pass())
        while self._peek() == ",":
            self.at += 1
            passes.append(self._pass())
        return passes

    def _pass(self) -> Pass:
        self._peek()
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "-_"):
            self.at += 1
        name = self.text[start : self.at]
        cls = self.passes.get(name)
        if cls is None:
            self.at = start
            raise self._error(f"no pass is named {name!r}; known: {', '.join(sorted(self.passes))}")
        args: tuple[Any, ...] = ()
        if issubclass(cls, PassManager):
            if self._peek() != "(":
                raise self._error(f"`{name}` needs its passes in parentheses")
            self.at += 1
            args = (self._sequence(),)
            if self._peek() != ")":
                raise self._error("expected `)`")
            self.at += 1
        options = self._options(cls) if self._peek() == "{" else {}
        try:
            return cls(*args, **options)
        except GraphwrightError as error:
            raise self._error(error.message) from error
        except (TypeError, ValueError) as error:
            raise self._error(f"pass `{name}`: {error}") from error

    def _options(self, cls: type[Pass]) -> dict[str, Any]:
        end = self.text.find("}", self.at)
        if end < 0:
            raise self._error("`{` is never closed")
        fields = {field.name: field for field in attrs.fields(cls) if field.init}
        options: dict[str, Any] = {}
        for entry in self.text[self.at + 1 : end].split():
            key, equals, value = entry.partition("=")
            field = fields.get(key.replace("-", "_"))
            if field is None or not equals:
                raise self._error(f"pass `{cls.name}` has no option {key!r}")
            options[field.name] = self._option(field, value)
        self.at = end + 1
        return options

    def _option(self, field: Any, text: str) -> Any:
        default = field.default
        try:
            if isinstance(default, bool):
                return {"true": True, "false": False}[text]
            if isinstance(default, int):
                return int(text)
            if isinstance(default, float):
                return float(text)
        except (KeyError, ValueError):
            raise self._error(f"option {field.name!r}: {text!r} is not a {type(default).__name__}") from None
        if field.metadata.get("patterns"):
            names = [name for name in text.split(",") if name]
            unknown = [name for name in names if name not in self.patterns]
            if unknown:
                raise self._error(f"no pattern is named {', '.join(unknown)}")
            return tuple(self.patterns[name] for name in names)
        if isinstance(default, tuple):
            return tuple(part for part in text.split(",") if part)
        return text


def as_patterns(patterns: Sequence[type[Pattern] | Pattern]) -> tuple[type[Pattern] | Pattern, ...]:
    """Convert the value of an option that takes patterns: give it `converter=as_patterns, metadata=PATTERNS`.

    Raises:
        PatternError: when an entry is no pattern.
    """
    instantiate(patterns)
    return tuple(patterns)


PATTERNS: Mapping[str, bool] = {"patterns": True}
"""Metadata of a field whose text form is a list of pattern names."""


@attrs.frozen
class Verify(Pass):
    """Checks the invariants of the IR."""

    name: ClassVar[str] = "verify"

    def run(self, program: Program, context: PassContext) -> None:
        """Verify the program.

        Raises:
            VerificationError: when an invariant is broken.
        """
        verify(program)
