"""What scenes are made of: operands, layers, and users of intermediate values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fuzz.calls.generators import generate_call
from fuzz.rules.growth import operators_with
from fuzz.rules.match_source import MatchSource
from ir.core import Value
from ir.opdef import Trait
from ir.types import Dim, TensorType

Scene = Callable[[MatchSource], Value]


def seldom(source: MatchSource) -> bool:
    """Return True in one of eight draws."""
    return source.integer(0, 7) == 7


def emit(source: MatchSource, name: str, *args: Any, **attributes: Any) -> Value:
    """Add an operation and return its first result."""
    return source.builder.op(name, *args, **attributes).results[0]


def unary(source: MatchSource, name: str, x: Value) -> Value:
    """Apply an operator that its generator knows to a value."""
    source.pinned = [x]
    args, kwargs = generate_call(source, name)
    source.pinned = []
    if x not in args and x not in kwargs.values():
        return x
    return emit(source, name, *args, **kwargs)


def activation(source: MatchSource, x: Value) -> Value:
    """Apply an activation."""
    return unary(source, source.one_of([opdef.name for opdef in operators_with(Trait.ACTIVATION)]), x)


def new_weight(source: MatchSource, *shape: Dim) -> Value:
    """Return a weight of a shape."""
    return source.make(shape)


def new_linear(source: MatchSource, x: Value, out: Dim, bias: bool) -> Value:
    """Apply a linear layer."""
    shape = x.tensor_type.shape or ()
    weight = new_weight(source, out, shape[-1] or 1)
    return emit(source, "aten.linear", x, weight, new_weight(source, out) if bias else None)


def entry(source: MatchSource, *shape: Dim) -> Value:
    """Return an input of a shape, perhaps in another memory order and behind an operation."""
    if len(shape) > 1 and source.integer(0, 3) == 3:
        order = list(range(len(shape)))
        a, b = source.integer(0, len(shape) - 1), source.integer(0, len(shape) - 1)
        order[a], order[b] = order[b], order[a]
        made = source.new_input(TensorType(tuple([shape[i] for i in order]), source.usual))
        return emit(source, "aten.permute", made, order)
    made = source.new_input(TensorType(tuple(shape), source.usual))
    return emit(source, "aten.relu", made) if source.flag() else made


def spoil(source: MatchSource, *values: Value) -> None:
    """Seldom, give one of the values another user, or return it."""
    kind = source.integer(0, 11)
    if kind == 11:
        source.returned.append(source.one_of(values))
    elif kind == 10:
        emit(source, "aten.neg", source.one_of(values))
