"""What quantization computes: the meaning of ONNX's QuantizeLinear and DequantizeLinear, in PyTorch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

QUANTIZED = (torch.int8, torch.uint8)
"""The dtypes that floating numbers are quantized to."""
DEQUANTIZED = (*QUANTIZED, torch.int32)
"""The dtypes of integers that become floating numbers; biases are of 32 bits."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def integer_range(dtype: torch.dtype, quant_min: int | None = None, quant_max: int | None = None) -> tuple[int, int]:
    """Return the smallest and the largest integer of a quantized value: those of the dtype, unless others are given."""
    limits = torch.iinfo(dtype)
    return limits.min if quant_min is None else quant_min, limits.max if quant_max is None else quant_max


def fault_of_types(
    dtypes: tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None], *, quantizes: bool
) -> str | None:
    """Return why operands of these dtypes (value, scale, zero point) do not fit; None if they do, or are unknown.

    Args:
        dtypes: of the operands; for a quantization, the first is that of the floating operand.
        quantizes: whether floating numbers become integers.
    """
    value, scale, zero_point = dtypes
    taken = FLOATS if quantizes else DEQUANTIZED
    if value is not None and value not in taken:
        return f"it takes {_names(taken)}, not {value}"
    if scale is not None and scale not in FLOATS:
        return f"the scale is of {scale}, not of a floating dtype"
    if not quantizes and None not in (value, zero_point) and zero_point is not value:
        return f"the zero point is of {zero_point}, and the integers are of {value}"
    return None


def fault_of_integers(
    dtype: Any, zero_point: torch.dtype | None, quant_min: Any = None, quant_max: Any = None
) -> str | None:
    """Return why numbers cannot be quantized to integers of a dtype and a range; None if they can."""
    if dtype not in QUANTIZED:
        return f"it makes {_names(QUANTIZED)}, not {dtype}"
    if zero_point is not None and zero_point is not dtype:
        return f"the zero point is of {zero_point}, and the integers are of {dtype}"
    limits = torch.iinfo(dtype)
    for name, bound in (("quant_min", quant_min), ("quant_max", quant_max)):
        if bound is not None and (type(bound) is not int or not limits.min <= bound <= limits.max):
            return f"{name} is {bound!r}, not one of {limits.min} to {limits.max}"
    low, high = integer_range(dtype, quant_min, quant_max)
    return None if low < high else f"there are no two integers from {low} to {high}"


def fault_of_ranks(value: int | None, scale: int | None, zero_point: int | None, axis: Any) -> str | None:
    """Return why operands of these ranks do not fit; None if they do, or a rank is unknown.

    Args:
        value: the rank of the value.
        scale: the rank of the scale.
        zero_point: the rank of the zero point.
        axis: the dimension of the value that has a scale for each index; None if it has one scale.
    """
    wanted = 0 if axis is None else 1
    if axis is not None:
        if type(axis) is not int or axis < 0:
            return f"axis is {axis!r}: dimensions are counted from the front"
        if value is not None and axis >= value:
            return f"axis {axis} is out of range for rank {value}"
    for name, rank in (("scale", scale), ("zero point", zero_point)):
        if rank not in (None, wanted):
            form = "one number, without axis" if axis is None else "a vector along the axis"
            return f"the {name} is {form}; its rank is {rank}"
    return None


def _names(dtypes: Sequence[torch.dtype]) -> str:
    *first, last = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return f"{', '.join(first)} or {last}"


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    dtype: torch.dtype = torch.int8,
    axis: int | None = None,
    quant_min: int | None = None,
    quant_max: int | None = None,
) -> torch.Tensor:
    """Return integers q with x = scale * (q - zero_point), as far as their range allows.

    They are x / scale, rounded half to even, plus the zero point, within the range. NaN becomes the smallest integer.
    Numbers in half precision are divided in float32.

    Args:
        x: floating, of any shape.
        scale: floating and positive: one number, or a vector `[x.shape[axis]]` with an axis.
        zero_point: of the shape of `scale` and of `dtype`.
        dtype: int8 or uint8.
        axis: the dimension that has a scale for each index, counted from the front; None for one scale.
        quant_min: the smallest integer; by default that of the dtype.
        quant_max: the largest integer; by default that of the dtype.

    Raises:
        TypeError: when a dtype, a rank, a size or a range does not fit.
    """
    _demand(fault_of_types((x.dtype, scale.dtype, None), quantizes=True))
    _demand(fault_of_integers(dtype, zero_point.dtype, quant_min, quant_max))
    scale, zero_point = _along(x, scale, zero_point, axis)
    low, high = integer_range(dtype, quant_min, quant_max)
    inner = _inner_dtype(x.dtype, scale.dtype)
    rounded = torch.round(x.to(inner) / scale.to(inner)) + zero_point.to(inner)
    return torch.nan_to_num(rounded, nan=low).clamp(low, high).to(dtype)


def dequantize(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    axis: int | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the numbers scale * (q - zero_point) that integers stand for.

    They are computed in float32 (float64, if the scale or the result is) and rounded to the dtype of the result.

    Args:
        q: int8, uint8 or int32, of any shape.
        scale: floating: one number, or a vector `[q.shape[axis]]` with an axis.
        zero_point: of the shape of `scale`, and of the dtype of `q`.
        axis: the dimension that has a scale for each index, counted from the front; None for one scale.
        dtype: of the result; by default that of the scale.

    Raises:
        TypeError: when a dtype, a rank or a size does not fit.
    """
    _demand(fault_of_types((q.dtype, scale.dtype, zero_point.dtype), quantizes=False))
    result = scale.dtype if dtype is None else dtype
    _demand(fault_of_result(result))
    scale, zero_point = _along(q, scale, zero_point, axis)
    inner = _inner_dtype(result, scale.dtype)
    wide = torch.int64 if q.dtype is torch.int32 else torch.int32
    return ((q.to(wide) - zero_point.to(wide)).to(inner) * scale.to(inner)).to(result)


def fault_of_result(dtype: Any) -> str | None:
    """Return why integers do not become numbers of a dtype; None if they do, or it is unknown."""
    return None if dtype is None or dtype in FLOATS else f"its result is of a floating dtype, not of {dtype}"


def _inner_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype that is computed in: float32 for half precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _along(
    value: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point in a shape that broadcasts along the axis of a value."""
    _demand(fault_of_ranks(value.dim(), scale.dim(), zero_point.dim(), axis))
    if axis is None:
        return scale, zero_point
    if scale.shape[0] != value.shape[axis] or zero_point.shape[0] != value.shape[axis]:
        raise TypeError(
            f"there are {scale.shape[0]} scales and {zero_point.shape[0]} zero points for {value.shape[axis]} indices "
            f"of dimension {axis}"
        )
    shape = [1] * value.dim()
    shape[axis] = -1
    return scale.reshape(shape), zero_point.reshape(shape)


def _demand(fault: str | None) -> None:
    if fault is not None:
        raise TypeError(fault)
