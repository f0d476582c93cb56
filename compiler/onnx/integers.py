"""Weights and biases of quantized layers as a file holds them: integers, with batch norms folded into their scales."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from ir.builder import make_operation
from ir.core import Operation, Value
from ir.opdef import Trait, get_opdef
from ir.program import Program, Weight, WeightKind, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.quant.kernels import integer_range, quantize
from ir.types import type_of_tensor
from passes.rewrite.expressions import data_of

_MAX_BIAS = 2**31 - 1


def store_integers(program: Program) -> None:
    """Replace each quantized weight by its integers, and prepare its layer for integer kernels.

    Batch norms behind such a layer go into the scales and the bias: with one scale a channel, the integers stay, up to
    their sign. A bias becomes integers of 32 bits with the scale of the sums, if they hold it; else it is added behind
    the layer. A linear layer on more than rows becomes a product with the transposed integers.

    Args:
        program: without regions, in eval mode; it is changed.
    """
    frozen: dict[Any, Value] = {}
    for op in list(program.graph.operations()):
        if op.opdef is QUANTIZE:
            _freeze(program, op, frozen)
        if op.opdef is QUANTIZE and not op.is_erased:
            _drop_clip(op)
    for op in list(program.graph.operations()):
        layer = _layer_of(op)
        if layer is None:
            if op.opdef.has(Trait.CONV) or _is_transposed(op) or _is_on_rows(op):
                _keep_float(program, op)
            continue
        if layer.op.opdef.has(Trait.CONV) or _is_transposed(layer.op) or _is_on_rows(layer.op):
            layer = _fold_batch_norm(program, layer)
        if layer.op.opdef.has(Trait.CONV) or _is_on_rows(layer.op):
            _quantize_bias(program, layer)
        elif layer.op.name == "aten.linear":
            _as_product(program, layer)
    _sweep(program)


@attrs.frozen(eq=False)
class _Layer:
    """A layer whose weight is dequantized integers."""

    op: Operation
    dequantize: Operation
    integers: torch.Tensor
    scale: torch.Tensor
    axis: int | None
    name: str
    """The name of the float weight."""


def _freeze(program: Program, op: Operation, frozen: dict[Any, Value]) -> None:
    """Replace a quantization of a weight by its integers."""
    data = data_of(op.result)
    if data is None:
        return
    key = (op.operands, tuple(sorted((name, str(value)) for name, value in op.attributes.items())))
    value = frozen.get(key)
    if value is None:
        source = weight_of(op.operands[0])
        base = "weight" if source is None else source.name
        value = frozen[key] = _constant(program, f"{base}_{str(data.dtype).removeprefix('torch.')}", data)
    program.graph.replace_all_uses(op.result, value)


_CLIPS = {
    "aten.hardtanh": ("min_val", "max_val"),
    "aten.clamp": ("min", "max"),
    "aten.relu6": (0.0, 6.0),
    "aten.relu": (0.0, None),
}
"""Operator -> its bounds: attributes, or numbers."""


def _drop_clip(op: Operation) -> None:
    """q(clip(x, a, b)) = q(x), if q(a) is the least integer and q(b) the greatest: rounding is monotone.

    So a ReLU goes where the zero point is the least integer. It is no rule of the program, in which ranges are weights
    that a checkpoint may change. A runtime would drop a clip only if the range ended within the bounds, which the last
    bit of the scale decides.
    """
    source = op.operands[0]
    clip = None if source is None else source.defining_op
    scale, zero_point = (_data(each) for each in op.operands[1:3])
    if clip is None or clip.name not in _CLIPS or scale is None or zero_point is None or scale.dim():
        return
    bounds: list[Any] = [clip.attributes[each] if isinstance(each, str) else each for each in _CLIPS[clip.name]]
    if not all(bound is None or isinstance(bound, int | float) for bound in bounds):
        return
    before = clip.operand_values[0].defining_op
    if before is not None and before.opdef is DEQUANTIZE:
        return  # ONNX Runtime makes one quantization of two that follow each other
    low, high = integer_range(op.attributes["dtype"], op.attributes["quant_min"], op.attributes["quant_max"])
    keywords = {"dtype": op.attributes["dtype"], "quant_min": low, "quant_max": high}
    ends = [None if b is None else int(quantize(torch.tensor(float(b)), scale, zero_point, **keywords)) for b in bounds]
    if ends[0] in (None, low) and ends[1] in (None, high):
        op.set_operand(0, clip.operands[0])


def _constant(program: Program, name: str, data: torch.Tensor) -> Value:
    data = data.detach().contiguous()
    weight = Weight(program.unique_weight_name(name), WeightKind.CONSTANT, type_of_tensor(data), data, is_folded=True)
    return program.add_weight(weight)


def _layer_of(op: Operation) -> _Layer | None:
    if not (op.opdef.has(Trait.CONV) or _is_transposed(op) or op.name == "aten.linear"):
        return None
    value = op.operands[1]
    dequantize = None if value is None else value.defining_op
    if dequantize is None or dequantize.opdef is not DEQUANTIZE:
        return None
    integers, scale, zero_point = (_data(each) for each in dequantize.operands)
    source = weight_of(dequantize.operands[0])
    if integers is None or scale is None or zero_point is None or source is None or bool(zero_point.any()):
        return None
    name = source.name.rpartition("_")[0]
    return _Layer(op, dequantize, integers, scale, dequantize.attributes["axis"], name)


def _data(value: Value | None) -> torch.Tensor | None:
    return None if value is None else data_of(value)


def _insert(program: Program, before: Operation, name: Any, *operands: Any, **attributes: Any) -> Operation:
    opdef = get_opdef(name) if isinstance(name, str) else name
    op = make_operation(opdef, *operands, location=before.location, **attributes)
    return program.graph.insert_before(before, op)


def _dequantized(program: Program, layer: _Layer, integers: torch.Tensor, scale: torch.Tensor, axis: int) -> Value:
    """Insert the dequantization of other integers in the place of a layer's weight."""
    kind = str(integers.dtype).removeprefix("torch.")
    values = (
        _constant(program, f"{layer.name}_{kind}", integers),
        _constant(program, f"{layer.name}_scale", scale),
        _constant(program, f"{layer.name}_zero_point", torch.zeros(scale.shape, dtype=integers.dtype)),
    )
    axes = None if scale.dim() == 0 else axis
    return _insert(program, layer.op, DEQUANTIZE, *values, axis=axes, dtype=layer.dequantize.attributes["dtype"]).result


