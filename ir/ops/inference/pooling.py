"""Inference for pooling and resampling over the last dimensions, with or without a batch dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ir.errors import InferenceError
from ir.opdef import InferRule
from ir.ops.inference.support import (
    FLOATS_OR_UNKNOWN,
    Attributes,
    Shape,
    floor_div,
    require,
    require_not_empty,
    require_rank,
)
from ir.types import Dim, TensorType, Type, simplify_dim


def pool(dims: int, *, indices: bool = False, covered: bool = False) -> InferRule:
    """Return the rule of max and average pooling over `dims` dimensions.

    With `indices` there are two results. With `covered` the kernel must fit into the unpadded input.
    """

    def sizes(given: Shape, attributes: Attributes) -> Sequence[Dim | None]:
        kernel = _expand(attributes["kernel_size"], dims)
        stride = _expand(attributes["stride"] or kernel, dims)
        padding = _expand(attributes["padding"], dims)
        dilation = _expand(attributes.get("dilation", 1), dims)
        require(attributes.get("divisor_override") != 0)
        ceil_mode = attributes["ceil_mode"]
        if covered:
            require(all(type(size) is not int or size >= n for size, n in zip(given, kernel, strict=True)))
        windows = zip(given, kernel, stride, padding, dilation, strict=True)
        return [_pool_size(*window, ceil_mode) for window in windows]

    return _pooling(dims, sizes, indices)


def adaptive_pool(dims: int, *, indices: bool = False) -> InferRule:
    """Return the rule of adaptive pooling over `dims` dimensions."""

    def sizes(given: Shape, attributes: Attributes) -> Sequence[Dim | None]:
        wanted: Sequence[Dim] = attributes["output_size"]
        require(len(wanted) == dims and all(type(size) is not int or size > 0 for size in wanted))
        return wanted

    return _pooling(dims, sizes, indices)


def _pooling(dims: int, sizes: Callable[[Shape, Attributes], Sequence[Dim | None]], indices: bool) -> InferRule:
    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        require(x.dtype in FLOATS_OR_UNKNOWN)
        shape: Shape | None = None
        if x.shape is not None:
            require_rank(x.shape, dims + 1, dims + 2)
            require_not_empty(x.shape)
            shape = (*x.shape[:-dims], *sizes(x.shape[-dims:], attributes))
        result = TensorType(shape, x.dtype, x.device)
        return (result, TensorType(shape, torch.int64, x.device)) if indices else (result,)

    return rule


def upsample(dims: int) -> InferRule:
    """Return the rule of the `vec` overloads of upsampling: to `output_size`, or by `scale_factors`."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        output_size, factors = attributes["output_size"], attributes["scale_factors"]
        require((output_size is None) != (factors is None))
        require(len(factors if output_size is None else output_size) == dims)
        if x.shape is None:
            return (x,)
        require_rank(x.shape, dims + 2)
        require_not_empty(x.shape)
        if output_size is not None:
            sizes = output_size
        else:
            sizes = [_scaled(x.shape[i - dims], factors[i]) for i in range(dims)]
        require(all(type(size) is not int or size > 0 for size in sizes))
        return (TensorType((*x.shape[:-dims], *sizes), x.dtype, x.device),)

    return rule


def pixel_shuffle(*, back: bool = False) -> InferRule:
    """Return the rule of pixel_shuffle, [*, C * r * r, H, W] -> [*, C, H * r, W * r], or of its inverse."""
    name = "downscale_factor" if back else "upscale_factor"
    of_channels, of_sizes = (_times, _divided) if back else (_divided, _times)

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x, factor = types[0], attributes[name]
        if x.shape is None:
            return (x,)
        require(len(x.shape) >= 3 and type(factor) is int and factor > 0)
        require_not_empty(x.shape)
        *batch, channels, height, width = x.shape
        shape = (*batch, of_channels(channels, factor**2), of_sizes(height, factor), of_sizes(width, factor))
        return (TensorType(shape, x.dtype, x.device),)

    return rule


def _expand(value: Any, dims: int) -> Any:
    """Return one number for each dimension."""
    if not isinstance(value, tuple):
        return (value,) * dims
    if len(value) == 1:
        return value * dims
    require(len(value) == dims)
    return value


def _pool_size(size: Dim | None, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Dim | None:
    """Return the size of a pooled dimension: `pooling_output_shape` in ATen/native/Pool.h."""
    require(all(type(n) is int for n in (kernel, stride, padding, dilation)))
    require(kernel > 0 and stride > 0 and dilation > 0 and padding >= 0 and 2 * padding <= kernel)
    if size is None:
        return None
    reach = dilation * (kernel - 1) + 1
    room = size + 2 * padding - reach
    if ceil_mode:
        length = floor_div(room + stride - 1, stride) + 1
        # a last window that starts in the padding behind the input is dropped; large kernels have none
        if padding + stride > reach:
            if type(size) is not int or type(length) is not int:
                # fake tensors answer for the remainders of their hints alone
                raise InferenceError(
                    f"what ceil_mode gives for the size {size} has no one form for all sizes",
                    remedy="compile with fixed sizes in place of the symbolic ones",
                )
            if (length - 1) * stride >= size + padding:
                length -= 1
    else:
        length = floor_div(room, stride) + 1
    length = simplify_dim(length)
    require(type(length) is not int or length > 0)
    return length


def _scaled(size: Dim | None, factor: Any) -> Dim | None:
    if size is None:
        return None
    require(isinstance(factor, (int, float)) and math.isfinite(factor))
    if type(size) is int:
        return int(size * factor)
    require(factor == int(factor))
    return simplify_dim(size * int(factor))


def _times(size: Dim | None, factor: int) -> Dim | None:
    return None if size is None else simplify_dim(size * factor)


def _divided(size: Dim | None, factor: int) -> Dim | None:
    require(size is None or (type(size) is int and size % factor == 0))
    return None if size is None else floor_div(size, factor)
