"""Inference rules of operators whose results have sizes that depend on data: such a size is unknown (None)."""

from __future__ import annotations

from typing import Any

import torch

from ir.ops.inference.slicing import index
from ir.ops.inference.support import Attributes, Undecided, broadcast, common_device, require, require_equal
from ir.types import Dim, TensorType, Type, product

_MASKS = (torch.bool, torch.uint8)


def nonzero(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The places of what is not zero: one row for each, with an index for each dimension."""
    x = types[0]
    require(x.shape is not None)
    return (TensorType((None, len(x.shape)), torch.int64, x.device),)


def masked_select(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The elements where a mask is true, in a vector."""
    x, mask = types
    require(x.dtype is not None and mask.dtype is torch.bool)
    return (TensorType((None,), x.dtype, common_device(types)),)


def where(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The places of what is not zero: one vector for each dimension."""
    x = types[0]
    require(x.shape is not None and len(x.shape) > 0)
    return (TensorType((None,), torch.int64, x.device),) * len(x.shape)


def index_or_mask(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """index.Tensor: a mask alone picks what it has true, in place of the dimensions that it is about."""
    x, indices = types[0], types[1]
    places = [place for place, type_ in enumerate(indices) if type_ is not None]
    if len(places) != 1 or indices[places[0]].dtype not in _MASKS:
        return index(types, attributes)
    (place,), mask = places, indices[places[0]]
    require(x.shape is not None and mask.shape is not None and len(mask.shape) > 0)
    end = place + len(mask.shape)
    require(end <= len(x.shape))
    for have, want in zip(x.shape[place:end], mask.shape, strict=True):
        require_equal(want, have, "a dimension of the mask")
    common_device([x, mask])
    return (TensorType((*x.shape[:place], None, *x.shape[end:]), x.dtype, x.device),)


def elements(types: tuple[Any, ...]) -> Dim | None:
    """Return the number of elements of the first operand: the most that any selection of them has."""
    return _count(types[0])


def elements_of_both(types: tuple[Any, ...]) -> Dim | None:
    """Return the number of elements that two operands broadcast to."""
    x, mask = types
    if x.shape is None or mask.shape is None:
        return None
    try:
        return product(broadcast([x.shape, mask.shape]))
    except Undecided:
        return None


def elements_of_mask(types: tuple[Any, ...]) -> Dim | None:
    """Return the number of elements of the only mask among indices."""
    masks = [type_ for type_ in types[1] if type_ is not None and type_.dtype in _MASKS]
    return _count(masks[0]) if len(masks) == 1 else None


def _count(type_: TensorType) -> Dim | None:
    return None if type_.shape is None else product(type_.shape)
