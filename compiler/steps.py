"""The steps of a pipeline, counted: a run takes the first of them only, or all but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from typing_extensions import override

from ir.core import Operation
from ir.locations import UNKNOWN_LOCATION, Location, merge_locations
from ir.program import Program
from ir.text.printer import print_operation, print_program
from passes.manager.instruments import diff_of
from passes.manager.manager import Instrument, Pass, PassManager, PassResult
from passes.rewrite.driver import Replacements
from passes.rewrite.pattern import Match, Pattern


@attrs.frozen
class Step:
    """A step of a pipeline: one rewrite, or what a pass without rules did in one run.

    Attributes:
        number: its number among the steps, from 1.
        rule: name of the rule; empty for a run of a pass.
        pass_: the pass, by its label or name.
        location: the place in the model.
        replaced: the operations that were there before, as text.
        created: the operations that it made.
    """

    number: int
    rule: str
    pass_: str
    location: Location
    replaced: tuple[str, ...] = ()
    created: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{self.rule}, applied by the pass `{self.pass_}`," if self.rule else f"the pass `{self.pass_}`"
        where = "" if self.location.is_unknown else f" at {self.location}"
        return f"{what}{where}"


@attrs.define(eq=False)
class Steps(Instrument):
    """Lets a run take its first steps and no others, or all but one, and describes the last.

    Attributes:
        limit: how many steps are taken; None for all.
        without: the number of the step that is left out; what is the same step again, as well.
        described: the step to describe.
    """

    limit: int | None = None
    without: int | None = None
    taken: int = 0
    described: Step | None = None
    _left_out: dict[tuple[str, int], Any] = attrs.field(factory=dict)
    _title: str = ""
    _places: dict[Operation, Location] | None = None
    _text: str = ""

    def _take(self, kind: str, subject: Any) -> bool:
        """Return whether the next step is taken: of a pass, or of a rule at an operation."""
        key = kind, id(subject)
        if key in self._left_out or self.taken == self.limit:
            return False
        self.taken += 1
        if self.taken == self.without:
            self._left_out[key] = subject  # which so keeps its id
            return False
        return True

    @override
    def allows(self, pass_: Pass, program: Program) -> bool:
        """Count a run of a pass that holds no others."""
        if isinstance(pass_, PassManager):
            return True
        self._title = pass_.title
        return self._take("", pass_)

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Remember the operations, if this run is the last step."""
        if isinstance(pass_, PassManager) or self.taken != self.limit:
            return
        self._places = {op: op.location for op in program.graph.operations()}
        self._text = print_program(program, locations=False)
        self.described = Step(self.taken, "", pass_.title, UNKNOWN_LOCATION)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Describe the run, if it is the last step."""
        if self._places is None or isinstance(pass_, PassManager) or self.described is None:
            return
        now = {op: op.location for op in program.graph.operations()}
        gone = [place for op, place in self._places.items() if op not in now]
        place = merge_locations(gone or [place for op, place in now.items() if op not in self._places])
        lines = diff_of(self._text, print_program(program, locations=False), "", context=0).splitlines()[2:]
        replaced, created = (tuple(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        self.described = attrs.evolve(self.described, location=place, replaced=replaced, created=created)
        self._places = None

    def veto(self, rule: Pattern, match: Match, is_recorded: bool) -> str | None:
        """Count a rewrite, and say why it is not made."""
        return None if self._take(rule.name, match.root) else "it is not among the steps that are taken"

    def hook(self, rule: Pattern, match: Match, program: Program) -> Callable[[Replacements], None] | None:
        """Describe a rewrite, if it is the last step."""
        if self.taken != self.limit:
            return None
        operations = match.ops or [match.root]
        before = set(program.graph.operations())
        place = merge_locations([op.location for op in operations])
        self.described = step = Step(
            self.taken, rule.name, self._title, place, tuple(print_operation(op) for op in operations)
        )

        def describe(_: Replacements) -> None:
            created = [print_operation(op) for op in program.graph.operations() if op not in before]
            self.described = attrs.evolve(step, created=tuple(created))

        return describe
