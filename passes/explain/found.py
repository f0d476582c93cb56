"""What a comparison of a program with a pattern finds."""

from __future__ import annotations

import attrs

from ir.core import Operation
from ir.locations import Location
from passes.rewrite.pattern import Pattern


@attrs.frozen
class Difference:
    """One thing in which a program differs from a pattern.

    Attributes:
        kind: `operator` (another operation defines an operand), `users` (nothing uses a result as the pattern wants),
            `operand` (one is absent, or must be), `result` (another result of the right operation), `same` (two places
            must hold one value), `value` (a condition on one), `attribute`, or `condition` (of an operation).
        message: the difference, with places.
        location: the place in the program.
        expected: what the pattern wants there: operators, where the kind is `operator` or `users`.
    """

    kind: str
    message: str
    location: Location
    expected: tuple[str, ...] = ()


@attrs.frozen
class PartialMatch:
    """The operations that fit a part of a pattern, and what differs.

    Attributes:
        rule: the rule.
        fits: the operations that fit, each with the operators that the pattern has in its place.
        wanted: how many operations the pattern has, in the alternative that was compared.
        evidence: how many other demands hold: attributes, absent operands, equal values, conditions.
        differences: what differs; none where the structure matches.
    """

    rule: Pattern
    fits: tuple[tuple[str, Operation], ...]
    wanted: int
    evidence: int
    differences: tuple[Difference, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the whole structure matches: what is left is for `check` and for the scope to decide."""
        return not self.differences

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """What orders partial matches, the furthest last."""
        return self.is_whole, len(self.fits), self.evidence, -len(self.differences)

    @property
    def extent(self) -> str:
        """How much of the pattern is there: `3 of 4 operations fit`."""
        if self.is_whole:
            return "the whole structure fits"
        verb = "fits" if len(self.fits) == 1 else "fit"
        return f"{len(self.fits)} of {self.wanted} operation{'s' if self.wanted != 1 else ''} {verb}"
