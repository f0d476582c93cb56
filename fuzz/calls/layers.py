"""Generators of calls: convolutions, pooling, matrix products, normalization, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fuzz.calls.elementwise import Arguments
from fuzz.calls.source import Source, Unavailable, any_dim, divisors, is_int, shape_of
from ir.core import Value
from ir.opdef import OpDef
from ir.types import Dim, TensorType

Generator = Callable[[Source, OpDef], Arguments]
Shape = tuple[Dim, ...]


def _kernel(source: Source, size: Dim, padding: int, dilation: int) -> int:
    """Draw a kernel size that fits into a padded size."""
    room = size + 2 * padding if type(size) is int else 3
    return source.extent(1, max(1, (room - 1) // dilation + 1))


def _each(source: Source, dims: int, choices: tuple[int, ...]) -> list[int]:
    """Draw a number for each dimension, half of the time the same for all; one draw is cheaper than several."""
    count = len(choices)
    same, code = divmod(source.integer(0, 2 * count**dims - 1), count**dims)
    if not same:
        return [choices[code % count]] * dims
    return [choices[code // count**i % count] for i in range(dims)]


def _weight(source: Source, ranks: tuple[int, ...], places: tuple[int, ...] = (1,)) -> tuple[Value, Shape] | None:
    """Return a weight that is given while the input is free, and its shape: the input is then drawn to fit."""
    if source.given(0) is None:
        for place in places:
            fixed = source.given(place)
            if fixed is not None and fixed.tensor_type.rank in ranks and 0 not in shape_of(fixed):
                return fixed, shape_of(fixed)
    return None


def _of_channels(source: Source, low: int, high: int, places: tuple[int, ...]) -> Value:
    """Draw the input of a norm, with the channels of a weight that is given."""
    fixed = _weight(source, (1,), places)
    if fixed is None:
        return source.tensor(low, high, zero=False)
    more = [source.size() for _ in range(source.integer(low, min(high, 4)) - 2)]
    return source.like(fixed[0], (source.size(), *fixed[1], *more))


def _conv_with(source: Source, dims: int, weight: Value, shape: Shape) -> Arguments:
    """Draw a convolution for a given weight: an input of its channels, and at least the size of the kernel."""
    if not all(map(is_int, shape)):
        raise Unavailable
    out, per_group, *kernel = map(int, shape)
    groups = source.one_of(divisors(out))
    dilation, padding, stride = (_each(source, dims, choices) for choices in ((1, 1, 2), (0, 1, 2), (1, 2, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    batch = [source.size()] if source.integer(0, 3) else []
    x = source.like(weight, (*batch, groups * per_group, *[n + source.integer(0, 2) for n in least]))
    bias = source.like(x, (out,)) if source.flag() else None
    return [x, weight, bias], {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def conv(dims: int, *, padding_text: bool = False) -> Generator:
    """Return the generator of convolutions: any groups, strides, paddings and dilations that fit."""

    def generate(source: Source, opdef: OpDef) -> Arguments:
        fixed = None if padding_text else _weight(source, (dims + 2,))
        if fixed is not None:
            return _conv_with(source, dims, *fixed)
        x = source.tensor(dims + 1, dims + 2, zero=False)
        *_, channels = shape_of(x)[:-dims]
        spatial = shape_of(x)[-dims:]
        groups = source.one_of(divisors(channels))
        per_group = channels // groups if is_int(channels) else channels
        out = groups * source.one_of((1, 2, 3))
        dilation = _each(source, dims, (1, 1, 2))
        if padding_text:
            padding: Any = source.one_of(("same", "valid"))
            stride = [1] * dims if padding == "same" else _each(source, dims, (1, 2))
            kernel = [
                # seldom even: PyTorch warns of even kernels with odd dilation
                source.one_of((1, 3, 1, 3, 1, 3, 2) if d == 1 else (1, 2, 3))
                if padding == "same"
                else _kernel(source, size, 0, d)
                for size, d in zip(spatial, dilation, strict=True)
            ]
        else:
            padding = _each(source, dims, (0, 1, 2))
            stride = _each(source, dims, (1, 2, 3))
            kernel = [_kernel(source, *sized) for sized in zip(spatial, padding, dilation, strict=True)]
        weight = source.like(x, (out, per_group, *kernel))
        bias = source.like(x, (out,)) if source.flag() else None
        return [x, weight, bias], {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    return generate


def conv_transpose(dims: int) -> Generator:
    """Return the generator of transposed convolutions."""

    def generate(source: Source, opdef: OpDef) -> Arguments:
        x = source.tensor(dims + 1, dims + 2, zero=False)
        *_, channels = shape_of(x)[:-dims]
        groups = source.one_of(divisors(channels))
        out = source.integer(1, 2)
        stride = [source.integer(1, 3) for _ in range(dims)]
        dilation = [source.integer(1, 2) for _ in range(dims)]
        kernel = [source.integer(2, 3) for _ in range(dims)]
        extra = [source.integer(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        padding = [source.integer(0, 1) if k == 3 or d == 2 else 0 for k, d in zip(kernel, dilation, strict=True)]
        weight = source.like(x, (channels, out, *kernel))
        bias = source.like(x, (out * groups,)) if source.flag() else None
        return [x, weight, bias], {
            "stride": stride,
            "padding": padding,
            "output_padding": extra,
            "groups": groups,
            "dilation": dilation,
        }

    return generate


def pool(dims: int) -> Generator:
    """Return the generator of max and average pooling."""

    def generate(source: Source, opdef: OpDef) -> Arguments:
        x = source.tensor(dims + 1, dims + 2, zero=False)
        spatial = shape_of(x)[-dims:]
        padding = [source.integer(0, 1) for _ in range(dims)]
        if opdef.name == "aten.avg_pool3d":
            # the kernel must fit into the unpadded input
            kernel = [_kernel(source, s, 0, 1) for s in spatial]
            padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
        else:
            kernel = [max(2 * p, _kernel(source, s, p, 1)) for s, p in zip(spatial, padding, strict=True)]
        chosen: dict[str, Any] = {"padding": padding, "ceil_mode": source.flag()}
        if source.flag():
            chosen["stride"] = [source.integer(1, 3) for _ in range(dims)]
        if "count_include_pad" in opdef.defaults:
            chosen["count_include_pad"] = source.flag()
        return [x, kernel], chosen

    return generate


def adaptive_pool(dims: int) -> Generator:
    """Return the generator of adaptive pooling; often to size 1, or to the size of the input."""

    def generate(source: Source, opdef: OpDef) -> Arguments:
        x = source.tensor(dims + 1, dims + 2, zero=False)
        if source.flag():
            return [x, [source.integer(1, 3) for _ in range(dims)]], {}
        return [x, [1] * dims if source.flag() else list(shape_of(x)[-dims:])], {}

    return generate


def upsample(dims: int) -> Generator:
    """Return the generator of upsampling to a size or by a factor."""

    def generate(source: Source, opdef: OpDef) -> Arguments:
        x = source.tensor(dims + 2, dims + 2, zero=False, dtypes=(torch.float32, torch.float64))
        chosen: dict[str, Any] = {"output_size": None, "scale_factors": None}
        if "align_corners" in {p.name for p in opdef.attribute_params}:
            chosen["align_corners"] = source.flag()
        if source.flag():
            chosen["scale_factors"] = [source.one_of((2.0, 1.5, 3.0)) for _ in range(dims)]
        else:
            chosen["output_size"] = [source.integer(1, 6) for _ in range(dims)]
        return [x], chosen

    return generate


def pixel_shuffle(source: Source, opdef: OpDef) -> Arguments:
    """Channels (or height and width) that divide by the factor."""
    factor = source.integer(1, 2)
    batch = [source.size() for _ in range(source.integer(0, 1))]
    channels, height, width = (source.one_of((1, 2, 3)) for _ in range(3))
    if opdef.short_name == "pixel_shuffle":
        shape = (*batch, channels * factor * factor, height, width)
    else:
        shape = (*batch, channels, height * factor, width * factor)
    return [source.make(shape), factor], {}


def linear(source: Source, opdef: OpDef) -> Arguments:
    """Any leading dimensions, with and without bias; seldom a bias that broadcasts: one element, or one per row."""
    fixed = _weight(source, (2,))
    if fixed is None:
        x, out = source.tensor(1, 4), source.size()
    else:
        out, features = fixed[1]
        x = source.like(fixed[0], (*[source.size() for _ in range(source.integer(0, 2))], features))
    bias = None
    if source.flag():
        kind = source.integer(0, 7)
        rows = shape_of(x)[:-1] if kind == 7 and len(shape_of(x)) == 2 else ()
        bias = source.like(x, (1,) if kind == 6 else (*rows, out))
    return [x, source.like(x, (out, shape_of(x)[-1])), bias], {}


def matmul(source: Source, opdef: OpDef) -> Arguments:
    """Vectors, matrices and broadcast batches of them."""
    right = source.given(1)
    if right is not None and right.tensor_type.rank and source.given(0) is None:
        *batch, inner = shape_of(right)[:-1] or shape_of(right)
        rows = [] if source.integer(0, 3) == 3 else [source.size()]
        return [source.like(right, (*(batch if rows else ()), *rows, inner)), right], {}
    a = source.tensor(1, 4)
    shape = shape_of(a)
    kind = source.integer(0, 3)
    if kind == 0:
        other: tuple[Dim, ...] = (shape[-1], source.size())
    elif kind == 1:
        other = (shape[-1],)
    elif kind == 2:
        other = (*shape[:-2], shape[-1], source.size())
    else:
        other = (*[1 if source.flag() else d for d in shape[:-2]], shape[-1], source.size())
    return [a, source.like(a, other)], {}


def mm(source: Source, opdef: OpDef) -> Arguments:
    """Two matrices."""
    a = source.tensor(2, 2)
    return [a, source.like(a, (shape_of(a)[1], source.size()))], {}


def bmm(source: Source, opdef: OpDef) -> Arguments:
    """Two batches of matrices."""
    right = source.given(1)
    if right is not None and right.tensor_type.rank == 3 and source.given(0) is None:
        batch, inner, _ = shape_of(right)
        return [source.like(right, (batch, source.size(), inner)), right], {}
    a = source.tensor(3, 3)
    batch, _, inner = shape_of(a)
    return [a, source.like(a, (batch, inner, source.size()))], {}


def addmm(source: Source, opdef: OpDef) -> Arguments:
    """A product, and a tensor that broadcasts to it."""
    (a, b), _ = (mm if opdef.short_name == "addmm" else bmm)(source, opdef)
    result = (*shape_of(a)[:-1], shape_of(b)[-1])
    added = source.one_of((result, result[-1:], tuple([1] * (len(result) - 1)) + result[-1:]))
    return [source.like(a, added), a, b], {"beta": source.one_of((1, 0.5)), "alpha": source.one_of((1, 2))}


def attention(source: Source, opdef: OpDef) -> Arguments:
    """Self- and cross-attention, causal or with a mask; seldom to nothing, with shared heads, or of other batches."""
    query = source.tensor(2 if source.integer(0, 7) == 7 else 3, 5, zero=False)
    shape = shape_of(query)
    keys = shape[-2] if source.flag() else source.size()
    same = source.flag()
    if same:
        keys = shape[-2]
    elif source.integer(0, 7) == 7:
        keys = 0
    others = source.integer(0, 15) if len(shape) > 2 and not same else 0
    before, is_grouped = shape[:-2], others == 15
    if is_grouped:
        before = (*shape[:-3], source.one_of(divisors(shape[-3])))
    elif others == 14:  # it broadcasts
        before = tuple([source.size() if size == 1 else source.one_of((size, 1)) for size in before])
    key = query if same else source.like(query, (*before, keys, shape[-1]))
    width = shape[-1] if source.flag() else source.size()
    value = source.like(query, (*before, keys, width))
    mask: Value | None = None
    masked: tuple[Dim, ...]
    causal = False
    kind = source.integer(0, 3)
    masked = (shape[-2], keys)
    if not source.integer(0, 3):
        # it broadcasts
        whole = (*shape[:-2], *masked)
        masked = tuple([1 if source.flag() else size for size in whole[source.integer(0, len(whole) - 2) :]])
    if kind == 1:
        mask = source.like(query, masked)
    elif kind == 2:
        mask = source.make(masked, torch.bool)
    elif kind == 3:
        causal = True
    scale = source.one_of((None, 0.5))
    options = {"attn_mask": mask, "is_causal": causal, "scale": scale}
    return [query, key, value], options | ({"enable_gqa": True} if is_grouped else {})


def multihead_attention(source: Source, opdef: OpDef) -> Arguments:
    """Self-attention mostly; other options seldom, since no model has many of them."""
    seldom = [source.integer(0, 7) == 7 for _ in range(4)]
    separate, extra, zero, cross = seldom
    x = source.tensor(3 if source.integer(0, 7) < 7 else 2, 3, zero=False, condition=_is_static)
    shape = shape_of(x)
    if not all(map(is_int, shape)):
        raise Unavailable
    width, rank = int(shape[-1]), len(shape)
    batch_first = source.flag()
    tokens, batch = (shape[1], shape[0]) if batch_first and rank == 3 else (shape[0], shape[1])
    other = source.like(x, shape) if cross else x
    masks = source.integer(0, 7)
    mask = padding = None
    if masks in (5, 6):
        mask = source.make((tokens, tokens), x.tensor_type.dtype if masks == 5 else torch.bool)
    elif masks == 7 and rank == 3:
        padding = source.make((batch, tokens), torch.bool)
    bias = source.flag()
    weights = [
        None if separate else source.like(x, (3 * width, width)),
        source.like(x, (3 * width,)) if bias else None,
        source.like(x, (width, width)),
        source.like(x, (width,)) if bias else None,
        *([source.like(x, (width, width)) for _ in range(3)] if separate else (None,) * 3),
        *([source.like(x, (1, 1, width)) for _ in range(2)] if extra else (None,) * 2),
    ]
    return [x, other, other, *weights, padding, mask], {
        "num_heads": source.one_of(divisors(width)),
        "embed_dim": width,
        "dropout": source.one_of((0.0, 0.5)),
        "batch_first": batch_first,
        "add_zero_attn": zero,
        "need_weights": source.integer(0, 3) == 3,
        "average_attn_weights": source.flag(),
        "is_causal": mask is not None and source.flag(),
    }


def _is_static(type_: TensorType) -> bool:
    return type_.shape is not None and all(type(d) is int for d in type_.shape)


def embedding(source: Source, opdef: OpDef) -> Arguments:
    """Indices below the number of rows."""
    rows = source.integer(1, 4)
    shape = [source.size() for _ in range(source.integer(0, 2))]
    return [source.make((rows, source.size())), source.make(shape, torch.int64, bounds=(0, rows))], {}


def batch_norm(source: Source, opdef: OpDef) -> Arguments:
    """With and without weight and bias; batch statistics mostly without running statistics."""
    low = 3 if opdef.short_name == "instance_norm" else 2
    x = _of_channels(source, low, 5, (1, 2, 3, 4))
    count = (shape_of(x)[1],)
    weight = source.like(x, count) if source.flag() else None
    bias = source.like(x, count) if weight is not None else None
    spatial = shape_of(x)[2:]
    # the statistics of one element are refused
    has_own = opdef.short_name == "instance_norm" and spatial != () and all(is_int(d) and d != 1 for d in spatial)
    if has_own and source.flag():
        return [x, weight, bias, None, None, True, 0.1, 1e-5, False], {}
    mean, var = source.like(x, count, bounds=(-1, 1)), source.like(x, count, bounds=(0.5, 2))
    momentum = 0.1 if low == 3 else source.one_of((0.1, None, 0.5))
    training = source.training and low == 2 and momentum is not None and source.flag()
    if training:
        source.written(mean)
        source.written(var)
    follows = {"follows_mode": True} if has_own and source.flag() else {}
    return [x, weight, bias, mean, var, training, momentum, source.one_of((1e-5, 1e-3)), False], follows


def group_norm(source: Source, opdef: OpDef) -> Arguments:
    """Groups that divide the channels."""
    x = _of_channels(source, 2, 4, (1, 2))
    channels = shape_of(x)[1]
    affine = source.flag()
    weight = source.like(x, (channels,)) if affine else None
    bias = source.like(x, (channels,)) if affine else None
    return [x, source.one_of(divisors(channels)), weight, bias], {}


def layer_norm(source: Source, opdef: OpDef) -> Arguments:
    """Over one or more of the last dimensions."""
    fixed = _weight(source, (1, 2), (1, 2))
    if fixed is None:
        x = source.tensor(1, 4, zero=False, condition=_is_static)
    else:
        x = source.like(fixed[0], (*[source.size() for _ in range(source.integer(0, 2))], *fixed[1]))
    shape = shape_of(x)
    normalized = fixed[1] if fixed is not None else shape[-source.integer(1, min(2, len(shape))) :]
    operands = [source.like(x, normalized) if source.flag() else None]
    if opdef.short_name == "layer_norm":
        operands.append(source.like(x, normalized) if operands[0] is not None else None)
    return [x, list(normalized), *operands], {}


def softmax(source: Source, opdef: OpDef) -> Arguments:
    """Over one dimension."""
    x = source.tensor()
    return [x, any_dim(source, len(shape_of(x)))], {"dtype": source.dtype((None, None, torch.float64))}


def dropout(source: Source, opdef: OpDef) -> Arguments:
    """In training if the source allows it, and outside, where it is the identity."""
    training = source.training and source.integer(0, 3) < 3
    # in training, what drops channels asks for them
    rank = 2 if training and "feature" in opdef.name else 0
    probability = source.one_of((0.5, 0.5, 0.0, 1.0))
    return [source.tensor(min_rank=rank), probability, training], {"follows_mode": source.flag()}
