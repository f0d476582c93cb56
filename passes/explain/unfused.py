"""Why operations stay as they are: from near misses, and from what patterns are about."""

from __future__ import annotations

from collections.abc import Sequence

from ir.core import Operation
from ir.opdef import OpDef
from passes.rewrite.driver import RewriteLog
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern


class UnfusedReasons:
    """Explains why operations were not rewritten, from the near misses that involved them."""

    def __init__(self, log: RewriteLog, rules: Sequence[Pattern]) -> None:
        self._index = RuleIndex(rules)
        self._misses = log.misses
        self._general: dict[OpDef, str] = {}

    def of(self, op: Operation) -> str:
        """Return why `op` was not rewritten."""
        reasons = self._misses.get((op.name, op.location))
        if reasons:
            return "; ".join(reasons)
        found = self._general.get(op.opdef)
        if found is None:
            found = self._general[op.opdef] = self._without_miss(op)
        return found

    def _without_miss(self, op: Operation) -> str:
        """Return why no rule nearly matched an operation, the same for all operations of an operator."""
        rooted = [variant.rule for variant in self._index.by_root[op.opdef]]
        names = dict.fromkeys(rule.name for rule in rooted or self._index.mentioning(op.opdef))
        if names:
            return f"what surrounds it does not have the structure of {', '.join(names)}"
        return f"no pattern of this pipeline is about {op.name}"
