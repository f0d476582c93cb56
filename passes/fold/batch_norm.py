"""Batch norm in eval mode is folded into the weights of the convolution or linear before it: for inference only."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from typing_extensions import override

from ir.columns import Layout
from ir.core import Operation, Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.opdef import Trait
from ir.program import Program, weight_of
from ir.types import Dim, TensorType, dims_equal, shapes_equal, simplify_dim
from passes.manager.manager import Pass, PassContext
from passes.rewrite.driver import run_worklist
from passes.rewrite.example import Example
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_UNKNOWN_FORMAT = "it shows in an output, and its memory format depends on the sizes of the map"
_CONVOLUTION = Example("""
    parameter %conv.weight : f32[o, c, 2, 3]
    parameter %conv.bias : f32[o]
    parameter %gamma : f32[o]
    parameter %beta : f32[o]
    buffer %mean : f32[o]
    buffer %var : f32[o]
    graph(%x : f32[n, c, 3, 3]) {
      %y = aten.conv2d(%x, %conv.weight, %conv.bias)
      %z = aten.batch_norm(%y, %gamma, %beta, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True}
      return %z
    }
""")
_TRANSPOSED = _CONVOLUTION.changed(
    ("f32[o, c, 2, 3]", "f32[2*c, o, 2, 3]"),
    ("f32[o]", "f32[2*o]"),
    ("[n, c,", "[n, 2*c,"),
    ("conv2d(%x, %conv.weight, %conv.bias)", "conv_transpose2d.input(%x, %conv.weight, %conv.bias) {groups=2}"),
)
_LINEAR = _CONVOLUTION.changed(
    (", 2, 3]", "]"),
    (", 3, 3]", "]"),
    ("conv2d(%x, %conv.weight, %conv.bias)", "linear(%x, %conv.weight, None)"),
    ("%gamma, %beta", "None, None"),
)
_ROWS = _LINEAR.changed(
    ("(%x : f32[n, c]", "(%x : f32[n, t, c]"),
    ("%z = aten.batch_norm(%y", "%r = aten.reshape(%y) {shape=[n*t, o]} %z = aten.batch_norm(%r"),
)
_TURNED = _LINEAR.changed(
    ("(%x : f32[n, c]", "(%x : f32[n, t, c]"),
    ("%z = aten.batch_norm(%y", "%r = aten.permute(%y) {dims=[0, 2, 1]} %z = aten.batch_norm(%r"),
)
_TURNED_MAP = _TURNED.changed(("[n, t, c]", "[n, t, 3, c]"), ("[0, 2, 1]", "[0, 3, 1, 2]"))


class FoldBatchNormPattern(Pattern):
    """batch_norm(conv(x, w, b)) = conv(x, w·s, (b - mean)·s + beta), s = gamma / sqrt(var + eps) by output channel

    w: f[out, in, ...], all others f[out]; as in `torch.nn.utils.fusion.fuse_conv_bn_weights`. The new weights are
    computed in float64, and are not trained. Also behind a transposed convolution, w: f[in, out / groups, ...], and
    behind a linear layer whose channels are dimension 1 of what the norm reads: its result has rank 2, is reshaped to
    rows, or is permuted so.
    """

    closed = True
    is_for_inference = True

    examples = (
        _CONVOLUTION,
        _CONVOLUTION.changed(("f32", "f16")),
        _LINEAR,
        _TRANSPOSED,
        _TRANSPOSED.changed(("=2}", "=1}"), ("f32[2*o]", "f32[o]")),
        _ROWS,
        _TURNED,
        _TURNED_MAP,
        _TURNED_MAP.changed(("[0, 3, 1, 2]", "[0, 3, 2, 1]")),
        _TURNED_MAP.changed((", 3, c]", ", 1, c]"), refused="depends on the sizes"),
        _ROWS.changed(("[n*t, o]", "[n, o, t]"), refused="moves its channels"),
        _TURNED.changed(("[0, 2, 1]", "[1, 0, 2]"), ("[n, t, c]", "[o, t, c]"), refused="moves its channels"),
        _CONVOLUTION.changed(("%mean : f32[o]", "%mean : f32[o] mutated"), refused="is mutated by the model"),
        _CONVOLUTION.changed(
            ("graph(%x :", "graph(%w : f32[o, c, 2, 3], %x :"),
            ("conv2d(%x, %conv.weight", "conv2d(%x, %w"),
            refused="is computed, not a weight",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        operands = p.any("x"), p.any("w"), p.any("b", optional=True)
        linear = p.linear(*operands, name="layer")
        layer = p.one_of(
            *(p.op(trait, *operands, name="layer") for trait in (Trait.CONV, Trait.CONV_TRANSPOSE)),
            linear,
            p.op(("aten.reshape", "aten.permute"), linear, name="link"),
        )
        return p.op("aten.batch_norm", layer, name="bn", training=False)

    @override
    def check(self, m: Match) -> str | None:
        """Refuse batch statistics, operands that are not weights, and results that overflow the dtype."""
        bn: Operation = m.bn
        where = f"batch_norm at `{bn.location.where}`"
        if bn.operand("running_mean") is None or bn.operand("running_var") is None:
            return f"{where} normalizes with the statistics of the batch"
        result, rank = m.layer.result.type, m.w.tensor_type.rank
        link: Operation | None = m.get("link")
        if link is not None:
            reason = _moved_channels(m.layer, link)
            if reason is None and link.opdef.layout is Layout.PERMUTE and _shows_strides(bn):
                reason = None if _norm_copies(link) is not None else _UNKNOWN_FORMAT
            if reason is not None:
                return f"{where}: {reason}"
        elif not isinstance(result, TensorType) or result.rank is None or result.rank != rank:
            # a linear on more than rows, a convolution without a batch
            return f"{where} has its channels in dimension 1 of {result}, where {m.layer.name} need not have its own"
        channels = _channels(m)
        of_channels = (m.b, *(bn.operand(name) for name in _STATISTICS))
        for value in of_channels:
            type_ = None if value is None else value.type
            if value is not None and not (isinstance(type_, TensorType) and shapes_equal(type_.shape, (channels,))):
                # PyTorch broadcasts some that are not
                return (
                    f"{where}: {value.name or 'an operand'} is {type_}, not one number for each of {channels} channels"
                )
        for value in (m.w, *of_channels):
            if value is None:
                continue
            weight = weight_of(value)
            if weight is None:
                return f"{where}: {value.name or 'a weight'} is computed, not a weight"
            if weight.is_mutated:
                return f"{where}: {weight.name} is mutated by the model"
        return _does_not_fit(m)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        layer: Operation = m.layer
        weight, bias = _folded(b, m)
        operands = (layer.operands[0], weight, bias, *layer.operands[3:])
        new = Operation(layer.opdef, operands, dict(layer.attributes), [layer.result.type], location=layer.location)
        result = b.insert(new).result
        link: Operation | None = m.get("link")
        if link is None:
            return result
        moved = Operation(link.opdef, (result,), dict(link.attributes), [link.result.type], location=link.location)
        result = b.insert(moved).result
        if link.opdef.layout is Layout.PERMUTE and _shows_strides(m.bn) and _norm_copies(link):
            return b.op("aten.contiguous", result).result
        return result


def _channels(m: Match) -> Dim | None:
    shape = m.w.tensor_type.shape
    if not shape:
        return None
    if not m.layer.opdef.has(Trait.CONV_TRANSPOSE):
        return shape[0]
    return None if shape[1] is None else simplify_dim(shape[1] * m.layer.attributes["groups"])


def _moved_channels(layer: Operation, link: Operation) -> str | None:
    """Return why the last dimension of a linear layer's result is not dimension 1 behind a reshape or permute."""
    before, after = layer.result.known_shape, link.result.known_shape
    if len(link.operands) != 1 or before is None or after is None:
        return f"{link.name} is to a shape that is not known"
    if link.opdef.layout is Layout.PERMUTE:
        is_kept = link.attributes["dims"][1] % len(before) == len(before) - 1
    else:
        is_kept = len(after) == 2 and dims_equal(after[1], before[-1])
    return None if is_kept else f"{link.name} between the layer and the norm moves its channels"


