"""Fusions around a convolution: batch norm, activation, residual addition, max pooling."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from ir.opdef import Trait
from ir.types import TensorType
from passes.fuse.base import CLIPPING_ACTIVATIONS, FusionPattern, activation, unlike_operand
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder


def conv_bn(p: PatternBuilder) -> Node:
    """Return a pattern for a 1-d, 2-d or 3-d convolution with an optional batch norm behind it."""
    conv = p.op(Trait.CONV, p.any("input"), name="conv")
    return p.optional(lambda y: p.op("aten.batch_norm", y, name="bn"), conv)


class ConvBNPattern(FusionPattern):
    """[batch_norm](conv(x, w, b)) = fused.conv_bn(x, w, b, ...)"""

    kind = "conv_bn"
    parts = ("conv", "bn")

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return conv_bn(p)


class ConvBNActPattern(FusionPattern):
    """act([batch_norm](conv(x, w, b))) = fused.conv_bn_act(x, w, b, ...)"""

    kind = "conv_bn_act"
    parts = ("conv", "bn", "act")

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return activation(p, conv_bn(p), self.activations)


class ConvBNReluPattern(ConvBNActPattern):
    """relu([batch_norm](conv(x, w, b))) = fused.conv_bn_act(x, w, b, ...), also with relu6"""

    activations = CLIPPING_ACTIVATIONS


class ConvTransposeBNPattern(FusionPattern):
    """batch_norm(conv_transpose(x, w, b)) = fused.conv_transpose_bn(x, w, b, ...)

    Without a norm, as in eval mode where that is folded, a transposed convolution stays as it is.
    """

    kind = "conv_transpose_bn"
    parts: ClassVar[tuple[str, ...]] = ("conv", "bn")

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.batch_norm", p.op(Trait.CONV_TRANSPOSE, p.any("input"), name="conv"), name="bn")


class ConvTransposeBNActPattern(ConvTransposeBNPattern):
    """act(batch_norm(conv_transpose(x, w, b))) = fused.conv_transpose_bn_act(x, w, b, ...)"""

    kind = "conv_transpose_bn_act"
    parts = ("conv", "bn", "act")

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return activation(p, super().pattern(p), self.activations)


_RESIDUAL = Example("""
    parameter %w : f32[o, c, 3, 3]
    buffer %mean : f32[o]
    buffer %var : f32[o]
    graph(%x : f32[n, c, h, 2], %r : f32[n, o, h, 2]) {
      %y = aten.conv2d(%x, %w, None) {padding=[1, 1]}
      %bn = aten.batch_norm(%y, None, None, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True}
      %sum = aten.add.Tensor(%bn, %r)
      %z = aten.relu(%sum)
      return %z
    }
""")
_PLAIN_RESIDUAL = Example("""
    parameter %w : f32[o, c, 1]
    parameter %b : f32[o]
    graph(%x : f32[n, c, h], %r : f32[n, o, h]) {
      %y = aten.conv1d(%x, %w, %b)
      %sum = aten.add.Tensor(%r, %y)
      return %sum
    }
""")


class ConvBNAddActPattern(FusionPattern):
    """[act](add([batch_norm](conv(x, w, b)), r)) = fused.conv_bn_add_act(x, r, w, b, ...), in either operand order

    The residual must have the shape of the sum: a broadcast one is left alone.
    """

    kind = "conv_bn_add_act"
    parts = ("conv", "bn", "act")
    inputs = ("input", "residual")
    quantization_points = ("input", "residual")

    examples = (
        _RESIDUAL,
        _PLAIN_RESIDUAL,
        _PLAIN_RESIDUAL.changed(("f32[n, o, h]", "f32[o, 1]"), refused="is broadcast"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        added = p.op("aten.add.Tensor", conv_bn(p), p.any("residual"), name="add", alpha=1)
        return p.optional(lambda y: activation(p, y), added)

    @override
    def check(self, m: Match) -> str | None:
        """Refuse a residual that is the convolution itself or, where types are known, is broadcast or promoted."""
        if m.residual.defining_op in m.ops:
            return "both operands of the addition come from the convolution"
        return unlike_operand(m.add)


_STEM = Example("""
    parameter %w : f32[2*o, 3, 7, 7]
    buffer %mean : f32[2*o]
    buffer %var : f32[2*o]
    graph(%x : f32[n, 3, 8, 7]) {
      %y = aten.conv2d(%x, %w, None) {stride=[2, 2], padding=[3, 3]}
      %bn = aten.batch_norm(%y, None, None, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True}
      %act = aten.relu(%bn)
      %z = aten.max_pool2d(%act) {kernel_size=[3, 3], stride=[2, 2], padding=[1, 1]}
      return %z
    }
""")
_BARE_STEM = Example("""
    parameter %w : f32[o, 3, 7, 7]
    graph(%x : f32[n, 3, 8, 7]) {
      %y = aten.conv2d(%x, %w, None) {stride=[2, 2], padding=[3, 3]}
      %act = aten.relu(%y)
      %z = aten.max_pool2d(%act) {kernel_size=[3, 3], stride=[2, 2], padding=[1, 1]}
      return %z
    }
""")


class StemConvBNActMaxPoolPattern(FusionPattern):
    """max_pool2d(act([batch_norm](conv(x, w, b)))) = fused.conv_bn_act_max_pool(x, w, b, ...), w: f[out, 3, 7, 7]"""

    kind = "conv_bn_act_max_pool"
    parts = ("conv", "bn", "act", "pool")

    examples = (_STEM, _BARE_STEM, _STEM.changed(("7, 7]\n", "5, 7]\n"), refused="is not 7x7 on 3 channels"))

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.max_pool2d", activation(p, conv_bn(p)), name="pool")

    @override
    def check(self, m: Match) -> str | None:
        """Demand the stem's weight: 7x7 on 3 channels."""
        weight = m.conv.input("weight").type
        shape = weight.shape if isinstance(weight, TensorType) else None
        if shape is None or len(shape) != 4 or shape[1:] != (3, 7, 7) or m.conv.attributes["groups"] != 1:
            return f"the convolution at `{m.conv.location.where}` with weight {weight} is not 7x7 on 3 channels"
        return None
