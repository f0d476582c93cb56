"""What all canonicalization rules share."""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.program import weight_of
from ir.types import Dim, TensorType
from passes.rewrite.pattern import Match, Pattern
from passes.rewrite.rewriter import Rewriter


class Rule(Pattern):
    """A canonicalization: exact, and silent where it does not apply."""

    exact = True
    warns_without_shapes = False


class Identity(Rule):
    """A rule that replaces its match by the value captured as `x`, or by the root's first operand."""

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return m.captures.get("x") or first(m.root)


class ToReshape(Rule):
    """A rule that replaces its match by one reshape of `x`, or of the root's first operand, to the same shape."""

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.reshape", m.captures.get("x") or first(m.root), shape_of(m.root.result)).result


def tensor(value: Value | None) -> TensorType | None:
    """Return the type of a tensor value, or None."""
    if value is None or type(value.type) is not TensorType:
        return None
    return value.type


def shape_of(value: Value | None) -> tuple[Dim, ...] | None:
    """Return the shape of a tensor value where all of it is known, else None."""
    return None if value is None else value.known_shape


def rank_of(value: Value | None) -> int | None:
    """Return the rank of a tensor value where it is known, else None."""
    type_ = tensor(value)
    return None if type_ is None else type_.rank


def first(op: Operation) -> Value:
    """Return the first operand, which must be present."""
    value = op.operands[0]
    assert value is not None
    return value


def same_dtype(a: Value, b: Value) -> bool:
    """Return whether two tensors provably have one dtype and one device."""
    x, y = tensor(a), tensor(b)
    if x is None or y is None or x.dtype is None or x.device is None:
        return False
    return x.dtype == y.dtype and x.device == y.device


def is_floating(value: Value) -> bool:
    """Return whether the dtype is known and a floating one."""
    type_ = tensor(value)
    return type_ is not None and type_.dtype is not None and type_.dtype.is_floating_point


def is_integral(value: Value) -> bool:
    """Return whether the dtype is known and an integer one or bool."""
    type_ = tensor(value)
    if type_ is None or type_.dtype is None:
        return False
    return not type_.dtype.is_floating_point and not type_.dtype.is_complex and type_.dtype not in _QUANTIZED


def filled_with(value: Value) -> int | float | None:
    """Return the number that every element of a tensor is; None where it is none, or not known."""
    op = value.defining_op
    if op is not None:
        fill = op.opdef.facts.fill
        number = op.attributes.get(fill) if isinstance(fill, str) else fill
        return number if type(number) in (int, float) and not math.isnan(number) else None
    weight = weight_of(value)
    data = None if weight is None or not weight.is_constant or weight.is_mutated else weight.data
    if data is None or data.is_meta or not data.numel() or data.dtype is torch.bool or data.is_complex():
        return None
    number = data.flatten()[0]
    found: int | float = number.item()
    return found if bool((data == number).all()) else None


_QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32})
