"""Scenes for rules about arithmetic, copies and layout, which prove where memory lies."""

from __future__ import annotations

import torch

from fuzz.calls.source import divisors
from fuzz.rules.growth import operators_with
from fuzz.rules.match_source import MatchSource
from fuzz.rules.scene_parts import emit, entry, new_linear, new_weight, seldom, spoil, unary
from ir.core import Value
from ir.opdef import Trait
from ir.types import TensorType


def spatial_mean(source: MatchSource) -> Value:
    """Average a 4-d map over dimensions, mostly the two spatial ones; the map may be empty."""
    shape = [source.integer(1, 3) for _ in range(4)]
    if seldom(source):
        shape[source.integer(0, 3)] = 0
    x = entry(source, *shape)
    dims = source.one_of(((2, 3), (-1, -2), (3, 2), (2, -1), (1, 2), (2,), (1, 2, 3), (0, 1)))
    dtype = torch.float64 if seldom(source) else None
    y = emit(source, "aten.mean.dim", x, dims, source.flag(), dtype=dtype)
    if len(y.tensor_type.shape or ()) == 4 and source.flag():
        return _converted(source, y)
    return emit(source, "aten.relu", y) if source.flag() else y


def _converted(source: MatchSource, x: Value) -> Value:
    """Convert a 4-d value to channels_last, which copies or not; return what was converted as well."""
    if source.flag():
        x = emit(source, "aten.add.Scalar", x, 1)
    source.returned.append(x)
    dtype = x.tensor_type.dtype
    assert dtype is not None
    return emit(source, "aten.to.dtype", x, dtype, memory_format=torch.channels_last)


def whole_view(source: MatchSource) -> Value:
    """Take all of a value, or a part: by expanding it, or by a slice in steps."""
    kind = source.integer(0, 3)
    shape = [source.integer(1, 3) for _ in range(4 if kind == 3 else source.integer(1, 4))]
    x = entry(source, *shape)
    if kind == 0:
        sizes: list[int] = [-1 if source.flag() else size for size in shape]
        if seldom(source):
            sizes = [source.integer(1, 2), *sizes]
        return _used(source, emit(source, "aten.expand", x, sizes))
    if kind == 3:
        x = emit(source, "aten.adaptive_avg_pool2d", x, (1, 1))
        return _converted(source, emit(source, "aten.slice.Tensor", x, source.integer(2, 3), 0, 9, 2))
    dim = source.integer(0, len(shape) - 1)
    start, end, step = source.one_of((0, 0, 1)), source.one_of((9, 9, 2)), source.one_of((1, 2))
    return _used(source, emit(source, "aten.slice.Tensor", x, dim, start, end, step))


def _turned(source: MatchSource) -> Value:
    """Return what lies in memory in a known order: a linear's result, permuted or cut."""
    shape = [source.integer(2, 4) for _ in range(source.integer(2, 4))]
    # an input may have any strides; what a linear gives is contiguous
    shape = [1 if seldom(source) else size for size in shape]
    x = new_linear(source, source.new_input(TensorType((*shape[:-1], 2), source.usual)), shape[-1], False)
    kind = source.integer(0, 3)
    if kind == 2:
        dim = source.integer(0, len(shape) - 1)
        return emit(source, "aten.slice.Tensor", x, dim, source.one_of((1, 0)), 9, source.one_of((1, 1, 2)))
    if kind == 3:
        return emit(source, "aten.select.int", x, source.integer(0, len(shape) - 1), 0)
    return emit(source, "aten.permute", x, source.shuffled(range(len(shape))))


def _reversed(source: MatchSource) -> Value:
    """Return what lies in memory in the reverse order of its dimensions: merging two of them takes a copy."""
    shape = [source.integer(2, 3) for _ in range(source.integer(2, 3))]
    x = new_linear(source, source.new_input(TensorType((*shape[:-1], 2), source.usual)), shape[-1], False)
    return emit(source, "aten.permute", x, list(range(len(shape)))[::-1])


def contiguous_of_view(source: MatchSource) -> Value:
    """Ask for contiguous memory where it is, or is not, contiguous already."""
    y = emit(source, "aten.contiguous", _turned(source))
    return emit(source, "aten.relu", y) if seldom(source) else y  # which hides the strides


def reshapes(source: MatchSource) -> Value:
    """Reshape twice: merge dimensions that may lie apart in memory, and split them again."""
    x = _reversed(source) if source.flag() else _turned(source)
    sizes = [int(d) for d in x.tensor_type.shape or () if isinstance(d, int)]
    if len(sizes) < 2:
        sizes = [1, *sizes]
    at = source.integer(0, max(0, len(sizes) - 2))
    merged = (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :])
    y = emit(source, "aten.reshape", x, merged if len(sizes) > 1 else sizes)
    if source.integer(0, 3) == 3:
        source.returned.append(y)  # it may share memory with what is made of it
    y = emit(source, "aten.reshape", y, source.one_of((tuple(sizes), (*sizes[:-1], 1, sizes[-1]), (-1,))))
    return emit(source, "aten.relu", y) if source.flag() else y


