"""Expanding a pattern: alternatives and operand orders become one tree each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import attrs

from ir.core import Operation
from ir.errors import PatternError
from ir.opdef import Trait
from passes.rewrite.language.nodes import AnyOf, AnyValue, AttrCapture, Chain, OpNode, Roots, Tree, inner_nodes
from passes.rewrite.pattern import Match

_MAX_VARIANTS = 256


def _next_choice(node: Tree, chosen: dict[int, int], seen: set[int]) -> tuple[int, int] | None:
    """Return (node id, number of options) of the first reachable node without a choice."""
    if id(node) in seen:
        return None
    seen.add(id(node))
    if isinstance(node, AnyOf):
        option = chosen.get(id(node))
        if option is None:
            return id(node), len(node.alternatives)
        return _next_choice(node.alternatives[option], chosen, seen)
    if isinstance(node, OpNode) and id(node) not in chosen and _swappable(node):
        return id(node), 2
    choices = (_next_choice(part, chosen, seen) for part in inner_nodes(node))
    return next((choice for choice in choices if choice is not None), None)


def _swappable(node: OpNode) -> bool:
    """Whether swapping the first two operands is allowed and could make a difference."""
    if isinstance(node.ops, Trait):
        commutes = Trait.COMMUTATIVE in node.ops
    else:
        commutes = all(opdef.has(Trait.COMMUTATIVE) for opdef in node.ops)
    if not commutes:
        return False
    given = dict(node.operands)
    first, second = given.get(0), given.get(1)
    if first is second:
        return False
    if not (isinstance(first, AnyValue) and isinstance(second, AnyValue)):
        return True
    # two plain placeholders match in either order alike, unless their names occur elsewhere or a condition tells
    return bool(first.where or second.where or first.name or second.name)


@attrs.frozen
class Expanded:
    """One tree of a pattern without choices.

    Attributes:
        tree: the tree, or several for several roots.
        names: of the alternatives that were chosen, as far as they have names.
    """

    tree: Tree
    names: tuple[str, ...]


def expand(tree: Tree) -> list[Expanded]:
    """Return the tree once for each combination of choices; a node that occurs twice is chosen once.

    Raises:
        PatternError: when there are too many combinations.
    """
    results: list[Expanded] = []
    pending: list[dict[int, int]] = [{}]
    while pending:
        chosen = pending.pop()
        found = _next_choice(tree, chosen, set())
        if found is not None:
            key, options = found
            pending.extend({**chosen, key: option} for option in reversed(range(options)))
            continue
        results.append(Expanded(_substitute(tree, chosen, {}), tuple(dict.fromkeys(_names(tree, chosen, set())))))
        if len(results) > _MAX_VARIANTS:
            raise PatternError(
                f"a pattern has more than {_MAX_VARIANTS} alternatives: each choice multiplies those of the others, "
                "and an operator that commutes, of which an operand is an operation or has a name, is one of two",
                remedy="name several operators in one node, `p.op((a, b), x)`, or write several rules",
            )
    return results


def _names(node: Tree, chosen: dict[int, int], seen: set[int]) -> Iterator[str]:
    """Yield the names of chosen alternatives, the outermost first."""
    if id(node) in seen:
        return
    seen.add(id(node))
    inner = inner_nodes(node)
    if isinstance(node, AnyOf):
        number = chosen[id(node)]
        inner = (node.alternatives[number],)
        if node.names and node.names[number]:
            yield node.names[number]
    for part in inner:
        yield from _names(part, chosen, seen)


def _substitute(node: Any, chosen: dict[int, int], memo: dict[int, Any]) -> Any:
    known = memo.get(id(node))
    if known is not None:
        return known
    result = node
    if isinstance(node, AnyOf):
        result = _substitute(node.alternatives[chosen[id(node)]], chosen, memo)
    elif isinstance(node, Roots):
        result = attrs.evolve(node, trees=tuple([_substitute(part, chosen, memo) for part in node.trees]))
    elif isinstance(node, Chain):
        result = attrs.evolve(node, inner=_substitute(node.inner, chosen, memo))
    elif isinstance(node, OpNode):
        operands: list[tuple[int | str, Any]] = []
        for key, operand in node.operands:
            if isinstance(operand, tuple):
                operands.append((key, tuple([_substitute(part, chosen, memo) for part in operand])))
            else:
                operands.append((key, None if operand is None else _substitute(operand, chosen, memo)))
        result = attrs.evolve(node, operands=tuple(operands))
        if chosen.get(id(node)):
            result = _swapped(result)
    memo[id(node)] = result
    return result


def orders(node: OpNode) -> tuple[OpNode, ...]:
    """Return a node in each order of its operands that may match: as it is, and swapped where that is allowed."""
    return (node, _swapped(node)) if _swappable(node) else (node,)


def _swapped(node: OpNode) -> OpNode:
    swap: dict[int | str, int] = {0: 1, 1: 0}
    return _unscaled(attrs.evolve(node, operands=tuple((swap.get(key, key), value) for key, value in node.operands)))


def _unscaled(node: OpNode) -> OpNode:
    """Return a node that does not match a scaled second operand: a + alpha * b commutes where alpha is 1."""
    if not isinstance(node.ops, Trait) and not any("alpha" in opdef.defaults for opdef in node.ops):
        return node
    where = node.where

    def condition(op: Operation) -> str | None:
        alpha = op.attributes.get("alpha", 1)
        if alpha != 1:
            return f"alpha of {op.name} at `{op.location.where}` is {alpha}: its operands do not commute"
        return None if where is None else where(op)

    return attrs.evolve(node, where=condition)


def nodes(tree: Tree) -> Iterator[Tree]:
    """Yield the nodes of a tree, each once, the root first."""
    pending: list[Tree] = [tree]
    seen = {id(tree)}
    while pending:
        node = pending.pop()
        yield node
        for part in reversed(inner_nodes(node)):
            if id(part) not in seen:
                seen.add(id(part))
                pending.append(part)


def op_nodes(tree: Tree) -> Iterator[OpNode | Chain]:
    """Yield the nodes of a tree that match operations, each once, the root first."""
    return (node for node in nodes(tree) if isinstance(node, (OpNode, Chain)))


def is_compound(tree: Tree) -> bool:
    """Return whether a tree is made of more than one operation."""
    return isinstance(tree, Roots) or sum(1 for _ in itertools.islice(op_nodes(tree), 2)) == 2


def has_demands(tree: Tree) -> bool:
    """Return whether a tree demands more of its operations than their operators.

    It may demand attributes, absent operands, one value in two places, or have conditions.
    """
    placed: list[str] = []
    for node in nodes(tree):
        if getattr(node, "where", None) is not None:
            return True
        if isinstance(node, OpNode):
            if any(not isinstance(expected, AttrCapture) for _, expected in node.attributes):
                return True
            for _, operand in node.operands:
                if operand is None:
                    return True
                parts = operand if isinstance(operand, tuple) else (operand,)
                placed += [part.name for part in parts if isinstance(part, AnyValue) and part.name]
    return len(set(placed)) < len(placed)


def num_operations(node: Tree) -> int:
    """Return how many operations a tree has at least, context not counted."""
    if isinstance(node, Roots) and node.siblings is not None:
        return node.siblings.minimum * num_operations(node.trees[0])
    own = node.minimum if isinstance(node, Chain) else isinstance(node, OpNode) and not node.context
    return own + sum(map(num_operations, inner_nodes(node)))


def shared_nodes(tree: Tree) -> set[int]:
    """Return the ids of operation nodes that occur more than once: they must match one operation."""
    counts: dict[int, int] = {}

    def visit(node: Tree) -> None:
        counts[id(node)] = counts.get(id(node), 0) + 1
        if counts[id(node)] == 1:
            for part in inner_nodes(node):
                visit(part)

    visit(tree)
    return {key for key, count in counts.items() if count > 1}


def check_captures(root: Tree) -> None:
    """Raise where one name means two things: a match could hold one of them only."""
    named: dict[str, tuple[str, int]] = {}

    def add(name: str, kind: str, identity: int = 0) -> None:
        if hasattr(Match, name):
            raise PatternError(
                f"{name!r} is what a match itself calls something else", remedy="choose another name for the capture"
            )
        known = named.setdefault(name, (kind, identity))
        if known == (kind, identity):
            return  # values, or attributes, of one name must be equal
        first, second = sorted((known[0], kind), key=("an operation", "a value", "an attribute").index)
        what = "two parts of the pattern" if first == second else f"{first} and {second}"
        raise PatternError(f"{what} are named {name!r}", remedy="give each its own name")

    for node in nodes(root):
        if isinstance(node, OpNode):
            for _, given in node.attributes:
                if isinstance(given, AttrCapture):
                    add(given.name, "an attribute")
        if isinstance(node, AnyValue):
            if node.name:
                add(node.name, "a value")
        elif isinstance(node, (OpNode, Chain)) and node.name:
            add(node.name, "an operation", id(node))
