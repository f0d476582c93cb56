"""Canonicalization: one spelling of everything and nothing that changes nothing, always bit-equal."""

from __future__ import annotations

from typing import ClassVar

import attrs
from typing_extensions import override

from ir.caches import cached
from ir.program import Program
from passes.canonicalize.dequantization import DEQUANTIZATION_RULES
from passes.canonicalize.identity import IDENTITY_RULES, INFERENCE_RULES
from passes.canonicalize.opaque import DropOpaqueIdentities
from passes.canonicalize.permute import PERMUTE_RULES
from passes.canonicalize.quantization import QUANTIZATION_RULES
from passes.canonicalize.recompose import RECOMPOSING_RULES
from passes.canonicalize.reshape import RESHAPE_RULES
from passes.canonicalize.spelling import SPELLING_RULES
from passes.canonicalize.split import SPLIT_RULES
from passes.cleanup.cse import EliminateCommonSubexpressions
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.constants import FoldConstants
from passes.fold.weights import FoldParameterViews
from passes.manager.manager import Fixpoint, Pass, PassContext
from passes.rewrite.driver import run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern, instantiate

CANONICALIZATION_RULES: tuple[type[Pattern], ...] = (
    *IDENTITY_RULES,
    *RECOMPOSING_RULES,
    *RESHAPE_RULES,
    *PERMUTE_RULES,
    *SPLIT_RULES,
    *SPELLING_RULES,
    *QUANTIZATION_RULES,
    *DEQUANTIZATION_RULES,
)
"""The rules that are applied to every program, in their order."""


@cached()
def _index(rules: tuple[type[Pattern], ...]) -> RuleIndex:
    return RuleIndex(instantiate(rules))


@attrs.frozen
class ApplyCanonicalRules(Pass):
    """Applies the rules of canonicalization until none matches."""

    name: ClassVar[str] = "apply-canonical-rules"
    rules: tuple[type[Pattern], ...] = CANONICALIZATION_RULES
    """The rules, in the order in which they are tried."""

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the rules with a worklist; no record is kept of what they did."""
        run_worklist(program, _index(self.rules), context.log, scope=self.scope)


@attrs.frozen
class Canonicalize(Fixpoint):
    """Brings a program to its canonical form: rules, folding, common subexpressions and dead code, to a fixpoint.

    The result computes the same bits, in training too, and running the pass again changes nothing. Instruments see
    each of its passes.
    """

    name: ClassVar[str] = "canonicalize"
    _remedy: ClassVar[str] = "report this: two canonicalization rules undo each other"
    inference: bool = False
    """Whether the program will never train: dropout that is switched off is removed, and opaque modules (stochastic
    depth) that return their argument in eval mode."""
    fold_parameter_views: bool = False
    """Whether a weight whose only use is a reshape or permute is replaced, under its name, by that view of itself."""
    passes: tuple[Pass, ...] = attrs.field(init=False, repr=False, eq=False)

    @passes.default
    def _passes_of_options(self) -> tuple[Pass, ...]:
        return (
            *((DropOpaqueIdentities(),) if self.inference else ()),
            ApplyCanonicalRules(self.rules()),
            FoldConstants(),
            *((FoldParameterViews(),) if self.fold_parameter_views else ()),
            EliminateCommonSubexpressions(),
            EliminateDeadCode(inference=bool(self.inference)),  # an option of another type is refused after this
        )

    def rules(self) -> tuple[type[Pattern], ...]:
        """Return the rules, in the order in which they are tried."""
        return (*CANONICALIZATION_RULES, *INFERENCE_RULES) if self.inference else CANONICALIZATION_RULES