def _replaced(program: Program, op: Operation, weight: Value | None, bias: Value | None) -> Operation:
    """Replace a layer by one with another weight and bias."""
    new = Operation(
        op.opdef,
        (op.operands[0], weight, bias, *op.operands[3:]),
        dict(op.attributes),
        [op.result.type],
        location=op.location,
        segments=op.segments,
        names=[op.result.name],
    )
    program.graph.insert_before(op, new)
    program.graph.replace_all_uses(op.result, new.result)
    program.graph.erase(op)
    return new


def _fold_batch_norm(program: Program, layer: _Layer) -> _Layer:
    """batch_norm(conv(x, s·q, b)) = conv(x, (s·|k|)·(±q), (b - mean)·k + beta), k = gamma / sqrt(var + eps).

    The layer may also be a transposed convolution, or a linear one on rows.
    """
    users = layer.op.result.users
    if len(users) != 1 or users[0].name != "aten.batch_norm" or users[0].attributes["training"]:
        return layer
    norm = users[0]
    axis = 1 if _is_transposed(layer.op) else 0
    if layer.axis not in (None, axis) or (axis == 1 and layer.op.attributes.get("groups", 1) != 1):
        return layer
    gamma, beta, mean, variance, bias = (
        None if value is None else _wide(value) for value in (*norm.operands[1:5], layer.op.operands[2])
    )
    if mean is None or variance is None:
        return layer
    factor = torch.rsqrt(variance + norm.attributes["eps"]) * (1 if gamma is None else gamma)
    shift = ((0 if bias is None else bias) - mean) * factor + (0 if beta is None else beta)
    shape = [1] * layer.integers.dim()
    shape[axis] = -1
    # a channel of the factor 0 keeps its scale and loses its integers: a scale of 0 has no inverse
    scale = torch.where(factor == 0, 1.0, factor.abs()) * layer.scale.double()
    wide = layer.integers.to(torch.int32) * torch.sign(factor).to(torch.int32).reshape(shape)
    limits = torch.iinfo(layer.integers.dtype)
    if bool((wide > limits.max).any()) or not bool(scale.float().isfinite().all()):
        return layer  # -128 has no counterpart
    integers = wide.to(layer.integers.dtype)
    _forget(program, layer)
    weight = _dequantized(program, layer, integers, scale.float(), axis)
    name = f"{layer.name.removesuffix('weight')}bias"
    op = _replaced(program, layer.op, weight, _constant(program, name, shift.to(norm.result.tensor_type.dtype)))
    program.graph.replace_all_uses(norm.result, op.result)
    program.graph.erase(norm)
    made = weight.defining_op
    assert made is not None
    return attrs.evolve(layer, op=op, dequantize=made, integers=integers, scale=scale.float(), axis=axis)


def _forget(program: Program, layer: _Layer) -> None:
    """Drop the integers of a layer, which are about to be replaced, unless others use them."""
    source = weight_of(layer.dequantize.operands[0])
    users = layer.dequantize.result.users
    if source is not None and source.value.users == (layer.dequantize,) and users == (layer.op,):
        del program.weights[source.name]


