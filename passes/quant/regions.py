"""Regions that read integers: DQ first in the body, Q and DQ of the weights behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from ir.builder import Builder
from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.opdef import get_opdef
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.spelling import free_name
from passes.quant.parameters import Pair
from passes.quant.tables.conditions import layers_of
from passes.quant.tables.row import IntegerType
from passes.rewrite.region_names import parts_attribute, parts_of
from passes.rewrite.rewriter import Rewriter


@attrs.frozen
class Integers:
    """An operand in integers: what Q makes of it, and the parameters.

    Attributes:
        pair: scale and zero point.
        type: the type of the integers.
        axis: the dimension with a scale for each index; None for one scale.
    """

    pair: Pair
    type: IntegerType
    axis: int | None = None


def quantize(b: Builder, x: Value, integers: Integers, pair: Pair | None = None) -> Value:
    """Insert a Q of `x`, and return its result; `pair` is how the graph at hand calls the parameters."""
    type_ = integers.type
    pair = integers.pair if pair is None else pair
    result: Value = b.call(
        QUANTIZE,
        x,
        pair.scale,
        pair.zero_point,
        dtype=type_.dtype,
        axis=integers.axis,
        quant_min=type_.quant_min,
        quant_max=type_.quant_max,
    )
    return result


def dequantize(b: Builder, q: Value, scale: Value, zero_point: Value, like: Value, axis: int | None = None) -> Value:
    """Insert a DQ of `q` to the dtype of `like`, and return its result."""
    dtype = like.tensor_type.dtype
    other = None if dtype is scale.tensor_type.dtype else dtype
    result: Value = b.call(DEQUANTIZE, q, scale, zero_point, axis=axis, dtype=other)
    return result


def wrap(b: Rewriter, op: Operation) -> Operation:
    """Make a region of a bare operation: `aten.add.Tensor` becomes `fused.add`; a layer is its part."""
    layers = layers_of(op)
    data = [v for v in dict.fromkeys(op.operand_values) if not v.is_weight]
    names = ["input", "other"] if len(data) <= 2 and op.segments is None else [f"input{i}" for i in range(len(data))]
    return b.fuse(
        op.opdef.short_name,
        [op],
        parts={op: "conv" if op.name != "aten.linear" else "linear"} if layers else {},
        inputs=dict(zip(data, names, strict=False)),
        outputs=list(op.results),
    )


def with_integers(
    b: Rewriter, op: Operation, inputs: Mapping[int, tuple[Value, Integers]], weights: Mapping[int, Integers]
) -> Operation:
    """Replace a region by one that reads some operands as integers, and quantizes some weights in its body.

    Args:
        b: the rewriter.
        op: the region.
        inputs: operand number -> the integers that take its place.
        weights: operand number -> the parameters of a weight, which stays the operand.

    Returns:
        The new region; the uses of the old one's results are replaced.
    """
    assert op.body is not None
    operands = list(op.operands)
    for index, (q, _) in inputs.items():
        operands[index] = q
    body = Graph([(v.name, v.type if o is None else o.type) for v, o in zip(op.body.inputs, operands, strict=True)])
    inner = Builder(body, location=op.location)
    entering: dict[Value, Value] = {}

    def enter(value: Value, name: str) -> Value:
        if value not in entering:
            taken = {own.name for own in body.inputs}
            entering[value] = body.add_input(value.type, free_name(name, taken.__contains__))
            operands.append(value)
        return entering[value]

    mapping = dict(zip(op.body.inputs, body.inputs, strict=True))
    for index, integers in {**{i: each for i, (_, each) in inputs.items()}, **weights}.items():
        own = body.inputs[index]
        scale = enter(integers.pair.scale, f"{own.name}_scale")
        zero_point = enter(integers.pair.zero_point, f"{own.name}_zero_point")
        q = quantize(inner, own, integers, Pair(scale, zero_point)) if index in weights else own
        mapping[op.body.inputs[index]] = dequantize(inner, q, scale, zero_point, op.body.inputs[index], integers.axis)
    added = body.num_operations
    for each in op.body.operations():
        copy_into(each, body, mapping)
    body.set_outputs([None if v is None else mapping[v] for v in op.body.outputs])
    return _replace(b, op, operands, body, ("",) * added + parts_of(op))


def without_integers(b: Rewriter, op: Operation, floats: Mapping[Value, Value]) -> Operation:
    """Replace a region by one that reads floating-point numbers, without Q and DQ in its body.

    Args:
        b: the rewriter.
        op: the region.
        floats: integers -> the numbers that they were made of.
    """
    assert op.body is not None
    members = list(op.body.operations())
    removed = {each for each in members if each.opdef in (QUANTIZE, DEQUANTIZE)}
    parameters = {value for each in removed for value in each.operand_values[1:]}
    kept = [
        (own, value if value is None else floats.get(value, value))
        for own, value in zip(op.body.inputs, op.operands, strict=True)
        if own not in parameters or any(user not in removed for user in own.users)
    ]
    body = Graph([(own.name, own.type if value is None else value.type) for own, value in kept])
    mapping = {own: new for (own, _), new in zip(kept, body.inputs, strict=True)}
    for each in members:
        if each in removed:
            mapping[each.result] = mapping[each.operand_values[0]]
        else:
            copy_into(each, body, mapping)
    body.set_outputs([None if v is None else mapping[v] for v in op.body.outputs])
    parts = [part for each, part in zip(members, parts_of(op), strict=True) if each not in removed]
    return _replace(b, op, [value for _, value in kept], body, tuple(parts))


def _replace(
    b: Rewriter, op: Operation, operands: Sequence[Value | None], body: Graph, parts: tuple[str, ...]
) -> Operation:
    """Put a region with other operands and another body in the place of one."""
    attributes = {name: value for name, value in op.attributes.items() if name != "parts"} | parts_attribute(parts)
    region = Operation(
        get_opdef(op.name),
        operands,
        attributes,
        [result.type for result in op.results],
        location=op.location,
        body=body,
        names=[result.name for result in op.results],
    )
    with b.at(op):
        b.insert(region)
    b.replace(op, *region.results)
    return region
