"""Inference for elementwise operators: shapes by broadcasting, dtypes from one run of each combination."""

from __future__ import annotations

from typing import Any

import torch

from ir.fake import infer_with_fakes
from ir.opdef import InferRule, get_opdef
from ir.ops.inference.support import (
    FLOATS_OR_UNKNOWN,
    Attributes,
    Undecided,
    broadcast,
    common_device,
    with_fallback,
)
from ir.types import Dim, TensorType, Type, dims_equal

_REAL = frozenset({int, float, bool})


def probe(name: str, types: tuple[TensorType | None, ...], attributes: Attributes) -> TensorType:
    """Return the result type of an elementwise operator for operands of one element each.

    The result dtype, and whether the operator takes the operands at all, depend on their dtypes, on which are scalars,
    and on the attributes: the operator is run once for each combination.

    Raises:
        InferenceError: when the operator refuses the operands.
    """
    tiny = tuple([t and TensorType(() if t.shape == () else (1,), t.dtype, t.device) for t in types])
    (result,) = infer_with_fakes(get_opdef(name), tiny, attributes)
    if type(result) is not TensorType:
        raise Undecided
    return result


def unary(name: str, *scalars: str) -> InferRule:
    """Return the rule of an operator on one tensor that keeps floating dtypes.

    `scalars` are the attributes that would change the dtype if they were complex.
    """
    general = nary(name)

    def infer(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        operand = types[0]
        if type(operand) is TensorType and operand.dtype in FLOATS_OR_UNKNOWN:
            for scalar in scalars:
                if type(attributes[scalar]) not in _REAL:
                    return general(types, attributes)
            return (operand,)
        return general(types, attributes)

    return infer


def nary(name: str) -> InferRule:
    """Return the rule of an operator on broadcast tensors."""
    return with_fallback(name, _nary(name))


def binary(name: str) -> InferRule:
    """Return the rule of an arithmetic operator on two tensors that keeps floating dtypes."""
    general = nary(name)

    def infer(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        a, b = types
        if (
            type(a) is TensorType
            and (a is b or a == b)
            and a.dtype in FLOATS_OR_UNKNOWN
            and attributes.get("alpha", 1) == 1
        ):
            return (a,)
        return general(types, attributes)

    return infer


def _nary(name: str, dtype: torch.dtype | None = None) -> InferRule:
    """Return the rule of `nary`; `dtype` is the result's where that depends on nothing."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        present = [t for t in types if t is not None]
        shapes = [t.shape for t in present]
        shape = None if None in shapes else broadcast(shapes)
        if all(t.dtype is not None and t.shape is not None for t in present):
            result = probe(name, types, attributes)
            return (TensorType(shape, result.dtype, result.device or _certain_device(present)),)
        return (TensorType(shape, dtype or _certain_dtype(name, types, attributes), _certain_device(present)),)

    return rule


def _certain_device(types: list[TensorType]) -> torch.device | None:
    """Return the device of the result if it is certain: a scalar on the CPU goes with operands on any device."""
    device = common_device(types)
    if all(t.device is not None for t in types) or any(t.device is not None and t.shape for t in types):
        return device
    return None


def _certain_dtype(name: str, types: tuple[TensorType | None, ...], attributes: Attributes) -> torch.dtype | None:
    """Return the result dtype if it is certain: the operands have one dtype."""
    dtypes = {t.dtype for t in types if t is not None}
    if len(dtypes) != 1 or None in dtypes:
        return None
    small = [None if t is None else TensorType((1,), t.dtype, t.device) for t in types]
    return probe(name, tuple(small), attributes).dtype


def boolean(name: str) -> InferRule:
    """Return the rule of an elementwise operator with a bool result."""
    return with_fallback(name, _nary(name, torch.bool))


def masked(name: str) -> InferRule:
    """Return the rule of `masked_fill`: operands broadcast, with the dtype of the first."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x, mask = types[0], types[1]
        if None in (x.dtype, x.shape, mask.dtype, mask.shape) or len(types) > 2:
            raise Undecided
        result = probe(name, types, attributes)
        return (TensorType(broadcast([x.shape, mask.shape]), result.dtype, result.device),)

    return with_fallback(name, rule)


def prelu(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """aten.prelu: one slope, or one per channel (dimension 1)."""
    x, slope = types
    if x.dtype is not slope.dtype or x.dtype not in FLOATS_OR_UNKNOWN or x.device != slope.device:
        raise Undecided
    if slope.shape is None or x.shape is None:
        return (x,)
    if len(slope.shape) > 1:
        raise Undecided
    count: Dim | None = slope.shape[0] if slope.shape else 1
    if count is None or count == 1:
        return (x,)
    if len(x.shape) > 1 and (x.shape[1] is None or dims_equal(count, x.shape[1])):
        return (x,)
    raise Undecided
