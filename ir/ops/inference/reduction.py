"""Inference for reductions over some or all dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ir.opdef import InferRule
from ir.ops.inference.support import (
    FLOATS,
    FLOATS_OR_UNKNOWN,
    Attributes,
    Shape,
    Undecided,
    require,
    require_not_empty,
    wrap_dim,
    wrap_dims,
)
from ir.types import Dim, TensorType, Type


def _reduced(shape: Shape | None, dims: Sequence[Any] | None, keepdim: bool) -> Shape | None:
    """Return the shape without the dimensions; None and no dimensions mean all."""
    if shape is None:
        return () if not dims and not keepdim else None
    chosen = set(wrap_dims(dims, len(shape))) if dims else set(range(len(shape)))
    result: list[Dim | None] = []
    for i, size in enumerate(shape):
        if i not in chosen:
            result.append(size)
        elif keepdim:
            result.append(1)
    return tuple(result)


def _dims(value: Any) -> Sequence[Any] | None:
    return value if value is None or isinstance(value, tuple) else (value,)


def reduce(*, empty: bool = True) -> InferRule:
    """Return the rule of a reduction that keeps floating dtypes, or converts to attribute `dtype`.

    `empty` tells whether tensors without elements are taken.
    """

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        require(x.dtype in FLOATS_OR_UNKNOWN)
        dtype = attributes.get("dtype")
        require(dtype is None or dtype in FLOATS)
        if not empty and x.shape is not None:
            require_not_empty(x.shape)
        shape = _reduced(x.shape, _dims(attributes.get("dim")), bool(attributes.get("keepdim", False)))
        result = dtype or x.dtype
        if x.dtype is None and dtype is None:
            result = None
        return (TensorType(shape, result, x.device),)

    return rule


def moments(results: int) -> InferRule:
    """Return the rule of var, std (one result) and var_mean, std_mean (two)."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        require(x.dtype in FLOATS_OR_UNKNOWN)
        if x.shape is not None:
            require_not_empty(x.shape)
        shape = _reduced(x.shape, _dims(attributes.get("dim")), bool(attributes.get("keepdim", False)))
        return (TensorType(shape, x.dtype, x.device),) * results

    return rule


def typed(dtype: torch.dtype) -> InferRule:
    """Return the rule of a reduction to a fixed dtype: argmax, any, all."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        require(x.dtype in FLOATS_OR_UNKNOWN or x.dtype is torch.bool)
        if dtype is torch.int64:
            require(x.dtype is not torch.bool)
        if x.shape is not None:
            require_not_empty(x.shape)
        dim, keepdim = attributes.get("dim"), bool(attributes.get("keepdim", False))
        return (TensorType(_reduced(x.shape, _dims(dim), keepdim), dtype, x.device),)

    return rule


def with_indices(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """max.dim, min.dim: values and indices."""
    x = types[0]
    if x.shape is not None:
        require_not_empty(x.shape)
    require(x.dtype is None or not x.dtype.is_complex)
    shape = _reduced(x.shape, (attributes["dim"],), bool(attributes["keepdim"]))
    return (TensorType(shape, x.dtype, x.device), TensorType(shape, torch.int64, x.device))


def cumulative(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """cumsum, cumprod: the operand's shape."""
    x, dtype = types[0], attributes["dtype"]
    require(x.dtype in FLOATS_OR_UNKNOWN and (dtype is None or dtype in FLOATS))
    if x.shape is not None:
        wrap_dim(attributes["dim"], len(x.shape))
    if dtype is None:
        return (x,)
    return (TensorType(x.shape, dtype, x.device),)


def vector_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """linalg_vector_norm and norm over dimensions."""
    x = types[0]
    require(x.dtype in FLOATS_OR_UNKNOWN and attributes.get("dtype") is None)
    order = attributes["ord"] if "ord" in attributes else attributes["p"]
    if order is not None and (not isinstance(order, (int, float)) or isinstance(order, bool)):
        raise Undecided
    if x.shape is not None:
        require_not_empty(x.shape)
    shape = _reduced(x.shape, _dims(attributes.get("dim")), bool(attributes.get("keepdim", False)))
    return (TensorType(shape, x.dtype, x.device),)
