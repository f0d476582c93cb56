"""The coverage of a search: by rule (fired, refused by which condition) and by operator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

from fuzz.search.soundness import Soundness

_REASONS = 200
"""The most reasons that are kept for one target."""


@attrs.define(eq=False)
class Coverage:
    """Counts over all programs of a target."""

    examples: int = 0
    changed: int = 0
    fired: Counter[str] = attrs.field(factory=Counter)
    refused: Counter[str] = attrs.field(factory=Counter)
    """`rule: reason`, without types and places."""
    variants: Counter[str] = attrs.field(factory=Counter)
    """`rule, alternative n`."""
    operators: Counter[str] = attrs.field(factory=Counter)
    changed_operators: Counter[str] = attrs.field(factory=Counter)

    @classmethod
    def of(cls, seen: Soundness) -> Coverage:
        """Return the counts of one search."""
        refused: Counter[str] = Counter()
        for (rule, reason), count in seen.refused.items():
            refused[f"{rule}: {condition(reason)}"] += count
        return cls(
            seen.examples,
            seen.changed,
            Counter(seen.fired),
            refused,
            Counter({f"{rule}, alternative {number}": count for (rule, number), count in seen.variants.items()}),
            Counter(seen.operators),
            Counter(seen.changed_operators),
        )

    def add(self, other: Coverage) -> None:
        """Add the counts of another search."""
        self.examples += other.examples
        self.changed += other.changed
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.refused = Counter(dict(self.refused.most_common(_REASONS)))

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        counters = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        return {"examples": self.examples, "changed": self.changed, **counters}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Coverage:
        """Return the counts that `to_json` gave."""
        return cls(data["examples"], data["changed"], *(Counter(data[name]) for name in _COUNTERS))


_COUNTERS = ("fired", "refused", "variants", "operators", "changed_operators")


def condition(reason: str) -> str:
    """Return a reason without its variable parts: code in backquotes, types, numbers, shapes."""
    words: list[str] = []
    for word in reason.replace("`an unknown place`", "`…`").split():
        bare = word.strip(".,;:()")
        if any(c.isdigit() for c in bare) or bare.startswith(("[", "`")) or "[" in bare:
            word = "…"
        if words[-1:] != ["…"] or word != "…":
            words.append(word)
    return " ".join(words)