def reshape_permute_reshape(source: MatchSource) -> Value:
    """Reshape to matrices with sizes of 1 among theirs, permute, reshape: to what is a view of it, or not."""
    x = _reversed(source) if source.flag() else _turned(source)
    total = 1
    for size in x.tensor_type.shape or ():
        total *= int(size or 1)
    rows = source.one_of(divisors(total))
    middle = [rows, total // rows]
    for _ in range(source.integer(0, 2)):
        middle.insert(source.integer(0, len(middle)), 1)
    inner = emit(source, "aten.reshape", x, middle)
    turned = emit(source, "aten.permute", inner, source.shuffled(range(len(middle))))
    spoil(source, inner, turned)
    sizes = [int(d) for d in turned.tensor_type.shape or () if d is not None]
    split = source.one_of(divisors(sizes[0]))
    y = emit(
        source,
        "aten.reshape",
        turned,
        source.one_of(([d for d in sizes if d != 1], [split, sizes[0] // split, *sizes[1:]], [total])),
    )
    return emit(source, "aten.relu", y) if seldom(source) else y


def reshape_of_copy(source: MatchSource) -> Value:
    """Merge dimensions that lie apart in memory, behind a copy."""
    turned = _reversed(source) if source.flag() else _turned(source)
    if len(turned.tensor_type.shape or ()) < 2:
        turned = emit(source, "aten.unsqueeze", turned, 0)
    if source.flag():
        copy = emit(source, "aten.contiguous", turned)
    else:
        copy = emit(source, "aten.clone", turned, memory_format=source.one_of((torch.contiguous_format, None)))
    spoil(source, copy)
    sizes = [int(d) for d in copy.tensor_type.shape or () if isinstance(d, int)]
    at = source.integer(0, len(sizes) - 2)
    y = emit(source, "aten.reshape", copy, (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :]))
    return emit(source, "aten.relu", y) if source.flag() else y


def _used(source: MatchSource, x: Value) -> Value:
    """Return a value that an operation makes of `x`, most often: what is an output may not share memory."""
    return x if seldom(source) else emit(source, source.one_of(("aten.sigmoid", "aten.neg")), x)


def unit_arithmetic(source: MatchSource) -> Value:
    """Add, subtract, multiply or divide by what may be a unit of the operation."""
    name, unit = source.one_of(
        (("mul", 1), ("div", 1), ("add", 0), ("sub", 0), ("pow", 1), ("mul", 1.0), *((("add", -0.0), ("add", 0.0)) * 2))
    )
    signed = name in ("add", "sub") and source.flag()
    x = source.tensor(0, 4, dtypes=(source.usual,) if signed else (source.usual, torch.int64, torch.bool))
    x = emit(source, "aten.clone", x) if source.flag() else x
    number = source.one_of((0, 1, -1, 2, 1.0, 0.0)) if seldom(source) else unit
    scaled = {"alpha": source.one_of((-1, -1, 2))} if name in ("add", "sub") and source.flag() else {}
    if signed:
        x = emit(source, "aten.mul.Scalar", x, 0.0)  # zeros of both signs: the sign of the number shows
    suffix = "Tensor_Scalar" if name == "pow" else "Scalar"
    return _used(source, emit(source, f"aten.{name}.{suffix}", x, number, **scaled))


def copy_of_made(source: MatchSource) -> Value:
    """Copy what an operator made, whose strides are known, perhaps a part of it, or an input, whose are not."""
    kind = source.integer(0, 5)
    x = _turned(source) if kind > 2 else entry(source, *(source.integer(1, 3) for _ in range(source.integer(1, 4))))
    if kind in (1, 2):
        x = new_linear(source, x, source.integer(1, 3), False)
    formats = (None, torch.contiguous_format)
    if seldom(source):
        return _copied_statistics(source)
    y = emit(source, "aten.clone", x, memory_format=source.one_of(formats))
    if source.integer(0, 3) == 3:
        source.returned.append(x)  # a copy is another tensor
    else:
        spoil(source, x, y)
    return y if kind > 2 and source.flag() else _used(source, y)


def _copied_statistics(source: MatchSource) -> Value:
    """Normalize by statistics of which one is a copy, or was copied before: training writes them."""
    x = source.new_input(TensorType((source.integer(2, 3), source.integer(1, 3)), source.usual))
    mean, var = (source.make((x.tensor_type.shape or ())[1:], source.usual, bounds=(0.5, 2)) for _ in range(2))
    copy = emit(source, "aten.clone", var)
    y = emit(source, "aten.batch_norm", x, None, None, mean, copy if source.flag() else var, False, 0.1, 1e-5, False)
    return emit(source, "aten.add.Tensor", y, copy)


def repeated(source: MatchSource) -> Value:
    """Apply an operator twice, perhaps with other attributes; the first result may be returned as well."""
    x = entry(source, *(source.integer(1, 3) for _ in range(source.integer(1, 3))))
    opdefs = operators_with(Trait.IDEMPOTENT)
    anew = source.integer(0, 3) == 3
    if anew:
        opdefs = tuple([opdef for opdef in opdefs if opdef.attribute_params])
    names = [opdef.name for opdef in opdefs]
    y = unary(source, source.one_of(names), x)
    if source.integer(0, 2) == 2:
        source.returned.append(y)
    op = y.defining_op
    if op is None or seldom(source):
        return unary(source, source.one_of(names), y)
    if anew:
        return unary(source, op.name, y)  # with attributes of its own
    z: Value = source.builder.op(op.opdef, y, *op.operands[1:], **op.attributes).results[0]
    return z if source.flag() else _used(source, z)


def detached(source: MatchSource) -> Value:
    """Detach numbers that have no gradient, constants, and what has one."""
    x = source.tensor(0, 3, dtypes=(torch.int64, source.usual)) if source.flag() else new_weight(source, 2, 3)
    name = source.one_of(("aten.detach", "aten.lift_fresh"))
    return _used(source, emit(source, name, emit(source, "aten.reshape", x, (-1,)) if source.flag() else x))
