"""A pass that applies rules alone, so that they can be checked as passes are."""

from __future__ import annotations

from typing import ClassVar

import attrs
from typing_extensions import override

from ir.caches import cached
from ir.program import Program
from passes.manager.manager import Pass, PassContext
from passes.rewrite.driver import run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern


@cached()
def index_of(rules: tuple[Pattern, ...]) -> RuleIndex:
    """Return the index of rules, cached: a pattern with many alternatives takes longer to expand than to match."""
    return RuleIndex(rules)


@attrs.frozen
class ApplyRules(Pass):
    """Applies rules alone: fusions in a sweep, others until none matches."""

    name: ClassVar[str] = "apply"
    rules: tuple[Pattern, ...] = ()

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the rules and record what they did."""
        index = index_of(self.rules)
        if all(rule.is_fusion for rule in self.rules):
            run_sweep(program, index, context.log, scope=self.scope)
        else:
            run_worklist(program, index, context.log, record=True, scope=self.scope)
