"""What all fusions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from ir.core import Operation, Value
from ir.errors import PatternError
from ir.types import TensorType, shapes_equal
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

CLIPPING_ACTIVATIONS = ("aten.relu", "aten.relu6")
"""Those that only cut the range: an unsigned quantizer behind them does it as well."""


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
    activations: ClassVar[tuple[str, ...]] = FUSED_ACTIVATIONS
    """The activations that it takes in, where it takes in one."""

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


def unlike_operand(add: Operation) -> str | None:
    """Return which operand of a sum is, where types are known, broadcast or promoted; None where none is."""
    sum_ = add.result.type
    for value in add.operand_values:
        type_ = value.type
        if not (isinstance(type_, TensorType) and isinstance(sum_, TensorType) and type_.is_known and sum_.is_known):
            continue
        if not shapes_equal(type_.shape, sum_.shape):
            return f"an operand of type {type_} of the sum at `{add.location.where}` is broadcast to {sum_}"
        if type_.dtype != sum_.dtype:
            return f"an operand of type {type_} of the sum at `{add.location.where}` is promoted to {sum_}"
    return None


def _by_value(names: Sequence[str], m: Match) -> dict[Value, list[str]]:
    by_value: dict[Value, list[str]] = {}
    for name in names:
        if m.get(name) is not None:
            by_value.setdefault(m[name], []).append(name)
    return by_value


def activation(p: PatternBuilder, x: Node, operators: tuple[str, ...] = FUSED_ACTIVATIONS) -> Node:
    """Return a pattern for one of these activations of `x`, captured as `act`."""
    return p.op(operators, x, name="act")
