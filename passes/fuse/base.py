"""What all fusions share."""

from __future__ import annotations

from typing import ClassVar

from ir.core import Operation
from passes.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewriter import Rewriter

FUSED_ACTIVATIONS = (
    "aten.relu",
    "aten.relu6",
    "aten.leaky_relu",
    "aten.elu",
    "aten.gelu",
    "aten.silu",
    "aten.hardswish",
    "aten.hardsigmoid",
    "aten.sigmoid",
    "aten.tanh",
    "aten.mish",
    "aten.prelu",
)
"""The activations that targets fuse behind a convolution or a linear layer."""


class FusionPattern(Pattern):
    """A pattern whose matched operations become one region; captures name the parts and the inputs."""

    is_fusion = True
    closed = True
    exact = True
    kind: ClassVar[str]
    """The region's kind: its operation is `fused.<kind>`."""
    parts: ClassVar[tuple[str, ...]]
    """Captured operations that become children of the emitted module, under their capture names."""
    inputs: ClassVar[tuple[str, ...]] = ("input",)
    """Captured values that are the region's data operands."""
    quantization_points: ClassVar[tuple[str, ...]] = ("input",)

    def rewrite(self, m: Match, b: Rewriter) -> None:
        """Move the matched operations into a region."""
        b.fuse(
            self.kind,
            m.ops,
            parts={m[part]: part for part in self.parts if isinstance(m.get(part), Operation)},
            inputs={m[name]: name for name in self.inputs if m.get(name) is not None},
            quantization_points=self.quantization_points,
        )


def activation(p: PatternBuilder, x: Node) -> Node:
    """Return a pattern for one of the fused activations of `x`, captured as `act`."""
    return p.op(FUSED_ACTIVATIONS, x, name="act")
