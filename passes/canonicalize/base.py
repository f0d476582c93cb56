"""What all canonicalization rules share."""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.program import WeightKind, weight_of
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
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        return number if is_number and not math.isnan(number) else None  # type: ignore[arg-type]
    data = constant_data(value)
    if data is None or not data.numel() or data.dtype is torch.bool or data.is_complex():
        return None
    first_of_all = data.flatten()[0]
    found: int | float = first_of_all.item()
    return found if bool((data == first_of_all).all()) else None


def constant_data(value: Value) -> torch.Tensor | None:
    """Return the elements of a constant that no checkpoint replaces and nothing writes; None where there are none."""
    weight = weight_of(value)
    if weight is None or not weight.is_constant or weight.is_mutated or weight.data is None or weight.data.is_meta:
        return None
    return None if weight.kind is WeightKind.BUFFER and weight.persistent else weight.data


_QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32})
