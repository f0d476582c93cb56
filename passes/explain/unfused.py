"""Why operations stay as they are: from near misses, and from how far rules got there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ir.core import Operation
from ir.opdef import OpDef
from passes.explain.found import PartialMatch
from passes.explain.partial import Tree
from passes.rewrite.driver import RewriteLog
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import Remark

_FEWEST_FITS = 3
_MOST_MISSING = 4
"""A rule nearly matched where three operations or more fit, and at most one in four of its pattern is missing."""
_REPORTED = ("attribute", "condition")
"""The kinds of differences of which the driver makes a remark itself."""


class UnfusedReasons:
    """Explains why operations were not rewritten.

    Args:
        log: the near misses that they were part of.
        rules: the rules that were to rewrite them.
        others: rules that may have nearly matched as well.
    """

    def __init__(self, log: RewriteLog, rules: Sequence[Pattern], others: Sequence[Pattern] = ()) -> None:
        self._index = RuleIndex(rules)
        self._others = tuple(others)
        self._misses = log.misses
        self._blamed: dict[OpDef, tuple[str, ...]] = {}
        self._trees: tuple[Tree, ...] | None = None
        self._known: dict[Operation, list[PartialMatch]] = {}

    def of(self, op: Operation) -> str:
        """Return why `op` was not rewritten."""
        reasons = self._misses.get((op.name, op.location))
        if reasons:
            return "; ".join(reasons)
        near = [f"{match.rule.name}: {_what_differs(match)}" for match in self._furthest(op) if _is_near(match)]
        if near:
            return "; ".join(near)
        blamed = self._blamed.get(op.opdef)
        if blamed is None:
            # a rule whose root it may be says more
            rooted = [variant.rule for variant in self._index.by_root[op.opdef]]
            names = dict.fromkeys(rule.name for rule in rooted or self._index.mentioning(op.opdef))
            blamed = self._blamed[op.opdef] = tuple(names)
        if not blamed:
            return f"no pattern of this pipeline is about {op.name}"
        found = [match for match in self._furthest(op) if match.rule.name in blamed and match.differences]
        text = f"what surrounds it does not have the structure of {', '.join(blamed)}"
        if not found:
            return text
        best = max(found, key=lambda match: match.rank)
        whose = f" (of {best.rule.name})" if len(blamed) > 1 else ""
        return f"{text}: {best.differences[0].message}{whose}"

    def nearly(self, ops: Iterable[Operation]) -> list[Remark]:
        """Return where a rule nearly had the structure that it wants, and what differs, each place once."""
        found: dict[Remark, None] = {}
        for op in ops:
            for match in filter(_is_near, self._furthest(op)):
                _, root = match.fits[0]
                remark = Remark("missed", match.rule.name, root.location, _what_differs(match), root.name)
                found.setdefault(remark)
        return list(found)

    def _furthest(self, op: Operation) -> list[PartialMatch]:
        """Return how far each rule got that could have an operation in its match."""
        if self._trees is None:
            rules = dict.fromkeys((*self._index.rules, *self._others))
            self._trees = tuple([Tree(rule, compile_rule(rule)) for rule in rules])
        known = self._known.get(op)
        if known is None:
            known = [match for tree in self._trees if (match := tree.furthest(op)) is not None]
            self._known[op] = known
        return known


def _is_near(match: PartialMatch) -> bool:
    missing = match.wanted - len(match.fits)
    if len(match.fits) < _FEWEST_FITS or _MOST_MISSING * missing > match.wanted:
        return False
    return any(difference.kind not in _REPORTED for difference in match.differences)


def _what_differs(match: PartialMatch) -> str:
    return f"{match.extent}, and {'; '.join(difference.message for difference in match.differences)}"
