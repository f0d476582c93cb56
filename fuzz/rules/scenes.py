"""Programs for rules whose `check` proves what their pattern does not say: each scene builds what the rule looks for.

A scene draws every choice that matters to the rule, most often as the rule wants it and sometimes not.
"""

from __future__ import annotations

import torch

from fuzz.calls.generators import generate_call
from fuzz.rules.match_source import MatchSource
from fuzz.rules.scene_parts import Scene, activation, emit, entry, new_linear, new_weight, seldom, spoil
from fuzz.rules.scenes_layout import (
    contiguous_of_view,
    copy_of_made,
    detached,
    repeated,
    reshape_of_copy,
    reshape_permute_reshape,
    reshapes,
    spatial_mean,
    unit_arithmetic,
    whole_view,
)
from ir.core import Value
from ir.locations import UNKNOWN_LOCATION, Location

# ---- classifiers ----


def _classifier(source: MatchSource, *, pooled: bool) -> Value:
    batch, channels = source.integer(1, 3), source.one_of((2, 1, 3, 4))
    larger = source.integer(0, 3) == 3 if pooled else not seldom(source)
    height, width = (source.integer(1, 3), source.integer(1, 3)) if larger else (1, 1)
    alone = source.integer(0, 3) == 3  # a map without a batch, which has a rank less
    lead = () if alone else (batch,)
    if source.integer(0, 3):
        x = emit(source, "aten.adaptive_avg_pool2d", entry(source, *lead, channels, 4, 3), (height, width))
    else:
        x = entry(source, *lead, channels, height, width)
    if not alone and seldom(source):
        x = emit(source, "aten.permute", x, (1, 0, 2, 3))
        batch, channels = channels, batch
    features = channels * height * width
    kind = source.integer(0, 7)
    if pooled and not alone and not source.integer(0, 3):
        # the sizes of 1 stand elsewhere: a norm of the channels leaves them before these
        orders = ((batch, 1, 1, features), (1, batch, features, 1), (batch, 1, features, 1), (1, 1, batch, features))
        x = emit(source, "aten.reshape", x, source.one_of(orders))
        kind = 3
    if alone:
        flat = emit(source, "aten.flatten.using_ints", x, source.one_of((1, 1, 1, 0)), -1)
    elif kind < 3:
        dims = (0, source.one_of((2, -2))) if seldom(source) else (source.one_of((1, 1, -3)), source.one_of((-1, 3)))
        flat = emit(source, "aten.flatten.using_ints", x, *dims)
    elif kind < 6:
        flat = emit(source, "aten.reshape", x, source.one_of(((batch, features), (batch, -1), (-1, features))))
    else:
        flat = emit(source, "aten.reshape", x, (features, batch))
    intermediate = [flat]
    for _ in range(source.integer(0, 2)):
        if source.flag():
            flat = activation(source, flat)
        else:
            flat = emit(source, "aten.dropout", flat, 0.5, source.flag())
        intermediate.append(flat)
    spoil(source, *intermediate)
    out = source.integer(1, 3)
    broadcast: tuple[int, ...] = source.one_of(((out,), (out,), (1, out), (1,)))  # a convolution takes the first alone
    bias = new_weight(source, *broadcast) if source.integer(0, 2) else None
    inner = flat.tensor_type.shape
    return emit(source, "aten.linear", flat, new_weight(source, out, inner[-1] if inner else features), bias)


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
    bias = new_weight(source, out) if source.flag() else None
    if source.flag():
        y = emit(source, "aten.linear", entry(source, batch, channels), new_weight(source, out, channels), bias)
    else:
        x, kernel = entry(source, batch, channels, 3, 3), source.integer(1, 3)
        y = emit(source, "aten.conv2d", x, new_weight(source, out, channels, kernel, kernel), bias)
    spoil(source, y)
    affine = [new_weight(source, out), new_weight(source, out)] if source.integer(0, 3) else [None, None]
    mean, variance = source.make((out,), bounds=(-1, 1)), source.make((out,), bounds=(0.5, 2))
    return emit(source, "aten.batch_norm", y, *affine, mean, variance, False, 0.1, source.one_of((1e-5, 1e-3)), False)