def _wide(value: Value) -> torch.Tensor | None:
    data = _data(value)
    return None if data is None else data.double()


def _may_vanish(op: Operation) -> bool:
    """Whether a runtime may drop an operation between a layer and a quantization, or fold it into the layer."""
    return op.opdef.has(Trait.ACTIVATION) or op.name == "aten.batch_norm"


def _is_transposed(op: Operation) -> bool:
    return op.opdef.has(Trait.CONV_TRANSPOSE)


def _is_on_rows(op: Operation) -> bool:
    """Whether it is a linear layer with a result of rank 2: one product of matrices, which takes a bias."""
    return op.name == "aten.linear" and op.result.tensor_type.rank == 2


def _input_scale(op: Operation) -> torch.Tensor | None:
    """Return the scale of a layer's input, if that is dequantized integers with one scale."""
    value = op.operands[0]
    made = None if value is None else value.defining_op
    if made is None or made.opdef is not DEQUANTIZE or made.attributes["axis"] is not None:
        return None
    return _data(made.operands[1])


def _quantize_bias(program: Program, layer: _Layer) -> None:
    bias, op = layer.op.operands[2], layer.op
    if bias is None:
        return
    integers = _integer_bias(program, layer, op)
    if integers is not None:
        op.set_operand(2, integers)
    elif _input_scale(op) is not None and _data(bias) is not None:
        _add_behind(program, op, layer.name)


def _integer_bias(program: Program, layer: _Layer, before: Operation) -> Value | None:
    """Insert the bias as integers with the scale of the sums; None where there is no such scale, or 32 bits are few."""
    given, bias = _input_scale(layer.op), layer.op.operands[2]
    data = None if bias is None else _data(bias)
    if given is None or data is None or data.dtype != torch.float32:
        return None
    scale = (given * layer.scale).expand(data.shape).contiguous()
    exact = torch.round(data.double() / scale.double())
    if not bool((exact.abs() <= _MAX_BIAS).all()):
        return None
    name = f"{layer.name.removesuffix('weight')}bias"
    values = (
        _constant(program, f"{name}_int32", exact.to(torch.int32)),
        _constant(program, f"{name}_scale", scale),
        _constant(program, f"{name}_zero_point", torch.zeros(scale.shape, dtype=torch.int32)),
    )
    return _insert(program, before, DEQUANTIZE, *values, axis=0).result


def _add_behind(program: Program, op: Operation, name: str) -> None:
    """Add the bias of a layer behind it, or zeros where it has none."""
    bias = op.operands[2]
    data = None if bias is None else _data(bias)
    rank = op.result.tensor_type.rank or 0
    channels = op.result.tensor_type.shape[1] if op.name != "aten.linear" and op.result.tensor_type.shape else 1
    data = torch.zeros(int(channels or 1)) if data is None else data
    new = _replaced(program, op, op.operands[1], None)
    shaped = data if op.name == "aten.linear" else data.reshape(-1, *[1] * (rank - 2))
    anchor = new.next
    assert anchor is not None
    value = _constant(program, f"{name.removesuffix('weight')}bias", shaped)
    total = _insert(program, anchor, "aten.add.Tensor", new.result, value)
    program.graph.replace_all_uses(new.result, total.result)
    total.set_operand(0, new.result)


def _keep_float(program: Program, op: Operation) -> None:
    """Put a sum behind a layer with a float weight between integers.

    ONNX Runtime quantizes the weight of such a layer by itself where a quantization follows.
    """
    weight = weight_of(op.operands[1])
    if weight is None or _input_scale(op) is None or weight.type.dtype != torch.float32:
        return
    value = op.result
    while len(value.users) == 1 and _may_vanish(value.users[0]):
        value = value.users[0].result
    if any(user.opdef is QUANTIZE for user in value.users):
        _add_behind(program, op, weight.name)


def _as_product(program: Program, layer: _Layer) -> None:
    """linear(x, w, b) = matmul(x, wᵀ) + b: the transposed integers are stored, so that nothing is between them and
    the product."""
    op, bias = layer.op, layer.op.operands[2]
    _forget(program, layer)
    weight = _dequantized(program, layer, layer.integers.t().contiguous(), layer.scale, 1 - (layer.axis or 0))
    new = _insert(program, op, "aten.matmul.default", op.operands[0], weight).result
    if bias is not None:
        integers = _integer_bias(program, layer, op)
        new = _insert(program, op, "aten.add.Tensor", new, bias if integers is None else integers).result
    program.graph.replace_all_uses(op.result, new)
    program.graph.erase(op)


def _sweep(program: Program) -> None:
    """Erase what nothing uses any more."""
    for op in reversed(list(program.graph.operations())):
        if op.is_pure and all(result.is_unused for result in op.results):
            program.graph.erase(op)
