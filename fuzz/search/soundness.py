"""The statistics of a run of `assert_sound`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from fuzz.programs.case import Outcome


@attrs.define(eq=False)
class Soundness:
    """The statistics of a run of `assert_sound`."""

    examples: int = 0
    """Programs that were checked."""
    instances: int = 0
    """Programs among them that were built to match."""
    changed: int = 0
    """Programs that the subject changed."""
    fired: Counter[str] = attrs.field(factory=Counter)
    """Rewrites by rule."""
    refused: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """Matches that were refused, by (rule, reason)."""
    variants: Counter[tuple[str, int]] = attrs.field(factory=Counter)
    """Rewrites by (rule, number of the alternative of its pattern)."""
    operators: Counter[str] = attrs.field(factory=Counter)
    """Programs by operator."""
    changed_operators: Counter[str] = attrs.field(factory=Counter)
    """Changed programs by operator."""
    canonical: Counter[str] = attrs.field(factory=Counter)
    """Canonical programs on which a rule fired, by rule; only a few are counted."""
    missed: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    """Rule -> the shortest program on which it fired, and its canonical form, on which it did not."""
    never: tuple[str, ...] = ()
    """The alternatives of the patterns that never fired."""

    def merge(self, other: Soundness) -> None:
        """Add the statistics of another search."""
        for field in attrs.fields(Soundness):
            if isinstance(getattr(self, field.name), Counter):
                getattr(self, field.name).update(getattr(other, field.name))
        for rule, texts in other.missed.items():
            self.miss(rule, *texts)
        self.examples += other.examples
        self.instances += other.instances
        self.changed += other.changed

    def miss(self, rule: str, program: str, canonical: str) -> None:
        """Keep the shortest program on which a rule fired, with its canonical form, on which it did not."""
        if rule not in self.missed or len(canonical) < len(self.missed[rule][1]):
            self.missed[rule] = program, canonical

    def add(self, outcome: Outcome, operators: Iterable[str]) -> None:
        """Count what happened to one program with these operators."""
        self.operators.update(operators)
        if outcome.changed:
            self.changed_operators.update(operators)
        self.changed += outcome.changed
        self.fired += outcome.fired
        self.refused += outcome.refused
        self.variants += outcome.variants
