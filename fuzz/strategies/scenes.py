"""Programs for rules whose `check` proves what their pattern does not say: each scene builds what the rule looks for.

A scene draws every choice that matters to the rule, most often as the rule wants it and sometimes not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fuzz.strategies.calls import generate_call
from fuzz.strategies.growth import MatchSource, operators_with
from ir.core import Value
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import Trait
from ir.types import Dim, TensorType

Scene = Callable[[MatchSource], Value]


def _seldom(source: MatchSource) -> bool:
    return source.integer(0, 7) == 7


def _op(source: MatchSource, name: str, *args: Any, **attributes: Any) -> Value:
    return source.builder.op(name, *args, **attributes).results[0]


def _unary(source: MatchSource, name: str, x: Value) -> Value:
    """Apply an operator that its generator knows to a value."""
    source.pinned = [x]
    args, kwargs = generate_call(source, name)
    source.pinned = []
    if x not in args and x not in kwargs.values():
        return x
    return _op(source, name, *args, **kwargs)


def _activation(source: MatchSource, x: Value) -> Value:
    return _unary(source, source.one_of([opdef.name for opdef in operators_with(Trait.ACTIVATION)]), x)


def _weight(source: MatchSource, *shape: Dim) -> Value:
    return source.make(shape)


def _linear(source: MatchSource, x: Value, out: Dim, bias: bool) -> Value:
    shape = x.tensor_type.shape or ()
    return _op(source, "aten.linear", x, _weight(source, out, shape[-1] or 1), _weight(source, out) if bias else None)


def _input(source: MatchSource, *shape: Dim) -> Value:
    """Return an input of a shape, perhaps in another memory order and behind an operation."""
    if len(shape) > 1 and source.integer(0, 3) == 3:
        order = list(range(len(shape)))
        a, b = source.integer(0, len(shape) - 1), source.integer(0, len(shape) - 1)
        order[a], order[b] = order[b], order[a]
        made = source.new_input(TensorType(tuple([shape[i] for i in order]), source.usual))
        return _op(source, "aten.permute", made, order)
    made = source.new_input(TensorType(tuple(shape), source.usual))
    return _op(source, "aten.relu", made) if source.flag() else made


def _spoil(source: MatchSource, *values: Value) -> None:
    """Seldom, give one of the values another user, or return it."""
    kind = source.integer(0, 11)
    if kind == 11:
        source.returned.append(source.one_of(values))
    elif kind == 10:
        _op(source, "aten.neg", source.one_of(values))


# ---- classifiers ----


def _classifier(source: MatchSource, *, pooled: bool) -> Value:
    batch, channels = source.integer(1, 3), source.integer(1, 4)
    height, width = (1, 1) if pooled != _seldom(source) else (source.integer(1, 3), source.integer(1, 3))
    if source.flag():
        x = _op(source, "aten.adaptive_avg_pool2d", _input(source, batch, channels, 4, 3), (height, width))
    else:
        x = _input(source, batch, channels, height, width)
    if _seldom(source):
        x = _op(source, "aten.permute", x, (1, 0, 2, 3))
        batch, channels = channels, batch
    features = channels * height * width
    kind = source.integer(0, 7)
    if kind < 3:
        dims = (0, source.one_of((2, -2))) if _seldom(source) else (source.one_of((1, -3)), source.one_of((-1, 3)))
        flat = _op(source, "aten.flatten.using_ints", x, *dims)
    elif kind < 7:
        flat = _op(source, "aten.reshape", x, source.one_of(((batch, features), (batch, -1), (-1, features))))
    else:
        flat = _op(source, "aten.reshape", x, (features, batch))
    intermediate = [flat]
    for _ in range(source.integer(0, 2)):
        if source.flag():
            flat = _activation(source, flat)
        else:
            flat = _op(source, "aten.dropout", flat, 0.5, source.flag())
        intermediate.append(flat)
    _spoil(source, *intermediate)
    out = source.integer(1, 3)
    bias = source.one_of((None, _weight(source, out), _weight(source, 1, out) if _seldom(source) else None))
    inner = flat.tensor_type.shape
    return _op(source, "aten.linear", flat, _weight(source, out, inner[-1] if inner else features), bias)


def classifier(source: MatchSource) -> Value:
    """Flatten a map of C x 1 x 1, then a linear."""
    return _classifier(source, pooled=True)


def window(source: MatchSource) -> Value:
    """Flatten a larger map, then a linear."""
    return _classifier(source, pooled=False)


# ---- convolutions ----


def layer_and_norm(source: MatchSource) -> Value:
    """A convolution or linear and a batch norm of its channels; sometimes in float16, with weights that leave it."""
    if source.integer(0, 3) == 3:
        source.in_half(torch.float16, large=True)
    batch, channels, out = (source.integer(1, 3) for _ in range(3))
    bias = _weight(source, out) if source.flag() else None
    if source.flag():
        y = _op(source, "aten.linear", _input(source, batch, channels), _weight(source, out, channels), bias)
    else:
        x, kernel = _input(source, batch, channels, 3, 3), source.integer(1, 3)
        y = _op(source, "aten.conv2d", x, _weight(source, out, channels, kernel, kernel), bias)
    _spoil(source, y)
    affine = [_weight(source, out), _weight(source, out)] if source.integer(0, 3) else [None, None]
    mean, variance = source.make((out,), bounds=(-1, 1)), source.make((out,), bounds=(0.5, 2))
    return _op(source, "aten.batch_norm", y, *affine, mean, variance, False, 0.1, source.one_of((1e-5, 1e-3)), False)


def stem(source: MatchSource) -> Value:
    """Convolve 3 channels by a 7x7 window, then batch norm, activation, max pooling."""
    channels = 3 if not _seldom(source) else source.one_of((1, 2, 6))
    groups = 1 if not _seldom(source) else channels
    kernel = (7, 7) if not _seldom(source) else source.one_of(((5, 7), (3, 3), (7, 1)))
    out = groups * source.integer(1, 2)
    x = _input(source, source.integer(1, 2), channels, 8, source.one_of((8, 7)))
    bias = _weight(source, out) if source.flag() else None
    stride, dilation = source.integer(1, 2), 1 if not _seldom(source) else 2
    weight = _weight(source, out, channels // groups, *kernel)
    y = _op(source, "aten.conv2d", x, weight, bias, (stride, stride), (3 * dilation,) * 2, (dilation,) * 2, groups)
    intermediate = [y]
    if source.flag():
        y = batch_norm(source, y)
        intermediate.append(y)
    y = _activation(source, y)
    _spoil(source, *intermediate, y)
    if _seldom(source):
        return _op(source, "aten.avg_pool2d", y, (2, 2))
    padding = source.integer(0, 1)
    return _op(
        source, "aten.max_pool2d", y, (3, 3), (source.integer(1, 2),) * 2, (padding, padding), (1, 1), source.flag()
    )


def batch_norm(source: MatchSource, x: Value) -> Value:
    """Apply a batch norm, in training now and then."""
    shape = x.tensor_type.shape
    assert shape is not None
    channels = shape[1]
    affine = [_weight(source, channels) if source.integer(0, 3) else None for _ in range(2)]
    mean = _weight(source, channels)
    var = source.make((channels,), bounds=(0.25, 2.0))
    training = source.integer(0, 3) == 3
    return _op(source, "aten.batch_norm", x, *affine, mean, var, training, 0.1, source.one_of((1e-5, 1e-2)), True)


def residual(source: MatchSource) -> Value:
    """Convolve, batch norm, add a residual of the same shape in either order, activation."""
    dims = source.integer(1, 3)
    size = source.integer(2, 4)
    batch, channels, out = source.integer(1, 2), source.integer(1, 3), source.integer(1, 3)
    x = _input(source, batch, channels, *(size,) * dims)
    groups = channels if out % channels == 0 and source.flag() else 1
    kernel = source.one_of((1, 3))
    weight = _weight(source, out, channels // groups, *(kernel,) * dims)
    bias = _weight(source, out) if source.flag() else None
    padding = (kernel // 2,) * dims
    y = _op(source, f"aten.conv{dims}d", x, weight, bias, (1,) * dims, padding, (1,) * dims, groups)
    intermediate = [y]
    if source.flag():
        y = batch_norm(source, y)
        intermediate.append(y)
    kind = source.integer(0, 7)
    if kind == 7:
        other = y
    elif kind == 6:
        other = _weight(source, out, *(1,) * dims)
    elif kind == 5:
        other = _op(source, "aten.neg", y)
    else:
        other = _input(source, batch, out, *(size,) * dims)
    pair = (y, other) if source.flag() else (other, y)
    y = _op(source, "aten.add.Tensor", *pair, alpha=2 if _seldom(source) else 1)
    _spoil(source, *intermediate)
    if source.flag():
        _spoil(source, y)
        y = _activation(source, y)
    return y


# ---- attention ----


def _heads(source: MatchSource, x: Value, batch_first: bool, heads: int, dim: int) -> Value:
    """Split (B, N, H * D), or (N, B, H * D), into (B, H, N, D) in one of the ways models do."""
    a, b, _ = x.tensor_type.shape or ()
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
    if _seldom(source):
        order = source.one_of(((0, 2, 1, 3), (1, 2, 0, 3), (0, 3, 1, 2)))
    if batch_first and source.flag():
        split = _op(source, "aten.unflatten.int", x, -1, (heads, dim))
        return _op(source, "aten.transpose.int", split, 1, 2)
    split = _op(source, "aten.reshape", x, (a, b, heads, dim) if not _seldom(source) else (a, b, dim, heads))
    return _op(source, "aten.permute", split, order)


def _projections(source: MatchSource) -> tuple[tuple[Value, Value, Value], Value, bool]:
    """Return query, key and value of (B, H, N, D), their input, and whether it is batch first."""
    batch, tokens, heads, dim = (source.integer(1, 3) for _ in range(4))
    if source.flag():
        batch = tokens = heads = dim = source.integer(2, 3)
    width = heads * dim
    batch_first = source.flag()
    x = _input(source, *((batch, tokens) if batch_first else (tokens, batch)), width)
    bias = source.flag()
    if source.integer(0, 2):
        joint = _op(
            source, "aten.linear", x, _weight(source, 3 * width, width), _weight(source, 3 * width) if bias else None
        )
        kind = source.integer(0, 3)
        if kind == 0:
            parts = source.builder.op("aten.chunk", joint, 3, -1).results
        elif kind == 1:
            parts = source.builder.op("aten.split_with_sizes", joint, (width, width, width), -1).results
        elif kind == 2:
            a, b, _ = joint.tensor_type.shape or ()
            stacked = _op(source, "aten.permute", _op(source, "aten.reshape", joint, (a, b, 3, width)), (2, 0, 1, 3))
            parts = source.builder.op("aten.unbind.int", stacked, 0).results
        else:
            parts = tuple([_op(source, "aten.slice.Tensor", joint, 2, i * width, (i + 1) * width) for i in range(3)])
        _spoil(source, joint, *parts)
        if _seldom(source):
            parts = (parts[1], parts[0], parts[2])
    else:
        other = _input(source, *(x.tensor_type.shape or ())) if _seldom(source) else x
        parts = tuple([_linear(source, given, width, bias) for given in (x, x, other)])
        _spoil(source, *parts)
    query, key, value = (_heads(source, part, batch_first, heads, dim) for part in parts)
    return (query, key, value), x, batch_first


def _sdpa(source: MatchSource, query: Value, key: Value, value: Value) -> Value:
    shape = query.tensor_type.shape or ()
    tokens, others = shape[-2], (key.tensor_type.shape or shape)[-2]
    mask = None
    kind = source.integer(0, 4)
    if kind == 3:
        mask = source.make((tokens, others))
    elif kind == 4:
        mask = source.make((tokens, others), torch.bool)
    causal = mask is None and kind == 2
    scale = source.one_of((None, None, 0.5))
    return _op(source, "aten.scaled_dot_product_attention", query, key, value, mask, 0.0, causal, scale=scale)


def attention(source: MatchSource) -> Value:
    """Project to heads, attend, merge the heads, project; sometimes as torch.export names an nn.MultiheadAttention."""
    place = Location("attn", source.one_of(("MultiheadAttention", "MultiheadAttention", "Attention")), "model.py", 3)
    source.builder.location = place
    (query, key, value), x, batch_first = _projections(source)
    attended = _sdpa(source, query, key, value)
    _spoil(source, attended, query)
    a, b, width = x.tensor_type.shape or ()
    order = (0, 2, 1, 3) if batch_first else (2, 0, 1, 3)
    if _seldom(source):
        order = (0, 1, 2, 3)
    merged = _op(source, "aten.permute", attended, order)
    flat = _op(source, "aten.reshape", merged, (a, b, width))
    result = _op(
        source, "aten.linear", flat, _weight(source, width, width), _weight(source, width) if source.flag() else None
    )
    if source.integer(0, 2) == 2:
        result = _op(source, "aten.transpose.int", result, 0, 1)
    source.builder.location = UNKNOWN_LOCATION
    return result


def multihead_attention(source: MatchSource) -> Value:
    """Call an nn.MultiheadAttention that is a leaf of an FX graph, with all its options."""
    batch, tokens, heads, dim = (source.integer(1, 3) for _ in range(4))
    width = heads * dim
    x = _input(source, batch, tokens, width) if not _seldom(source) else _input(source, tokens, width)
    batch_first = source.flag()
    rank = x.tensor_type.rank
    length = tokens if batch_first or rank == 2 else batch
    other = source.new_input(x.tensor_type) if _seldom(source) else x
    separate = _seldom(source)
    extra = _seldom(source)
    masks = source.integer(0, 7)
    mask = padding = None
    if masks in (5, 6):
        mask = source.make((length, length), source.usual if masks == 5 else torch.bool)
    elif masks == 7 and rank == 3:
        padding = source.make((batch if batch_first else tokens, length), torch.bool)
    bias = source.flag()
    op = source.builder.op(
        "nn.multihead_attention",
        x,
        other,
        other,
        None if separate else _weight(source, 3 * width, width),
        _weight(source, 3 * width) if bias else None,
        _weight(source, width, width),
        _weight(source, width) if bias else None,
        *([_weight(source, width, width) for _ in range(3)] if separate else (None,) * 3),
        *([_weight(source, 1, 1, width) for _ in range(2)] if extra else (None,) * 2),
        padding,
        mask,
        num_heads=heads,
        embed_dim=width,
        dropout=source.one_of((0.0, 0.5)),
        batch_first=batch_first,
        add_zero_attn=_seldom(source),
        need_weights=source.integer(0, 3) == 3,
        average_attn_weights=source.flag(),
        is_causal=mask is not None and source.integer(0, 2) == 2,
    )
    if op.attributes["need_weights"] and _seldom(source):
        _op(source, "aten.neg", op.results[1])
    return op.results[0]


def written_out_attention(source: MatchSource) -> Value:
    """softmax(q k^T * scale + mask) v, with the scale, the mask and the transposed key in the places they can have."""
    batch, tokens, others, dim = (source.integer(1, 3) for _ in range(4))
    lead = (batch, source.integer(1, 2)) if source.integer(0, 3) else (batch,)
    if _seldom(source):
        tokens = others = dim
    query = _input(source, *lead, tokens, dim)
    key, value = _input(source, *lead, others, dim), _input(source, *lead, others, dim)
    rank = len(lead) + 2
    if source.flag():
        query = _op(source, "aten.mul.Scalar", query, source.one_of((0.5, 0.25)))
    if _seldom(source):
        turned = _op(source, "aten.reshape", key, (*lead, dim, others))
    elif source.flag():
        turned = _op(source, "aten.transpose.int", key, source.one_of((-2, rank - 2)), source.one_of((-1, rank - 1)))
    else:
        turned = _op(source, "aten.permute", key, (*range(rank - 2), rank - 1, rank - 2))
    scores = _op(source, "aten.matmul", query, turned)
    intermediate = [turned, scores]
    if source.flag():
        name = source.one_of(("aten.mul.Scalar", "aten.div.Scalar"))
        scores = _op(source, name, scores, source.one_of((0.5, 2.0, 8)))
        intermediate.append(scores)
    kind = source.integer(0, 4)
    if kind == 3:
        mask = source.make((tokens, others))
        scores = _op(source, "aten.add.Tensor", scores, mask, alpha=2 if _seldom(source) else 1)
        intermediate.append(scores)
    elif kind == 4:
        mask = source.make((tokens, others), torch.bool)
        scores = _op(source, "aten.masked_fill.Scalar", scores, mask, source.one_of((-1e9, float("-inf"))))
        intermediate.append(scores)
    dim_ = source.one_of((-1, rank - 1)) if not _seldom(source) else source.one_of((-2, 0))
    weights = _op(source, "aten.softmax.int", scores, dim_)
    intermediate.append(weights)
    if source.integer(0, 3) == 3:
        weights = _op(source, "aten.dropout", weights, 0.5, source.flag())
        intermediate.append(weights)
    _spoil(source, *intermediate)
    if tokens == others and _seldom(source):
        weights = _op(source, "aten.transpose.int", weights, -1, -2)
    return _op(source, "aten.matmul", weights, value)


# ---- layout ----


def spatial_mean(source: MatchSource) -> Value:
    """Average a 4-d map over dimensions, mostly the two spatial ones; the map may be empty."""
    shape = [source.integer(1, 3) for _ in range(4)]
    if _seldom(source):
        shape[source.integer(0, 3)] = 0
    x = _input(source, *shape)
    dims = source.one_of(((2, 3), (-1, -2), (3, 2), (2, -1), (1, 2), (2,), (1, 2, 3), (0, 1)))
    dtype = torch.float64 if _seldom(source) else None
    y = _op(source, "aten.mean.dim", x, dims, source.flag(), dtype=dtype)
    return _op(source, "aten.relu", y) if source.flag() else y


def _turned(source: MatchSource) -> Value:
    """Return what lies in memory in a known order: a linear's result, permuted or cut."""
    shape = [source.integer(2, 4) for _ in range(source.integer(2, 4))]
    # an input may have any strides; what a linear gives is contiguous
    shape = [1 if _seldom(source) else size for size in shape]
    x = _linear(source, source.new_input(TensorType((*shape[:-1], 2), source.usual)), shape[-1], False)
    kind = source.integer(0, 3)
    if kind == 2:
        dim = source.integer(0, len(shape) - 1)
        return _op(source, "aten.slice.Tensor", x, dim, source.integer(0, 1), 9, source.one_of((1, 2)))
    if kind == 3:
        return _op(source, "aten.select.int", x, source.integer(0, len(shape) - 1), 0)
    return _op(source, "aten.permute", x, source.shuffled(range(len(shape))))


