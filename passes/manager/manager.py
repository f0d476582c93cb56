"""Passes and their managers: built in Python or from text, edited functionally, nested, instrumented on one seam."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ClassVar, Self, TypeVar

import attrs
from typing_extensions import override

from ir.errors import DidNotConverge, GraphwrightError, InputError, PassError
from ir.program import Program
from ir.verify import verify
from passes.manager.options import check_option, format_options, takes_passes
from passes.manager.text import PipelineParser
from passes.rewrite.driver import RewriteLog
from passes.rewrite.faults import raised_at
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import GraphwrightWarning

# What pipeline text can spell.
_NAME = re.compile(r"[A-Za-z0-9_-]+")

_T = TypeVar("_T")


@attrs.define(eq=False)
class PassContext:
    """What the passes of one run share.

    Attributes:
        log: what rules did and what they say.
        instruments: told before and after each pass.
        results: an entry for each pass that ran, in order.
    """

    log: RewriteLog = attrs.field(factory=RewriteLog)
    instruments: tuple[Instrument, ...] = ()
    results: list[PassResult] = attrs.field(factory=list)


@attrs.frozen
class PassResult:
    """What one pass did: measured, not claimed.

    Attributes:
        name: the pass.
        changed: whether it changed the program.
        seconds: wall time.
        operations_before: number of operations before it.
        operations_after: number of operations after it.
    """

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

    Attributes:
        name: its name in pipeline text and reports: `fold-batch-norm`.
    """

    name: ClassVar[str] = ""
    is_for_inference: ClassVar[bool] = False
    """Whether it assumes that the program will never train."""

    def __attrs_post_init__(self) -> None:
        _name_of(type(self))
        for field in attrs.fields(type(self)):
            check_option(self, field)

    def run(self, program: Program, context: PassContext) -> None:
        """Change the program in place.

        Raises:
            PassError: where a subclass does not override this.
        """
        raise PassError(
            f"the pass class {type(self).__qualname__} has no `run`",
            remedy="define `run(self, program, context)`; it changes the program in place",
        )

    def requires(self, program: Program) -> str | None:
        """Return why the pass cannot run on this program, or None."""
        return None

    def ensures(self, program: Program) -> str | None:
        """Return what is wrong with the program after the pass, or None."""
        return None

    def __str__(self) -> str:
        return f"{self.name}{format_options(self)}"


def _name_of(cls: type[Pass]) -> str:
    """Return the name of a pass class.

    Raises:
        InputError: when it has none, or one that pipeline text could not spell.
    """
    if isinstance(cls.name, str) and _NAME.fullmatch(cls.name):
        return cls.name
    what = f"the name {cls.name!r}, which is not a word of letters, digits and `-`" if cls.name else "no name"
    raise InputError(
        f"the pass class {cls.__qualname__} has {what}",
        remedy='give it a kebab-case one: `name: ClassVar[str] = "my-pass"`',
    )


