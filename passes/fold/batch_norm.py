"""Batch norm in eval mode is folded into the weights of the convolution or linear before it: for inference only."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import Program, weight_of
from ir.types import TensorType, shapes_equal
from passes.manager.manager import Pass, PassContext
from passes.rewrite.driver import run_worklist
from passes.rewrite.example import Example
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


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
_LINEAR = _CONVOLUTION.changed(
    (", 2, 3]", "]"),
    (", 3, 3]", "]"),
    ("conv2d(%x, %conv.weight, %conv.bias)", "linear(%x, %conv.weight, None)"),
    ("%gamma, %beta", "None, None"),
)


class FoldBatchNormPattern(Pattern):
    """batch_norm(conv(x, w, b)) = conv(x, w·s, (b - mean)·s + beta), s = gamma / sqrt(var + eps) by output channel

    w: f[out, in, ...], all others f[out]; as in `torch.nn.utils.fusion.fuse_conv_bn_weights`. The new weights are
    computed in float64, and are not trained. Also behind a linear layer with a result of rank 2, whose channels
    are the last dimension as well as dimension 1.
    """

    closed = True
    is_for_inference = True

    examples = (
        _CONVOLUTION,
        _CONVOLUTION.changed(("f32", "f16")),
        _LINEAR,
        _CONVOLUTION.changed(("%mean : f32[o]", "%mean : f32[o] mutated"), refused="is mutated by the model"),
        _CONVOLUTION.changed(
            ("graph(%x :", "graph(%w : f32[o, c, 2, 3], %x :"),
            ("conv2d(%x, %conv.weight", "conv2d(%x, %w"),
            refused="is computed, not a weight",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        layer = p.one_of(
            p.op(Trait.CONV, p.any("x"), p.any("w"), p.any("b", optional=True), name="layer"),
            p.linear(p.any("x"), p.any("w"), p.any("b", optional=True), name="layer"),
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
        if not isinstance(result, TensorType) or result.rank is None or result.rank != rank:
            # a linear on more than rows, a convolution without a batch
            return f"{where} has its channels in dimension 1 of {result}, where {m.layer.name} need not have its own"
        channels = m.w.tensor_type.shape[0] if m.w.tensor_type.shape else None
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
        return b.insert(new).result


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
    shaped = b.reshape(scale, (-1, *[1] * (rank - 1)))
    new_weight = b.call("aten.to.dtype", b.mul(wide(weight), shaped), dtype)
    shift = b.neg(wide(mean)) if m.b is None else b.sub(wide(m.b), wide(mean))
    new_bias = b.mul(shift, scale)
    if beta is not None:
        new_bias = b.add(new_bias, wide(beta))
    source = weight_of(weight)
    assert source is not None
    new_bias = b.call("aten.to.dtype", new_bias, dtype)
    bias_name = f"{source.name.removesuffix('weight')}bias"
    return b.weight(new_weight, source.name, inference=True), b.weight(new_bias, bias_name, inference=True)


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
