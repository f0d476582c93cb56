"""The passes that apply lists of patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from typing_extensions import override

from ir.errors import PatternError
from ir.program import Program
from passes.canonicalize import Canonicalize
from passes.canonicalize.respelled import respelled_operators, spelled_otherwise
from passes.manager.manager import Pass, PassContext
from passes.manager.options import PATTERNS, as_patterns
from passes.rewrite.driver import run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.remarks import Remark


def _refuse(kind: str, instead: str, is_kind: Callable[[Pattern], bool]) -> Callable[[Any, Any, Any], None]:
    """Return a validator that refuses patterns which belong in another pass."""

    def validate(pass_: Pass, attribute: Any, patterns: Any) -> None:
        for rule in instantiate(patterns):
            if rule.is_conversion and rule.is_fusion:
                raise PatternError(
                    f"{rule.name} is both a conversion and a fusion",
                    remedy="keep one of `is_conversion` and `is_fusion`",
                )
            if is_kind(rule):
                raise PatternError(
                    f"{rule.name} is a {kind}, which the pass `{pass_.name}` does not apply",
                    remedy=f"put it into `{instead}([{rule.name}])`; `pipeline_of` sorts a list of patterns by itself",
                )

    return validate


def _warn_of_respelled(pass_: Pass, index: RuleIndex, program: Program, context: PassContext) -> None:
    """Warn of rules that match operators which canonicalization has respelled before this pass.

    A rule that the pass tried before canonicalization, or that matched after all, is in order.
    """
    earlier = dict.fromkeys(result.name for result in context.results)
    if next((name for name in earlier if name in (Canonicalize.name, pass_.name)), "") != Canonicalize.name:
        return
    log = context.log
    for rule in index.rules:
        respelled = respelled_operators(rule)
        if not respelled or log.counts[rule.name] or log.refusals[rule.name]:
            continue
        if any(op.name in respelled for op in program.graph.operations()):
            continue  # of an unknown shape: not respelled here
        context.log.remarks.skip(
            Remark(
                "skipped",
                rule.name,
                program.location,
                f"it matches nothing after `{Canonicalize.name}`, which leaves no {spelled_otherwise(respelled)}",
                next(iter(respelled)),
            )
        )


@attrs.frozen
class Convert(Pass):
    """Applies structural conversions until none matches.

    Attributes:
        patterns: conversions, tried in this order at each operation.
    """

    name: ClassVar[str] = "convert"
    patterns: tuple[type[Pattern] | Pattern, ...] = attrs.field(
        default=(),
        converter=as_patterns,
        validator=_refuse("fusion", "Fuse", lambda rule: rule.is_fusion),
        metadata=PATTERNS,
    )

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the patterns with a worklist; rewrites and near misses are recorded."""
        index = RuleIndex(instantiate(self.patterns))
        run_worklist(program, index, context.log, record=True, scope=self.scope)
        _warn_of_respelled(self, index, program, context)


@attrs.frozen
class Fuse(Pass):
    """Applies patterns once over the program, the longest first.

    Attributes:
        patterns: fusions, tried in this order among those of equal length.
    """

    name: ClassVar[str] = "fuse"
    patterns: tuple[type[Pattern] | Pattern, ...] = attrs.field(
        default=(),
        converter=as_patterns,
        validator=_refuse("conversion", "Convert", lambda rule: rule.is_conversion),
        metadata=PATTERNS,
    )

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the patterns in a sweep; rewrites and near misses are recorded."""
        index = RuleIndex(instantiate(self.patterns))
        run_sweep(program, index, context.log, scope=self.scope)
        _warn_of_respelled(self, index, program, context)
