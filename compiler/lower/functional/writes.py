"""Mutations by opaque calls: only of values that nothing else reads, since the graph does not order them."""

from __future__ import annotations

from ir.core import Graph, Operation, Value
from ir.errors import CaptureError
from ir.memory.aliasing import is_fresh
from ir.opdef import Trait
from ir.ops.nn_ops import OPAQUE


def check_writes(graph: Graph) -> None:
    """Check that nothing else reads what opaque calls mutate.

    Raises:
        CaptureError: when something does: the order of read and write would be lost.
    """
    for op in graph.operations():
        if op.opdef is not OPAQUE or not op.attributes["writes"]:
            continue
        for value in op.operand_values:
            reader = _other_reader(value, op)
            if reader is not None:
                raise CaptureError(
                    f"the opaque module `{op.attributes['callee']}` writes to its arguments in place, and {reader}",
                    location=op.location,
                    remedy="clone the argument inside of the module, or do not keep the module in leaf_modules=",
                )


def _other_reader(value: Value, call: Operation) -> str | None:
    """Return what else may read the storage of an operand of a call, or None."""
    while True:
        others = [user for user in value.users if user is not call]
        if others:
            return f"{others[0].name} reads one of them as well"
        op = value.defining_op
        if op is None:
            return "one of them is an input or a weight" if value.is_input or value.is_weight else None
        if is_fresh(value):
            return None
        if not op.opdef.has(Trait.VIEW) or op.operands[0] is None:
            return f"one of them may share memory with an operand of {op.name}"
        value, call = op.operands[0], op