def _shows_strides(bn: Operation) -> bool:
    return reaches_output(bn.result) or reaches_view(bn.result)


def _norm_copies(link: Operation) -> bool | None:
    """Return whether a norm makes what a permute of a contiguous tensor returns contiguous; None if that is not known.

    It keeps maps in channels_last. What looks like one depends on the sizes that are 1
    (`is_channels_last_strides_2d_s4` in c10/core/MemoryFormat.h).
    """
    shape = link.result.known_shape
    assert shape is not None
    rank = len(shape)
    if rank not in (4, 5):
        return True
    dims = tuple([dim % rank for dim in link.attributes["dims"]])
    is_channels_last = dims == (0, rank - 1, *range(1, rank - 1))
    sizes = shape[1:] if is_channels_last else shape
    return not is_channels_last if all(type(size) is int and size > 1 for size in sizes) else None


def _folded(b: Rewriter, m: Match) -> tuple[Value, Value]:
    """Insert the operations for the new weight and bias, and return their results."""
    bn: Operation = m.bn
    gamma, beta, mean, variance = (bn.operand(name) for name in _STATISTICS)
    weight: Value = m.w
    dtype = weight.tensor_type.dtype
    rank = weight.tensor_type.rank
    assert mean is not None and variance is not None and rank is not None

    def wide(value: Value) -> Value:
        result: Value = b.call("aten.to.dtype", value, torch.float64)
        return result

    scale = b.rsqrt(b.call("aten.add.Scalar", wide(variance), bn.attributes["eps"]))
    if gamma is not None:
        scale = b.mul(scale, wide(gamma))
    new_weight = b.call("aten.to.dtype", _scaled(b, wide(weight), scale, m.layer), dtype)
    shift = b.neg(wide(mean)) if m.b is None else b.sub(wide(m.b), wide(mean))
    new_bias = b.mul(shift, scale)
    if beta is not None:
        new_bias = b.add(new_bias, wide(beta))
    source = weight_of(weight)
    assert source is not None
    new_bias = b.call("aten.to.dtype", new_bias, dtype)
    bias_name = f"{source.name.removesuffix('weight')}bias"
    return b.weight(new_weight, source.name, inference=True), b.weight(new_bias, bias_name, inference=True)


