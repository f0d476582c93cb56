"""What `explain` answers: as data, and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from ir.locations import Location
from passes.explain.texts import short_line, short_place
from passes.rewrite.remarks import OpSummary

_MOST_NEAR = 3
_MOST_REPLACED = 6


@attrs.frozen
class Step:
    """One change that an operation went through.

    Attributes:
        pass_: the pass, by its label or name.
        rule: the rule; empty where the pass itself did it.
        replaced: the operations that went, the operation itself among them.
        created: the operations that took their place.
        stays: whether the operation itself stayed, since others use it.
    """

    pass_: str
    rule: str
    replaced: tuple[OpSummary, ...]
    created: tuple[OpSummary, ...]
    stays: bool = False

    def __str__(self) -> str:
        who = f"{self.rule} ({self.pass_})" if self.rule else self.pass_
        what = ", ".join(f"{op.name} {_at(op.location)}" for op in self.replaced[:_MOST_REPLACED])
        if len(self.replaced) > _MOST_REPLACED:
            what += f" and {len(self.replaced) - _MOST_REPLACED} more"
        if not self.rule:
            return f"{who} took out {what}"
        made = _counted(op.name for op in self.created)
        stays = ", and stays: others use it" if self.stays else ""
        return f"{who} made {made or 'nothing'} of {what}{stays}"


@attrs.frozen
class Near:
    """How far a rule got.

    Attributes:
        rule: the rule.
        outcome: `applied`, `refused` (the structure matches, and a condition, the rule's `check`, its scope or a plan
            says no), `failed` (it raised there: the bug is in the rule), `taken` (it matches, and another rule was
            there first), `partial` (the structure matches in part) or `none` (the pattern has no operation of this
            kind).
        reasons: what differs, or why it was refused.
        fits: the operations that fit, each with what the pattern has in its place.
        wanted: how many operations the pattern has, in the alternative that fits best.
    """

    rule: str
    outcome: str
    reasons: tuple[str, ...] = ()
    fits: tuple[tuple[str, OpSummary], ...] = ()
    wanted: int = 0

    @property
    def extent(self) -> str:
        """How far that is: `3 of 4 operations fit`, `matches`."""
        if self.outcome == "partial":
            return f"{len(self.fits)} of {self.wanted} operations fit{'s' if len(self.fits) == 1 else ''}"
        texts = {"applied": "was applied", "none": "could be nothing here", "failed": "failed, and was passed over"}
        return texts.get(self.outcome, "matches")

    @property
    def is_far(self) -> bool:
        """Whether half of the pattern is there, and more than a single operation."""
        return self.outcome != "partial" or len(self.fits) >= max(2, self.wanted / 2)

    def __str__(self) -> str:
        return "; ".join([f"{self.rule} {_LINKS[self.outcome].format(self.extent)}", *self.reasons])

    def lines(self) -> list[str]:
        """Return the text with all that fits, by lines."""
        lines = [f"{self.rule} {_LINKS[self.outcome].format(self.extent)}"]
        width = max((len(part) for part, _ in self.fits), default=0)
        lines += [f"  {part:{width}}  {op.name} {_where(op.location)}" for part, op in self.fits]
        return [*lines, *(f"  {reason}" for reason in self.reasons)]


_LINKS = {
    "applied": "{}",
    "refused": "{}, and does not apply",
    "failed": "{}",
    "taken": "{}, but too late",
    "partial": "does not match: {}",
    "none": "{}",
}


@attrs.frozen
class Story:
    """What became of one operation.

    Attributes:
        operation: the operation, as it was captured (or made, where nothing captured led to it).
        steps: the changes that it went through, in order.
        left: what is left of it in the result.
        near: the rules that got far there and were not applied, the furthest first.
    """

    operation: OpSummary
    steps: tuple[Step, ...]
    left: tuple[OpSummary, ...]
    near: tuple[Near, ...]

    @property
    def fate(self) -> str:
        """What became of it in the end: `stays`, `became fused.conv_bn_act`, `is gone`."""
        if not self.left:
            return "is gone"
        if self.operation in self.left:
            return "stays"
        return f"became {_counted(op.name for op in self.left)}"

    @property
    def title(self) -> str:
        """The operation with its type and place, and what became of it."""
        types = ", ".join(map(str, self.operation.types))
        name = f"{self.operation.name} -> {types}" if types else self.operation.name
        return f"{name} {_where(self.operation.location)}: {self.fate}"

    @property
    def reasons(self) -> list[str]:
        """How it came so, by lines: the same for operations that went one way together."""
        lines = list(map(str, self.steps))
        far = [near for near in self.near if near.is_far][:_MOST_NEAR] or list(self.near[:1])
        lines += map(str, far)
        less = [near.rule for near in self.near if near not in far]
        return [*lines, f"less far: {', '.join(less)}"] if less else lines

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in self.reasons)])


@attrs.frozen
class Explanation:
    """What became of a place in the model, or of all of it, and why. `print` it, or read its parts.

    Attributes:
        about: what was asked about.
        operations: what became of each operation there, in the order of the program.
        rule: how far the rule got that was asked about.
        notes: what else is to be said, one sentence each.
    """

    about: str
    operations: tuple[Story, ...] = ()
    rule: Near | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as dicts, lists, strings and numbers, ready for `json.dump`."""
        return {
            "about": self.about,
            "operations": [_story_json(story) for story in self.operations],
            "rule": None if self.rule is None else _near_json(self.rule),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [self.about, *(f"  {note}" for note in self.notes)]
        if self.rule is not None:
            lines += [f"  {line}" for line in self.rule.lines()]
        groups: dict[tuple[str, ...], list[Story]] = {}
        for story in self.operations:
            groups.setdefault((story.fate, *story.reasons), []).append(story)
        for (_, *reasons), stories in groups.items():
            lines += [f"  {story.title}" for story in stories]
            lines += [f"    {reason}" for reason in reasons]
        return "\n".join(lines)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())


def _at(location: Location) -> str:
    return f"at `{short_place(location)}`"


def _where(location: Location) -> str:
    line = short_line(location)
    return f"{_at(location)} ({line})" if line and location.module_path else _at(location)


def _op_json(op: OpSummary) -> dict[str, Any]:
    return {
        "name": op.name,
        "module_path": op.location.module_path,
        "source": op.location.source,
        "types": list(map(str, op.types)),
    }


def _near_json(near: Near) -> dict[str, Any]:
    return {
        "rule": near.rule,
        "outcome": near.outcome,
        "reasons": list(near.reasons),
        "fits": [{"pattern": part, **_op_json(op)} for part, op in near.fits],
        "wanted": near.wanted,
    }


def _story_json(story: Story) -> dict[str, Any]:
    return {
        "operation": _op_json(story.operation),
        "fate": story.fate,
        "steps": [
            {
                "pass": step.pass_,
                "rule": step.rule,
                "replaced": list(map(_op_json, step.replaced)),
                "created": list(map(_op_json, step.created)),
                "stays": step.stays,
            }
            for step in story.steps
        ],
        "left": list(map(_op_json, story.left)),
        "near": list(map(_near_json, story.near)),
    }
