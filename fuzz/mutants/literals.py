"""A rule that shows what literals in patterns mean: what `has_value` says is held to the operators."""

from __future__ import annotations

from typing_extensions import override

from ir.attributes import Attribute, attributes_equal
from ir.core import Operation
from passes.rewrite.example import Example
from passes.rewrite.pattern import AnyOf, Match, OpNode, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_RESHAPED = Example("graph(%x : f32[n, 2, c]) { %y = aten.reshape(%x) {shape=[2, n*c]} return %y }")
_EXPANDED = Example("graph(%x : f32[n, 1]) { %y = aten.expand(%x) {size=[n, 3]} return %y }")
_SELECTED = Example("graph(%x : f32[n, c]) { %y = aten.select.int(%x) {dim=1, index=c - 1} return %y }")
_JOINED = Example("""
    graph(%x : f32[n, c], %y : f32[n, c], %u : f32[0]) {
      %z = aten.cat([%x, %y]) {dim=1}
      %v = aten.cat([%u, %z, %z]) {dim=0}
      return %v
    }
""")
"""An empty vector goes with any rank: the literal says nothing of the second one."""
_CONTRACTED = Example("""
    graph(%x : f32[n, c], %y : f32[m, k, c]) {
      %z = aten.tensordot(%x, %y) {dims_self=[1], dims_other=[2]}
      return %z
    }
""")
"""The literal counts dimensions of the second operand."""
_STACKED = Example("graph(%x : f32[n, c], %y : f32[n, c]) { %z = aten.stack([%x, %y]) {dim=2} return %z }")
_POOLED = Example("graph(%x : f32[n, 4, 4]) { %y = aten.max_pool2d(%x) {kernel_size=[2, 2], stride=[2, 2]} return %y }")


class WriteLiterals(Pattern):
    """reshape(x, s) = reshape(x, (2, -1)), where s means the same for x; likewise for other operators"""

    exact = True

    examples = (
        _RESHAPED,
        _RESHAPED.changed(("[2, n*c]", "[2, -1]"), refused="written so"),
        _EXPANDED,
        _EXPANDED.changed(("[n, 1]", "[1, 1]"), refused="size of"),
        _SELECTED,
        _SELECTED.changed(("c - 1", "0"), refused="index of"),
        _JOINED,
        _CONTRACTED,
        _CONTRACTED.changed(("dims_other=[2]", "dims_other=[1]"), ("k, c]", "c, k]"), refused="dims_other of"),
        _STACKED,
        _STACKED.changed(("dim=2", "dim=1"), refused="dim of"),
        Example("graph(%x : f32[n, c, h]) { %y = aten.mean.dim(%x) {dim=[2, 1]} return %y }"),
        _POOLED,
        _POOLED.changed(("stride=[2, 2]", "stride=[1, 1]"), refused="stride of"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> AnyOf:
        return p.one_of(
            p.reshape(p.any("x"), shape=(2, -1)),
            p.expand(p.any("x"), size=(-1, 3)),
            p.op("aten.select.int", p.any("x"), index=-1),
            p.op("aten.cat", dim=-1),
            p.op("aten.stack", dim=-1),
            p.op("aten.tensordot", dims_other=(-1,)),
            p.op("aten.mean.dim", p.any("x"), dim=(-1, 1)),
            p.op("aten.max_pool2d", p.any("x"), stride=()),
        )

    @override
    def check(self, m: Match) -> str | None:
        """Demand another spelling."""
        name, literal = self._literal(m.root)
        return "the literal is written so" if attributes_equal(m.root.attributes[name], literal) else None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        b.set_attribute(m.root, *self._literal(m.root))

    def _literal(self, op: Operation) -> tuple[str, Attribute]:
        nodes = [node for node in self.pattern(PatternBuilder()).alternatives if isinstance(node, OpNode)]
        node = next(node for node in nodes if isinstance(node.ops, tuple) and op.opdef in node.ops)
        return node.attributes[0]