def stem(source: MatchSource) -> Value:
    """Convolve 3 channels by a 7x7 window, then batch norm, activation, max pooling."""
    channels = 3 if not seldom(source) else source.one_of((1, 2, 6))
    groups = 1 if not seldom(source) else channels
    if channels == 6:
        groups = source.one_of((1, 2, 6))
    kernel = (7, 7) if not seldom(source) else source.one_of(((5, 7), (3, 3), (7, 1)))
    out = groups * source.integer(1, 2)
    x = entry(source, source.integer(1, 2), channels, 8, source.one_of((8, 7)))
    bias = new_weight(source, out) if source.flag() else None
    stride, dilation = source.integer(1, 2), 1 if not seldom(source) else 2
    weight = new_weight(source, out, channels // groups, *kernel)
    y = emit(source, "aten.conv2d", x, weight, bias, (stride, stride), (3 * dilation,) * 2, (dilation,) * 2, groups)
    intermediate = [y]
    if source.flag():
        y = batch_norm(source, y)
        intermediate.append(y)
    y = activation(source, y)
    spoil(source, *intermediate, y)
    if seldom(source):
        return emit(source, "aten.avg_pool2d", y, (2, 2))
    padding = source.integer(0, 1)
    return emit(
        source, "aten.max_pool2d", y, (3, 3), (source.integer(1, 2),) * 2, (padding, padding), (1, 1), source.flag()
    )


def batch_norm(source: MatchSource, x: Value) -> Value:
    """Apply a batch norm, in training now and then."""
    shape = x.tensor_type.shape
    assert shape is not None
    channels = shape[1]
    affine = [new_weight(source, channels) if source.integer(0, 3) else None for _ in range(2)]
    mean = new_weight(source, channels)
    var = source.make((channels,), bounds=(0.25, 2.0))
    training = source.integer(0, 3) == 3
    return emit(source, "aten.batch_norm", x, *affine, mean, var, training, 0.1, source.one_of((1e-5, 1e-2)), True)


def residual(source: MatchSource) -> Value:
    """Convolve, batch norm, add a residual of the same shape in either order, activation."""
    dims = source.integer(1, 3)
    size = source.integer(2, 4)
    batch, channels, out = source.integer(1, 2), source.integer(1, 3), source.integer(1, 3)
    x = entry(source, batch, channels, *(size,) * dims)
    groups = channels if out % channels == 0 and source.flag() else 1
    kernel = source.one_of((1, 3))
    weight = new_weight(source, out, channels // groups, *(kernel,) * dims)
    bias = new_weight(source, out) if source.flag() else None
    padding = (kernel // 2,) * dims
    y = emit(source, f"aten.conv{dims}d", x, weight, bias, (1,) * dims, padding, (1,) * dims, groups)
    intermediate = [y]
    if source.flag():
        y = batch_norm(source, y)
        intermediate.append(y)
    kind = source.integer(0, 7)
    if kind == 7:
        other = y
    elif kind == 6:
        other = new_weight(source, out, *(1,) * dims)
    elif kind == 5:
        other = emit(source, "aten.neg", y)
    else:
        other = entry(source, batch, out, *(size,) * dims)
    pair = (y, other) if source.flag() else (other, y)
    y = emit(source, "aten.add.Tensor", *pair, alpha=2 if seldom(source) else 1)
    spoil(source, *intermediate)
    if source.flag():
        spoil(source, y)
        y = activation(source, y)
    return y


# ---- attention ----


def _heads(source: MatchSource, x: Value, batch_first: bool, heads: int, dim: int) -> Value:
    """Split (B, N, H * D), or (N, B, H * D), into (B, H, N, D) in one of the ways models do."""
    a, b, _ = x.tensor_type.shape or ()
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
    if seldom(source):
        order = source.one_of(((0, 2, 1, 3), (1, 2, 0, 3), (0, 3, 1, 2)))
    if batch_first and source.flag():
        split = emit(source, "aten.unflatten.int", x, -1, (heads, dim))
        return emit(source, "aten.transpose.int", split, 1, 2)
    split = emit(source, "aten.reshape", x, (a, b, heads, dim) if not seldom(source) else (a, b, dim, heads))
    return emit(source, "aten.permute", split, order)


def _projections(source: MatchSource) -> tuple[tuple[Value, Value, Value], Value, bool]:
    """Return query, key and value of (B, H, N, D), their input, and whether it is batch first."""
    batch, tokens, heads, dim = (source.integer(1, 3) for _ in range(4))
    if source.flag():
        batch = tokens = heads = dim = source.integer(2, 3)
    width = heads * dim
    batch_first = source.flag()
    x = entry(source, *((batch, tokens) if batch_first else (tokens, batch)), width)
    bias = source.flag()
    if source.integer(0, 2):
        joint = emit(
            source,
            "aten.linear",
            x,
            new_weight(source, 3 * width, width),
            new_weight(source, 3 * width) if bias else None,
        )
        kind = source.one_of((1, 1, 3, 3, 0, 2))  # canonicalization leaves two of them
        if kind == 0:
            parts = source.builder.op("aten.chunk", joint, 3, -1).results
        elif kind == 1:
            parts = source.builder.op("aten.split_with_sizes", joint, (width, width, width), -1).results
        elif kind == 2:
            a, b, _ = joint.tensor_type.shape or ()
            stacked = emit(source, "aten.permute", emit(source, "aten.reshape", joint, (a, b, 3, width)), (2, 0, 1, 3))
            parts = source.builder.op("aten.unbind.int", stacked, 0).results
        else:
            parts = tuple([emit(source, "aten.slice.Tensor", joint, 2, i * width, (i + 1) * width) for i in range(3)])
        spoil(source, joint, *parts)
        if source.integer(0, 3) == 3:
            parts = tuple([parts[i] for i in source.one_of(((1, 0, 2), (0, 2, 1), (2, 1, 0), (0, 0, 2), (0, 0, 0)))])
    else:
        other = entry(source, *(x.tensor_type.shape or ())) if seldom(source) else x
        wider = seldom(source)
        parts = tuple([new_linear(source, given, 2 * width if wider else width, bias) for given in (x, x, other)])
        spoil(source, *parts)
        if wider:
            # a half of each projection, which need not be the first one
            starts = [width * source.integer(0, 1) for _ in parts]
            parts = tuple(
                [emit(source, "aten.slice.Tensor", p, 2, a, a + width) for p, a in zip(parts, starts, strict=True)]
            )
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
    return emit(source, "aten.scaled_dot_product_attention", query, key, value, mask, 0.0, causal, scale=scale)


def attention(source: MatchSource) -> Value:
    """Project to heads, attend, merge the heads, project; sometimes as torch.export names an nn.MultiheadAttention."""
    place = Location("attn", source.one_of(("MultiheadAttention", "MultiheadAttention", "Attention")), "model.py", 3)
    source.builder.location = place
    (query, key, value), x, batch_first = _projections(source)
    attended = _sdpa(source, query, key, value)
    spoil(source, attended, query)
    a, b, width = x.tensor_type.shape or ()
    order = (0, 2, 1, 3) if batch_first else (2, 0, 1, 3)
    if seldom(source):
        order = (0, 1, 2, 3)
    merged = emit(source, "aten.permute", attended, order)
    flat = emit(source, "aten.reshape", merged, (a, b, width))
    result = emit(
        source,
        "aten.linear",
        flat,
        new_weight(source, width, width),
        new_weight(source, width) if source.flag() else None,
    )
    if source.integer(0, 2) == 2:
        result = emit(source, "aten.transpose.int", result, 0, 1)
    elif seldom(source):
        result = emit(source, "aten.max.dim", result, 2)  # of two results
    source.builder.location = UNKNOWN_LOCATION
    return result


def multihead_attention(source: MatchSource) -> Value:
    """Call an nn.MultiheadAttention that is a leaf of an FX graph, with all its options."""
    args, kwargs = generate_call(source, "nn.multihead_attention")
    op = source.builder.op("nn.multihead_attention", *args, **kwargs)
    if op.attributes["need_weights"] and seldom(source):
        emit(source, "aten.neg", op.results[1])
    return op.results[0]


def written_out_attention(source: MatchSource) -> Value:
    """softmax(q k^T * scale + mask) v, with the scale, the mask and the transposed key in the places they can have."""
    batch, tokens, others, dim = (source.integer(1, 3) for _ in range(4))
    lead = (batch, source.integer(1, 2)) if source.integer(0, 3) else (batch,)
    if seldom(source):
        tokens = others = dim
    query = entry(source, *lead, tokens, dim)
    key, value = entry(source, *lead, others, dim), entry(source, *lead, others, dim)
    rank = len(lead) + 2
    if source.flag():
        query = emit(source, "aten.mul.Scalar", query, source.one_of((0.5, 0.25)))
    if seldom(source):
        turned = emit(source, "aten.reshape", key, (*lead, dim, others))
    elif seldom(source):  # canonicalization leaves permutes
        turned = emit(source, "aten.transpose.int", key, source.one_of((-2, rank - 2)), source.one_of((-1, rank - 1)))
    elif seldom(source):  # out of (batch, tokens, heads, dim) in one go
        key = entry(source, lead[0], others, *lead[1:], dim)
        turned = emit(source, "aten.permute", key, (0, *range(2, rank), 1))
    else:
        turned = emit(source, "aten.permute", key, (*range(rank - 2), rank - 1, rank - 2))
    scores = emit(source, "aten.matmul", query, turned)
    intermediate = [turned, scores]
    if source.flag():
        name = source.one_of(("aten.mul.Scalar", "aten.div.Scalar"))
        scores = emit(source, name, scores, source.one_of((0.5, 2.0, 8)))
        intermediate.append(scores)
    kind = source.integer(0, 5)
    if kind in (3, 5):
        mask = source.make((tokens, others))
        scores = emit(source, "aten.add.Tensor", scores, mask, alpha=source.one_of((1, 1, 2)))
        intermediate.append(scores)
        if source.flag():
            windows = emit(source, "aten.reshape", scores, (1, *lead, tokens, others))
            mask = source.make((batch, *(1,) * (len(lead) - 1), tokens, others))
            windows = emit(source, "aten.add.Tensor", windows, mask, alpha=source.one_of((1, 1, 2)))
            ends = (tokens, others) if not seldom(source) else (others, tokens)
            scores = emit(source, "aten.reshape", windows, (*lead, *ends))
            intermediate += [windows, scores]
    elif kind == 4:
        mask = source.make((tokens, others), torch.bool)
        scores = emit(source, "aten.masked_fill.Scalar", scores, mask, source.one_of((-1e9, float("-inf"))))
        intermediate.append(scores)
    dim_ = source.one_of((-1, rank - 1)) if not seldom(source) else source.one_of((-2, 0))
    weights = emit(source, "aten.softmax.int", scores, dim_)
    intermediate.append(weights)
    if source.integer(0, 3) == 3:
        weights = emit(source, "aten.dropout", weights, 0.5, source.flag())
        intermediate.append(weights)
    spoil(source, *intermediate)
    if tokens == others and seldom(source):
        weights = emit(source, "aten.transpose.int", weights, -1, -2)
    return emit(source, "aten.matmul", weights, value)


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
    "PermuteWithoutUnits": reshape_permute_reshape,
    "SplitBeforePermute": reshape_permute_reshape,
    "NoContiguous": contiguous_of_view,
    "NoExpand": whole_view,
    "NoArithmetic": unit_arithmetic,
    "NoCopy": copy_of_made,
    "NoDetach": detached,
    "Idempotent": repeated,
}
"""Rule -> the scene for it; half of the programs for the rule come from it, as three of four that are to match do."""
