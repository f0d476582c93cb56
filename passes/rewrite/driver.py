"""Applying rules to a graph: a worklist driver for fixpoints and a sweep for fusions.

The order is fixed by the program and the rule list. A match is always made on the present graph.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from typing_extensions import override

from ir.core import RETURN, Operation, Value
from ir.data_sizes import has_data_symbols
from ir.errors import GraphwrightError
from ir.locations import Location, merge_locations
from ir.opdef import Trait
from ir.program import Program
from ir.types import TensorType
from passes.rewrite.bounds.reach import Reach
from passes.rewrite.bounds.tolerance import Approximations, Place
from passes.rewrite.effects import crossed_effect, hidden_size, is_removable, moved_effect, outside_use
from passes.rewrite.expansion import has_demands, is_compound
from passes.rewrite.faults import (
    RuleFault,
    changed_early,
    did_not_converge,
    returned_values,
    rule_fault,
    rule_raised,
    without_effect,
)
from passes.rewrite.language.roots import place_of
from passes.rewrite.matching import RuleIndex, Variant
from passes.rewrite.pattern import Match, Pattern, unscoped
from passes.rewrite.remarks import GraphwrightWarning, LeftOut, MatchRecord, OpSummary, Refusal, Remark, RemarkLog
from passes.rewrite.rewriter import Events, Rewriter
from passes.rewrite.scope import EVERYWHERE, ModuleClasses, Scope
from passes.rewrite.witness import Witness

Replacements = list[tuple[Value, Value]]
"""(old value, new value) in the order in which uses were moved."""

RewriteHook = Callable[[Pattern, Match, Program], Callable[[Replacements], None] | None]
"""Called before a rewrite is applied; what it returns is called after it with the values that were replaced."""


Watcher = Callable[..., None]
"""Told of a rule, the seconds it took at an operation, and the numbers of `matches` and `rewrites`."""


@attrs.define(eq=False)
class RewriteLog:
    """State that the drivers of one compilation share: rewrites, remarks and a validation hook."""

    matches: list[MatchRecord] = attrs.field(factory=list)
    remarks: RemarkLog = attrs.field(factory=RemarkLog)
    counts: Counter[str] = attrs.field(factory=Counter)
    """Rule -> rewrites."""
    refusals: Counter[str] = attrs.field(factory=Counter)
    """Rule -> matches that it refused, and near misses."""
    variants: Counter[tuple[str, int]] = attrs.field(factory=Counter)
    """(rule, number of the alternative of its pattern) -> rewrites."""
    hook: RewriteHook | None = None
    veto: Callable[[Pattern, Match, bool], str | None] | None = None
    """Asked before each rewrite, with whether it is recorded; a reason keeps it from being made."""
    watchers: Sequence[Watcher] = ()
    """Told of each try of a rule; set for each pass, by its instruments."""
    misses: dict[tuple[str, Location], dict[str, None]] = attrs.field(factory=dict)
    """(operator, location) -> why the near misses that the operation was part of did not fire."""
    strict: bool = True
    """Whether a rule that raises is an error; else it is reported, and skipped where that is safe."""
    faulty: set[tuple[str, Operation]] = attrs.field(factory=set)
    """(rule, operation) where a rule was skipped so."""
    modules: ModuleClasses = attrs.field(factory=dict)
    """The classes of the model's modules by path, where they are known: what a scope means by a class."""
    witness: Witness | None = None
    """Told of every rewrite and refusal."""
    approximations: Approximations = attrs.field(factory=Approximations)
    """What changed numbers on purpose."""


def summarize(op: Operation) -> OpSummary:
    """Return what reports say of an operation."""
    return OpSummary(op.opdef.name, op.location, tuple([r.type for r in op.results]))


