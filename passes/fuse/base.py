"""What all fusions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from ir.core import Operation, Value
from ir.errors import PatternError
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.region_names import check_inputs, check_kind, check_parts
from passes.rewrite.rewriter import Rewriter

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
    """A pattern whose matched operations become one region; captures name the parts and the inputs.

    A subclass that names what cannot be named so is refused when it is declared, with a `PatternError`.
    """

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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        given = vars(cls)
        try:
            if "kind" in given:
                check_kind(cls.kind)
            check_parts(given.get("parts", ()))
            for what in ("inputs", "quantization_points"):
                check_inputs(given.get(what, ()), what.replace("_", " "))
        except PatternError as error:
            raise PatternError(f"the fusion {cls.__qualname__}: {error.message}", remedy=error.remedy) from error

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        """Move the matched operations into a region."""
        b.fuse(
            self.kind,
            m.ops,
            parts={m[part]: part for part in self.parts if isinstance(m.get(part), Operation)},
            inputs=_by_value(self.inputs, m),
            quantization_points=self.quantization_points,
        )


def _by_value(names: Sequence[str], m: Match) -> dict[Value, list[str]]:
    by_value: dict[Value, list[str]] = {}
    for name in names:
        if m.get(name) is not None:
            by_value.setdefault(m[name], []).append(name)
    return by_value


def activation(p: PatternBuilder, x: Node) -> Node:
    """Return a pattern for one of the fused activations of `x`, captured as `act`."""
    return p.op(FUSED_ACTIVATIONS, x, name="act")
