"""The passes that apply lists of patterns."""

from __future__ import annotations

from typing import ClassVar

import attrs

from ir.program import Program
from passes.driver import run_sweep, run_worklist
from passes.manager import PATTERNS, Pass, PassContext, as_patterns
from passes.matching import RuleIndex
from passes.pattern import Pattern, instantiate


@attrs.frozen
class Convert(Pass):
    """Applies structural conversions until none matches."""

    name: ClassVar[str] = "convert"
    patterns: tuple[type[Pattern] | Pattern, ...] = attrs.field(default=(), converter=as_patterns, metadata=PATTERNS)

    def run(self, program: Program, context: PassContext) -> None:
        """Apply the patterns with a worklist; rewrites and near misses are recorded."""
        index = RuleIndex(instantiate(self.patterns))
        run_worklist(program, index, context.log, record=True, report_misses=True)


@attrs.frozen
class Fuse(Pass):
    """Applies patterns once over the program, the longest first."""

    name: ClassVar[str] = "fuse"
    patterns: tuple[type[Pattern] | Pattern, ...] = attrs.field(default=(), converter=as_patterns, metadata=PATTERNS)

    def run(self, program: Program, context: PassContext) -> None:
        """Apply the patterns in a sweep; rewrites and near misses are recorded."""
        run_sweep(program, RuleIndex(instantiate(self.patterns)), context.log)
