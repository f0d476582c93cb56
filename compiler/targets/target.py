"""What a target is: which conversions and fusions a runtime wants, and where it wants integers."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from passes.quant.tables import Table
from passes.rewrite.pattern import Pattern, instantiate

Patterns = tuple[type[Pattern] | Pattern, ...]


def _checked(patterns: Patterns) -> Patterns:
    instantiate(patterns)
    return tuple(patterns)


@attrs.frozen
class Target:
    """What one runtime wants, as data.

    Attributes:
        name: the name in reports, pipeline text and on the command line.
        conversions: the structural conversions, applied until none matches.
        fusions: the fusions, applied longest first.
        table: where a quantized model has integers; None where the target has none.
    """

    name: str
    conversions: Patterns = attrs.field(default=(), converter=_checked)
    fusions: Patterns = attrs.field(default=(), converter=_checked)
    table: Table | None = None

    @property
    def patterns(self) -> Patterns:
        """Conversions, then fusions."""
        return self.conversions + self.fusions

    @property
    def lists(self) -> Mapping[str, Patterns]:
        """The lists of patterns by the names that the command line and pipeline text give them."""
        return {"all": self.patterns, "conversions": self.conversions, "fusions": self.fusions, "none": ()}
