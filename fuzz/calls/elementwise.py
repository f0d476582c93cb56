"""Generators of calls: elementwise operators, reductions, creation and conversion of tensors."""

from __future__ import annotations

from typing import Any

import torch

from fuzz.calls.source import Source, any_dim, shape_of
from fuzz.calls.types import DTYPES, FLOATS, INTEGERS
from ir.core import Value
from ir.opdef import OpDef, ParamKind, Trait
from ir.types import Dim

Arguments = tuple[list[Any], dict[str, Any]]

NUMBERS = (1, 2, 0.5, 0, -1, 3.0, -0.25, 6, 0.1234567)
_REAL_ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "alpha": (1, 2, 0.5, -1, 1.0),
    "lambd": (0.5, 0, 1.0),
    "approximate": ("none", "tanh"),
    "rounding_mode": (None, "floor", "trunc"),
    "eps": (None, 0.25),
    "decimals": (0, 1),
    "nan": (None, 0.0, 1.0),
    "posinf": (None, 5.0),
    "neginf": (None, -5.0),
    "min_val": (-1, 0, -0.5),
    "max_val": (1, 6, 0.5),
    "beta": (1, 2.0),
    "lower": (0.125,),
    "upper": (0.25,),
    "training": (False,),
    "follows_mode": (False, True),
    "generator": (None,),
}


