"""The parts of a pattern, its alternatives taken together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ir.core import Operation, Value
from ir.opdef import OpDef, Trait
from passes.rewrite.expansion import orders
from passes.rewrite.language.nodes import inner_nodes
from passes.rewrite.matching import operand_index
from passes.rewrite.pattern import AnyOf, Chain, Node, OpNode


def tops_of(node: Node) -> Iterator[OpNode | Chain]:
    """Yield the parts that may stand at the place of a node: alternatives, and what an empty chain leaves."""
    if isinstance(node, AnyOf):
        for alternative in node.alternatives:
            yield from tops_of(alternative)
    elif isinstance(node, (OpNode, Chain)):
        yield node


def children(part: OpNode | Chain) -> Iterator[tuple[int | str, Node]]:
    """Yield the patterns below a part, each with its operand."""
    if isinstance(part, Chain):
        yield 0, part.inner
        return
    for key, operand in part.operands:
        for each in operand if isinstance(operand, tuple) else (operand,):
            if each is not None:
                yield key, each


def least(node: Node) -> int:
    """Return how many operations a pattern has at least."""
    if isinstance(node, AnyOf):
        return min(map(least, node.alternatives))
    own = node.minimum if isinstance(node, Chain) else isinstance(node, OpNode)
    return own + sum(map(least, inner_nodes(node)))


def result_of(part: OpNode | Chain, op: Operation) -> Value | None:
    """Return the result of an operation that stands for a part."""
    number = part.result if isinstance(part, OpNode) else 0
    return op.results[number] if number < len(op.results) else None


def uses_as(above: OpNode | Chain, key: int | str, user: Operation, value: Value | None) -> bool:
    """Return whether an operation has a value as the operand for which a part above has the pattern."""
    if isinstance(above, Chain):
        return len(user.operand_values) == 1
    grouped: Sequence[Any] = user.grouped_operands() if user.opdef.has_lists else user.operands
    for order in orders(above):
        for other, (own, _) in zip(order.operands, above.operands, strict=True):
            index = operand_index(above, other[0])
            held = grouped[index] if own == key and index < len(grouped) else None
            if held is value or (isinstance(held, tuple) and value in held):
                return True
    return False


def chain_ops(node: Chain) -> Any:
    """Return what a link of a chain may be."""
    (first, *_) = node.ops
    return first if isinstance(first, Trait) else tuple(op for op in node.ops if isinstance(op, OpDef))