class Applier:
    """Tries rules at single operations and applies the first that matches; the base of both drivers."""

    def __init__(self, program: Program, log: RewriteLog, *, record: bool, scope: Scope = EVERYWHERE) -> None:
        self.program = program
        self.graph = program.graph
        self.log = log
        self.record = record
        self.scope = scope
        self.scopes: dict[Pattern, Scope] = {}
        self.events = Events()
        self.rewriter = Rewriter(program, (self.events,))
        self.reach: Reach | None = None
        """What numbers reach, from the first rewrite that changes some on purpose."""
        self._has_data_sizes = has_data_symbols(program)

    def apply_first(self, op: Operation, variants: Sequence[Variant]) -> Variant | None:
        """Apply the first variant that matches at `op` and is not refused; return it."""
        faulty, graph = self.log.faulty, self.graph
        for variant in variants:
            if faulty and (variant.rule.name, op) in faulty:
                continue
            before = graph.revision
            try:
                try:
                    found = variant.try_match(op)
                except GraphwrightWarning:
                    raise  # the user made warnings errors: it is the warning that must reach them
                except Exception as error:
                    if graph.revision != before:
                        raise changed_early(variant.rule, "pattern", op.location) from error
                    raise rule_raised(variant.rule, "pattern", error, op.location) from error
                if graph.revision != before:
                    raise changed_early(variant.rule, "pattern", op.location)
                if found is not None and self._apply_found(op, variant, found):
                    return variant
            except RuleFault as fault:
                if self.log.strict or fault.is_final:
                    raise
                self._skip(variant.rule, op, fault, before)
        return None

    def _apply_found(self, op: Operation, variant: Variant, found: Match | Refusal | str) -> bool:
        if not isinstance(found, Match):
            refusal = found if isinstance(found, Refusal) else Refusal(found)
            self._miss(variant, op, refusal, (op,), asked=False)
            return False
        reason = self._refusal(variant.rule, found)
        if reason is not None:
            self._miss(variant, op, reason, found.ops or (op,), asked=True)
            return False
        if not self._apply(variant.rule, found):
            return False
        self.log.variants[variant.rule.name, variant.order] += 1
        return True

    def _skip(self, rule: Pattern, op: Operation, fault: RuleFault, revision: int) -> None:
        """Report a rule that is at fault at an operation, and pass it over there; raise if it has edited the graph."""
        created = self.events.created if self.graph.revision != revision else ()
        if not self.rewriter.undo(created, revision):
            fault.add_note("the rule is not skipped: it has edited the graph before")
            raise fault
        self.log.faulty.add((rule.name, op))
        if self.log.witness is not None:
            self.log.witness.passed_over(rule, op, fault.message)
        location = fault.location or op.location
        self.log.remarks.skip(
            Remark("failed", rule.name, location, f"{fault.message}; the bug is in the rule", op.name)
        )

    def _refusal(self, rule: Pattern, match: Match) -> Refusal | None:
        if rule.closed and len(match.ops) > 1:
            reason = outside_use(match) or (crossed_effect(match.ops) if rule.is_fusion else None)
            if reason is not None:
                return Refusal(reason)
        reason = hidden_size(self.program, match) if self._has_data_sizes else None
        if reason is None and len(match.roots) > 1:
            reason = moved_effect(match)
        if reason is not None:
            return Refusal(reason)
        revision = self.graph.revision
        try:
            answer = rule.check(match)
        except GraphwrightWarning:
            raise
        except Exception as error:
            if self.graph.revision != revision:
                raise changed_early(rule, "check", _place(match)) from error
            raise rule_raised(rule, "check", error, match.root.location) from error
        if self.graph.revision != revision:
            raise changed_early(rule, "check", _place(match))
        if answer is None:
            return self._left_out(rule, match)
        if isinstance(answer, Refusal):
            return answer
        if not isinstance(answer, str) or not answer:
            raise rule_fault(
                rule,
                "check",
                f"returned {answer!r}",
                location=match.root.location,
                remedy="return None to let the rule apply, or the reason why not as text or Refusal",
            )
        return Refusal(answer)

    def _left_out(self, rule: Pattern, match: Match) -> Refusal | None:
        """Return why a match is left out: an operation is not in the scope of pass and rule, or it is switched off."""
        scope = self.scopes.get(rule)
        if scope is None:
            scope = self.scopes[rule] = rule.scope.bound(self.log.modules).within(self.scope)
        for op in () if scope.is_everywhere else match.ops or (match.root,):
            barred = scope.bars(op)
            if barred is not None:
                return LeftOut(f"{op.name} at `{op.location.where}` is left out by {barred}")
        reason = self.log.veto(rule, match, self.record) if self.log.veto is not None else None
        return None if reason is None else LeftOut(reason, remark="off")

    def _miss(
        self, variant: Variant, op: Operation, refusal: Refusal, involved: Sequence[Operation], *, asked: bool
    ) -> None:
        """Take note of a near miss; `asked` says whether all that the pattern demands holds, and `check` refused."""
        rule, log = variant.rule, self.log
        if variant.names and not isinstance(refusal, LeftOut):
            said = f"{refusal.reason} (of the alternative {', '.join(variant.names)})"
            refusal = attrs.evolve(refusal, reason=said)
        log.refusals[rule.name] += 1
        if log.witness is not None:
            log.witness.refused(rule, involved, refusal)
        if self.record and refusal.near:
            for each in involved:
                log.misses.setdefault((each.name, each.location), {})[f"{rule.name}: {refusal.reason}"] = None
        if refusal.warn and rule.warns_without_shapes:
            log.remarks.skip(Remark("skipped", rule.name, op.location, refusal.reason, op.name))
        elif self.record and refusal.near:
            kind = refusal.remark if isinstance(refusal, LeftOut) else "missed"
            # where no more than one operator fits, it is of interest only if the operation stays
            is_far = is_compound(variant.tree) or rule.check_adds > 0 or (asked and has_demands(variant.tree))
            about = op if kind == "missed" and not is_far else None
            log.remarks.add(Remark(kind, rule.name, op.location, refusal.reason, op.name), about)

    def _apply(self, rule: Pattern, match: Match) -> bool:
        """Apply a rule; return whether the graph changed (returning the root's own results changes nothing)."""
        root, graph, events = match.root, self.graph, self.events
        revision = graph.revision
        had_uses = {op for op in match.ops if not is_unused(op)}
        events.clear()
        hook = self.log.hook
        finish = hook(rule, match, self.program) if hook is not None else None
        replaced = tuple(map(summarize, match.ops)) if self.record else ()
        location = _place(match)
        rewriter = self.rewriter
        rewriter.anchor, rewriter.location = root, location
        old = root.results
        if len(match.roots) > 1:
            place = place_of(match.ops, match.roots)
            if isinstance(place, str):  # without these operations, it was refused
                raise rule_fault(rule, "check", f"added operations to the match: {place}", location=location)
            rewriter.anchor, old = place, tuple([result for each in match.roots for result in each.results])
        try:
            returned = rule.rewrite(match, rewriter)
        except GraphwrightWarning:
            raise
        except Exception as error:
            raise rule_raised(rule, "rewrite", error, location) from error
        values = returned_values(rule, returned, location)
        if values is None or values == old:
            if graph.revision == revision and returned is not None:
                return False
            # an insertion is one revision: there was no other edit
            if graph.revision - revision == len(events.created):
                fault = without_effect(rule, returned, events.created, location)
                if fault is not None:
                    raise fault
        else:
            try:
                rewriter.replace_all(match.roots, values)
            except GraphwrightError as error:
                raise rule_raised(rule, "rewrite", error, location) from error
        if finish is not None:
            finish(events.replacements)
        self._erase_dead(match.ops, replaced_by_rule=[op for op in match.ops if op in had_uses])
        for remark in rewriter.settle_weights(rule.name, self.scope.holds):
            self.log.remarks.add(remark)
        self.log.counts[rule.name] += 1
        if rule.tolerance is not None:
            self.log.approximations.add(rule.name, "rewrite", rule.tolerance, self._reached())
        if self.log.witness is not None:
            self.log.witness.applied(rule, match, events.created)
        if self.record:
            created = tuple(summarize(op) for op in events.created if op.graph is graph)
            kind = rule.is_conversion, rule.is_fusion, ", ".join(match.alternatives)
            self.log.matches.append(MatchRecord(unscoped(type(rule)), location, replaced, created, *kind))
        return True

    def _reached(self) -> frozenset[Place] | None:
        """Return the places that the numbers of the last rewrite can reach; None for all."""
        if self.reach is None:
            self.reach = Reach(self.program)
            self.rewriter.listeners = (self.events, self.reach)
        return self.reach.of_edits(self.events)

    def _erase_dead(self, ops: Sequence[Operation], replaced_by_rule: Sequence[Operation] = ()) -> None:
        """Erase unused operations: matched ones first, then what only they used.

        Those in `replaced_by_rule` are erased although they have an effect: the rule has put its own in their place.
        """
        graph = self.graph
        worklist = list(ops)
        while worklist:
            op = worklist.pop()
            if op.graph is not graph or op.opdef is RETURN or not is_unused(op):
                continue
            if not is_removable(op) and op not in replaced_by_rule:
                continue
            if not (self.scope.is_everywhere or self.scope.holds(op)):
                continue
            self.rewriter.erase(op)
            worklist.extend([v.owner for v in op._operands if v is not None and type(v.owner) is Operation])