def contiguous_of_view(source: MatchSource) -> Value:
    """Ask for contiguous memory where it is, or is not, contiguous already."""
    y = _op(source, "aten.contiguous", _turned(source))
    return _op(source, "aten.relu", y) if source.flag() else y


def reshapes(source: MatchSource) -> Value:
    """Reshape twice: merge dimensions that may lie apart in memory, and split them again."""
    x = _turned(source)
    sizes = [int(d) for d in x.tensor_type.shape or () if isinstance(d, int)]
    if len(sizes) < 2:
        sizes = [1, *sizes]
    at = source.integer(0, max(0, len(sizes) - 2))
    merged = (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :])
    y = _op(source, "aten.reshape", x, merged if len(sizes) > 1 else sizes)
    _spoil(source, y)
    y = _op(source, "aten.reshape", y, source.one_of((tuple(sizes), (*sizes[:-1], 1, sizes[-1]), (-1,))))
    return _op(source, "aten.relu", y) if source.flag() else y


def reshape_of_copy(source: MatchSource) -> Value:
    """Merge dimensions that lie apart in memory, behind a copy."""
    turned = _turned(source)
    if len(turned.tensor_type.shape or ()) < 2:
        turned = _op(source, "aten.unsqueeze", turned, 0)
    if source.flag():
        copy = _op(source, "aten.contiguous", turned)
    else:
        copy = _op(source, "aten.clone", turned, memory_format=source.one_of((torch.contiguous_format, None)))
    _spoil(source, copy)
    sizes = [int(d) for d in copy.tensor_type.shape or () if isinstance(d, int)]
    at = source.integer(0, len(sizes) - 2)
    y = _op(source, "aten.reshape", copy, (*sizes[:at], sizes[at] * sizes[at + 1], *sizes[at + 2 :]))
    return _op(source, "aten.relu", y) if source.flag() else y


