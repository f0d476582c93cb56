"""One permute: every operator that only reorders dimensions is `aten.permute`, dimensions counted from the front."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from ir.columns import permutation
from ir.core import Operation, Value
from ir.memory.strides import merge_keeps_strides
from ir.opdef import operators_with
from ir.types import Dim, dims_equal, simplify_dim
from passes.canonicalize.base import Identity, Rule, ToReshape, first, rank_of, shape_of
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

PERMUTES = operators_with(lambda facts: facts.spelled == "aten.permute")


def _order(permute: Operation) -> tuple[int, ...]:
    """Return the order of a permute, counted from the front."""
    rank = len(permute.attributes["dims"])
    return tuple([d % rank for d in permute.attributes["dims"]])


def _order_of(op: Operation, rank: int) -> tuple[int, ...] | None:
    """Return the order that any operator which reorders puts the dimensions in."""
    assert op.opdef.layout is not None
    return permutation(op.opdef.layout, op.attributes, rank)


class SpellPermute(Rule):
    """transpose(x, a, b) = t(x) = x.mT = movedim(x, a, b) = permute(x, order), the rank of x known"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op((*PERMUTES, "aten.permute"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known rank, and another spelling."""
        op = m.root
        rank = rank_of(first(op))
        if rank is None:
            return "the rank is not known"
        order = _order_of(op, rank)
        if order is None:
            return "the dimensions are not literals in range"
        return "this is the one spelling" if op.name == "aten.permute" and op.attributes["dims"] == order else None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        x = first(m.root)
        rank = rank_of(x)
        assert rank is not None
        return b.op("aten.permute", x, _order_of(m.root, rank)).result


class NoPermute(Identity):
    """permute(x, (0, 1, 2)) = x"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.permute(p.any("x"), dims=p.attr("dims"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the identity."""
        return None if m.dims == tuple(range(len(m.dims))) else "the order changes"


