"""`explain`: what became of a module, an operation or a value, and how far a rule got there."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import attrs

from compiler.explain.explanation import Explanation, Near, Step, Story
from compiler.explain.places import operations_at, text_of
from compiler.explain.replay import Change, Question, Record, Replay, all_rules
from compiler.pipeline import patterns_of
from ir.core import Operation
from ir.errors import InputError
from ir.locations import Location
from ir.program import Program
from ir.spelling import did_you_mean
from passes.explain.found import PartialMatch
from passes.explain.partial import Tree
from passes.explain.texts import short_line
from passes.rewrite.driver import is_computation, summarize
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Pattern

_EMPTY = "the module has no operation in the captured program: forward does not call it, or it computes nothing"


def explain(replay: Replay, program: Program, at: Any = None, rule: Any = None) -> Explanation:
    """Explain a compilation.

    Args:
        replay: its pipeline, with a copy of the captured program.
        program: the program of the result.
        at: a module path, an operator, a value or a line; None for all of the model.
        rule: a rule, by its name or class, that is asked about; None for what became of the place.

    Raises:
        InputError: when the model has no such place, or the pipeline no such rule; the error names what is near.
    """
    rules = all_rules(replay.pipeline)
    name = None if rule is None else _rule_name(rule, rules)
    place = None if at is None else text_of(at, program)
    record = replay.run()
    if place is None:
        return _whole(record, replay, rules, name)
    ops = operations_at(place, record, replay.modules)
    if not ops:
        return Explanation(place, notes=(_EMPTY,))
    if name is not None:
        return Explanation(f"{name} at {place}", rule=_how_far(name, rules[name], ops, record, replay))
    trees = _Trees(patterns_of(replay.pipeline))
    return Explanation(place, tuple([_story(op, record, trees) for op in ops]))


def _rule_name(rule: Any, rules: dict[str, Pattern]) -> str:
    name = rule if isinstance(rule, str) else rule.__name__ if isinstance(rule, type) else getattr(rule, "name", None)
    if not isinstance(name, str):
        raise InputError(f"rule={rule!r} is no rule", remedy='give its name or its class: `rule="ConvBNPattern"`')
    if name not in rules:
        raise InputError(
            f"the pipeline has no rule {name!r}",
            remedy=did_you_mean(name, rules, f"its rules are {', '.join(rules) or 'none'}"),
        )
    return name


class _Trees:
    """The patterns of all rules, each made when it is asked for."""

    def __init__(self, rules: Iterable[Pattern]) -> None:
        self._rules = tuple(rules)
        self.names = {rule.name for rule in self._rules}
        self._made: list[Tree] | None = None

    @property
    def trees(self) -> list[Tree]:
        """The patterns."""
        if self._made is None:
            self._made = [Tree(rule, compile_rule(rule)) for rule in self._rules]
        return self._made

    def furthest(self, op: Operation) -> list[PartialMatch]:
        """Return how far each rule got that could have an operation, the furthest first."""
        found = [match for tree in self.trees if (match := tree.furthest(op)) is not None]
        return sorted(found, key=lambda match: match.rank, reverse=True)


def _whole(record: Record, replay: Replay, rules: dict[str, Pattern], name: str | None) -> Explanation:
    """Explain all of a model: each of its operations, or where one rule was applied and where it was not."""
    trees = _Trees(patterns_of(replay.pipeline) if name is None else [rules[name]])
    stories = [_story(op, record, trees) for op in record.captured]
    if name is None:
        return Explanation(replay.program.name, tuple(stories))
    about = [
        story
        for story in stories
        if any(step.rule == name for step in story.steps) or any(near.rule == name for near in story.near)
    ]
    return Explanation(f"{name} in {replay.program.name}", tuple(about))


def _story(op: Operation, record: Record, trees: _Trees) -> Story:
    changes, left = record.descendants(op)
    lineage = {op, *left, *(each for change in changes for each in change.created)}
    near = [each for each in _refusals(lineage, record) if each.rule in trees.names]
    refused = {each.rule for each in near}
    for each in left:
        if each.body is None and is_computation(each):
            near += [_near(match) for match in trees.furthest(each) if match.rule.name not in refused]
    distinct = {each.rule: each for each in reversed(near)}
    return Story(
        summarize(op),
        tuple([_step(change, op, lineage) for change in changes]),
        tuple(map(summarize, left)),
        tuple([each for each in near if distinct[each.rule] is each]),
    )


def _step(change: Change, op: Operation, lineage: Container[Operation]) -> Step:
    if change.rule is None:
        return Step(change.pass_, "", tuple([summarize(each) for each in change.replaced if each in lineage]), ())
    return Step(
        change.pass_,
        change.rule.name,
        tuple(map(summarize, (*change.replaced, *change.kept))),
        tuple(map(summarize, change.created)),
        stays=op in change.kept,
    )


def _refusals(ops: Iterable[Operation], record: Record, name: str | None = None) -> list[Near]:
    """Return why rules that matched with one of these operations were not applied, by rule."""
    inside = set(ops)
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for each in record.refusals:
        wanted = name is None or each.rule.name == name
        if wanted and (name is not None or each.refusal.near) and any(op in inside for op in each.operations):
            text = _with_line(each.refusal.reason, each.operations[-1].location)
            reasons.setdefault((each.rule.name, "failed" if each.failed else "refused"), {})[text] = None
    return [Near(rule, outcome, tuple(texts)) for (rule, outcome), texts in reasons.items()]


def _near(match: PartialMatch, outcome: str = "partial") -> Near:
    return Near(
        match.rule.name,
        outcome,
        tuple([_with_line(each.message, each.location) for each in match.differences]),
        tuple([(part, summarize(op)) for part, op in match.fits]),
        match.wanted,
    )


def _with_line(text: str, location: Location) -> str:
    """Return a reason with the user's line, unless it is named already."""
    line = short_line(location)
    return text if not line or line in text else f"{text} ({line})"


