"""Fusions of linear layers, normalization and pooling."""

from __future__ import annotations

from typing_extensions import override

from passes.fuse.base import FusionPattern, activation
from passes.rewrite.pattern import Node, PatternBuilder


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
        return activation(p, p.linear(p.any("input"), name="linear"))


class LayerNormPattern(FusionPattern):
    """layer_norm(x, w, b) = fused.layer_norm(x, w, b)"""

    kind = "layer_norm"
    parts = ("norm",)

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
