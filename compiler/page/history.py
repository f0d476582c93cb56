"""What became of each operation: recorded while the passes run, for pages that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from typing_extensions import override

from ir.core import Operation
from ir.program import Program, copy_program
from passes.manager.manager import Instrument, Pass, PassManager, PassResult
from passes.rewrite.driver import RewriteLog
from passes.rewrite.pattern import Match, Pattern, unscoped
from passes.rewrite.remarks import OpSummary


@attrs.frozen
class Rewrite:
    """One rewrite of one rule, with operations by number.

    Attributes:
        rule: name of the rule.
        kind: `conversion`, `fusion` or `rewrite`.
        is_told: whether it is among the matches and remarks of the result; those of `canonicalize` are not.
        replaced: the operations that it removed.
        created: the operations that it inserted.
    """

    rule: str
    kind: str
    is_told: bool
    replaced: tuple[int, ...]
    created: tuple[int, ...]


@attrs.frozen
class Step:
    """One run of one pass.

    Attributes:
        title: the pass, by its label or name.
        text: the pass with its options.
        changed: whether it changed the program.
        seconds: wall time.
        rewrites: what rules did in it, in order.
        removed: operations that went otherwise: dead, folded or merged.
        added: operations that came otherwise.
        operations_before: number of operations before it.
        operations_after: number of operations after it.
    """

    title: str
    text: str
    changed: bool
    seconds: float
    rewrites: tuple[Rewrite, ...]
    removed: tuple[int, ...]
    added: tuple[int, ...]
    operations_before: int
    operations_after: int


@attrs.frozen(eq=False)
class History:
    """What the passes made of a program. Operations have numbers, those of the captured program from 0.

    Attributes:
        captured: the program before the first pass; its operations have the first numbers, in order.
        steps: the runs of passes, in order.
        operations: all operations that ever were, by number.
        final: the numbers of the operations of the result, in order.
        modules: path of a module of the model -> name of its class, where it is known.
    """

    captured: Program
    steps: tuple[Step, ...]
    operations: tuple[OpSummary, ...]
    final: tuple[int, ...]
    modules: Mapping[str, str]


@attrs.define(eq=False)
class Recorder(Instrument):
    """Records the history of a program, as an instrument of the passes and a watcher of the rewrites.

    Attributes:
        program: the program, before the first pass.
        log: the log of the compilation, which is told whom to tell of rewrites.
    """

    program: Program
    log: RewriteLog
    _captured: Program = attrs.field(init=False)
    _numbers: dict[Operation, int] = attrs.field(factory=dict)
    """All operations that were seen; they are held, so that none takes the place of another."""
    _present: frozenset[Operation] = frozenset()
    _rewrites: list[tuple[Pattern, tuple[Operation, ...], tuple[Operation, ...], bool]] = attrs.field(factory=list)
    _steps: list[Step] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._captured = copy_program(self.program)
        self._present = self._operations()
        self.log.watch = self._rewritten

    def _operations(self) -> frozenset[Operation]:
        operations = tuple(self.program.graph.operations())
        self._number(operations)
        return frozenset(operations)

    def _number(self, operations: Sequence[Operation]) -> tuple[int, ...]:
        return tuple([self._numbers.setdefault(op, len(self._numbers)) for op in operations])

    def _rewritten(self, rule: Pattern, match: Match, created: Sequence[Operation], is_told: bool) -> None:
        self._rewrites.append((rule, tuple(match.ops), tuple(created), is_told))

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Note what a pass did; what a manager did is what its passes did."""
        if program is not self.program or isinstance(pass_, PassManager):
            return
        rewrites, self._rewrites = self._rewrites, []
        removed: set[Operation] = set()
        added: set[Operation] = set()
        before = self._present
        if result.changed:
            self._present = self._operations()
            removed, added = set(before - self._present), set(self._present - before)
        steps = []
        for rule, replaced, created, is_told in rewrites:
            kind = "conversion" if rule.is_conversion else "fusion" if rule.is_fusion else "rewrite"
            name = unscoped(type(rule)).__name__
            erased = self._number([op for op in replaced if op.is_erased])
            steps.append(Rewrite(name, kind, is_told, erased, self._number(created)))
            removed.difference_update(replaced)
            added.difference_update(created)
        self._steps.append(
            Step(
                pass_.title,
                str(pass_),
                result.changed,
                result.seconds,
                tuple(steps),
                tuple(sorted(self._number(tuple(removed)))),
                tuple(sorted(self._number(tuple(added)))),
                result.operations_before,
                result.operations_after,
            )
        )

    def history(self, modules: Mapping[str, str]) -> History:
        """Return the history of the program as it is now, and forget the operations."""
        self.log.watch = None
        final = self._number(tuple(self.program.graph.operations()))
        operations = tuple(
            OpSummary(op.name, op.location, tuple(result.type for result in op.results)) for op in self._numbers
        )
        self._numbers.clear()
        return History(self._captured, tuple(self._steps), operations, final, modules)