def _scaled(b: Rewriter, weight: Value, scale: Value, layer: Operation) -> Value:
    """Scale a weight by output channel."""
    shape = weight.tensor_type.shape
    assert shape is not None
    result: Value
    if not layer.opdef.has(Trait.CONV_TRANSPOSE):
        result = b.mul(weight, b.reshape(scale, (-1, *[1] * (len(shape) - 1))))
        return result
    groups, kernel = layer.attributes["groups"], shape[2:]
    if groups == 1:
        result = b.mul(weight, b.reshape(scale, (1, -1, *[1] * len(kernel))))
        return result
    apart = b.reshape(weight, (groups, -1, shape[1], *kernel))
    scaled = b.mul(apart, b.reshape(scale, (groups, 1, shape[1], *[1] * len(kernel))))
    result = b.reshape(scaled, shape)
    return result


def _does_not_fit(m: Match) -> str | None:
    """Return, with numbers, why the folded weights overflow their dtype; None where they fit, or hold no data."""
    tensors: list[torch.Tensor | None] = []
    for value in (m.w, m.b, *(m.bn.operand(name) for name in _STATISTICS)):
        weight = weight_of(value)
        data = None if weight is None else weight.data
        if data is not None and data.is_meta:
            return None
        tensors.append(None if data is None else data.detach().double())
    w, bias, gamma, beta, mean, variance = tensors
    if m.w.tensor_type.dtype is not None and not m.w.tensor_type.dtype.is_floating_point:
        return f"batch_norm at `{m.bn.location.where}`: the weight is {m.w.tensor_type}, not floating point"
    if w is None or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance + m.bn.attributes["eps"])
    scale = scale if gamma is None else scale * gamma
    shift = ((0 if bias is None else bias) - mean) * scale + (0 if beta is None else beta)
    dtype = m.w.tensor_type.dtype
    where = f"batch_norm at `{m.bn.location.where}`"
    if m.layer.opdef.has(Trait.CONV_TRANSPOSE):
        groups = m.layer.attributes["groups"]
        w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    peak = (w.flatten(1).abs().amax(1) * scale.abs()).max() if w.numel() else torch.zeros(())
    for what, largest in (("weight", peak), ("bias", shift.abs().max() if shift.numel() else peak)):
        if not largest.isfinite() or float(largest) > torch.finfo(dtype).max:
            return f"{where}: the folded {what} reaches {float(largest):.4g}, beyond {dtype}"
    return None


@attrs.frozen
class FoldBatchNorm(Pass):
    """Folds batch norm into the weights before it: for inference.

    The new weights do not require gradients: training them would not train the original's parameters.
    """

    name: ClassVar[str] = "fold-batch-norm"
    is_for_inference: ClassVar[bool] = True

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the rule everywhere, to norms behind norms as well."""
        run_worklist(program, RuleIndex([FoldBatchNormPattern()]), context.log, record=True, scope=self.scope)
