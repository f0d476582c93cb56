"""The operators of the dialect `quant`, and their type inference."""

from __future__ import annotations

from typing import Any

import torch

from ir.attributes import Attribute
from ir.columns import StrideRule
from ir.opdef import Facts, InferRule, OpDef, Param, ParamKind, Trait, add_row, register_opdef
from ir.ops.inference.support import Attributes, Misfit, Refusal, Undecided, require_equal, with_fallback
from ir.quant import kernels
from ir.types import CPU, TensorType, Type


def _quantize(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    x, scale, zero_point = types
    dtype = attributes["dtype"]
    _demand(kernels.fault_of_types((x.dtype, scale.dtype, None), quantizes=True))
    _demand(kernels.fault_of_integers(dtype, zero_point.dtype, attributes["quant_min"], attributes["quant_max"]))
    _check_shapes(types, attributes["axis"])
    return (TensorType(x.shape, dtype, x.device),)


def _dequantize(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    q, scale, zero_point = types
    dtype = scale.dtype if attributes["dtype"] is None else attributes["dtype"]
    _demand(kernels.fault_of_types((q.dtype, scale.dtype, zero_point.dtype), quantizes=False))
    _demand(kernels.fault_of_result(dtype))
    _check_shapes(types, attributes["axis"])
    return (TensorType(q.shape, dtype, q.device),)


def _check_shapes(types: tuple[Any, ...], axis: Any) -> None:
    """Demand scales and zero points that fit a value.

    Raises:
        Misfit: when they cannot.
        Refusal: when that depends on a symbol.
        Undecided: when they are on different devices.
    """
    value, scale, zero_point = types
    _demand(kernels.fault_of_ranks(value.rank, scale.rank, zero_point.rank, axis))
    if axis is not None and value.shape is not None:
        for other, what in ((scale, "scales"), (zero_point, "zero points")):
            count = None if other.shape is None else other.shape[0]
            try:
                require_equal(count, value.shape[axis], f"the number of {what}")
            except Misfit:
                raise
            except Undecided:
                raise Refusal(f"the number of {what} is {count}, not {value.shape[axis]}") from None
    # a scalar on the CPU goes with a value on any device
    moved = [type_ for type_ in (scale, zero_point) if type_.shape != () or type_.device != CPU]
    known = {type_.device for type_ in moved if type_.device is not None}
    if known - {value.device} and value.device is not None:
        raise Undecided


def _demand(fault: str | None) -> None:
    if fault is not None:
        raise Misfit(fault)


def _attribute(name: str, type_: str, default: Attribute = None) -> Param:
    return Param(name, ParamKind.ATTRIBUTE, default, has_default=True, type=type_, keyword_only=True)


def _define(short: str, first: str, rule: InferRule, kernel: Any, attributes: tuple[Param, ...]) -> OpDef:
    name = f"quant.{short}"
    row = Facts(Trait.PURE, infer=with_fallback(name, rule), strides=StrideRule.PASSED)
    add_row(name, row)
    operands = tuple([Param(each, ParamKind.TENSOR) for each in (first, "scale", "zero_point")])
    return register_opdef(OpDef(name, (*operands, *attributes), ("tensor",), target=kernel, facts=row))


QUANTIZE = _define(
    "quantize",
    "x",
    _quantize,
    kernels.quantize,
    (
        _attribute("dtype", "ScalarType", torch.int8),
        _attribute("axis", "Optional[int]"),
        _attribute("quant_min", "Optional[int]"),
        _attribute("quant_max", "Optional[int]"),
    ),
)
"""`quant.quantize(x, scale, zero_point)`: x / scale, rounded half to even, plus the zero point, within the range.

The meaning is ONNX's QuantizeLinear; `ir.quant.kernels.quantize` computes it, and says more.
"""

DEQUANTIZE = _define(
    "dequantize",
    "q",
    _dequantize,
    kernels.dequantize,
    (_attribute("axis", "Optional[int]"), _attribute("dtype", "Optional[ScalarType]")),
)
"""`quant.dequantize(q, scale, zero_point)`: scale * (q - zero_point), as ONNX's DequantizeLinear."""