def _attributes(source: Source, opdef: OpDef, **overrides: tuple[Any, ...]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for param in opdef.attribute_params:
        choices = overrides.get(param.name) or _REAL_ATTRIBUTES.get(param.name)
        if choices is None:
            choices = (param.default, *NUMBERS) if param.has_default and param.default is not None else NUMBERS
        chosen[param.name] = source.one_of(choices)
    return chosen


def _broadcastable(source: Source, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Draw a shape that broadcasts to `shape`: equal, without leading dimensions, or with sizes of 1."""
    kind = source.integer(0, 7)
    if kind < 2 or not shape:
        return shape
    if kind == 7:
        return ()
    if kind > 3:
        shape = shape[source.integer(0, len(shape) - 1) if kind > 4 else 0 :]
        if kind == 6:
            # per channel, (channels, 1, 1), or a single element
            return (source.one_of((shape[0], shape[0], 1)), *(1,) * (len(shape) - 1))
        return tuple([1 if source.flag() else size for size in shape])
    return shape[source.integer(1, len(shape)) :]


def _broadcasting(source: Source, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Draw a shape that `shape` broadcasts to: its sizes of 1 enlarged, or one dimension more."""
    if 1 not in shape:
        return (source.size(), *shape)
    last = max(i for i, size in enumerate(shape) if size == 1)
    return tuple([source.size() if size == 1 else size for size in shape[source.integer(0, last) :]])


def _joined(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the shape that two compatible shapes broadcast to."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    lead = len(longer) - len(shorter)
    ends = zip(longer[lead:], shorter, strict=True)
    return (*longer[:lead], *(y if type(x) is int and x == 1 else x for x, y in ends))


def _operands(source: Source, opdef: OpDef, dtypes: tuple[torch.dtype, ...]) -> list[Value]:
    """Draw operands that broadcast, large or small ones first, some of them the same value."""
    first = source.tensor(dtypes=dtypes)
    shape = shape_of(first)
    operands = [first]
    for _ in opdef.operand_params[1:]:
        kind = source.integer(0, 4)
        if kind == 0:
            other = source.tensor(
                dtypes=dtypes,
                condition=lambda t, shape=shape: t.shape == shape and t.dtype == first.tensor_type.dtype,  # type: ignore[misc]
            )
            operands.append(other if _fits(shape_of(other), shape) else first)
        elif kind == 1:
            operands.append(first)
        else:
            larger = kind == 4 and (1 in shape or source.flag())
            drawn = (_broadcasting if larger else _broadcastable)(source, shape)
            operands.append(source.make(drawn, source.one_of(dtypes)))
            shape = _joined(shape, drawn)
    if len(operands) > 1 and source.flag():
        operands.reverse()
    return operands


def _fits(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b), strict=False))


def _named(opdef: OpDef, operands: list[Value]) -> dict[str, Any]:
    return {param.name: value for param, value in zip(opdef.operand_params, operands, strict=True)}


def elementwise(source: Source, opdef: OpDef) -> Arguments:
    """One to three broadcast floating operands and number attributes."""
    return [], _named(opdef, _operands(source, opdef, FLOATS)) | _attributes(source, opdef)


def any_elementwise(source: Source, opdef: OpDef) -> Arguments:
    """Operands of any ordered dtypes."""
    return list(_operands(source, opdef, (*FLOATS, *INTEGERS, torch.bool))), _attributes(source, opdef)


def bitwise(source: Source, opdef: OpDef) -> Arguments:
    """Operands of ints or bools."""
    return list(_operands(source, opdef, (torch.bool, *INTEGERS))), _attributes(source, opdef, other=(1, 0, 3, True))


def clamp(source: Source, opdef: OpDef) -> Arguments:
    """At least one of two bounds."""
    low, high = source.one_of(((0, None), (None, 1), (-1, 2.0), (0.0, 6.0), (1, -1), (2.0, 3), (-0.5, 0.25)))
    return [source.tensor()], {
        name: bound for name, bound in (("min", low), ("max", high)) if name in opdef.defaults
    } or {"min" if "min" in opdef.name else "max": 0.5}


def same_dtype(source: Source, opdef: OpDef) -> Arguments:
    """Operands of one dtype that broadcast to the first."""
    x = source.tensor()
    others = [source.like(x, _broadcastable(source, shape_of(x))) for _ in opdef.operand_params[1:]]
    return [x, *others], _attributes(source, opdef)


def where(source: Source, opdef: OpDef) -> Arguments:
    """A bool condition, and two operands that broadcast with it."""
    x = source.tensor()
    condition = source.make(_broadcastable(source, shape_of(x)), torch.bool)
    others = [x] + [source.like(x, _broadcastable(source, shape_of(x))) for _ in opdef.operand_params[2:]]
    if opdef.name == "aten.where.Scalar":
        return [condition], _attributes(source, opdef)
    if opdef.name == "aten.where.ScalarSelf":
        return [condition, source.one_of(NUMBERS), others[0]], {}
    if opdef.name == "aten.where.ScalarOther":
        return [condition, others[0], source.one_of(NUMBERS)], {}
    return [condition, *others], {}


def masked_fill(source: Source, opdef: OpDef) -> Arguments:
    """A bool mask that broadcasts."""
    x = source.tensor()
    return [x, source.make(_broadcastable(source, shape_of(x)), torch.bool), source.one_of(NUMBERS)], {}


def prelu(source: Source, opdef: OpDef) -> Arguments:
    """One slope, or one per channel."""
    x = source.tensor(zero=False)
    shape = shape_of(x)
    if opdef.name == "aten._prelu_kernel":
        return [x, source.like(x, _broadcastable(source, shape))], {}
    count = shape[1] if len(shape) > 1 and source.flag() else 1
    return [x, source.like(x, (count,), bounds=(-1, 1))], {}


def reduction(source: Source, opdef: OpDef) -> Arguments:
    """Dimensions as the operator takes them: none, one, or a list; any and all are of truth values, too."""
    dtypes = (torch.bool, *FLOATS) if opdef.short_name in ("any", "all") else FLOATS
    x = source.tensor(zero=opdef.short_name in ("sum", "mean", "prod"), dtypes=dtypes)
    return [x], reduced_dims(source, opdef, len(shape_of(x)))


def reduced_dims(source: Source, opdef: OpDef, rank: int) -> dict[str, Any]:
    """Draw the attributes of a reduction of a tensor of rank `rank`."""
    chosen: dict[str, Any] = {}
    for param in opdef.attribute_params:
        if param.name == "dim":
            if param.kind is ParamKind.ATTRIBUTE and "List" in param.type:
                count = source.integer(0 if param.type.startswith("Optional") or rank == 0 else 1, rank)
                dims = sorted({source.integer(-rank, rank - 1) % rank for _ in range(count)})
                chosen["dim"] = [d - rank if source.flag() else d for d in dims]
            else:
                chosen["dim"] = any_dim(source, rank)
        elif param.name == "keepdim":
            chosen["keepdim"] = source.flag()
        elif param.name == "dtype":
            chosen["dtype"] = source.dtype((None, None, torch.float64))
        elif param.name == "correction":
            chosen["correction"] = source.one_of((None, 0, 1))
        elif param.name in ("ord", "p"):
            chosen[param.name] = source.one_of((2, 1, 2.0))
    return chosen


def cumulative(source: Source, opdef: OpDef) -> Arguments:
    """One dimension."""
    x = source.tensor()
    return [x, any_dim(source, len(shape_of(x)))], {"dtype": source.dtype((None, torch.float64))}


def convert(source: Source, opdef: OpDef) -> Arguments:
    """A conversion of dtype, or a copy."""
    x = source.tensor(dtypes=FLOATS if opdef.has(Trait.RANDOM) else (*FLOATS, torch.int64, torch.bool))
    chosen: dict[str, Any] = {}
    names = {p.name: p for p in opdef.attribute_params}
    if "device" in names:
        chosen["device"] = torch.device("cpu") if not names["device"].has_default else None
    if "dtype" in names:
        choices = (torch.float32, torch.float64, torch.float16)
        chosen["dtype"] = source.dtype(choices if not names["dtype"].has_default else (None, *choices))
    if "memory_format" in names:
        formats: list[torch.memory_format | None] = [torch.contiguous_format]
        if names["memory_format"].default is None:
            formats += [None, torch.preserve_format]
        if len(shape_of(x)) == 4:
            formats.append(torch.channels_last)
        chosen["memory_format"] = source.one_of(formats)
    if "copy" in names:
        chosen["copy"] = source.flag()
    if "fill_value" in names:
        chosen["fill_value"] = source.one_of((1, 0.5, *source.symbols))
    return [x], chosen


def type_as(source: Source, opdef: OpDef) -> Arguments:
    """Two tensors of any dtypes."""
    return [source.tensor(dtypes=DTYPES), source.tensor(dtypes=FLOATS)], {}


def shaped(source: Source, opdef: OpDef) -> Arguments:
    """A shape, a dtype and perhaps a fill value."""
    operands: list[Any] = [source.tensor()] if opdef.operand_params else []
    chosen: dict[str, Any] = {"size": [source.size() for _ in range(source.integer(0, 3))]}
    if "fill_value" in {p.name for p in opdef.attribute_params}:
        chosen["fill_value"] = source.one_of((1, 0.5, True, *source.symbols))
    chosen["dtype"] = source.dtype((None, torch.float32, torch.float64))
    if not operands:
        chosen["device"] = source.one_of(source.devices)
    return operands, chosen


def arange(source: Source, opdef: OpDef) -> Arguments:
    """Ints from start to end, up or down."""
    count = len([p for p in opdef.attribute_params if p.name in ("start", "end", "step")])
    start, step = source.integer(0, 3), source.one_of((1, 2, -1))
    if count == 1:
        return [source.integer(0, 6)], {}
    if count == 2:
        return [start, start + source.integer(0, 5)], {}
    return [start, start + step * source.integer(0, 3) + (source.integer(0, 1) if step > 0 else 0), step], {}