class _WatchedApplier(Applier):
    """Tells the watchers of the log of each try of a rule."""

    @override
    def apply_first(self, op: Operation, variants: Sequence[Variant]) -> Variant | None:
        log = self.log
        for variant in variants:
            name = variant.rule.name
            refused, start = log.refusals[name], time.perf_counter()
            applied = super().apply_first(op, (variant,)) is not None
            seconds = time.perf_counter() - start
            for watcher in log.watchers:
                watcher(variant.rule, seconds, matches=applied + log.refusals[name] - refused, rewrites=int(applied))
            if applied:
                return variant
        return None


def _applier(program: Program, log: RewriteLog, *, record: bool, scope: Scope) -> Applier:
    return (_WatchedApplier if log.watchers else Applier)(program, log, record=record, scope=scope)


def _place(match: Match) -> Location:
    """Return where a match is in the model."""
    return match.root.location if len(match.ops) <= 1 else merge_locations([op.location for op in match.ops])


def is_unused(op: Operation) -> bool:
    """Return whether nothing uses the results of `op`."""
    results = op.results
    return not results[0]._uses if len(results) == 1 else not any(result._uses for result in results)


def run_worklist(
    program: Program,
    index: RuleIndex,
    log: RewriteLog,
    *,
    record: bool = False,
    max_rewrites: int | None = None,
    scope: Scope = EVERYWHERE,
) -> int:
    """Apply rules until none matches; return the number of rewrites.

    With `record`, rewrites and near misses are recorded in the log. Only what is in the scope is changed.

    Raises:
        DidNotConverge: after `max_rewrites` rewrites (by default 64 for each operation, and 1024).
    """
    applier = _applier(program, log, record=record, scope=scope)
    events, target = applier.events, applier.graph
    by_root = index.by_root
    worklist: deque[Operation] = deque()
    queued: set[Operation] = set()

    def push(op: Operation) -> None:
        """Queue an operation that some rule is about, or that is dead code."""
        if op in queued or op.opdef is RETURN:
            return
        if not by_root[op.opdef]:
            for result in op.results:
                if result._uses:
                    return
        queued.add(op)
        worklist.append(op)

    def push_changed(ops: list[Operation]) -> None:
        for op in ops:
            if op.graph is target:
                push(op)
                for result in op.results:
                    for user in result._uses:
                        push(user)

    limit = 64 * target.num_operations + 1024 if max_rewrites is None else max_rewrites
    count = 0
    recent: deque[tuple[Pattern, Location]] = deque(maxlen=64)
    while True:
        start = count
        for op in target.operations():
            push(op)
        while worklist:
            op = worklist.popleft()
            queued.remove(op)
            if op.graph is not target:
                continue
            if is_unused(op) and is_removable(op):
                events.clear()
                applier._erase_dead((op,))
            else:
                variant = applier.apply_first(op, by_root[op.opdef])
                if variant is None:
                    continue
                count += 1
                recent.append((variant.rule, op.location))
                if count > limit:
                    raise did_not_converge(count, list(recent), target)
                if op.graph is target:
                    push(op)
            push_changed(events.created)
            push_changed(events.touched)
            for value in events.freed:
                source = value.owner
                if type(source) is Operation and source.graph is target:
                    push(source)
                    if len(value._uses) == 1:  # a rule may have waited for the value to have one user
                        push(next(iter(value._uses)))
        # what a rewrite changed is looked at again close by; a rule that looks further finds its match in a new round
        if count == start:
            return count


