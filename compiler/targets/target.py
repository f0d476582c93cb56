"""What a target is: which conversions and fusions a runtime wants."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

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
    """

    name: str
    conversions: Patterns = attrs.field(default=(), converter=_checked)
    fusions: Patterns = attrs.field(default=(), converter=_checked)

    @property
    def patterns(self) -> Patterns:
        """Conversions, then fusions."""
        return self.conversions + self.fusions

    @property
    def lists(self) -> Mapping[str, Patterns]:
        """The lists of patterns by the names that the command line and pipeline text give them."""
        return {"all": self.patterns, "conversions": self.conversions, "fusions": self.fusions, "none": ()}
