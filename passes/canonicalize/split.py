"""One split: every operator that cuts a tensor into consecutive pieces is `aten.split_with_sizes`."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from ir.columns import Layout
from ir.core import Operation, Value
from ir.opdef import operators_with
from ir.types import types_equal, wrap
from passes.canonicalize.base import Identity, Rule, first, shape_of
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

SPLITS = operators_with(lambda facts: facts.layout is Layout.SPLIT and facts.spelled is not None)


def split_sizes(op: Operation, dim: int) -> tuple[int, ...] | None:
    """Return the sizes along `dim` of the pieces, which are the results; None where one is not an int."""
    sizes: list[int] = []
    for result in op.results:
        shape = shape_of(result)
        size = shape[dim] if shape is not None and dim < len(shape) else None
        if type(size) is not int:
            return None
        sizes.append(size)
    return tuple(sizes)


def _place(op: Operation) -> tuple[int, tuple[int, ...]] | None:
    """Return the dimension that is split and the sizes of the pieces, or None where they do not cover it."""
    shape = shape_of(first(op))
    dim = None if not shape else wrap(op.attributes["dim"], len(shape))
    if dim is None or shape is None:
        return None
    sizes = split_sizes(op, dim)
    if sizes is None or sum(sizes) != shape[dim]:
        return None
    return dim, sizes


_HALVES = Example("""
    graph(%x : f32[n, 4]) {
      %a, %b = aten.tensor_split.sections(%x) {sections=2, dim=1}
      return %a, %b
    }
""")


class SpellSplit(Rule):
    """chunk(x, n, d) = split(x, k, d) = tensor_split(x, n, d) = split_with_sizes(x, sizes, d)

    The sizes along d must be known numbers.
    """

    examples = (
        _HALVES,
        _HALVES.changed(("dim=1", "dim=-2"), ("[n, 4]", "[5, a]")),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(SPLITS)

    @override
    def check(self, m: Match) -> str | None:
        """Demand pieces of known sizes that cover the dimension."""
        return None if _place(m.root) is not None else "the sizes of the pieces are not known"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Sequence[Value]:
        place = _place(m.root)
        assert place is not None
        dim, sizes = place
        names = [result.name for result in m.root.results]
        return b.op("aten.split_with_sizes", first(m.root), sizes, dim, names=names).results


class SpellUnbind(Rule):
    """unbind(x, d)[i] = reshape(split_with_sizes(x, (1, ..., 1), d)[i], shape without d)"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.unbind.int")

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known shape."""
        op = m.root
        shape = shape_of(first(op))
        dim = None if not shape else wrap(op.attributes["dim"], len(shape))
        if shape is None or dim is None or type(shape[dim]) is not int:
            return "the size of the dimension is not known"
        if not op.results or shape[dim] != len(op.results):
            return "there are no pieces"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Sequence[Value]:
        op = m.root
        x = first(op)
        shape = shape_of(x)
        assert shape is not None
        dim = op.attributes["dim"] % len(shape)
        target = shape[:dim] + shape[dim + 1 :]
        if len(op.results) == 1:
            return (b.op("aten.reshape", x, target).result,)
        pieces = b.op("aten.split_with_sizes", x, (1,) * len(op.results), dim).results
        return tuple(
            b.op("aten.reshape", piece, target, names=[result.name]).result
            for piece, result in zip(pieces, op.results, strict=True)
        )


class NoSplit(Identity):
    """split_with_sizes(x, (n,), d) = x, x: f[n] along d"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.split_with_sizes", p.any("x"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand one piece, which a split without an error makes the whole; of its size, x must say as much."""
        if len(m.root.results) > 1:
            return "there are several pieces"
        return None if types_equal(m.x.type, m.root.result.type) else "the size of the operand is not known"


SPLIT_RULES = (SpellSplit, SpellUnbind, NoSplit)
