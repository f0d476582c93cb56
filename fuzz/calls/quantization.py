"""Generators of calls: quantization, and back."""

from __future__ import annotations

from typing import Any

import torch

from fuzz.calls.elementwise import Arguments
from fuzz.calls.source import Source, is_int, shape_of
from ir.core import Value
from ir.opdef import OpDef
from ir.quant.kernels import DEQUANTIZED, FLOATS, QUANTIZED, integer_range
from ir.types import TensorType

_NARROW: dict[torch.dtype, tuple[tuple[int | None, int | None], ...]] = {
    torch.int8: ((-127, None), (-64, 63), (-8, 7)),
    torch.uint8: ((None, 127), (0, 15)),
}
"""Ranges that are less than the dtype's: symmetric ones, weights of 7 and 4 bits."""
SCALES = (1 / 64, 0.25)
"""Where scales are drawn from, so that normal numbers take many integers, and some are out of range."""


def quantize(source: Source, opdef: OpDef) -> Arguments:
    """Numbers of any floating dtype, to integers of the whole range or of a part, per tensor or along an axis."""
    with source.allowing(*QUANTIZED):
        given = source.given(2)
        dtype = given.tensor_type.dtype if given is not None else source.one_of(QUANTIZED)
        x = source.tensor()
        scale, zero_point, axis = _parameters(source, x, dtype or torch.int8)
    attributes: dict[str, Any] = {"dtype": dtype, "axis": axis}
    if not source.integer(0, 3) and dtype in _NARROW:
        attributes["quant_min"], attributes["quant_max"] = source.one_of(_NARROW[dtype])
    return [x, scale, zero_point], attributes


def dequantize(source: Source, opdef: OpDef) -> Arguments:
    """Integers, per tensor or along an axis; the dtype of the result is the scale's, or another one."""
    with source.allowing(*DEQUANTIZED):
        q = source.tensor(dtypes=DEQUANTIZED)
        dtype = q.tensor_type.dtype
        scale, zero_point, axis = _parameters(source, q, dtype or torch.int8)
    result = None if source.integer(0, 3) else source.dtype((None, torch.float32, torch.float64))
    return [q, scale, zero_point], {"axis": axis, "dtype": result}


def _parameters(source: Source, value: Value, dtype: torch.dtype) -> tuple[Value, Value, int | None]:
    """Draw scale, zero point and axis for a value: given ones, those of another call, or new ones."""
    shape = shape_of(value)
    scale, zero_point = source.taken(1), source.taken(2)
    if scale is None and zero_point is None and source.flag():
        known = [pair for pair in source.parameters if pair[1].tensor_type.dtype is dtype and _fits(pair[0], value)]
        if known:
            scale, zero_point = source.one_of(known[::-1])
    fixed = scale if scale is not None else zero_point
    if fixed is not None:
        size = shape_of(fixed)
        axes = [i for i, other in enumerate(shape) if size == (other,)]
    else:
        axes = [i for i, other in enumerate(shape) if is_int(other)]
    per_tensor = fixed.tensor_type.rank == 0 if fixed is not None else not axes or source.integer(0, 2) < 2
    axis = None if per_tensor else source.one_of(axes or [0])
    wanted = () if axis is None else (shape[axis] if axis < len(shape) else 1,)
    if scale is None:
        floating = value.tensor_type.dtype if value.tensor_type.dtype in FLOATS else torch.float32
        scale = source.make(wanted, floating, bounds=SCALES)
    if zero_point is None:
        low, high = integer_range(dtype) if dtype in QUANTIZED else (0, 1)
        if not source.integer(0, 2):
            low, high = source.one_of(((low, low), (high, high), (0, 0)))
        zero_point = source.make(wanted, dtype, bounds=(low, high + 1))
    source.parameters.append((scale, zero_point))
    return scale, zero_point, axis


def _fits(scale: Value, value: Value) -> bool:
    """Return whether a scale may be that of a value: one number, or one for each index of some dimension."""
    type_ = scale.type
    return isinstance(type_, TensorType) and (type_.shape == () or shape_of(scale)[0] in shape_of(value))
