"""Pipelines: from a list of patterns to a PassManager, and back from text."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.targets import PATTERN_LISTS, STANDARD_PATTERNS
from passes.apply import Convert, Fuse
from passes.canonicalize import Canonicalize
from passes.cleanup.cse import EliminateCommonSubexpressions
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.batch_norm import FoldBatchNorm
from passes.fold.constants import FoldConstants
from passes.fold.freeze import FreezeWeights
from passes.manager.manager import Fixpoint, Pass, PassManager, Verify
from passes.quant.place import PlaceQuantizers
from passes.quant.remove import RemoveQuantizers
from passes.quant.unify import UnifyQuantizers
from passes.rewrite.pattern import Pattern, instantiate

STANDARD_PASSES: tuple[type[Pass], ...] = (
    Canonicalize,
    Convert,
    Fuse,
    FoldBatchNorm,
    FreezeWeights,
    EliminateCommonSubexpressions,
    EliminateDeadCode,
    FoldConstants,
    PlaceQuantizers,
    UnifyQuantizers,
    RemoveQuantizers,
    Verify,
)
"""The pass classes that pipeline text may name without more."""


def pipeline_of(patterns: Sequence[type[Pattern] | Pattern]) -> PassManager:
    """Return the pipeline for a list of patterns: canonicalize, convert to a fixpoint, fuse longest first.

    Raises:
        PatternError: when an entry is not a pattern.
    """
    rules = instantiate(patterns)
    conversions = tuple(entry for entry, rule in zip(patterns, rules, strict=True) if rule.is_conversion)
    others = tuple(entry for entry, rule in zip(patterns, rules, strict=True) if not rule.is_conversion)
    passes: list[Pass] = [Canonicalize()]
    if conversions:
        passes.append(Fixpoint([Convert(conversions), Canonicalize(fold_parameter_views=True)]))
    if others:
        passes.append(Fuse(others))
    return PassManager(passes)


def parse_pipeline(
    text: str, *, passes: Sequence[type[Pass]] = (), patterns: Sequence[type[Pattern]] = ()
) -> PassManager:
    """Return the pipeline that `text` describes, out of the standard passes and patterns and those given.

    The lists of the targets have names as well: `convert{patterns=openvino.conversions}`.

    Raises:
        ParseError: when the text is ill-formed, or names what is neither standard nor given.
    """
    return PassManager.parse(
        text, passes=(*STANDARD_PASSES, *passes), patterns=(*STANDARD_PATTERNS, *patterns), lists=PATTERN_LISTS
    )


def patterns_of(manager: PassManager) -> tuple[Pattern, ...]:
    """Return the patterns of all passes of a pipeline, in order."""
    found: list[Pattern] = []
    for pass_ in manager.passes:
        if isinstance(pass_, PassManager):
            found.extend(patterns_of(pass_))
        else:
            found.extend(instantiate(getattr(pass_, "patterns", ())))
    return tuple(found)
