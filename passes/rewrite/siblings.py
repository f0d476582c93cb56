"""Siblings: however many operations that match one tree and read one value, found from the first of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ir.core import Operation
from passes.rewrite.language.nodes import Node, Siblings
from passes.rewrite.language.roots import OpMatcher, candidates, depth_of
from passes.rewrite.pattern import Match
from passes.rewrite.remarks import Refusal


def sibling_matcher(
    matches: OpMatcher,
    accepts: Callable[[Operation], bool],
    tree: Node,
    siblings: Siblings,
    new_state: Callable[[], Any],
) -> OpMatcher:
    """Return what matches an operation with all its siblings behind it, by what matches one of them.

    Where the tree matches and there are too few, the state has the reason.
    """
    shared, depth = siblings.of.name, depth_of(tree, siblings.of.name)

    def match(op: Operation, state: Any) -> bool:
        if not matches(op, state):
            return False
        value = state.captures[shared]
        rivals: list[tuple[Match, Any]] = []
        for each in candidates(value, depth, accepts):
            other = new_state()
            other.captures[shared] = value
            if matches(each, other):
                rivals.append((Match(each, list(dict.fromkeys(other.ops)), other.captures), other.reason))
        state.reason = _taken(op, rivals, siblings, state)
        return True

    return match


def _taken(op: Operation, rivals: list[tuple[Match, Any]], siblings: Siblings, state: Any) -> Any:
    """Put the siblings that go together into the state, or return why an operation does not begin a match."""
    if len(rivals) < siblings.minimum:
        few = "no other" if siblings.minimum == 2 else f"not {siblings.minimum - 1} more"
        return Refusal(f"{few} {op.opdef.short_name} reads this {siblings.of.name}", near=False)
    if state.reason is not None:
        return f"{op.opdef.short_name} at `{op.location.where}`: {state.reason}"
    first = next(match for match, _ in rivals if match.root is op)
    apart = {match: reason or siblings.unlike(first, match) for match, reason in rivals if match is not first}
    fitting = [match for match, _ in rivals if match is first or apart[match] is None]
    if fitting[0] is not first:
        return Refusal("it goes with an earlier one", near=False)
    if len(fitting) < siblings.minimum:
        other, reason = next((match, reason) for match, reason in apart.items() if reason is not None)
        places = f"`{op.location.where}` and at `{other.root.location.where}`"
        return f"{op.opdef.short_name} at {places}: {reason}"
    state.captures[siblings.name] = tuple(fitting)
    state.ops.extend(each for match in fitting[1:] for each in match.ops)
    state.roots = [match.root for match in fitting]
    return None
