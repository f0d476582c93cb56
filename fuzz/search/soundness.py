"""What a run of `assert_sound` saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from fuzz.programs.case import Outcome


@attrs.define(eq=False)
class Soundness:
    """What a run of `assert_sound` saw."""

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
    """Programs that had an operator."""
    changed_operators: Counter[str] = attrs.field(factory=Counter)
    """Programs among them that were changed."""
    canonical: Counter[str] = attrs.field(factory=Counter)
    """Canonical forms of programs that a rule fired on, on which it fired too, by rule; a few, and then no more."""
    missed: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    """The shortest program that a rule fired on, and its canonical form, on which it did not, by rule."""
    never: tuple[str, ...] = ()
    """The alternatives of the patterns that never fired."""

    def merge(self, other: Soundness) -> None:
        """Add what another search saw."""
        for field in attrs.fields(Soundness):
            if isinstance(getattr(self, field.name), Counter):
                getattr(self, field.name).update(getattr(other, field.name))
        for rule, texts in other.missed.items():
            self.miss(rule, *texts)
        self.examples += other.examples
        self.instances += other.instances
        self.changed += other.changed

    def miss(self, rule: str, program: str, canonical: str) -> None:
        """Keep a program that a rule fired on and its canonical form, on which it did not, where it is a short one."""
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
