"""Pooling that changes nothing is removed."""

from __future__ import annotations

from typing_extensions import override

from ir.attributes import Ref
from ir.core import Value
from ir.memory.aliasing import may_replace, reaches_output, reaches_view
from ir.memory.strides import has_standard_format
from ir.types import dims_equal
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter


def _seen_by_callers(m: Match, where: str) -> str | None:
    if not may_replace(m.pool.result, m.x):
        return f"without {where}, an output would share storage with an input, a weight or another output"
    if reaches_output(m.pool.result) and not has_standard_format(m.x, trust_inputs=True):
        return f"without {where}, an output may have other strides: those of {m.x.type} are not known"
    if reaches_view(m.pool.result) and not has_standard_format(m.x):
        return f"without {where}, a view may not fit the strides of {m.x.type}"
    return None


_POOLED = Example("""
    graph(%x : f32[n, c, h, w]) {
      %y = aten.relu(%x)
      %pool = aten.adaptive_avg_pool2d(%y) {output_size=[h, w]}
      %z = aten.neg(%pool)
      return %z
    }
""")


class RemoveIdentityAdaptiveAvgPoolPattern(Pattern):
    """adaptive_avg_pool2d(x, (H, W)) = x, x: f[N, C, H, W]

    Equal up to the sign of zero: the pool adds each element to +0.0. Strides stay as long as the model's inputs are
    contiguous or channels_last.
    """

    is_conversion = True

    examples = (
        _POOLED,
        _POOLED.changed(("return %z", "return %pool")),
        _POOLED.changed(
            ("%pool =", "%kept = aten.dropout(%y) {p=0.5, train=False} %pool ="),
            ("pool2d(%y)", "pool2d(%kept)"),
            ("return %z", "return %pool"),
        ),
        _POOLED.changed(("size=[h, w]", "size=[h, 1]"), refused="pools f32"),
        _POOLED.changed(refused="height and width are unknown", unknown="all"),
        _POOLED.changed(("return %z", "return %pool, %y"), refused="an output would share storage"),
        _POOLED.changed(
            ("%pool =", "%turned = aten.permute(%y) {dims=[0, 1, 3, 2]} %pool ="),
            ("pool2d(%y) {output_size=[h, w]}", "pool2d(%turned) {output_size=[w, h]}"),
            ("return %z", "return %pool"),
            refused="an output may have other strides",
        ),
        _POOLED.changed(
            ("%pool =", "%turned = aten.permute(%y) {dims=[0, 1, 3, 2]} %pool ="),
            ("pool2d(%y) {output_size=[h, w]}", "pool2d(%turned) {output_size=[w, h]}"),
            ("%z = aten.neg(%pool)", "%flat = aten.view(%pool) {size=[n*c, w*h]} %z = aten.linear(%flat, %flat, None)"),
            refused="a view may not fit the strides",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.adaptive_avg_pool2d(p.any("x"), output_size=p.attr("size"), name="pool")

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand an output size that is provably the input's."""
        where = f"adaptive_avg_pool2d at `{m.pool.location.where}`"
        type_ = m.x.tensor_type
        sizes = None if type_.shape is None else type_.shape[-2:]
        if sizes is None or None in sizes:
            return Refusal(f"{where}: its input's height and width are unknown", warn=True)
        if any(isinstance(size, Ref) for size in m.size):
            return f"{where} pools to a size that the program computes"
        if not all(map(dims_equal, sizes, m.size)):
            return f"{where} pools {type_} to {m.size[0]} x {m.size[1]}"
        return _seen_by_callers(m, where)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        x: Value = m.x
        return x
