"""Pass managers: built in Python or from text, edited functionally, nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Self

import attrs
from typing_extensions import override

from ir.errors import DidNotConverge, InputError
from ir.program import Program
from ir.verify import verify
from passes.manager.arguments import by_name, name_of, shown, tuple_of
from passes.manager.base import Instrument, Pass, PassContext, PassResult, run_pass
from passes.manager.editing import edited
from passes.manager.options import TOLERANCE, format_options, takes_passes
from passes.manager.text import PipelineParser
from passes.rewrite.bounds.tolerance import Tolerance
from passes.rewrite.pattern import Pattern
from passes.rewrite.scope import Scope

__all__ = ["Fixpoint", "Instrument", "Pass", "PassContext", "PassManager", "PassResult", "Verify", "run_pass"]


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
        tolerance: how far all that runs in it may change the results of the program on purpose, in place of what its
            passes and rules say of themselves; without it, their bounds are added up.
    """

    name: ClassVar[str] = "sequence"
    passes: tuple[Pass, ...] = attrs.field(converter=_tuple_of_passes, default=())
    instruments: tuple[Instrument, ...] = attrs.field(
        converter=_tuple_of_instruments, default=(), kw_only=True, eq=False
    )
    tolerance: Tolerance | None = attrs.field(default=None, kw_only=True, metadata=TOLERANCE)

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
