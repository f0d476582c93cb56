"""Patterns with several roots: how the others are found from the first, and where their replacement goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from ir.core import Operation, Value
from ir.errors import PatternError
from passes.rewrite.language.nodes import AnyValue, Chain, Node, OpNode, inner_nodes

OpMatcher = Callable[[Operation, Any], bool]
"""Matches an operation; the state that it is given has `captures`, `bound`, `ops`, `roots` and `reason`."""


@attrs.frozen
class Link:
    """What a tree has in common with those before it.

    Attributes:
        name: the name of the value; empty where it is what an operation gives.
        node: the node of that operation.
        depth: how many operations the root is above it at most.
    """

    name: str
    node: OpNode | None
    depth: int

    def value(self, state: Any) -> Value | None:
        """Return the value in a match of the trees before; None where that has none."""
        if self.node is None:
            found = state.captures.get(self.name)
            return found if isinstance(found, Value) else None
        op = state.bound.get(id(self.node))
        return None if op is None else op.results[self.node.result]


def links(tree: Node, before: Sequence[Node]) -> tuple[Link, ...]:
    """Return what a tree has in common with earlier ones, the nearest first.

    Raises:
        PatternError: when that is nothing.
    """
    names: set[str] = set()
    operations: set[int] = set()
    for node, _ in (each for other in before for each in _places(other, 0)):
        if isinstance(node, AnyValue) and node.name:
            names.add(node.name)
        elif isinstance(node, OpNode):
            operations.add(id(node))
    found: list[Link] = []
    for node, depth in _places(tree, 0):
        if isinstance(node, AnyValue) and node.name in names:
            found.append(Link(node.name, None, depth))
        elif isinstance(node, OpNode) and id(node) in operations:
            found.append(Link("", node, depth))
    if not found:
        raise PatternError(
            "a root has no value in common with the roots before it, so it could be anywhere",
            remedy='let them share one: `x = p.any("x")`, `return p.linear(x, ...), p.linear(x, ...)`',
        )
    return tuple(sorted(found, key=lambda link: link.depth))


def _places(node: Node, depth: int) -> Iterator[tuple[Node, int]]:
    """Yield the nodes of a tree, each with the number of operations above it at most."""
    yield node, depth
    own = node.maximum if isinstance(node, Chain) else isinstance(node, OpNode)
    for inner in inner_nodes(node):
        yield from _places(inner, depth + own)


def depth_of(tree: Node, name: str) -> int:
    """Return how many operations the root of a tree is above a value at most, on the shortest way to it.

    Raises:
        PatternError: when the tree has no such value.
    """
    depths = [depth for node, depth in _places(tree, 0) if isinstance(node, AnyValue) and node.name == name]
    if not name or not depths:
        raise PatternError(
            f"the siblings share a value {name!r} that their tree does not read",
            remedy='write `x = p.any("x")`, `return p.siblings(p.linear(x, ...), x)`',
        )
    return min(depths)


def candidates(value: Value, depth: int, accepts: Callable[[Operation], bool]) -> list[Operation]:
    """Return the operations up to some number of operations behind a value, in the order of the graph."""
    found: dict[Operation, None] = {}
    level: dict[Operation, None] = dict.fromkeys(value.users)
    own = value.defining_op
    if own is not None and accepts(own):
        found[own] = None  # a root may be an operation in the tree of another one
    for _ in range(depth):
        if not level:
            break
        found.update(dict.fromkeys(op for op in level if accepts(op)))
        level = dict.fromkeys(user for op in level for result in op.results for user in result.users)
    return sorted(found, key=_position)


def joined(matchers: Sequence[tuple[OpMatcher, Callable[[Operation], bool], tuple[Link, ...]]]) -> OpMatcher:
    """Return what matches several roots: for each its matcher, what tells its operators, and its links."""

    def match(op: Operation, state: Any) -> bool:
        if not matchers[0][0](op, state):
            return False
        state.roots.append(op)
        return others(1, state)

    def others(number: int, state: Any) -> bool:
        """Match the roots from a number on; of several that match, take the first of which all conditions hold."""
        if number == len(matchers):
            return True
        matcher, accepts, common = matchers[number]
        start, second = _saved(state), None
        places = ((link.value(state), link.depth) for link in common)
        value, depth = next(((value, depth) for value, depth in places if value is not None), (None, 0))
        for op in () if value is None else candidates(value, depth, accepts):
            if op in state.roots:
                continue
            if matcher(op, state):
                state.roots.append(op)
                if others(number + 1, state):
                    if state.reason is None:
                        return True
                    second = second or _saved(state)
            _restore(state, start)
        if second is not None:
            _restore(state, second)
        return second is not None

    return match


def _saved(state: Any) -> tuple[Any, ...]:
    return dict(state.captures), dict(state.bound), list(state.ops), list(state.roots), state.reason


def _restore(state: Any, saved: tuple[Any, ...]) -> None:
    captures, bound, ops, roots, state.reason = saved
    state.captures, state.bound, state.ops, state.roots = dict(captures), dict(bound), list(ops), list(roots)


def place_of(ops: Sequence[Operation], roots: Sequence[Operation]) -> Operation | str:
    """Return the operation before which the replacement of several roots goes, or why there is no such place.

    It goes behind all that the match reads, and before all that reads its results.
    """
    members = {*ops, *roots}
    last = max(roots, key=_position)
    users = [user for op in roots for result in op.results for user in result.users if user not in members]
    first = min(users, key=_position, default=None)
    if first is None or last.is_before(first):
        return last
    for op in sorted(members, key=_position):
        for value in op.operand_values:
            source = value.defining_op
            if source is not None and source not in members and not source.is_before(first):
                return (
                    f"{op.name} at `{op.location.where}` reads {source.name} at `{source.location.where}`, which is "
                    "computed after what uses another root"
                )
    return first


def _position(op: Operation) -> int:
    assert op.graph is not None
    op.graph._ensure_order()
    return op._order
