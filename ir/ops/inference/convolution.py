"""Inference for convolutions: (input, weight, bias) with or without a batch dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.errors import InferenceError
from ir.opdef import InferRule
from ir.ops.inference.support import (
    Attributes,
    Misfit,
    Shape,
    common_device,
    float_dtype,
    floor_div,
    knows_misfits,
    require,
    require_equal,
    require_not_empty,
    require_one_dtype,
    require_rank,
)
from ir.types import Dim, TensorType, Type, simplify_dim


def conv(dims: int) -> InferRule:
    """Return the rule of a forward convolution over `dims` dimensions, also with `padding` "same" or "valid"."""

    @knows_misfits
    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        stride, dilation = _of_dims(dims, attributes["stride"]), _of_dims(dims, attributes["dilation"])
        padding = attributes["padding"]
        if not isinstance(padding, str):
            padding = _of_dims(dims, padding)
        batch, out, sizes, kernel = _fit(types, attributes["groups"], dims)
        dtype, device = float_dtype(types), common_device(types)
        if batch is None:
            return (TensorType(None, dtype, device),)
        if padding == "valid":
            padding = (0,) * dims
        result = tuple(
            [
                _same_size(sizes[i], stride[i], dilation[i], kernel[i])
                if padding == "same"
                else _conv_size(sizes[i], kernel[i], stride[i], padding[i], dilation[i])
                for i in range(dims)
            ]
        )
        return (TensorType((*batch, out, *result), dtype, device),)

    return rule


def conv_transpose(dims: int) -> InferRule:
    """Return the rule of a transposed convolution; its weight is (in, out / groups, kernel...)."""

    @knows_misfits
    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        names = ("stride", "padding", "dilation", "output_padding")
        stride, padding, dilation, extra = (_of_dims(dims, attributes[name]) for name in names)
        batch, out, sizes, kernel = _fit(types, attributes["groups"], dims, transposed=True)
        dtype, device = float_dtype(types), common_device(types)
        if batch is None:
            return (TensorType(None, dtype, device),)
        result: list[Dim | None] = []
        for i in range(dims):
            size, window_size = sizes[i], kernel[i]
            if size is None or window_size is None:
                result.append(None)
                continue
            numbers = (stride[i], padding[i], dilation[i], extra[i])
            require(all(type(n) is int and n >= 0 for n in numbers))
            require(stride[i] > 0 and dilation[i] > 0)
            # the formula of H_out in the documentation of torch.nn.ConvTranspose2d
            length = simplify_dim(
                (size - 1) * stride[i] - 2 * padding[i] + dilation[i] * (window_size - 1) + extra[i] + 1
            )
            require(type(length) is not int or length > 0)
            result.append(length)
        return (TensorType((*batch, out, *result), dtype, device),)

    return rule


def _fit(
    types: tuple[Any, ...], groups: Any, dims: int, *, transposed: bool = False
) -> tuple[Shape | None, Dim | None, Shape, Shape]:
    """Check the operands; return batch (None for an unknown rank), output channels, spatial and kernel sizes."""
    x, weight, bias = types
    batch, channels, sizes = _split_input(x, dims)
    out: Dim | None = None
    kernel: Shape = (None,) * dims
    if weight.shape is not None:
        require_rank(weight.shape, dims + 2)
        require_not_empty(weight.shape)
        require(type(groups) is int and groups > 0)
        first, per_group, *window = weight.shape
        kernel = tuple(window)
        if type(first) is int and first % groups:
            raise Misfit(f"{first} {'input' if transposed else 'output'} channels in {groups} groups")
        grouped = None if per_group is None else simplify_dim(per_group * groups)
        inputs, out = (first, grouped) if transposed else (grouped, first)
        require_equal(channels, inputs, "the number of input channels")
    if bias is not None and bias.shape is not None:
        require_rank(bias.shape, 1)
        require_equal(bias.shape[0], out, "the size of the bias")
    require_one_dtype(types)
    return batch, out, sizes, kernel


def _split_input(x: TensorType, dims: int) -> tuple[Shape | None, Dim | None, Shape]:
    """Return batch dimensions (one or none), channels and spatial sizes; (None, None, ...) for an unknown rank."""
    if x.shape is None:
        return None, None, (None,) * dims
    require_rank(x.shape, dims + 1, dims + 2)
    require_not_empty(x.shape)
    return x.shape[: -dims - 1], x.shape[-dims - 1], x.shape[-dims:]


def _of_dims(dims: int, given: Sequence[Any]) -> Sequence[Any]:
    """Return a number for each dimension, where one may stand for all; kernels refuse others, fake tensors do not."""
    if len(given) not in (1, dims):
        raise InferenceError(f"a convolution over {dims} dimensions takes {dims} numbers, not {given}")
    return given if len(given) == dims else (given[0],) * dims


def _conv_size(size: Dim | None, kernel: Dim | None, stride: Any, padding: Any, dilation: Any) -> Dim | None:
    if size is None or kernel is None:
        return None
    require(type(stride) is int and type(padding) is int and type(dilation) is int)
    require(stride > 0 and padding >= 0 and dilation > 0)
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    require(type(room) is not int or room >= 0)
    return simplify_dim(floor_div(room, stride) + 1)


def _same_size(size: Dim | None, stride: Any, dilation: Any, kernel: Dim | None) -> Dim | None:
    require(stride == 1 and type(dilation) is int and dilation > 0)
    return None if kernel is None else size