class MergePermutes(Rule):
    """permute(permute(x, p), q) = permute(x, p[q])"""

    examples = (
        # of three dimensions, in orders that do not commute
        Example("""
            graph(%x : f32[n, a, b]) {
              %y = aten.permute(%x) {dims=[1, 2, 0]}
              %z = aten.permute(%y) {dims=[0, 2, 1]}
              return %z
            }
        """),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.permute", p.op("aten.permute", p.any("x"), name="inner"))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        inner, outer = _order(m.inner), _order(m.root)
        order = tuple(inner[d] for d in outer)
        x: Value = m.x
        return x if order == tuple(range(len(order))) else b.op("aten.permute", x, order).result


def _without_ones(shape: Sequence[Dim]) -> list[int]:
    return [i for i, size in enumerate(shape) if not (type(size) is int and size == 1)]


class ReshapeOfUnitPermute(ToReshape):
    """reshape(permute(x, p), s) = reshape(x, s), where p moves dimensions of size 1 only"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.reshape(p.permute(p.any("x"), name="permute"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand that the other dimensions keep their order."""
        shape, target = shape_of(m.x), shape_of(m.root.result)
        if shape is None or target is None:
            return "a shape is not known"
        kept = set(_without_ones(shape))
        moved = [d for d in _order(m.permute) if d in kept]
        return None if moved == sorted(moved) else "the permute moves elements"


_MATRICES = Example("""
    graph(%x : f32[n, a, b]) {
      %y = aten.contiguous(%x)
      %inner = aten.reshape(%y) {shape=[1, n*a, 1, b]}
      %turned = aten.permute(%inner) {dims=[0, 3, 2, 1]}
      %z = aten.reshape(%turned) {shape=[b, n*a]}
      return %z
    }
""")
_WITHOUT_UNITS = ("[1, n*a, 1, b]", "[n*a, b]"), ("[0, 3, 2, 1]", "[1, 0]")


class PermuteWithoutUnits(Rule):
    """reshape(permute(reshape(x, s), p), t) = reshape(permute(reshape(x, s without 1s), q), t)

    q is what p does to the other dimensions: sizes of 1 between two reshapes say nothing.
    """

    examples = (
        _MATRICES,
        _MATRICES.changed(("[0, 3, 2, 1]", "[1, 2, 3, 0]"), ("[b, n*a]", "[n, a, b]")),
        _MATRICES.changed(("return %z", "return %z, %turned"), refused="are used elsewhere"),
        _MATRICES.changed(("1, b]", "1, -1]"), refused="a shape is not known", unknown="all"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        inner = p.op("aten.reshape", p.any("x"), name="inner")
        return p.reshape(p.permute(inner, name="permute"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand sizes of 1 between the reshapes, and no other users of what is between them."""
        middle, target = shape_of(m.inner.result), shape_of(m.root.result)
        if middle is None or target is None:
            return "a shape is not known"
        if len(_without_ones(middle)) == len(middle):
            return "there are no sizes of 1 between the reshapes"
        if not (m.inner.result.has_one_use() and m.permute.result.has_one_use()):
            return "the values between the reshapes are used elsewhere"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        middle = shape_of(m.inner.result)
        assert middle is not None
        kept = _without_ones(middle)
        place = {old: new for new, old in enumerate(kept)}
        order = [place[d] for d in _order(m.permute) if d in place]
        value = b.op("aten.reshape", m.x, [middle[d] for d in kept], location=m.inner.location).result
        value = b.op("aten.permute", value, order, location=m.permute.location).result
        return b.op("aten.reshape", value, shape_of(m.root.result)).result


class SplitBeforePermute(Rule):
    """reshape(permute(reshape(x, (n, h * d)), (1, 0)), (h, d, n)) = permute(reshape(x, (n, h, d)), (1, 2, 0))

    Where the outer reshape only splits dimensions, which is always a view: they are split at once.
    """

    examples = (
        _MATRICES.changed(*_WITHOUT_UNITS, ("[b, n*a]", "[b, n, a]")),
        *(
            _MATRICES.changed(
                *_WITHOUT_UNITS,
                ("contiguous(%x)", "permute(%x) {dims=[1, 0, 2]}"),  # so that %inner is a copy, of which %z is a view
                ("[b, n*a]", "[b, n, a]"),
                ("return %z", f"return %z, {other}"),
                refused="are used elsewhere",
            )
            for other in ("%inner", "%turned")
        ),
        _MATRICES.changed(
            *_WITHOUT_UNITS,
            ("[b, n*a]", "[n, b, a]"),
            ("[n*a, b]", "[b*a, n]"),
            ("%inner =", "%back = aten.permute(%y) {dims=[2, 1, 0]} %inner ="),
            ("reshape(%y)", "reshape(%back)"),
            refused="one reshape might be a view where two make a copy",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        inner = p.op("aten.reshape", p.any("x"), name="inner")
        return p.reshape(p.permute(inner, name="permute"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand an outer reshape that only splits, and no other users of what is between them."""
        parts = _split_before(m)
        if parts is None:
            return "the outer reshape merges dimensions"
        if not (m.inner.result.has_one_use() and m.permute.result.has_one_use()):
            return "the values between the reshapes are used elsewhere"
        middle = shape_of(m.inner.result)
        if middle is None or not merge_keeps_strides(m.x, middle, parts[0]):
            return "one reshape might be a view where two make a copy"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        parts = _split_before(m)
        assert parts is not None
        value = b.op("aten.reshape", m.x, parts[0], location=m.inner.location).result
        return b.op("aten.permute", value, parts[1]).result


def _split_before(m: Match) -> tuple[list[Dim], list[int]] | None:
    """Return the sizes to split to before the permute, and the permute of the parts."""
    moved, target = shape_of(m.permute.result), shape_of(m.root.result)
    if moved is None or target is None or 0 in moved:
        return None
    groups = _split(moved, target)
    if groups is None:
        return None
    sizes: list[Dim] = []
    starts: dict[int, int] = {}
    order = _order(m.permute)
    for d in sorted(range(len(moved)), key=lambda d: order[d]):
        starts[d] = len(sizes)
        sizes += [target[i] for i in groups[d]]
    return sizes, [starts[d] + i for d in range(len(moved)) for i in range(len(groups[d]))]


def _split(shape: Sequence[Dim], target: Sequence[Dim]) -> list[list[int]] | None:
    """Return the dimensions of `target` that each dimension of `shape` is split into; None where that fails."""
    groups: list[list[int]] = []
    at = 0
    for size in shape:
        group: list[int] = []
        product: Dim = 1
        while not group or not dims_equal(product, size):
            if at == len(target):
                return None
            product = simplify_dim(product * target[at])
            group.append(at)
            at += 1
        groups.append(group)
    while groups and at < len(target) and target[at] == 1:
        groups[-1].append(at)
        at += 1
    return groups if at == len(target) else None


PERMUTE_RULES = (
    SpellPermute,
    NoPermute,
    MergePermutes,
    ReshapeOfUnitPermute,
    PermuteWithoutUnits,
    SplitBeforePermute,
)
