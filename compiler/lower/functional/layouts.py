"""Strides of in-place operators: they keep those of their target, and their functional forms may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from compiler.lower.functional.storage import Handle
from ir.builder import infer_strides
from ir.core import Operation, Value
from ir.memory.layout import Strides, contiguous_strides
from ir.memory.strides import memory_order, strides_equal
from ir.opdef import Trait
from ir.types import Dim

Emit = Callable[..., Value]


def lies_as_operand(op: Operation) -> bool:
    """Return whether the result of an operation has the strides of its first operand, if that is dense."""
    return op.opdef.has(Trait.ELEMENTWISE) and not op.opdef.fixes_strides


def _reorders(op: Operation) -> bool:
    return op.opdef.layout is not None and op.opdef.layout.reorders


def is_transposed(handle: Handle) -> bool:
    """Return whether a tensor is a view that reorders dimensions."""
    while handle.call is not None and handle.parent is not None:
        if _reorders(handle.call.op):
            return True
        handle = handle.parent
    return False


def comes_transposed(value: Value) -> bool:
    """Return whether a value has the strides of such a view."""
    op = value.defining_op
    while op is not None and (_reorders(op) or lies_as_operand(op)):
        if _reorders(op):
            return True
        op = op.operand_values[0].defining_op if op.operand_values else None
    return False


def with_strides(emit: Emit, value: Value, wanted: Strides, known: Mapping[Value, Strides]) -> Value:
    """Return a value that was just made, with the strides of the tensor it replaces.

    Args:
        emit: appends an operation.
        value: the value.
        wanted: those strides; if they are not dense, the value is a part that is copied into the whole anyway.
        known: the strides of the operands.
    """
    shape, op = value.known_shape, value.defining_op
    if shape is None or len(shape) != len(wanted) or len(shape) < 2 or 0 in shape:
        return value
    order = memory_order(shape, wanted)
    if order is None:
        return value
    found = known[value] if value in known else None if op is None else _strides_of_result(op, known, wanted)
    if found is not None and strides_equal(shape, found, wanted):
        return value
    if strides_equal(shape, contiguous_strides(shape), wanted):
        return emit("aten.contiguous", value)
    inner = emit("aten.contiguous", emit("aten.permute", value, order))
    return emit("aten.permute", inner, [order.index(d) for d in range(len(order))])


def _strides_of_result(op: Operation, known: Mapping[Value, Strides], wanted: Strides) -> Sequence[Dim | None] | None:
    """Return the strides of an operation's result, or None if unknown."""
    if op.name == "aten.to.dtype" and op.operands[0] is not None and op.operands[0].defining_op is not None:
        op = op.operands[0].defining_op  # a cast keeps those of a dense operand
    operands = op.operand_values
    if any(operand not in known for operand in operands):
        return None
    shape = op.results[0].known_shape
    shapes = [operand.known_shape for operand in operands]
    if shape is None or None in shapes:
        return None
    layouts = [(s, known[operand]) for s, operand in zip(shapes, operands, strict=True) if s is not None]
    if all(strides_equal(s, strides, contiguous_strides(s)) for s, strides in layouts):
        return contiguous_strides(shape)
    if lies_as_operand(op) and all(s == shape and strides_equal(s, t, wanted) for s, t in layouts):
        return wanted

    return infer_strides(op, known)