def run_pass(pass_: Pass, program: Program, context: PassContext) -> PassResult:
    """Run one pass under its contract and the instruments.

    Raises:
        PassError: when the pass breaks its contract, or raised something that is not a GraphwrightError.
        GraphwrightError: whatever the pass raised, with a note that names the pass.
    """
    with _guarded(pass_, program):
        reason = pass_.requires(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` cannot run: {reason}", location=program.location)
    for instrument in context.instruments:
        with _blamed(instrument, "before", pass_):
            instrument.before(pass_, program)
    graph = program.graph
    revision, before, start = graph.revision, graph.num_operations, time.perf_counter()
    with _guarded(pass_, program):
        returned = pass_.run(program, context)  # type: ignore[func-returns-value]
    seconds = time.perf_counter() - start
    if returned is not None:
        raise PassError(
            f"pass `{pass_.name}` returned {returned!r}", remedy="change the program in place, return nothing"
        )
    with _guarded(pass_, program):
        reason = pass_.ensures(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` broke its promise: {reason}", location=program.location)
    result = PassResult(pass_.name, graph.revision != revision, seconds, before, graph.num_operations)
    context.results.append(result)
    for instrument in context.instruments:
        with _blamed(instrument, "after", pass_):
            instrument.after(pass_, program, result)
    return result


@contextmanager
def _guarded(pass_: Pass, program: Program) -> Iterator[None]:
    """Name the pass in what it raises; what is not an error of ours becomes one."""
    try:
        yield
    except GraphwrightError as error:
        note = f"in pass `{pass_}`"
        if note not in getattr(error, "__notes__", ()):  # a manager of one pass has that pass's text
            error.add_note(note)
        raise
    except GraphwrightWarning:
        raise  # the user made warnings errors: it is the warning that must reach them
    except Exception as error:
        raise PassError(
            f"pass `{pass_.name}` raised {type(error).__name__}: {error}",
            location=program.location,
            remedy="this is a bug in the pass",
        ) from error


@contextmanager
def _blamed(instrument: Instrument, when: str, pass_: Pass) -> Iterator[None]:
    """Blame the instrument, not the pass, for what it raises."""
    try:
        yield
    except (GraphwrightError, GraphwrightWarning):
        raise
    except Exception as error:
        raise PassError(
            f"the instrument {type(instrument).__qualname__} raised {type(error).__name__} {when} pass "
            f"`{pass_.name}`: {error}{raised_at(error, __file__)}",
            remedy="correct the instrument, or run without it; the pass is not at fault",
        ) from error


def _tuple_of_passes(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    return _tuple_of(passes, Pass, "passes", "PassManager([Canonicalize(), ...])")


def _tuple_of_instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    return _tuple_of(instruments, Instrument, "instruments", "PassManager([...], instruments=[Timing()])")


def _tuple_of(given: Iterable[_T], base: type[_T], what: str, example: str) -> tuple[_T, ...]:
    # a manager is iterable, but taking it apart would lose its instruments and rounds
    if isinstance(given, (base, type, str)) or not isinstance(given, Iterable):
        raise InputError(f"the {what} of a manager are {_shown(given)}, not a list", remedy=f"write `{example}`")
    entries = tuple(given)
    for entry in entries:
        if not isinstance(entry, base):
            article = "an" if base is Instrument else "a"
            raise InputError(
                f"{_shown(entry)} is not {article} {base.__name__}",
                remedy=f"pass instances of {base.__name__}: `{example}`",
            )
    return entries


def _shown(given: object) -> str:
    """Return the text of a wrong argument: classes and passes as the user writes them."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return f"the pass `{given}`" if isinstance(given, Pass) else repr(given)


def _by_name(classes: Iterable[Any], base: type, key: Callable[[Any], str], argument: str) -> dict[str, type[Any]]:
    """Return classes by name.

    Raises:
        InputError: when they are not a list of classes derived from `base`.
    """
    if isinstance(classes, (str, type, base)) or not isinstance(classes, Iterable):
        raise InputError(f"`{argument}` is {_shown(classes)}, not a list of {base.__name__} classes")
    found: dict[str, type[Any]] = {}
    for entry in classes:
        if not (isinstance(entry, type) and issubclass(entry, base)):
            remedy = (
                f"pass the class itself, `{argument}=[{type(entry).__name__}]`" if isinstance(entry, base) else None
            )
            raise InputError(f"{_shown(entry)} in `{argument}` is not a subclass of {base.__name__}", remedy=remedy)
        found[key(entry)] = entry
    return found


@attrs.frozen
class PassManager(Pass):
    """A sequence of passes, which is a pass itself.

    `str(manager)` is its text, `PassManager.parse(text)` the way back. The editing methods return new managers; they
    find passes by name, in nested managers too, but not in those that make their passes themselves.

    Attributes:
        passes: run in this order.
        instruments: told before and after each pass, beside those of the context.
    """

    name: ClassVar[str] = "sequence"
    passes: tuple[Pass, ...] = attrs.field(converter=_tuple_of_passes, default=())
    instruments: tuple[Instrument, ...] = attrs.field(
        converter=_tuple_of_instruments, default=(), kw_only=True, eq=False
    )

    @override
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
        """Return a manager with `passes` before every pass called `name`.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: (*passes, found))

    def insert_after(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` after every pass called `name`.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: (found, *passes))

    def replace(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` in place of every pass called `name`.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: passes)

    def without(self, name: str) -> Self:
        """Return a manager without the passes called `name`.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: ())

    def append(self, *passes: Pass) -> Self:
        """Return a manager with `passes` at the end.

        Raises:
            InputError: when the manager makes its passes itself.
        """
        return self._with_passes((*self.passes, *passes))

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
            elif isinstance(pass_, PassManager) and takes_passes(type(pass_)):
                inner, found = pass_._edited(name, edit)
                passes.append(inner)
                count += found
            else:
                passes.append(pass_)
        return self._with_passes(passes), count

    def _with_passes(self, passes: Sequence[Pass]) -> Self:
        if not takes_passes(type(self)):
            raise InputError(
                f"the passes of `{self}` are its own", remedy=f"edit `PassManager([{type(self).__name__}()])`"
            )
        return attrs.evolve(self, passes=tuple(passes))

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        passes: Sequence[type[Pass]] = (),
        patterns: Sequence[type[Pattern]] = (),
        lists: Mapping[str, Sequence[type[Pattern] | Pattern]] | None = None,
    ) -> PassManager:
        """Return the manager that `text` describes: `canonicalize,convert{patterns=A,B},fixpoint(a,b){max-rounds=4}`.

        `passes` are the pass classes that may occur, `patterns` the pattern classes that options may name, `lists`
        names of several at once.

        Raises:
            ParseError: when the text is ill-formed or names what is not given.
            InputError: when `text` is not a string, or `passes` or `patterns` hold other things than such classes.
        """
        if not isinstance(text, str):
            raise InputError(
                f"the text of a pipeline is {_shown(text)}, not a string",
                remedy='write it out, such as `parse_pipeline("canonicalize,verify")`',
            )
        known = _by_name(passes, Pass, _name_of, "passes")
        known.update({PassManager.name: PassManager, Fixpoint.name: Fixpoint})
        named = _by_name(patterns, Pattern, attrgetter("__name__"), "patterns")
        several: dict[str, tuple[Any, ...]] = {name: (pattern,) for name, pattern in named.items()}
        several.update({name: tuple(entries) for name, entries in (lists or {}).items()})
        return PassManager(PipelineParser(text, known, several).parse())


@attrs.frozen
class Fixpoint(PassManager):
    """Runs its passes in rounds until a round changes nothing.

    Attributes:
        max_rounds: the bound; `DidNotConverge` is raised when the last round still changes something.
    """

    name: ClassVar[str] = "fixpoint"
    _remedy: ClassVar[str] = "let only one of these passes apply: they undo each other"
    max_rounds: int = attrs.field(default=16, kw_only=True)

    @max_rounds.validator
    def _check_max_rounds(self, attribute: Any, value: Any) -> None:
        if type(value) is not int or value < 1:
            raise InputError(f"max_rounds is {value!r}: a fixpoint runs at least one round")

    @override
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
            own = {pass_.name for pass_ in self.passes}
            changing = [result.name for result in context.results[start:] if result.changed and result.name in own]
            if program.graph.revision == revision:
                return
        raise DidNotConverge(
            f"`{self}` still changes the program after {self.max_rounds} rounds; passes that take turns: "
            + ", ".join(dict.fromkeys(changing)),
            location=program.location,
            remedy=self._remedy,
        )

    def __str__(self) -> str:
        passes = f"({PassManager.__str__(self)})" if takes_passes(type(self)) else ""
        return f"{self.name}{passes}{format_options(self)}"


@attrs.frozen
class Verify(Pass):
    """Checks the invariants of the IR."""

    name: ClassVar[str] = "verify"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Verify the program.

        Raises:
            VerificationError: when an invariant is broken.
        """
        verify(program)
