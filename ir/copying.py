"""Copies of operations and graphs; they share the data of weights and nothing else mutable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ir.attributes import Attribute
from ir.core import Graph, Operation, Value


def copy_operation(
    op: Operation, operands: Sequence[Value | None], attributes: Mapping[str, Attribute] | None = None
) -> Operation:
    """Return an unattached copy of `op` and its body on other operands, and with other attributes if given."""
    return Operation(
        op.opdef,
        operands,
        dict(op.attributes if attributes is None else attributes),
        [r.type for r in op.results],
        location=op.location,
        segments=op.segments,
        body=None if op.body is None else copy_graph(op.body, {}),
        names=[r.name for r in op.results],
    )


def copy_into(
    op: Operation, graph: Graph, mapping: dict[Value, Value], operands: Sequence[Value | None] | None = None
) -> Operation:
    """Append a copy of `op`, with its body, to `graph` and return it.

    Args:
        op: the operation.
        graph: where the copy goes.
        mapping: value -> its counterpart in the copy; the results are added.
        operands: the operands of the copy; by default those of `op`, through `mapping`.

    Raises:
        KeyError: when an operand is not in `mapping`.
    """
    if operands is None:
        operands = [None if v is None else mapping[v] for v in op.operands]
    twin = copy_operation(op, operands)
    graph.append(twin)
    mapping.update(zip(op.results, twin.results, strict=True))
    return twin


def copy_graph(graph: Graph, mapping: dict[Value, Value]) -> Graph:
    """Return a copy of a graph.

    Args:
        graph: the graph.
        mapping: value -> its counterpart in the copy, for the weights; inputs and results are added.
    """
    twin = Graph([(value.name, value.type) for value in graph.inputs])
    mapping.update(zip(graph.inputs, twin.inputs, strict=True))
    for op in graph.operations():
        copy_into(op, twin, mapping)
    twin.set_outputs([None if v is None else mapping[v] for v in graph.outputs])
    twin.return_op.location = graph.return_op.location
    return twin
