"""Kernels with which a placed program runs on floating numbers, rounded to the grids of its quantizers or not."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch

from ir.core import Operation
from ir.evaluate import Kernels
from ir.quant.kernels import dequantize, integer_range, quantize

Rounding = Callable[[Operation, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a quantization gives in place of integers: numbers, of operation, value, scale and zero point."""


def rounding_kernels(rounding: Rounding) -> Kernels:
    """Return kernels with which quantizations give numbers in place of integers, and dequantizations pass them on.

    So what stands between them (moves, max pools) works on the numbers that the integers stand for.
    """

    def quantized(op: Operation, operands: Sequence[Any]) -> Sequence[Any]:
        x, scale, zero_point = operands
        return [rounding(op, x, scale, zero_point)]

    def dequantized(op: Operation, operands: Sequence[Any]) -> Sequence[Any]:
        value, scale, zero_point = operands
        if value.is_floating_point():
            return [value]
        return [dequantize(value, scale, zero_point, op.attributes["axis"], op.attributes["dtype"])]

    return {"quant.quantize": quantized, "quant.dequantize": dequantized}


def rounded(op: Operation, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Return the numbers that the integers of a quantization stand for, of the shape and dtype of `x`.

    They are those of the operators' kernels, bit for bit, since a float holds these integers exactly.
    """
    attributes = op.attributes
    axis, limits = attributes["axis"], (attributes["quant_min"], attributes["quant_max"])
    if x.dtype not in (torch.float32, torch.float64) or scale.dtype != x.dtype:
        q = quantize(x, scale, zero_point, attributes["dtype"], axis, *limits)
        return dequantize(q, scale, zero_point, axis, x.dtype)
    if axis is not None:
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    offset = zero_point.to(x.dtype)
    low, high = integer_range(attributes["dtype"], *limits)
    return (x / scale).round_().add_(offset).clamp_(low, high).sub_(offset).mul_(scale)


def unrounded(op: Operation, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Return the value itself: the program in float."""
    return x


def rounding_once(weights: Container[Operation]) -> Rounding:
    """Return a rounding that keeps what the quantizations of weights, these operations, give."""
    known: dict[Operation, torch.Tensor] = {}

    def rounding(op: Operation, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        if op not in weights:
            return rounded(op, x, scale, zero_point)
        if op not in known:
            known[op] = rounded(op, x, scale, zero_point)
        return known[op]

    return rounding
