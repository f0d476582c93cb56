"""What an engine computes otherwise than PyTorch does, and so is not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from compiler.onnx.operators import windows_in_padding
from ir.core import Operation, Value
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.types import TensorType
from passes.quant.tables.conditions import averages_padding, few_results, pads_groups, smaller_than_stride
from passes.rewrite.expressions import data_of

_BYTES = (torch.int8, torch.uint8)
_RIGHT_SHIFTS = ("bitwise_right_shift", "__rshift__", "__irshift__")
_REMAINDERS = ("fmod", "remainder", "floor_divide")
_EXTREMES = ("amax", "amin", "max", "min")
_CLIPS = ("clamp", "hardtanh", "relu6", "relu")
NO_VNNI = (
    "this processor has no VNNI instructions: engines add two products of 8 bits in 16 bits, which saturates, and "
    "OpenVINO halves the weights that meet signed activations. Quantize for such processors with "
    "`table=result.target.table.without_vnni()`, on the command line `--without-vnni`"
)


@attrs.frozen
class Limit:
    """A kind of operation that an engine computes in another precision, or rounds off otherwise.

    Attributes:
        found: returns what the engine does with an operation, a sentence without its subject; None where it computes
            the operation as PyTorch does.
        remedy: what to do instead, beside the use of another engine.
        elsewhere: whether ONNX Runtime computes it as PyTorch does.
    """

    found: Callable[[Operation], str | None]
    remedy: str = ""
    elsewhere: bool = True


def has_vnni() -> bool:
    """Whether this processor adds products of 8-bit integers in 32 bits."""
    return torch.cpu._is_vnni_supported()


def check_limits(engine: str, limits: Sequence[Limit], program: Program) -> None:
    """Refuse a program with an operation beyond the limits of an engine.

    Args:
        engine: its name.
        limits: its limits.
        program: the program of the file.

    Raises:
        InputError: there is one; it names the operation.
    """
    for op in program.graph.operations():
        for limit in limits:
            found = limit.found(op)
            if found is not None:
                remedies = ['use "onnxruntime"' if limit.elsewhere else "", limit.remedy]
                raise InputError(
                    f"{op.name} {found} by {engine}", location=op.location, remedy=", or ".join(filter(None, remedies))
                )


def _float64(op: Operation) -> str | None:
    values = (*op.operand_values, *op.results)
    if any(isinstance(value.type, TensorType) and value.type.dtype == torch.float64 for value in values):
        return "is in float64, and computed in float32"
    return None


def _bytes(op: Operation) -> str | None:
    if op.opdef in (QUANTIZE, DEQUANTIZE) or any(map(op.opdef.has, (Trait.LAYOUT, Trait.SELECTS, Trait.CAST))):
        return None
    read, written = (
        [value for value in values if isinstance(value.type, TensorType) and value.type.dtype in _BYTES]
        for values in (op.operand_values, op.results)
    )
    # a function of several steps has integers on its way
    if read and (written or (not op.opdef.has(Trait.ELEMENTWISE) and any(map(_is_floating, op.results)))):
        return "computes with integers of 8 bits, whose results wrap in PyTorch and are saturated"
    return None


def _remainders(op: Operation) -> str | None:
    named = op.opdef.short_name in _REMAINDERS or op.attributes.get("rounding_mode") == "floor"
    if named and any(map(_is_floating, op.results)):
        return "takes the remainder of floating numbers, which is rounded (`2.1 // 0.7` becomes 3)"
    return None


def _is_floating(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.dtype.is_floating_point


def _shifts(op: Operation) -> str | None:
    if op.opdef.short_name in _RIGHT_SHIFTS:
        return "shifts to the right, which brings in zeros before negative numbers"
    return None


def _pooled_padding(op: Operation) -> str | None:
    name = op.opdef.short_name
    if not name.startswith("max_pool") or not op.attributes["ceil_mode"]:
        return None
    kernel, padding, dilation = (op.attributes[each] for each in ("kernel_size", "padding", "dilation"))
    shape = op.operand_values[0].known_shape
    sizes = (None,) * len(kernel) if shape is None else shape[-len(kernel) :]
    for size, k, s, p, d in zip(sizes, kernel, op.attributes["stride"] or kernel, padding, dilation, strict=True):
        if type(size) is int:  # the file has no such window, where it has no indices either
            is_kept = name.endswith("_with_indices") and windows_in_padding((size,), (k,), (s,), (p,), (d,))
        else:
            is_kept = s > d * (k - 1) + 1 - p
        if is_kept:
            return "pools with ceil_mode, where a last window that lies in the padding alone is kept"
    return None


def _integers_misread(op: Operation) -> str | None:
    """What `passes/quant/tables/openvino.py` keeps in float, in files for other targets."""
    if op.opdef.has(Trait.CONV_TRANSPOSE):
        weight = op.operands[1]
        is_integer = weight is not None and _dequantized(weight) is not None and _dequantized(op.operand_values[0])
        reason = smaller_than_stride(op) if is_integer else None
        return f"is computed from other integers where {reason}" if reason else None
    name = op.opdef.short_name
    pads = name in ("pad", "constant_pad_nd") and op.attributes.get("mode", "constant") == "constant"
    is_average = name.startswith("avg_pool")
    made = _dequantized(op.operand_values[0]) if pads or is_average or name == "conv3d" else None
    if made is None:
        return None
    if is_average and few_results(op):
        return f"is computed otherwise from integers where {few_results(op)}"
    zero_point = made.operands[2]
    data = None if zero_point is None else data_of(zero_point)
    if data is not None and not bool(data.any()):
        return None
    if is_average:
        # the file has a padding of its own where windows reach beyond the map, or have a divisor of their own
        pads = averages_padding(op) or op.attributes["ceil_mode"] or op.attributes.get("divisor_override") is not None
    if pads or pads_groups(op):
        return "pads integers whose zero point is not 0 with another number"
    return None


def _merged_quantization(op: Operation) -> str | None:
    behind = [user for result in op.results for user in result.users if user.opdef is QUANTIZE]
    if not behind or not op.operand_values:
        return None
    before = op.operand_values[0].defining_op
    is_between = before is not None and before.opdef is DEQUANTIZE
    if op.opdef.short_name in _EXTREMES and "dim" in op.attributes:
        made = _dequantized(op.operand_values[0])
        if made is not None and all(_parameters(made) == _parameters(each) for each in behind):
            return None  # the largest integer is that of the largest number
        return "is merged with the quantization of its result, which gives other integers,"
    if op.opdef.short_name in _CLIPS and is_between:
        return "is merged with the quantizations before and behind it, which gives other integers,"
    return None


def _parameters(op: Operation) -> list[Any] | None:
    """Return the scale and the zero point of a quantization, or of its inverse."""
    found = [None if value is None else data_of(value) for value in op.operands[1:3]]
    return None if any(each is None for each in found) else [each.tolist() for each in found if each is not None]


def _dequantized(value: Value) -> Operation | None:
    """Return the dequantization that a value comes from, through what an engine moves it."""
    op = value.defining_op
    while op is not None and op.opdef is not DEQUANTIZE:
        moves = op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.SELECTS) or "pool" in op.name or "upsample" in op.name
        op = op.operand_values[0].defining_op if moves and op.operand_values else None
    return op


def _combines(op: Operation) -> bool:
    """Return whether elements of the result may be computed from several elements of an operand."""
    return not any(map(op.opdef.has, (Trait.ELEMENTWISE, Trait.LAYOUT, Trait.SELECTS, Trait.CAST)))


def _nothing(op: Operation) -> str | None:
    if not _combines(op) or not any(0 in (value.known_shape or ()) for value in (*op.operand_values, *op.results)):
        return None
    return "on an empty tensor is not computed as in PyTorch"


def _scalars(op: Operation) -> str | None:
    dims = op.attributes.get("dim")
    if _combines(op) and dims not in (None, ()) and any(value.known_shape == () for value in op.operand_values):
        return f"over dimension {dims} of a tensor without dimensions is not computed as in PyTorch"
    return None


def _long_integers(op: Operation) -> str | None:
    if op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.SELECTS):
        return None  # sizes and places
    for number in op.attributes.values():
        if type(number) is int and not -(2**31) <= number < 2**31:
            return f"has the number {number}, and integers are computed in 32 bits"
    return None


FLOAT64_IN_32_BITS = Limit(_float64, "convert the model: `transform(model.float(), inputs)`")
SATURATED_BYTES = Limit(_bytes, "compute in wider integers: `x.int()`")
ROUNDED_REMAINDERS = Limit(_remainders)
"""The remainder is x - y·trunc(x / y), which rounds."""
LOGICAL_SHIFTS = Limit(_shifts, "divide with `torch.div(x, 2**n, rounding_mode='floor')`")
POOLED_PADDING = Limit(_pooled_padding, "leave ceil_mode out")
EMPTY_TENSORS = Limit(_nothing, "leave that part out of the model", elsewhere=False)
"""A mean is 0 then, OpenVINO ends the process on pooling, and neither loads some files."""
DIMENSIONS_OF_SCALARS = Limit(_scalars, "give it a dimension: `x[None]`", elsewhere=False)
"""OpenVINO ends the process on the cosine similarity of two such tensors, ONNX Runtime does not load its file."""
INTEGERS_MISREAD = Limit(_integers_misread, 'quantize for it: `transform(model, inputs, target="openvino")`')
MERGED_QUANTIZATIONS = Limit(
    _merged_quantization,
    'quantize for it: `transform(model, inputs, target="openvino")`, or keep what reads the result in float (`rules=`)',
)
INTEGERS_IN_32_BITS = Limit(_long_integers)