def _how_far(name: str, rule: Pattern, ops: Sequence[Operation], record: Record, replay: Replay) -> Near:
    """Return how far a rule got with any of some captured operations."""
    lineage = {each for op in ops for each in _lineage(op, record)}
    applied = [change for change in record.changes if change.rule is not None and change.rule.name == name]
    for change in applied:
        if not lineage.isdisjoint((*change.replaced, *change.kept)):
            made = ", ".join(op.name for op in change.created) or "nothing"
            fits = tuple([(op.name, summarize(op)) for op in (*change.replaced, *change.kept)])
            return Near(name, "applied", (f"the pass `{change.pass_}` made {made} of these",), fits, len(fits))
    refused = _refusals(lineage, record, name)
    if refused:
        return refused[0]
    places = {part for op in ops for part in op.location.parts}
    question = Question(name, lambda op: not places.isdisjoint(op.location.parts))
    replay.run(question)
    best = question.best
    if best is None and question.seen:
        return Near(name, "none", (f"its pattern is about {Tree(rule, compile_rule(rule)).subject}",))
    if best is None:
        return Near(name, "none", ("nothing of the place was left when it was tried",))
    if best.is_whole:
        return attrs.evolve(_near(best), outcome="taken", reasons=(_taker(best, record),))
    return _near(best)


def _taker(best: PartialMatch, record: Record) -> str:
    """Say which rule took the operations of a match."""
    wanted = {(op.name, op.location) for _, op in best.fits}
    for change in record.changes:
        if change.rule is None or change.rule.name == best.rule.name:
            continue
        if any((op.name, op.location) in wanted for op in change.replaced):
            return f"{change.rule.name} was there first, and took {', '.join(op.name for op in change.replaced)}"
    return "something else took its operations first"


def _lineage(op: Operation, record: Record) -> list[Operation]:
    changes, left = record.descendants(op)
    return [op, *left, *(each for change in changes for each in change.created)]
