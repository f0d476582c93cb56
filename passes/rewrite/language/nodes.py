"""The nodes of a pattern, which is a tree of them: data that is printed, indexed, matched and sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from ir.attributes import Attribute
from ir.core import Operation, Value
from ir.errors import PatternError
from ir.opdef import OpDef, Trait


@attrs.frozen(eq=False)
class AnyValue:
    """Matches every value; the same name matches the same value only."""

    name: str = ""
    where: Callable[[Value], bool] | None = None
    optional: bool = False
    """Whether an absent operand matches too."""


@attrs.frozen
class AttrCapture:
    """Matches every attribute value and captures it; the same name matches equal values only."""

    name: str


@attrs.frozen
class AttrWhere:
    """Matches the attribute values that a predicate accepts; `text` says which these are."""

    predicate: Callable[[Attribute], bool]
    text: str


@attrs.frozen(eq=False)
class OpNode:
    """Matches an operation, by the first of its results unless `result` says another."""

    ops: tuple[OpDef, ...] | Trait
    operands: tuple[tuple[int | str, Node | tuple[Node, ...] | None], ...] = ()
    """(position or parameter name, pattern): None for an operand that must be absent, a tuple for a list."""
    attributes: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    result: int = 0
    context: bool = False
    """Whether the operation is only looked at: it is not part of what the rewrite replaces."""
    where: Callable[[Operation], str | None] | None = None
    """A condition on the operation; it returns a reason when it does not hold."""


@attrs.frozen(eq=False)
class AnyOf:
    """Matches what the first matching alternative matches."""

    alternatives: tuple[Node, ...]
    names: tuple[str, ...] = ()
    """The names of the alternatives, where they have some."""


@attrs.frozen(eq=False)
class Chain:
    """Matches `inner` behind zero or more unary operations, which are captured as a tuple, first executed first."""

    ops: tuple[OpDef | Trait, ...]
    inner: Node
    name: str = ""
    minimum: int = 0
    maximum: int = 64
    where: Callable[[Operation], str | None] | None = None


Node = AnyValue | OpNode | AnyOf | Chain


@attrs.frozen(eq=False)
class Siblings:
    """However many operations that match one tree and read one value are matched together.

    Attributes:
        of: the value.
        name: captures their matches, in the order of the graph.
        minimum: how many there are at least.
        alike: says why one does not go with the first, or None where it does; given their matches.
    """

    of: AnyValue
    name: str
    minimum: int = 2
    alike: Callable[[Any, Any], str | None] | None = None

    def unlike(self, first: Any, other: Any) -> str | None:
        """Return why one does not go with the first; None where it does.

        Raises:
            PatternError: when `alike` answers something else.
        """
        answer = None if self.alike is None else self.alike(first, other)
        if answer is not None and (not isinstance(answer, str) or not answer):
            raise PatternError(
                f"`alike` of the siblings {self.name!r} returned {answer!r}",
                remedy="return None where two go together, and else the reason why they do not, as text",
            )
        return answer


@attrs.frozen(eq=False)
class Roots:
    """Matches several operations, each the root of a tree; the trees have values in common."""

    trees: tuple[Node, ...]
    siblings: Siblings | None = None
    """Where set, the only tree is matched at each of the siblings."""


Tree = Node | Roots


def inner_nodes(node: Tree) -> Sequence[Node]:
    """Return the patterns directly below one: alternatives, or those of operands that must be present."""
    if isinstance(node, AnyOf):
        return node.alternatives
    if isinstance(node, Chain):
        return (node.inner,)
    if isinstance(node, AnyValue):
        return ()
    if isinstance(node, Roots):
        return node.trees
    operands = [operand if isinstance(operand, tuple) else (operand,) for _, operand in node.operands]
    return [part for parts in operands for part in parts if part is not None]


def trees_of(tree: Tree) -> tuple[Node, ...]:
    """Return the trees of a pattern: one for each root."""
    return tree.trees if isinstance(tree, Roots) else (tree,)
