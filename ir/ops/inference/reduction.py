"""Inference for reductions over some or all dimensions."""

from __future__ import annotations

from typing import Any

import torch

from ir.opdef import InferRule
from ir.ops.inference.support import (
    FLOATS,
    FLOATS_OR_UNKNOWN,
    Attributes,
    Shape,
    require,
    require_not_empty,
    wrap_dim,
    wrap_dims,
)
from ir.types import TensorType, Type


def _reduced(x: TensorType, attributes: Attributes, *, empty: bool = False) -> Shape | None:
    """Return the shape without the dimensions in `dim`, or with 1 for each; no or an empty `dim` means all.

    `empty` tells whether tensors without elements are accepted.
    """
    dims, keepdim = attributes.get("dim"), attributes.get("keepdim", False)
    if x.shape is None:
        return () if dims in (None, ()) and not keepdim else None
    if not empty:
        require_not_empty(x.shape)
    if dims is not None and not isinstance(dims, tuple):
        dims = (dims,)
    chosen = set(wrap_dims(dims, len(x.shape)) if dims else range(len(x.shape)))
    return tuple([1 if i in chosen else size for i, size in enumerate(x.shape) if keepdim or i not in chosen])


def reduce(*, empty: bool = False, results: int = 1) -> InferRule:
    """Return the rule of a reduction that keeps floating dtypes, or converts to attribute `dtype`.

    `empty` tells whether tensors without elements are accepted.
    """

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x, dtype = types[0], attributes.get("dtype")
        require(x.dtype in FLOATS_OR_UNKNOWN and (dtype is None or dtype in FLOATS))
        require(type(attributes.get("correction")) is not complex)
        return (TensorType(_reduced(x, attributes, empty=empty), dtype or x.dtype, x.device),) * results

    return rule


def logsumexp(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """logsumexp over some dimensions; for none, fake tensors and the kernel differ."""
    require(attributes["dim"] != ())
    return reduce()(types, attributes)


def typed(dtype: torch.dtype) -> InferRule:
    """Return the rule of a reduction to a fixed dtype: argmax, any, all."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        is_bool = dtype is torch.bool
        require(x.dtype in FLOATS_OR_UNKNOWN or (x.dtype is torch.bool and is_bool))
        # any and all of u8 are u8
        return (TensorType(_reduced(x, attributes), None if is_bool and x.dtype is None else dtype, x.device),)

    return rule


def with_indices(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """max.dim, min.dim: values and indices."""
    x = types[0]
    require(x.dtype is None or not x.dtype.is_complex)
    shape = _reduced(x, attributes)
    return (TensorType(shape, x.dtype, x.device), TensorType(shape, torch.int64, x.device))


def cumulative(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """cumsum, cumprod: the operand's shape."""
    x, dtype = types[0], attributes["dtype"]
    require(x.dtype in FLOATS_OR_UNKNOWN and (dtype is None or dtype in FLOATS))
    if x.shape is not None:
        wrap_dim(attributes["dim"], len(x.shape))
    return (TensorType(x.shape, dtype or x.dtype, x.device),)


def vector_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """linalg_vector_norm and norm over dimensions."""
    order = attributes["ord"] if "ord" in attributes else attributes["p"]
    require(attributes.get("dtype") is None and (order is None or type(order) in (int, float)))
    return reduce()(types, attributes)
