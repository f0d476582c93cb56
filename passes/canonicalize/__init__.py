"""Canonicalization: one spelling of everything and nothing that changes nothing, always bit-equal."""

from __future__ import annotations

from typing import ClassVar

import attrs
from typing_extensions import override

from ir.caches import cached
from ir.errors import DidNotConverge
from ir.program import Program
from passes.canonicalize.identity import IDENTITY_RULES, INFERENCE_RULES
from passes.canonicalize.opaque import drop_identities
from passes.canonicalize.permute import PERMUTE_RULES
from passes.canonicalize.reshape import RESHAPE_RULES
from passes.canonicalize.spelling import SPELLING_RULES
from passes.canonicalize.split import SPLIT_RULES
from passes.cleanup.cse import eliminate_common_subexpressions
from passes.cleanup.dce import eliminate_dead_code
from passes.fold.constants import fold_constants
from passes.fold.weights import fold_weight_views
from passes.manager.manager import Pass, PassContext
from passes.rewrite.driver import run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import instantiate

CANONICALIZATION_RULES = (*IDENTITY_RULES, *RESHAPE_RULES, *PERMUTE_RULES, *SPLIT_RULES, *SPELLING_RULES)
"""The rules that are applied to every program, in their order."""

_MAX_ROUNDS = 16


@cached()
def _index(inference: bool) -> RuleIndex:
    rules = (*CANONICALIZATION_RULES, *INFERENCE_RULES) if inference else CANONICALIZATION_RULES
    return RuleIndex(instantiate(rules))


@attrs.frozen
class Canonicalize(Pass):
    """Brings a program to its one spelling: rules, folding, common subexpressions and dead code, to a fixpoint.

    The result computes the same bits, in training too, and running the pass again changes nothing.
    """

    name: ClassVar[str] = "canonicalize"
    inference: bool = False
    """Whether the program will never train: dropout that is switched off goes, as do opaque modules (stochastic depth)
    that return their argument in eval mode."""
    fold_parameter_views: bool = False
    """Whether a weight whose only use is a reshape or permute is replaced, under its name, by that view of itself."""

    def rules(self) -> RuleIndex:
        """Return the rules, in the order in which they are tried."""
        return _index(self.inference)

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run rounds until one changes nothing.

        Raises:
            DidNotConverge: when the rounds do not come to an end.
        """
        index = self.rules()
        graph = program.graph
        made: dict[str, None] = {}
        if self.inference:
            drop_identities(program)
        for _ in range(_MAX_ROUNDS):
            revision = graph.revision
            run_worklist(program, index, context.log)
            made.update(dict.fromkeys(fold_constants(program)))
            if self.fold_parameter_views:
                fold_weight_views(program)
            eliminate_common_subexpressions(program)
            eliminate_dead_code(program, inference=self.inference, temporary=made)
            if graph.revision == revision:
                return
        raise DidNotConverge(
            f"canonicalization still changes the program after {_MAX_ROUNDS} rounds",
            location=program.location,
            remedy="report this: two canonicalization rules undo each other",
        )
