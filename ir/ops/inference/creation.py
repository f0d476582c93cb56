"""Inference for operators that make, copy and convert tensors."""

from __future__ import annotations

from typing import Any

import torch

from ir.opdef import InferRule
from ir.ops.inference.support import FLOATS_OR_UNKNOWN, Attributes, require
from ir.types import Dim, TensorType, Type

_ANY_RANK = (None, torch.preserve_format, torch.contiguous_format)
_RANK_OF_FORMAT = {torch.channels_last: 4, torch.channels_last_3d: 5}


def _check_format(x: TensorType, attributes: Attributes) -> None:
    memory_format = attributes.get("memory_format")
    if memory_format not in _ANY_RANK:
        require(x.shape is None or len(x.shape) == _RANK_OF_FORMAT.get(memory_format))


def _check_layout(attributes: Attributes) -> None:
    require(attributes.get("layout") in (None, torch.strided) and not attributes.get("pin_memory"))


def copy(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """clone, contiguous, conversions by attributes `dtype` and `device`, zeros_like and the like."""
    x = types[0]
    _check_format(x, attributes)
    _check_layout(attributes)
    dtype, device = attributes.get("dtype") or x.dtype, attributes.get("device") or x.device
    require(device is None or device.type in ("cpu", "meta") or device == x.device)
    if dtype is x.dtype and device == x.device:
        return (x,)
    return (TensorType(x.shape, dtype, device),)


def random(rule: InferRule) -> InferRule:
    """Restrict a rule to floating results: operators differ in which other dtypes they accept."""

    def infer(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        (result,) = rule(types, attributes)
        assert type(result) is TensorType
        require(result.dtype in FLOATS_OR_UNKNOWN)
        return (result,)

    return infer


def typed_as(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """type_as: the other operand's dtype and device."""
    x, other = types
    require(x.device == other.device)
    return (TensorType(x.shape, other.dtype, other.device),)


def shaped(*, fill: str | None = None) -> InferRule:
    """Return the rule of zeros, full, new_zeros and the like; `fill` names the value's attribute."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        _check_layout(attributes)
        size = attributes["size"]
        require(all(type(n) is not int or n >= 0 for n in size))
        require(attributes.get("memory_format") in (None, torch.contiguous_format))
        dtype, device = attributes.get("dtype"), attributes.get("device")
        if types:
            dtype, device = dtype or types[0].dtype, device or types[0].device
        else:
            device = device or torch.get_default_device()
            if dtype is None:
                dtype = torch.get_default_dtype() if fill is None else _dtype_of_number(attributes[fill])
        require(device is None or device.type in ("cpu", "meta"))
        return (TensorType(size, dtype, device),)

    return rule


def _dtype_of_number(value: Any) -> torch.dtype:
    require(type(value) in (bool, int, float))
    if type(value) is float:
        return torch.get_default_dtype()
    return torch.bool if type(value) is bool else torch.int64


def arange(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """arange of ints: [start, end) by step."""
    _check_layout(attributes)
    start, end, step = attributes.get("start", 0), attributes["end"], attributes.get("step", 1)
    require(all(type(n) is int for n in (start, end, step)) and step != 0)
    require((end - start) * step >= 0)
    length: Dim = -((start - end) // step)
    device = attributes["device"] or torch.get_default_device()
    require(device.type in ("cpu", "meta"))
    return (TensorType((length,), attributes["dtype"] or torch.int64, device),)
