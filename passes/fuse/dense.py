"""Fusions of linear layers, normalization and pooling."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from ir.types import TensorType, dims_equal
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


_ROWS = Example("""
    parameter %w : f32[o, c]
    buffer %mean : f32[o]
    buffer %var : f32[o]
    graph(%x : f32[n, c]) {
      %y = aten.linear(%x, %w, None)
      %bn = aten.batch_norm(%y, None, None, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True}
      return %bn
    }
""")


class LinearBNPattern(FusionPattern):
    """batch_norm(linear(x, w, b)) = fused.linear_bn(x, w, b, ...), x: f[N, C]

    Of more dimensions, the norm is of another one than the features of the linear layer.
    """

    kind = "linear_bn"
    parts: ClassVar[tuple[str, ...]] = ("linear", "bn")

    examples = (_ROWS, _ROWS.changed(("%x : f32[n, c]", "%x : f32[n, o, c]"), refused="not rows of features"))

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.batch_norm", p.linear(p.any("input"), name="linear"), name="bn")

    @override
    def check(self, m: Match) -> str | None:
        """Demand rows of features."""
        type_ = m.linear.result.type
        if isinstance(type_, TensorType) and type_.rank == 2:
            return None
        return f"the result of the linear at `{m.linear.location.where}` is {type_}, not rows of features"


class LinearBNActPattern(LinearBNPattern):
    """act(batch_norm(linear(x, w, b))) = fused.linear_bn_act(x, w, b, ...), x: f[N, C]"""

    kind = "linear_bn_act"
    parts = ("linear", "bn", "act")

    examples = (
        _ROWS.changed(("return %bn", "%z = aten.relu(%bn) return %z")),
        _ROWS.changed(
            ("%x : f32[n, c]", "%x : f32[n, o, c]"),
            ("return %bn", "%z = aten.relu(%bn) return %z"),
            refused="not rows of features",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return activation(p, super().pattern(p), self.activations)


class LinearBNReluPattern(LinearBNActPattern):
    """relu(batch_norm(linear(x, w, b))) = fused.linear_bn_act(x, w, b, ...), also with relu6"""

    activations = CLIPPING_ACTIVATIONS


_GATED = Example("""
    parameter %g : f32[d, c]
    parameter %u : f32[d, c]
    graph(%x : f32[n, t, c]) {
      %a = aten.linear(%x, %g, None)
      %s = aten.silu(%a)
      %b = aten.linear(%x, %u, None)
      %y = aten.mul.Tensor(%s, %b)
      return %y
    }
""")
_PACKED = Example("""
    parameter %w : f32[2*d, c]
    parameter %v : f32[2*d]
    graph(%x : f32[n, t, c]) {
      %y = aten.linear(%x, %w, %v)
      %a, %b = aten.split_with_sizes(%y) {split_sizes=[d, d], dim=2}
      %s = aten.silu(%a)
      %z = aten.mul.Tensor(%s, %b)
      return %z
    }
""")
_GATES = ("aten.silu", "aten.gelu", "aten.relu", "aten.sigmoid")


class GatedLinearPattern(FusionPattern):
    """act(linear(x, w, b)) * linear(x, u, c) = fused.gated_linear(x, w, b, u, c): SwiGLU, GEGLU, ReGLU, GLU

    Also with one linear whose result is split in two over its features, the gate first or last.
    """

    kind = "gated_linear"
    parts = ("gate", "act", "up", "gate_up")

    examples = (
        _GATED,
        _GATED.changed(("silu", "gelu"), ("%s, %b", "%b, %s")),
        _PACKED,
        _PACKED.changed(("silu(%a)", "sigmoid(%b)"), ("%s, %b", "%a, %s")),
        _PACKED.changed(("f32[n, t, c]", "f32[n, 2*d, c]"), ("dim=2", "dim=1"), refused="not split over its features"),
        _PACKED.changed(("2*d", "d + 1"), ("[d, d]", "[1, d]"), refused="not split over its features"),
        _PACKED.changed(
            ("%z = ", "%p, %q = aten.split_with_sizes(%y) {split_sizes=[d, d], dim=2} %z = "),
            ("%s, %b", "%s, %q"),
            refused="is split twice",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        gate, up = p.linear(p.any("input"), name="gate"), p.linear(p.any("input"), name="up")
        joint = p.linear(p.any("input"), name="gate_up")
        halves = [p.op("aten.split_with_sizes", joint, name=f"half{i}", result=i) for i in range(2)]
        return p.one_of(
            p.mul(p.op(_GATES, gate, name="act"), up),
            p.mul(p.op(_GATES, halves[0], name="act"), halves[1]),
            p.mul(halves[0], p.op(_GATES, halves[1], name="act")),
        )

    @override
    def check(self, m: Match) -> str | None:
        """Demand two linears, or the halves of one."""
        if m.get("gate_up") is None:
            return None if m.gate is not m.up else "the gate and what it is for are one"
        if m.half0 is not m.half1:
            return f"the linear at `{m.gate_up.location.where}` is split twice"
        rank = m.gate_up.result.tensor_type.rank
        sizes = m.half0.attributes["split_sizes"]
        is_halved = len(sizes) == 2 and dims_equal(sizes[0], sizes[1])  # others may broadcast
        if rank is None or m.half0.attributes["dim"] % rank != rank - 1 or not is_halved:
            return f"the result of the linear at `{m.gate_up.location.where}` is not split over its features in two"
        return None


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
