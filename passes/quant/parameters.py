"""Scales and zero points: the weights of a program that quantizers read, and their names."""

from __future__ import annotations

import attrs
import torch

from ir.core import Operation, Value
from ir.program import Program, Weight, WeightKind
from ir.spelling import free_name
from ir.types import TensorType
from passes.quant.tables.row import IntegerType
from passes.rewrite.region_names import parts_of

SCALE = "scale"
ZERO_POINT = "zero_point"


@attrs.frozen
class Pair:
    """The values of a scale and a zero point."""

    scale: Value
    zero_point: Value


def name_of(pair: Pair) -> str:
    """Return the name of the weight that holds the scale."""
    return pair.scale.name


def add_pair(
    program: Program, name: str, type_: IntegerType, scale: torch.Tensor | None, device: torch.device | None
) -> Pair:
    """Add the buffers `<name>.scale`, of the values given, and `<name>.zero_point`, of zeros; return their values.

    Without a scale both are numbers without data, until a range is set.

    Args:
        program: the program.
        name: the quantizer's path; a number is added where it is taken.
        type_: the type of the integers.
        scale: f32[] or f32[C]; None for one number that is not known yet.
        device: the device of what is quantized, as its type has it.
    """
    free = free_name(name, lambda base: any(f"{base}.{end}" in program.weights for end in (SCALE, ZERO_POINT)))
    shape = () if scale is None else tuple(scale.shape)
    data: dict[str, torch.Tensor] = {}
    if scale is not None:
        data = {SCALE: scale.float(), ZERO_POINT: torch.zeros(shape, dtype=type_.dtype, device=scale.device)}
    values = [
        program.add_weight(
            Weight(f"{free}.{end}", WeightKind.BUFFER, TensorType(shape, dtype, device), data=data.get(end))
        )
        for end, dtype in ((SCALE, torch.float32), (ZERO_POINT, type_.dtype))
    ]
    return Pair(*values)


def weight_scale(weight: Weight, axis: int, type_: IntegerType) -> torch.Tensor:
    """Return the scale of each channel of a weight: its largest magnitude by the largest integer, f32[C].

    It is 1 for a channel of zeros or without elements, and where the weight has no data.
    """
    channels = weight.type.shape[axis] if weight.type.shape is not None else 0
    data = weight.data
    if data is None or data.is_meta:
        return torch.ones(channels if isinstance(channels, int) else 0, device=None if data is None else data.device)
    rows = data.detach().movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1).float() if rows.shape[1] else rows.new_zeros(rows.shape[0], dtype=torch.float32)
    scale = largest / type_.greatest
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def name_of_weight_quantizer(weight: Weight) -> str:
    """Return the path of a weight's quantizer: `layer1.0.conv1.weight_quantizer`."""
    return f"{weight.name}_quantizer"


def name_of_input_quantizer(op: Operation, operand: str) -> str:
    """Return the path of the quantizer of one operand of a region: `layer1.0.conv1.input_quantizer`."""
    return _join(module_path(op), f"{operand}_quantizer")


def name_of_output_quantizer(value: Value) -> str:
    """Return the path of the quantizer behind a value: `layer1.0.conv1.output_quantizer`; of an input, its name's."""
    op = value.defining_op
    if op is None:
        return f"{value.name or 'input'}_quantizer"
    end = "output_quantizer" if len(op.results) == 1 else f"output{value.index}_quantizer"
    return _join(module_path(op), end)


def module_path(op: Operation) -> str:
    """Return the path of the module that a region becomes, as near as its parts tell; of an operation, its module's."""
    if op.body is None:
        return _join(op.location.module_path, op.opdef.short_name)
    for each, part in zip(op.body.operations(), parts_of(op), strict=True):
        if part and each.location.module_path:
            return each.location.module_path
    first = op.location.module_path
    return _join(first, str(op.attributes["kind"]))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
