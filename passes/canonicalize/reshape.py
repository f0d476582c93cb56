"""One reshape: every operator that only regroups dimensions is `aten.reshape` with all sizes written out."""

from __future__ import annotations

import torch
from typing_extensions import override

from ir.attributes import attribute_key
from ir.core import Value
from ir.memory.strides import is_contiguous, merge_keeps_strides, reshape_copies, reshape_views
from ir.opdef import operators_with
from ir.types import shapes_equal
from passes.canonicalize.base import Identity, Rule, ToReshape, first, shape_of
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

RESHAPES = operators_with(lambda facts: facts.spelled == "aten.reshape")


class SpellReshape(Rule):
    """view(x, s) = flatten(x, a, b) = unflatten(x, d, s) = squeeze(x, d) = unsqueeze(x, d) = reshape(x, t)

    t is the shape of the result, which must be known.
    """

    examples = (
        Example("graph(%x : f32[n, a]) { %y = aten.unsqueeze(%x) {dim=1} return %y }"),
        # a copy, where a reshape is a view
        Example("graph(%x : f32[a*2]) { %s = aten.slice.Tensor(%x) {step=2} %y = aten.ravel(%s) return %y }"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(RESHAPES)

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known shape."""
        return None if shape_of(m.root.result) is not None else "the shape of the result is not known"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the reshape; `ravel` makes a contiguous copy of what is not, where a reshape may be a view."""
        x = first(m.root)
        if m.root.name == "aten.ravel" and not is_contiguous(x):
            x = b.op("aten.contiguous", x).result
        return b.op("aten.reshape", x, shape_of(m.root.result)).result


class WriteOutReshape(ToReshape):
    """reshape(x, (2, -1)) = reshape(x, (2, 12)), x: f[4, 6]

    The sizes are those of the result's type, which must be known. An operand that only sizes referred to is dropped.
    """

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.reshape")

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known shape that is written differently."""
        shape = shape_of(m.root.result)
        if shape is None:
            return "the shape of the result is not known"
        if attribute_key(shape) == attribute_key(m.root.attributes["shape"]):
            return "all sizes are written out"
        return None


class NoReshape(Identity):
    """reshape(x, shape of x) = x"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.reshape", p.any("x"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand provably equal shapes."""
        equal = shapes_equal(shape_of(m.x), shape_of(m.root.result))
        return None if equal else "the shape changes"


_RESHAPES = Example("""
    graph(%x : f32[n, a, b]) {
      %y = aten.contiguous(%x)
      %t = aten.permute(%y) {dims=[0, 1, 2]}
      %inner = aten.reshape(%t) {shape=[n*a, b]}
      %z = aten.reshape(%inner) {shape=[n, a*b]}
      return %z
    }
""")
_APART = ("[0, 1, 2]", "[2, 1, 0]"), ("[n*a, b]", "[b*a, n]")


_BLOCKS = Example(
    """
    graph(%x : f32[n, c, h, w]) {
      %u = aten.softmax.int(%x) {dim=1}
      %t = aten.permute(%u) {dims=[2, 3, 0, 1]}
      %apart = aten.reshape(%t) {shape=[h, w*n, c]}
      %y = aten.reshape(%apart) {shape=[h*w, n*c]}
      return %y
    }
    """,
    refused="might be a view where two make a copy",
)
"""The first reshape copies, and the second is a view of what is permuted."""


class MergeReshapes(ToReshape):
    """reshape(reshape(x, s), t) = reshape(x, t)

    Where strides and sharing of storage provably stay the same.
    """

    examples = (
        _RESHAPES,
        _RESHAPES.changed(*_APART, ("[n, a*b]", "[b*a*n]")),
        _RESHAPES.changed(*_APART, ("[n, a*b]", "[b, a, n]"), refused="might be a view where two make a copy"),
        _BLOCKS,
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.reshape", p.op("aten.reshape", p.any("x"), name="inner"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand that one reshape is a view, or a copy, exactly where the two are."""
        middle, target = shape_of(m.inner.result), shape_of(m.root.result)
        if middle is None or target is None:
            return "a shape is not known"
        if not merge_keeps_strides(m.x, middle, target):
            return "one reshape might be a view where two make a copy"
        if not m.inner.result.has_one_use() and not reshape_views(m.x, middle):
            return "the inner reshape may be a copy, which its other users share"
        return None


_COPY = _RESHAPES.changed(
    ("[0, 1, 2]", "[2, 1, 0]"), ("reshape(%t) {shape=[n*a, b]}", "contiguous(%t)"), ("[n, a*b]", "[b, a*n]")
)


class ReshapeOfCopy(ToReshape):
    """reshape(contiguous(x), s) = reshape(x, s), where that makes a contiguous copy itself"""

    examples = (_COPY, _COPY.changed(("contiguous(%t)", "clone(%t) {memory_format=torch.contiguous_format}")))

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        """Match reshape of a copy; `clone` keeps the strides of what is dense, and a view would keep them too."""
        return p.op("aten.reshape", p.op(("aten.contiguous", "aten.clone"), p.any("x"), name="copy"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a reshape that certainly copies."""
        target = shape_of(m.root.result)
        if target is None:
            return "the shape of the result is not known"
        if m.copy.attributes["memory_format"] is not torch.contiguous_format:
            return "the copy is in another memory format"
        if not m.copy.result.has_one_use():
            return "others share the copy"
        return None if reshape_copies(m.x, target) else "the reshape might be a view"


RESHAPE_RULES = (SpellReshape, WriteOutReshape, NoReshape, MergeReshapes, ReshapeOfCopy)