def _used(source: MatchSource, x: Value) -> Value:
    """Return a value that an operation makes of `x`, most often: what is an output may not share memory."""
    return x if _seldom(source) else _op(source, source.one_of(("aten.sigmoid", "aten.neg")), x)


def unit_arithmetic(source: MatchSource) -> Value:
    """Add, subtract, multiply or divide by what may be a unit of the operation."""
    x = source.tensor(0, 4, dtypes=(source.usual, torch.int64, torch.bool))
    x = _op(source, "aten.clone", x) if source.flag() else x
    name, unit = source.one_of(
        (("mul", 1), ("div", 1), ("add", 0), ("sub", 0), ("pow", 1), ("mul", 1.0), *((("add", -0.0), ("add", 0.0)) * 2))
    )
    number = source.one_of((0, 1, -1, 2, 1.0, 0.0)) if _seldom(source) else unit
    suffix = "Tensor_Scalar" if name == "pow" else "Scalar"
    scaled = {"alpha": source.one_of((-1, 2))} if name in ("add", "sub") and source.integer(0, 2) == 2 else {}
    return _used(source, _op(source, f"aten.{name}.{suffix}", x, number, **scaled))


def copy_of_made(source: MatchSource) -> Value:
    """Copy what an operator made, whose strides are known, perhaps a part of it, or an input, whose are not."""
    kind = source.integer(0, 3)
    x = _turned(source) if kind == 3 else _input(source, *(source.integer(1, 3) for _ in range(source.integer(1, 4))))
    if kind in (1, 2):
        x = _linear(source, x, source.integer(1, 3), False)
    formats = (None, None, torch.contiguous_format)
    y = _op(source, "aten.clone", x, memory_format=source.one_of(formats))
    _spoil(source, x, y)
    return _used(source, y)


