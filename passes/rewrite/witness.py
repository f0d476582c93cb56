"""What is told of all that the drivers do."""

from __future__ import annotations

from collections.abc import Sequence

from ir.core import Operation
from passes.rewrite.pattern import Match, Pattern
from passes.rewrite.remarks import Refusal


class Witness:
    """Told of each rewrite and each refusal, those of rules that are not recorded included."""

    def applied(self, rule: Pattern, match: Match, created: Sequence[Operation]) -> None:
        """Called after a rewrite was made."""

    def refused(self, rule: Pattern, ops: Sequence[Operation], refusal: Refusal) -> None:
        """Called where the structure matched (`ops`, or the root alone), and the rule was not applied."""

    def passed_over(self, rule: Pattern, op: Operation, message: str) -> None:
        """Called where a rule that raised, or answered what is no answer, is passed over."""
