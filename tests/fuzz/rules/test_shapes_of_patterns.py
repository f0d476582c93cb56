"""Patterns with several roots, and sums in any order, are grown and judged like others."""

from __future__ import annotations

import pytest
from hypothesis import settings

from fuzz.search.counterexample import UnsoundError
from fuzz.search.sound import assert_sound
from ir.core import Value
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

FEW = settings(max_examples=25, deadline=None, database=None)


class NegatedTwice(Pattern):
    """tanh(x), neg(x) = neg(tanh(neg(x))), neg(x)"""

    def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
        """Match both."""
        x = p.any("x", where=lambda value: value.tensor_type.dtype.is_floating_point)  # type: ignore[union-attr]
        return p.tanh(x), p.neg(x)

    def rewrite(self, m: Match, b: Rewriter) -> tuple[Value, Value]:
        """Let one be computed from the other."""
        y = b.neg(b.neg(b.neg(m.x)))
        return b.neg(b.sinh(b.asinh(b.tanh(y)))), y


class Exchanged(NegatedTwice):
    """tanh(x), neg(x) = neg(x), tanh(x), which is not so"""

    def rewrite(self, m: Match, b: Rewriter) -> tuple[Value, Value]:
        """Exchange them."""
        y = b.sinh(b.asinh(b.tanh(m.x)))
        return b.neg(m.x), y


class Factored(Pattern):
    """a c + b c + 1 = (a + b) c + 1"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it in any order."""
        c = p.any("c")
        return p.sum_of(p.mul(p.any("a"), c), p.mul(p.any("b"), c), 1.0)

    def check(self, m: Match) -> str | None:
        """Demand equal types."""
        types = {(v.tensor_type.shape, v.tensor_type.dtype) for v in (m.a, m.b, m.c)}
        return None if len(types) == 1 and m.a.tensor_type.dtype.is_floating_point else "types differ"

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Factor it."""
        return b.call("aten.add.Scalar", b.mul(b.add(m.a, m.b), m.c), 1.0)


def test_several_roots_are_grown() -> None:
    assert assert_sound(NegatedTwice, settings=FEW).fired["NegatedTwice"]
    with pytest.raises(UnsoundError, match="values"):
        assert_sound(Exchanged, settings=FEW)


def test_sums_in_any_order_are_grown() -> None:
    seen = assert_sound(Factored, settings=FEW)
    assert seen.fired["Factored"] and len(seen.variants) > 1