def detached(source: MatchSource) -> Value:
    """Detach numbers that have no gradient, constants, and what has one."""
    x = source.tensor(0, 3, dtypes=(torch.int64, source.usual)) if source.flag() else _weight(source, 2, 3)
    name = source.one_of(("aten.detach", "aten.lift_fresh"))
    return _used(source, _op(source, name, _op(source, "aten.reshape", x, (-1,)) if source.flag() else x))


SCENES: dict[str, Scene] = {
    "FlattenLinearToConv1x1Pattern": classifier,
    "FlattenLinearToConvPattern": window,
    "StemConvBNActMaxPoolPattern": stem,
    "ConvBNAddActPattern": residual,
    "FoldBatchNormPattern": layer_and_norm,
    "MHAInProjectionPattern": attention,
    "DecomposeMultiheadAttentionPattern": lambda source: (
        multihead_attention(source) if source.flag() else attention(source)
    ),
    "ScaledDotProductAttentionPattern": lambda source: (
        written_out_attention(source) if source.integer(0, 3) else attention(source)
    ),
    "SpatialMeanToPool": spatial_mean,
    "ReshapeOfCopy": reshape_of_copy,
    "MergeReshapes": reshapes,
    "NoContiguous": contiguous_of_view,
    "NoArithmetic": unit_arithmetic,
    "NoCopy": copy_of_made,
    "NoDetach": detached,
}
"""Rule -> the scene for it; half of the programs for the rule come from it."""
