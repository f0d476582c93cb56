"""Views: which operators make them, how a write through one reaches the tensor it is a view of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ir.core import Operation, Value
from ir.program import weight_of
from ir.types import TensorType

Emit = Callable[..., Value]
"""`emit(name, *args, **kwargs)`: append an operation and return its only result."""

Inverse = Callable[[Emit, Operation, int, Value, Value], Value | None]
"""(emit, the view operation, number of the result, whole, part) -> the whole with the part written, or None."""

COPY_OR_VIEW = frozenset(
    {
        "aten.reshape",
        "aten.reshape_as",
        "aten.contiguous",
        "aten.flatten.using_ints",
        "aten.ravel",
        "aten.to.dtype",
        "aten.to.device",
        "aten.to.dtype_layout",
        "aten.to.other",
        "aten.type_as",
        "aten.resolve_conj",
        "aten.resolve_neg",
        "aten.expand_as",
        "aten.atleast_1d",
        "aten.atleast_2d",
        "aten.atleast_3d",
    }
)
"""Operators whose result is a view of their operand or a fresh tensor, depending on strides, dtype or device."""

RETURNS_INPUT_IN_EVAL = {
    "aten.dropout": "train",
    "aten.feature_dropout": "train",
    "aten.alpha_dropout": "train",
    "aten.feature_alpha_dropout": "train",
}
"""Operators that return their operand itself when they do nothing (so does the eager kernel; the tracer's does not)."""

IN_PLACE_VIEWS = {
    "aten.squeeze_": "aten.squeeze",
    "aten.squeeze_.dim": "aten.squeeze.dim",
    "aten.squeeze_.dims": "aten.squeeze.dims",
    "aten.unsqueeze_": "aten.unsqueeze",
    "aten.transpose_": "aten.transpose.int",
    "aten.swapaxes_": "aten.transpose.int",
    "aten.swapdims_": "aten.transpose.int",
    "aten.t_": "aten.t",
    "aten.as_strided_": "aten.as_strided",
}
"""Operators that change the shape of the tensor object itself and move no data."""

FUNCTIONAL_NAMES = {
    "aten.normal_": "aten.normal_functional",
    "aten.detach_": "aten.detach",
}
"""In-place operators whose functional counterpart is named otherwise."""

WITHOUT_DERIVATIVE = frozenset({"aten.bernoulli.p", "aten.normal_functional"})
"""Functional forms that overwrite their input, as their in-place forms do, but cannot say that its gradient is zero."""


def _attributes(op: Operation) -> dict[str, Any]:
    return {name: op.resolved_attribute(name) for name in op.attributes}


def _same(_emit: Emit, _op: Operation, _index: int, _whole: Value, part: Value) -> Value:
    return part


def _reshape(emit: Emit, _op: Operation, _index: int, whole: Value, part: Value) -> Value:
    type_ = whole.type
    if isinstance(type_, TensorType) and type_.shape is not None and None not in type_.shape:
        return emit("aten.reshape", part, type_.shape)
    return emit("aten.reshape_as", part, whole)


def _slice(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value:
    return emit("aten.slice_scatter", whole, part, **_attributes(op))


def _select(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value:
    return emit("aten.select_scatter", whole, part, **_attributes(op))


def _diagonal(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value:
    return emit("aten.diagonal_scatter", whole, part, **_attributes(op))


def _as_strided(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value:
    attributes = _attributes(op)
    if not may_need_gradient(whole):
        return emit("aten.as_strided_scatter", whole, part, **attributes)
    # PyTorch's derivative of it lets the gradient of what is overwritten through
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
        # with start + length == 0 the end of the slice would be 0
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


def _again(emit: Emit, op: Operation, _index: int, _whole: Value, part: Value) -> Value:
    return emit(op.name, part)


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
    return part if same else None  # otherwise several elements are one: PyTorch refuses such a write too


def _detach(_emit: Emit, _op: Operation, _index: int, whole: Value, part: Value) -> Value | None:
    # elsewhere the write changes the data and not the gradient, which no functional operator expresses
    return None if may_need_gradient(whole) or may_need_gradient(part) else part


def may_need_gradient(value: Value) -> bool:
    """Return whether a value may depend on a parameter or a floating-point input."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        type_ = current.type
        if isinstance(type_, TensorType) and type_.dtype is not None and not _differentiable(type_.dtype):
            continue
        op = current.defining_op
        if op is None:
            weight = weight_of(current)
            if weight is None or weight.requires_grad or weight.carries_gradient:
                return True
        elif op.name != "aten.detach":
            new = [v for v in op.operand_values if v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _differentiable(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _view_dtype(emit: Emit, op: Operation, _index: int, whole: Value, part: Value) -> Value | None:
    old, new = whole.tensor_type.dtype, op.attributes["dtype"]
    if old is None or new is None or old.itemsize != new.itemsize:
        return None
    return emit("aten.view.dtype", part, old)


_SPLITS = (
    "aten.split.Tensor",
    "aten.split.sizes",
    "aten.split_with_sizes",
    "aten.chunk",
    "aten.tensor_split.sections",
    "aten.tensor_split.indices",
)

_INVERSES: dict[str, Inverse] = {
    **dict.fromkeys(
        (
            "aten.alias",
            "aten.contiguous",
            "aten.to.dtype",
            "aten.to.device",
            "aten.to.dtype_layout",
            "aten.to.other",
            "aten.type_as",
            "aten.resolve_conj",
            "aten.resolve_neg",
            "aten.positive",
            *RETURNS_INPUT_IN_EVAL,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            "aten.view",
            "aten.view_as",
            "aten._unsafe_view",
            "aten.reshape",
            "aten.reshape_as",
            "aten.flatten.using_ints",
            "aten.ravel",
            "aten.unflatten.int",
            "aten.squeeze",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.unsqueeze",
            "aten.atleast_1d",
            "aten.atleast_2d",
            "aten.atleast_3d",
        ),
        _reshape,
    ),
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.narrow": _narrow,
    "aten.diagonal": _diagonal,
    "aten.as_strided": _as_strided,
    "aten.permute": _permute,
    **dict.fromkeys(("aten.transpose.int", "aten.swapaxes", "aten.swapdims"), _swap),
    **dict.fromkeys(("aten.t", "aten.numpy_T", "aten.mT"), _again),
    **dict.fromkeys(("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int"), _movedim),
    **dict.fromkeys(("aten.unbind.int",), _unbind),
    **dict.fromkeys(_SPLITS, _split),
    "aten.expand": _expand,
    "aten.expand_as": _expand,
    "aten.detach": _detach,
    "aten.view.dtype": _view_dtype,
    "aten.view_as_real": lambda emit, _op, _index, _whole, part: emit("aten.view_as_complex", part),
    "aten.view_as_complex": lambda emit, _op, _index, _whole, part: emit("aten.view_as_real", part),
}


PARTS = frozenset(
    {
        "aten.slice.Tensor",
        "aten.select.int",
        "aten.narrow",
        "aten.diagonal",
        "aten.as_strided",
        "aten.unbind.int",
        *_SPLITS,
    }
)
"""Views of a part: between the elements lie those of the rest, and the strides show it."""


def write_through(emit: Emit, op: Operation, index: int, whole: Value, part: Value) -> Value | None:
    """Return `whole` with `part` written where result number `index` of the view operation `op` lies in it.

    None means that this view cannot be written through.
    """
    inverse = _INVERSES.get(op.name)
    return None if inverse is None else inverse(emit, op, index, whole, part)
