"""Fake quantization: floating numbers on the grid of integers, with a gradient that passes through the rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ir.errors import InputError
from ir.quant.kernels import integer_range


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    dtype: torch.dtype = torch.int8,
    axis: int | None = None,
    quant_min: int | None = None,
    quant_max: int | None = None,
) -> Tensor:
    """Return the numbers on the grid of `scale` that quantization and its inverse make of `x`, in the dtype of `x`.

    They have the bits of `quant.dequantize(quant.quantize(x, ...), ...)`: numbers are divided by the scale, where
    `torch.fake_quantize_per_tensor_affine` multiplies by its inverse, which rounds some ties the other way. The
    gradient of `x` passes where x / scale is in range, and is zero where it saturates (straight-through); that of a
    scale which requires one is the rounding error in range, and the bound where x / scale saturates.

    In `torch.onnx.export` it is a pair of QuantizeLinear and DequantizeLinear.

    Args:
        x: floating, of any shape.
        scale: floating and positive: one number, or a vector `[x.shape[axis]]` with an axis.
        zero_point: of the shape of `scale` and of `dtype`.
        dtype: int8 or uint8.
        axis: the dimension that has a scale for each index; None for one scale.
        quant_min: the smallest integer; by default that of the dtype.
        quant_max: the largest integer; by default that of the dtype.
    """
    low, high = integer_range(dtype, quant_min, quant_max)
    if torch.onnx.is_in_onnx_export():
        return _as_one_operator(x, scale, zero_point, axis, low, high)
    inner = torch.float64 if torch.float64 in (x.dtype, scale.dtype) else torch.float32
    step, zero = scale.to(inner), zero_point.to(inner)
    if axis is not None:
        shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
        step, zero = step.reshape(shape), zero.reshape(shape)
    quotient = torch.nan_to_num(x.to(inner) / step, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    inside = torch.clamp(quotient, low - zero, high - zero)
    # the difference of a number and the next integer is exact, and so is this sum
    return ((inside + (torch.round(inside) - inside).detach()) * step).to(x.dtype)


def _as_one_operator(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """Return what PyTorch's exporter writes as QuantizeLinear and DequantizeLinear, which know whole ranges only."""
    limits = torch.iinfo(zero_point.dtype)
    zeros = zero_point.to(torch.int32)
    if (low, high) != (limits.min, limits.max):
        shape = [-1 if dim == axis else 1 for dim in range(x.dim())] if axis is not None else []
        x = torch.clamp(x, ((low - zeros) * scale).reshape(shape), ((high - zeros) * scale).reshape(shape))
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zeros, limits.min, limits.max)
    return torch.fake_quantize_per_channel_affine(x, scale, zeros, axis, limits.min, limits.max)


class Quantizer(nn.Module):
    """The numbers on the grid of integers that a value takes when it is quantized, for one place of a model.

    `forward` is `fake_quantize`; a model with quantizers is trained as any other. The buffers `scale` (floating, `[]`
    or `[channels]`) and `zero_point` (of `dtype`, of the same shape) move, convert and load with the model.

    Args:
        dtype: int8 or uint8.
        axis: the dimension that has a scale for each index; None for one scale.
        channels: how many scales there are, with an axis.
        quant_min: the smallest integer; by default that of the dtype.
        quant_max: the largest integer; by default that of the dtype.
        device: where the buffers are made; the scale is 1 and the zero point is 0.

    Attributes:
        scale: the distance of two numbers of the grid.
        zero_point: the integer that stands for zero.
        dtype: as above.
        axis: as above.
        quant_min: as above.
        quant_max: as above.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        axis: int | None = None,
        channels: int | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.axis = axis
        self.quant_min = quant_min
        self.quant_max = quant_max
        shape = () if axis is None else (channels or 1,)
        self.register_buffer("scale", torch.ones(shape, device=device))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=dtype, device=device))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Return the numbers on the grid that are nearest to the input: of its shape and dtype.

        Raises:
            InputError: when the range was never set: the scale has no data.
        """
        if self.scale.is_meta and not input.is_meta:
            raise InputError(
                "the range of a quantizer was never set: its scale has no data",
                remedy="quantize with `graphwright.quant.quantize`, which sets ranges, or load a checkpoint that has "
                "them: `model.load_state_dict(..., assign=True)`",
            )
        return fake_quantize(input, self.scale, self.zero_point, self.dtype, self.axis, self.quant_min, self.quant_max)

    def extra_repr(self) -> str:
        """Return the integers, and the scale: its range where there are several."""
        low, high = integer_range(self.dtype, self.quant_min, self.quant_max)
        name = str(self.dtype).removeprefix("torch.")
        shown = [name if (low, high) == integer_range(self.dtype) else f"{name} in [{low}, {high}]"]
        if self.axis is not None:
            shown.append(f"{self.scale.numel()} scales along axis {self.axis}")
        elif not self.scale.is_meta:
            shown += [f"scale={self.scale.item():.4g}", f"zero_point={self.zero_point.item()}"]
        return ", ".join(shown)
