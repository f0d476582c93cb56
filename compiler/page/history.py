"""What became of each operation: the record of a run of the pipeline, with operations by number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs
from typing_extensions import override

from compiler.explain.replay import Change, Record, Replay
from ir.core import Operation
from ir.program import Program
from passes.manager.manager import Pass, PassManager, PassResult
from passes.rewrite.pattern import unscoped
from passes.rewrite.remarks import OpSummary
from passes.rewrite.scope import bare_class

Numbered = Callable[[Iterable[Operation]], tuple[int, ...]]


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
        program: the program after the last.
        steps: the runs of passes, in order.
        operations: all operations that ever were, by number.
        final: the numbers of the operations of the result, in order.
        modules: path of a module of the model -> name of its class, where it is known.
    """

    captured: Program
    program: Program
    steps: tuple[Step, ...]
    operations: tuple[OpSummary, ...]
    final: tuple[int, ...]
    modules: Mapping[str, str]


@attrs.define(eq=False)
class _Steps(Record):
    """A record that knows the runs of passes."""

    steps: list[tuple[Pass, PassResult, int]] = attrs.field(factory=list)
    """Pass, its result, and how many changes there were after it."""

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        super().after(pass_, program, result)
        if not isinstance(pass_, PassManager):
            self.steps.append((pass_, result, len(self.changes)))


def history_of(replay: Replay, told: Collection[str]) -> History:
    """Run a pipeline once more on the captured program, and return what it did.

    Args:
        replay: the captured program with its pipeline.
        told: names of the rules that the result tells of.
    """
    record = replay.recorded(_Steps)
    numbers: dict[Operation, int] = {}

    def numbered(operations: Iterable[Operation]) -> tuple[int, ...]:
        return tuple([numbers.setdefault(op, len(numbers)) for op in operations])

    numbered(record.captured)
    steps: list[Step] = []
    start = 0
    for pass_, result, end in record.steps:
        changes = record.changes[start:end]
        start = end
        steps.append(_step(pass_, result, changes, numbered, told))
    final = numbered(record.program.graph.operations())
    operations = tuple([OpSummary(op.name, op.location, tuple([r.type for r in op.results])) for op in numbers])
    modules = {path: name for path, names in replay.modules.items() if (name := bare_class(names))}
    return History(replay.program, record.program, tuple(steps), operations, final, modules)


def _step(
    pass_: Pass, result: PassResult, changes: Sequence[Change], numbered: Numbered, told: Collection[str]
) -> Step:
    rewrites: list[Rewrite] = []
    removed: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    for change in changes:
        replaced, created = numbered(change.replaced), numbered(change.created)
        if change.rule is None:
            removed, added = (*removed, *replaced), (*added, *created)
            continue
        rule = change.rule
        kind = "conversion" if rule.is_conversion else "fusion" if rule.is_fusion else "rewrite"
        name = unscoped(type(rule)).__name__
        rewrites.append(Rewrite(name, kind, name in told, replaced, created))
    counts = (result.operations_before, result.operations_after)
    return Step(pass_.title, str(pass_), result.changed, result.seconds, tuple(rewrites), removed, added, *counts)
