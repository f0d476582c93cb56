"""Passes and their managers: built in Python or from text, edited functionally, nested, instrumented on one seam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ClassVar, Self

import attrs
from typing_extensions import override

from ir.errors import DidNotConverge, GraphwrightError, InputError, PassError
from ir.program import Program
from ir.verify import verify
from passes.manager.arguments import by_name, name_of, shown, tuple_of
from passes.manager.editing import edited
from passes.manager.options import KEYS, check_label, check_option, check_own_names, format_options, takes_passes
from passes.manager.outside import Outside
from passes.manager.text import PipelineParser
from passes.rewrite.driver import RewriteLog
from passes.rewrite.faults import raised_at
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import GraphwrightWarning
from passes.rewrite.scope import EVERYWHERE, Key, Scope, as_keys


@attrs.define(eq=False)
class PassContext:
    """What the passes of one run share.

    Attributes:
        log: what rules did and what they say.
        instruments: told before and after each pass.
        results: an entry for each pass that ran, in order.
        scope: what the managers around the pass leave to it; a pass asks its own `scope`, which lies in this one.
    """

    log: RewriteLog = attrs.field(factory=RewriteLog)
    instruments: tuple[Instrument, ...] = ()
    results: list[PassResult] = attrs.field(factory=list)
    scope: Scope = EVERYWHERE


@attrs.frozen
class PassResult:
    """What one pass did: measured, not claimed.

    Attributes:
        name: the pass.
        changed: whether it changed the program.
        seconds: wall time.
        operations_before: number of operations before it.
        operations_after: number of operations after it.
        label: its label, if it has one.
    """

    name: str
    changed: bool
    seconds: float
    operations_before: int
    operations_after: int
    label: str = ""


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
    the program before, or to promise of it after. It changes only operations that `self.scope.holds`.

    Attributes:
        name: its name in pipeline text and reports: `fold-batch-norm`.
        whole: why it takes no scope; empty where it does.
        only: what it may change: globs of module paths, classes of modules, predicates of operations; empty for all.
        skip: what it may not, though `only` means it.
        label: tells it from others of its name, in edits and reports.
    """

    name: ClassVar[str] = ""
    is_for_inference: ClassVar[bool] = False
    """Whether it assumes that the program will never train."""
    whole: ClassVar[str] = ""
    only: tuple[Key, ...] = attrs.field(default=(), converter=as_keys, kw_only=True, metadata=KEYS)
    skip: tuple[Key, ...] = attrs.field(default=(), converter=as_keys, kw_only=True, metadata=KEYS)
    label: str = attrs.field(default="", kw_only=True, validator=check_label)
    bound_scope: Scope | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)
    """Set by the runner: its scope within those of the managers around it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_own_names(cls)

    def __attrs_post_init__(self) -> None:
        name_of(type(self))
        for field in attrs.fields(type(self)):
            check_option(self, field)
        if self.whole and (self.only or self.skip):
            raise InputError(f"pass `{self.name}` takes no scope: {self.whole}", remedy="leave out `only` and `skip`")

    @property
    def scope(self) -> Scope:
        """The operations that it may change."""
        return Scope(self.only, self.skip) if self.bound_scope is None else self.bound_scope

    @property
    def title(self) -> str:
        """Its label, or else its name."""
        return self.label or self.name

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


def run_pass(pass_: Pass, program: Program, context: PassContext) -> PassResult:
    """Run one pass under its contract and the instruments.

    Raises:
        PassError: when the pass breaks its contract, or raised something that is not a GraphwrightError.
        GraphwrightError: whatever the pass raised, with a note that names the pass.
    """
    running, scope = pass_, EVERYWHERE
    if pass_.only or pass_.skip or not context.scope.is_everywhere:
        scope = Scope(pass_.only, pass_.skip).bound(context.log.modules).within(context.scope)
        running, context = attrs.evolve(pass_, bound_scope=scope), attrs.evolve(context, scope=scope)
    with _guarded(pass_, program):
        reason = running.requires(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` cannot run: {reason}", location=program.location)
    for instrument in context.instruments:
        with _blamed(instrument, "before", pass_):
            instrument.before(pass_, program)
    graph = program.graph
    revision, before, start = graph.revision, graph.num_operations, time.perf_counter()
    with _guarded(pass_, program):
        outside = Outside.of(program, scope)
        returned = running.run(program, context)  # type: ignore[func-returns-value]
    seconds = time.perf_counter() - start
    if returned is not None:
        raise PassError(
            f"pass `{pass_.name}` returned {returned!r}", remedy="change the program in place, return nothing"
        )
    touched = outside.touched(program)
    if touched is not None:
        raise PassError(
            f"pass `{pass_.name}` {touched}, which its scope leaves out ({scope})",
            location=program.location,
            remedy="let it change only operations that `self.scope.holds(op)`",
        )
    with _guarded(pass_, program):
        reason = running.ensures(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` broke its promise: {reason}", location=program.location)
    result = PassResult(pass_.name, graph.revision != revision, seconds, before, graph.num_operations, pass_.label)
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
    return tuple_of(passes, Pass, "passes", "PassManager([Canonicalize(), ...])")


def _tuple_of_instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    return tuple_of(instruments, Instrument, "instruments", "PassManager([...], instruments=[Timing()])")


@attrs.frozen
class PassManager(Pass):
    """A sequence of passes, which is a pass itself.

    `str(manager)` is its text, `PassManager.parse(text)` the way back. The editing methods return new managers; they
    find passes by name or label, in nested managers too, but not in those that make their passes themselves. A position
    tells those of one name apart: `fuse[1]` is the second, `fuse[-1]` the last.

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
        passes, options = ",".join(map(str, self.passes)), format_options(self)
        return f"{self.name}({passes}){options}" if options else passes

    def with_instruments(self, *instruments: Instrument) -> Self:
        """Return this manager with more instruments."""
        return attrs.evolve(self, instruments=(*self.instruments, *instruments))

    def insert_before(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` before each pass that `name` means.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: (*passes, found))

    def insert_after(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` after each pass that `name` means.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: (found, *passes))

    def replace(self, name: str, *passes: Pass) -> Self:
        """Return a manager with `passes` in place of each pass that `name` means.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: passes)

    def without(self, name: str) -> Self:
        """Return a manager without the passes that `name` means.

        Raises:
            InputError: when there is none.
        """
        return self._edit(name, lambda found: ())

    def append(self, *passes: Pass) -> Self:
        """Return a manager with `passes` at the end.

        Raises:
            InputError: when the manager makes its passes itself.
        """
        return self.with_passes((*self.passes, *passes))

    def with_scope(self, name: str, *, only: Any = (), skip: Any = ()) -> Self:
        """Return a manager in which the passes that `name` means change nothing outside of a scope.

        Args:
            name: a name, a label, or either with a position.
            only: what they may change: globs of module paths, classes of modules, predicates; one, or a list.
            skip: what they may not, though `only` means it; in addition to what they skip already.

        Raises:
            InputError: when there is no such pass, it has an `only` already, or a key of the scope is none.
        """
        given = Scope(only, skip)

        def narrowed(found: Pass) -> tuple[Pass]:
            if given.only and found.only:
                raise InputError(
                    f"`{found}` has an `only` already", remedy=f"use `replace({name!r}, ...)` with another pass"
                )
            return (attrs.evolve(found, only=given.only or found.only, skip=(*found.skip, *given.skip)),)

        return self._edit(name, narrowed)

    def with_passes(self, passes: Iterable[Pass]) -> Self:
        """Return this manager with other passes in place of its own.

        Raises:
            InputError: when the manager makes its passes itself.
        """
        if not takes_passes(type(self)):
            raise InputError(
                f"the passes of `{self}` are its own", remedy=f"edit `PassManager([{type(self).__name__}()])`"
            )
        return attrs.evolve(self, passes=tuple(passes))

    def _edit(self, name: str, edit: Callable[[Any], Sequence[Pass]]) -> Self:
        return edited(self, name, edit)  # type: ignore[no-any-return]

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
                f"the text of a pipeline is {shown(text)}, not a string",
                remedy='write it out, such as `parse_pipeline("canonicalize,verify")`',
            )
        known = by_name(passes, Pass, name_of, "passes")
        known.update({PassManager.name: PassManager, Fixpoint.name: Fixpoint})
        named = by_name(patterns, Pattern, attrgetter("__name__"), "patterns")
        several: dict[str, tuple[Any, ...]] = {name: (pattern,) for name, pattern in named.items()}
        several.update({name: tuple(entries) for name, entries in (lists or {}).items()})
        parsed = PipelineParser(text, known, several).parse()
        # a sequence with options is written as one
        return parsed[0] if len(parsed) == 1 and type(parsed[0]) is PassManager else PassManager(parsed)


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
        passes = f"({','.join(map(str, self.passes))})" if takes_passes(type(self)) else ""
        return f"{self.name}{passes}{format_options(self)}"


@attrs.frozen
class Verify(Pass):
    """Checks the invariants of the IR."""

    name: ClassVar[str] = "verify"
    whole: ClassVar[str] = "it looks at all of the program, and changes nothing"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Verify the program.

        Raises:
            VerificationError: when an invariant is broken.
        """
        verify(program)
