"""Fusions of linear layers, normalization and pooling."""

from __future__ import annotations

from typing_extensions import override

from passes.fuse.base import CLIPPING_ACTIVATIONS, FusionPattern, activation, unlike_operand
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder


class LinearPattern(FusionPattern):
    """linear(x, w, b) = fused.linear(x, w, b)"""

    kind = "linear"
    parts = ("linear",)

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.linear(p.any("input"), name="linear")


class LinearActPattern(FusionPattern):
    """act(linear(x, w, b)) = fused.linear_act(x, w, b)"""

    kind = "linear_act"
    parts = ("linear", "act")

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return activation(p, p.linear(p.any("input"), name="linear"), self.activations)


class LinearReluPattern(LinearActPattern):
    """relu(linear(x, w, b)) = fused.linear_act(x, w, b), also with relu6"""

    activations = CLIPPING_ACTIVATIONS


_SUM = Example("""
    graph(%x : f32[n, c, 2], %y : f32[n, c, 2]) {
      %sum = aten.add.Tensor(%x, %y)
      %z = aten.relu(%sum)
      return %z
    }
""")


class AddReluPattern(FusionPattern):
    """relu(add(x, y)) = fused.add_act(x, y), also with relu6; the operands have the shape and dtype of the sum"""

    kind = "add_act"
    parts = ("act",)
    inputs = ("input", "other")
    quantization_points = ("input", "other")
    activations = CLIPPING_ACTIVATIONS

    examples = (_SUM, _SUM.changed(("%y : f32[n, c, 2]", "%y : f32[c, 1]"), refused="is broadcast"))

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        added = p.op("aten.add.Tensor", p.any("input"), p.any("other"), name="add", alpha=1)
        return activation(p, added, self.activations)

    @override
    def check(self, m: Match) -> str | None:
        """Refuse an operand that, where types are known, is broadcast or promoted."""
        return unlike_operand(m.add)


class LayerNormPattern(FusionPattern):
    """layer_norm(x, w, b) = fused.layer_norm(x, w, b)"""

    kind = "layer_norm"
    parts = ("norm",)
    quantization_points = ()  # ViT-B in int8: 5.6 dB with them, 27.1 without

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.layer_norm(p.any("input"), name="norm")


class AdaptiveAvgPoolPattern(FusionPattern):
    """adaptive_avg_pool2d(x) = fused.adaptive_avg_pool2d(x)"""

    kind = "adaptive_avg_pool2d"
    parts = ("pool",)

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.adaptive_avg_pool2d(p.any("input"), name="pool")