def run_sweep(program: Program, index: RuleIndex, log: RewriteLog, *, scope: Scope = EVERYWHERE) -> int:
    """Apply rules once at each operation, in graph order, longest variants of all rules first; return the count.

    The longest pattern takes its operations before any shorter one is tried anywhere, so a short rule never breaks
    up what a long one wants. Only what is in the scope is changed.
    """
    applier = _applier(program, log, record=True, scope=scope)
    order = {rule: i for i, rule in enumerate(index.rules)}
    ranked = sorted(index.variants, key=lambda v: (-v.length, order[v.rule], v.order))
    by_root: dict[Any, list[Operation]] = {}
    for op in program.graph.operations():
        by_root.setdefault(op.opdef, []).append(op)
    count = 0
    for variant in ranked:
        roots = [op for opdef, ops in by_root.items() if variant.accepts(opdef) for op in ops]
        for op in roots:
            if op.graph is program.graph and applier.apply_first(op, (variant,)):
                count += 1
                # a later rule may be rooted at what this one made
                for created in applier.events.created:
                    if created.graph is program.graph:
                        by_root.setdefault(created.opdef, []).append(created)
    return count


def is_computation(op: Operation) -> bool:
    """Return whether an operation computes numbers, as opposed to moving them."""
    return not op.opdef.has(Trait.LAYOUT) and any(isinstance(r.type, TensorType) for r in op.results)
