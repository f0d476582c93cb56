"""Running the pipeline once more on a copy of the captured program, and watching all that it does."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import attrs
import torch
from typing_extensions import override

from compiler.planning import Plan, without_instruments
from ir.core import Operation, Value
from ir.errors import GraphwrightError, VerificationError
from ir.program import Program, copy_program
from ir.text.printer import named_values
from passes.explain.found import PartialMatch
from passes.explain.partial import Tree
from passes.manager.instruments import VerifyEach
from passes.manager.manager import Instrument, Pass, PassContext, PassManager, PassResult, run_pass
from passes.rewrite.driver import RewriteLog
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Pattern, instantiate
from passes.rewrite.remarks import GraphwrightWarning, Refusal
from passes.rewrite.scope import ModuleClasses
from passes.rewrite.witness import Witness

Chooses = Callable[[Operation], bool]


@attrs.frozen(eq=False)
class Change:
    """One rewrite, or what one pass did beside its rewrites.

    Attributes:
        pass_: the pass, by its label or name.
        rule: the rule; None where the pass itself did it.
        replaced: the operations that went.
        kept: those that matched and stay, since others use them.
        created: the operations that came.
    """

    pass_: str
    rule: Pattern | None
    replaced: tuple[Operation, ...]
    kept: tuple[Operation, ...]
    created: tuple[Operation, ...]


@attrs.frozen(eq=False)
class Refused:
    """A match that a rule, its scope or a plan refused, or a place where the rule failed."""

    rule: Pattern
    operations: tuple[Operation, ...]
    refusal: Refusal
    failed: bool = False


@attrs.define(eq=False)
class Question:
    """Which rule is watched, and at which operations."""

    rule: str
    at: Chooses
    seen: bool = False
    """Whether the rule was tried on a program that had such an operation."""
    best: PartialMatch | None = None

    def ask(self, rules: Sequence[Pattern], program: Program) -> None:
        """Compare the rule with the operations of a program."""
        for rule in rules:
            if rule.name != self.rule:
                continue
            tree = Tree(rule, compile_rule(rule))
            for op in program.graph.operations():
                if self.at(op):
                    self.seen = True
                    self._take(tree.furthest(op))

    def _take(self, found: PartialMatch | None) -> None:
        if found is not None and (self.best is None or found.rank >= self.best.rank):
            self.best = found


@attrs.define(eq=False)
class Record(Witness, Instrument):
    """What one run of a pipeline did.

    Attributes:
        program: the program, which has the result in the end.
        question: the rule that is watched.
    """

    program: Program
    question: Question | None = None
    changes: list[Change] = attrs.field(factory=list)
    """What was done, in order."""
    refusals: list[Refused] = attrs.field(factory=list)
    """What was refused, in order."""
    captured: tuple[Operation, ...] = attrs.field(init=False)
    """The operations of the captured program."""
    names: Mapping[str, Value] = attrs.field(init=False)
    """Its values, by the names in its text."""
    _running: str = ""
    _before: Mapping[Operation, None] = attrs.field(factory=dict)
    _accounted: set[Operation] = attrs.field(factory=set)
    _touching: dict[Operation, list[int]] = attrs.field(factory=dict)
    """Operation -> the numbers of the changes that it was part of."""

    def __attrs_post_init__(self) -> None:
        self.captured = tuple(self.program.graph.operations())
        self.names = named_values(self.program.graph)

    @override
    def applied(self, rule: Pattern, match: Match, created: Sequence[Operation]) -> None:
        graph = self.program.graph
        ops = match.ops or (match.root,)
        new = tuple([op for op in created if op.graph is graph])
        gone = tuple([op for op in ops if op.graph is not graph])
        kept = tuple([op for op in ops if op.graph is graph])
        self.changes.append(Change(self._running, rule, gone, kept, new))
        self._accounted.update(gone, new)

    @override
    def refused(self, rule: Pattern, ops: Sequence[Operation], refusal: Refusal) -> None:
        self.refusals.append(Refused(rule, tuple(ops), refusal))

    @override
    def passed_over(self, rule: Pattern, op: Operation, message: str) -> None:
        self.refusals.append(Refused(rule, (op,), Refusal(message), failed=True))

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        if not isinstance(pass_, PassManager):
            self._running = pass_.title
            self._before = dict.fromkeys(program.graph.operations())
            self._accounted.clear()
            self._ask(pass_)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        if isinstance(pass_, PassManager):
            return
        if result.changed:
            now = dict.fromkeys(program.graph.operations())
            gone = tuple([op for op in self._before if op not in now and op not in self._accounted])
            new = tuple([op for op in now if op not in self._before and op not in self._accounted])
            if gone or new:
                self.changes.append(Change(self._running, None, gone, (), new))
        self._ask(pass_)

    def _ask(self, pass_: Pass) -> None:
        if self.question is not None:
            self.question.ask(rules_of(pass_), self.program)

    def descendants(self, op: Operation) -> tuple[list[Change], list[Operation]]:
        """Return the changes that an operation went through, and what is left of it in the end."""
        if not self._touching:
            for number, change in enumerate(self.changes):
                for each in (*change.replaced, *change.kept):
                    self._touching.setdefault(each, []).append(number)
        lineage: dict[Operation, None] = {op: None}
        pending = list(self._touching.get(op, ()))
        heapq.heapify(pending)
        changes: dict[int, Change] = {}
        while pending:
            number = heapq.heappop(pending)
            if number in changes:
                continue
            change = changes[number] = self.changes[number]
            heirs: Iterable[Operation] = change.created
            if change.rule is None:  # a pass does not say what takes whose place
                places = {part for each in change.replaced if each in lineage for part in each.location.parts}
                heirs = [each for each in heirs if not places.isdisjoint(each.location.parts)]
            for each in heirs:
                if each not in lineage:
                    lineage[each] = None
                    for later in self._touching.get(each, ()):
                        heapq.heappush(pending, later)
        graph = self.program.graph
        return list(changes.values()), [each for each in lineage if each.graph is graph]


Recorder = TypeVar("Recorder", bound=Record)


def rules_of(pass_: Pass) -> tuple[Pattern, ...]:
    """Return the rules that a single pass applies."""
    return instantiate(getattr(pass_, "patterns", ()) or getattr(pass_, "rules", ()))


def all_rules(manager: PassManager) -> dict[str, Pattern]:
    """Return the rules of a pipeline by name, those of canonicalization included, in order."""

    def each(pass_: Pass) -> Iterator[Pattern]:
        if isinstance(pass_, PassManager):
            for inner in pass_.passes:
                yield from each(inner)
        else:
            yield from rules_of(pass_)

    found: dict[str, Pattern] = {}
    for rule in each(manager):
        found.setdefault(rule.name, rule)
    return found


@attrs.frozen(eq=False)
class Replay:
    """A captured program with its pipeline, which can be run again.

    Attributes:
        program: a copy of the captured program; the tensors of its weights are shared.
        pipeline: the pipeline.
        modules: the classes of the model's modules by path.
        strict: whether a rule that raises is an error.
        plan: the plan that was followed.
    """

    program: Program
    pipeline: PassManager
    modules: ModuleClasses
    strict: bool
    plan: Plan | None

    def blamed(self, error: VerificationError) -> VerificationError:
        """Return what names the pass that broke the program, or the error where it does not break again."""
        program = copy_program(self.program)
        log = RewriteLog(modules=self.modules, strict=self.strict)
        log.veto = None if self.plan is None else self.plan.follow(log)
        context = PassContext(log=log, instruments=(VerifyEach(),))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GraphwrightWarning)  # the user has been warned
                run_pass(without_instruments(self.pipeline), program, context)
        except VerificationError as found:
            return found
        except GraphwrightError as found:
            error.add_note(f"when the pipeline ran again: {found.message}")
        return error

    def run(self, question: Question | None = None) -> Record:
        """Run the pipeline on a copy, and return what it did."""
        return self.recorded(lambda program: Record(program, question))

    def recorded(self, recorder: Callable[[Program], Recorder]) -> Recorder:
        """Run the pipeline on a copy, and return the record that `recorder` makes of it."""
        program = copy_program(self.program)
        record = recorder(program)
        log = RewriteLog(modules=self.modules, strict=self.strict, witness=record)
        log.veto = None if self.plan is None else self.plan.follow(log)
        manager = without_instruments(self.pipeline)
        context = PassContext(log=log, instruments=(record,), scope=manager.scope.bound(self.modules))
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.simplefilter("ignore", GraphwrightWarning)  # the user has been warned
            manager.run(program, context)
        return record
