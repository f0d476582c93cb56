"""One pass, what the passes of a run share, and the seam between them that instruments observe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import attrs

from ir.errors import GraphwrightError, InputError, PassError
from ir.program import Program
from passes.manager.analysis import A, Analyses, Analysis, check_preserved
from passes.manager.arguments import name_of
from passes.manager.options import KEYS, check_label, check_option, check_own_names, format_options
from passes.manager.outside import Outside
from passes.rewrite.bounds.reach import Computations
from passes.rewrite.bounds.tolerance import Tolerance, check_tolerance
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
        analyses: what passes computed of the program; a pass asks `analysis`.
    """

    log: RewriteLog = attrs.field(factory=RewriteLog)
    instruments: tuple[Instrument, ...] = ()
    results: list[PassResult] = attrs.field(factory=list)
    scope: Scope = EVERYWHERE
    analyses: Analyses = attrs.field(factory=Analyses)

    def analysis(self, kind: type[A], program: Program) -> A:
        """Return what an analysis says of the program as it is now; it runs only where that is not known yet.

        Args:
            kind: the class of the analysis.
            program: the program of the run.

        Raises:
            PassError: when `kind` is no class of analyses, or changes the program.
        """
        return self.analyses.get(kind, program)


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
        tolerance: how far it changes numbers on purpose, if it says so.
    """

    name: str
    changed: bool
    seconds: float
    operations_before: int
    operations_after: int
    label: str = ""
    tolerance: Tolerance | None = None


class Instrument:
    """Observes the seam between passes; override what is of interest."""

    def allows(self, pass_: Pass, program: Program) -> bool:
        """Return whether a pass is to run; where one instrument says no, it is passed over, and nobody hears of it."""
        return True

    def before(self, pass_: Pass, program: Program) -> None:
        """Called before a pass runs."""

    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Called after a pass ran."""

    def failed(self, pass_: Pass, program: Program, error: Exception) -> None:
        """Called when a pass, or an instrument before or after it, raised: for managers too, the innermost pass first.

        It may add notes to the error, which is raised on.
        """

    def tried(self, rule: Pattern, seconds: float, *, matches: int, rewrites: int) -> None:
        """Called after a rule was tried at an operation: costly, so only where a class overrides it.

        Args:
            rule: the rule.
            seconds: what it took to match, check and rewrite.
            matches: how many matches and near misses there were: 0 or 1.
            rewrites: how many of them were rewritten: 0 or 1.
        """


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
    preserves: ClassVar[tuple[type[Analysis], ...]] = ()
    """Analyses whose results stay true, whatever the pass changes; others are computed anew after a change."""
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
        check_tolerance(f"pass `{self.name}`", self.tolerance)
        check_preserved(f"pass `{self.name}`", self.preserves)
        if self.whole and (self.only or self.skip):
            raise InputError(f"pass `{self.name}` takes no scope: {self.whole}", remedy="leave out `only` and `skip`")

    @property
    def scope(self) -> Scope:
        """The operations that it may change."""
        return Scope(self.only, self.skip) if self.bound_scope is None else self.bound_scope

    @property
    def tolerance(self) -> Tolerance | None:
        """How far a run that changes something may change the results of the program, with all that runs in it.

        A class that changes numbers on purpose says so: `tolerance = Tolerance(relative=1e-3)`, or a property of its
        options. Any other pass is held to rounding, and its rules to what they say themselves.
        """
        return None

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
    for instrument in context.instruments:
        with _blamed(instrument, "before", pass_):
            if not instrument.allows(pass_, program):
                count = program.graph.num_operations
                return PassResult(pass_.name, False, 0.0, count, count, pass_.label)
    try:
        return _run(pass_, running, program, context)
    except Exception as error:
        for instrument in context.instruments:
            with _blamed(instrument, "after", pass_):
                instrument.failed(pass_, program, error)
        raise


def _run(pass_: Pass, running: Pass, program: Program, context: PassContext) -> PassResult:
    """Run a pass, which `running` is with its scope bound."""
    scope = EVERYWHERE if running is pass_ else running.scope
    with _guarded(pass_, program):
        reason = running.requires(program)
    if reason is not None:
        raise PassError(f"pass `{pass_.name}` cannot run: {reason}", location=program.location)
    for instrument in context.instruments:
        with _blamed(instrument, "before", pass_):
            instrument.before(pass_, program)
    context.log.watchers = [each.tried for each in context.instruments if type(each).tried is not Instrument.tried]
    graph = program.graph
    revision, before, start = graph.revision, graph.num_operations, time.perf_counter()
    with _guarded(pass_, program), answering(pass_, program, context):
        outside = Outside.of(program, scope)
        returned = running.run(program, context)  # type: ignore[func-returns-value]
    seconds = time.perf_counter() - start
    if pass_.preserves:
        context.analyses.preserve(pass_.preserves, program, revision)
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
    counts = before, graph.num_operations
    result = PassResult(pass_.name, graph.revision != revision, seconds, *counts, pass_.label, pass_.tolerance)
    context.results.append(result)
    for instrument in context.instruments:
        with _blamed(instrument, "after", pass_):
            instrument.after(pass_, program, result)
    return result


@contextmanager
def answering(pass_: Pass, program: Program, context: PassContext) -> Iterator[None]:
    """Let a pass that states a tolerance answer for all that runs in it, if the block changes the program."""
    approximations, revision = context.log.approximations, program.graph.revision
    mark = approximations.mark()
    before = None if pass_.tolerance is None else Computations(program)
    yield
    if program.graph.revision != revision and pass_.tolerance is not None and before is not None:
        approximations.replace_since(mark, pass_.title, pass_.tolerance, before.changed(program))


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
