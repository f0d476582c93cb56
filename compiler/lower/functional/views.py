"""Writes through views: the base with a part replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ir.columns import Layout, StorageRule
from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import weight_of
from ir.types import TensorType

Emit = Callable[..., Value]
"""`emit(name, *args, **kwargs)`: append an operation and return its only result."""

Inverse = Callable[[Emit, Operation, int, Value, Value], Value | None]
"""(emit, the view operation, number of the result, whole, part) -> the whole with the part replaced, or None."""


def _attributes(op: Operation) -> dict[str, Any]:
    return {name: op.resolved_attribute(name) for name in op.attributes}


def _same(_emit: Emit, _op: Operation, _index: int, _whole: Value, part: Value) -> Value:
    return part


def _reshape(emit: Emit, _op: Operation, _index: int, whole: Value, part: Value) -> Value:
    shape = whole.known_shape
    return emit("aten.reshape_as", part, whole) if shape is None else emit("aten.reshape", part, shape)


def _scatter(view: str) -> Inverse:
    """The scatter of a view has its parameters: `slice_scatter` those of `slice`."""
    return lambda emit, op, _index, whole, part: emit(f"aten.{view}_scatter", whole, part, **_attributes(op))


def _as_strided(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value:
    attributes = _attributes(op)
    if not may_need_gradient(whole):
        return emit("aten.as_strided_scatter", whole, part, **attributes)
    # in PyTorch's derivative, gradients of overwritten elements pass through
    written = emit("aten.as_strided_scatter", emit("aten.detach", whole), part, **attributes)
    nowhere, everywhere = (emit(f"aten.{n}_like", v, dtype=torch.bool) for n, v in (("zeros", whole), ("ones", part)))
    return emit("aten.where.self", emit("aten.as_strided_scatter", nowhere, everywhere, **attributes), written, whole)


def _narrow(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value | None:
    dim: Any = op.attributes["dim"]
    start: Any = op.resolved_attribute("start")
    length: Any = op.resolved_attribute("length")
    shape = whole.tensor_type.shape
    if isinstance(start, Value) or isinstance(length, Value):
        return None
    if isinstance(start, int) and start < 0:
        # if start + length == 0, the slice would end at 0
        size = None if shape is None else shape[dim]
        if size is None:
            return None
        start = start + size
    return emit("aten.slice_scatter", whole, part, dim, start, start + length)


def _permute(emit: Emit, op: Operation, _index: int, _whole: Value, part: Value) -> Value | None:
    dims = op.attributes["dims"]
    if not all(type(d) is int for d in dims):
        return None
    inverse = [0] * len(dims)
    for to, source in enumerate(dims):
        inverse[source % len(dims)] = to
    return emit("aten.permute", part, inverse)


def _swap(emit: Emit, op: Operation, _index: int, _whole: Value, part: Value) -> Value:
    return emit("aten.transpose.int", part, *_attributes(op).values())


def _movedim(emit: Emit, op: Operation, _index: int, _whole: Value, part: Value) -> Value:
    return emit(op.name, part, op.attributes["destination"], op.attributes["source"])


def _unbind(emit: Emit, op: Operation, index: int, whole: Value, part: Value) -> Value:
    return emit("aten.select_scatter", whole, part, op.attributes["dim"], index)


def _split(emit: Emit, op: Operation, index: int, whole: Value, part: Value) -> Value | None:
    dim = op.attributes["dim"]
    start: Any = 0
    for result in op.results[:index]:
        shape = result.tensor_type.shape
        if shape is None or shape[dim] is None:
            return None
        start = start + shape[dim]
    shape = op.results[index].tensor_type.shape
    if shape is None or shape[dim] is None:
        return None
    return emit("aten.slice_scatter", whole, part, dim, start, start + shape[dim])


def _expand(_emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value | None:
    same = whole.type == op.results[0].type and whole.tensor_type.is_known
    return part if same else None  # otherwise elements alias each other: PyTorch refuses such a write too


def _detach(_emit: Emit, _op: Operation, _index: int, whole: Value, part: Value) -> Value | None:
    # otherwise the write changes data but not the gradient, which no functional operator expresses
    return None if may_need_gradient(whole) or may_need_gradient(part) else part


def may_need_gradient(value: Value) -> bool:
    """Return whether a value may depend on a parameter or a floating-point input."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        type_ = current.type
        dtype = type_.dtype if isinstance(type_, TensorType) else None
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            continue
        op = current.defining_op
        if op is None:
            weight = weight_of(current)
            if weight is None or weight.requires_grad or weight.carries_gradient:
                return True
        elif op.opdef.layout is not Layout.DETACHED:
            new = [v for v in op.operand_values if v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _view_dtype(emit: Emit, op: Operation, whole: Value, part: Value) -> Value | None:
    old, new = whole.tensor_type.dtype, op.attributes["dtype"]
    if old is None or new is None or old.itemsize != new.itemsize:
        return None
    return emit("aten.view.dtype", part, old)


_INVERSES: dict[Layout, Inverse] = {
    Layout.SAME: _same,
    Layout.DETACHED: _detach,
    Layout.RESHAPE: _reshape,
    Layout.PERMUTE: _permute,
    Layout.SWAP: _swap,
    Layout.MOVE: _movedim,
    Layout.EXPAND: _expand,
    Layout.SELECT: _scatter("select"),
    Layout.SLICE: _scatter("slice"),
    Layout.NARROW: _narrow,
    Layout.SPLIT: _split,
    Layout.UNBIND: _unbind,
    Layout.DIAGONAL: _scatter("diagonal"),
    Layout.STRIDED: _as_strided,
}


def write_through(emit: Emit, op: Operation, index: int, whole: Value, part: Value) -> Value | None:
    """Return `whole` with result `index` of the view operation `op` replaced by `part`.

    None means that the view cannot be written through.
    """
    facts = op.opdef.facts
    if facts.inverse is not None:
        return emit(facts.inverse, part)
    if op.name == "aten.view.dtype":
        return _view_dtype(emit, op, whole, part)
    if facts.layout is None:
        # if it is a view, it is the operand itself
        return part if facts.storage is StorageRule.EITHER or Trait.DROPOUT in facts.traits else None
    inverse = _INVERSES.get(facts.layout)
    return None if inverse is None else inverse(emit, op, index, whole, part)
