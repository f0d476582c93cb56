"""What an engine computes otherwise than PyTorch does, and so is not given."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from ir.core import Operation, Value
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.types import TensorType

_NARROWED = MappingProxyType({"openvino": MappingProxyType({torch.int64: torch.int32, torch.uint64: torch.int32})})
"""Engine -> dtype -> the dtype that it computes in."""
_BYTES = (torch.int8, torch.uint8)
_REMAINDERS = ("fmod", "remainder", "floor_divide")


def check_arithmetic(engine: str, program: Program) -> None:
    """Refuse a program whose numbers the engine computes in another precision, or rounds off otherwise.

    OpenVINO runs float64 in float32, and 64-bit integers in 32 bits. Sums and products of 8-bit integers saturate
    there, and the remainder of floating numbers is x - y·trunc(x / y), which rounds.

    Args:
        engine: its name.
        program: the program of the file.

    Raises:
        InputError: where it would; it names the operation.
    """
    if engine != "openvino":
        return
    for op in program.graph.operations():
        for value in (*op.operand_values, *op.results):
            type_ = value.type
            if isinstance(type_, TensorType) and type_.dtype == torch.float64:
                raise InputError(
                    f"{op.name} is in float64, which {engine} computes in float32",
                    location=op.location,
                    remedy='use "onnxruntime", or convert the model: `transform(model.float(), inputs)`',
                )
        if _computes_bytes(op):
            raise InputError(
                f"{op.name} computes with integers of 8 bits, whose results saturate in {engine} and wrap in PyTorch",
                location=op.location,
                remedy='use "onnxruntime", or compute in wider integers: `x.int()`',
            )
        if _takes_remainder(op):
            raise InputError(
                f"{op.name} takes the remainder of floating numbers, which {engine} rounds: `2.1 // 0.7` is 3 there",
                location=op.location,
                remedy='use "onnxruntime"',
            )
        if op.opdef.short_name.endswith("_aa"):
            raise InputError(
                f"{op.name} resizes with antialiasing, which {engine} does not do",
                location=op.location,
                remedy='use "onnxruntime", or resize before the model',
            )
        for number in _numbers(op):
            if not -(2**31) <= number < 2**31:
                raise InputError(
                    f"{op.name} has the number {number}, and {engine} computes integers in 32 bits",
                    location=op.location,
                    remedy='use "onnxruntime"',
                )


def _takes_remainder(op: Operation) -> bool:
    named = op.opdef.short_name in _REMAINDERS or op.attributes.get("rounding_mode") == "floor"
    return named and any(map(_is_floating, op.results))


def _is_floating(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.dtype.is_floating_point


def _computes_bytes(op: Operation) -> bool:
    if op.opdef in (QUANTIZE, DEQUANTIZE) or any(map(op.opdef.has, (Trait.LAYOUT, Trait.SELECTS, Trait.CAST))):
        return False
    read, written = (
        [value for value in values if isinstance(value.type, TensorType) and value.type.dtype in _BYTES]
        for values in (op.operand_values, op.results)
    )
    return bool(read and written)


def _numbers(op: Operation) -> list[int]:
    """Return the integers that an operation computes with, which are not sizes or places."""
    if op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.SELECTS):
        return []
    return [value for value in op.attributes.values() if type(value) is int]


def narrowed(engine: str) -> Mapping[torch.dtype, torch.dtype]:
    """Return dtype -> the narrower one that an engine computes in: inputs must fit that."""
    return _NARROWED.get(engine, {})
