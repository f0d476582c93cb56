"""Patterns with several roots, and sums in any order, are grown and judged like others."""

from __future__ import annotations

import pytest
from hypothesis import settings

from fuzz.programs.properties import Properties
from fuzz.search.counterexample import UnsoundError
from fuzz.search.sound import assert_sound
from ir.core import Value
from ir.types import TensorType
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

FEW = settings(max_examples=25, deadline=None, database=None)


def is_float(value: Value) -> bool:
    """Return whether a value is a floating tensor."""
    type_ = value.type
    return isinstance(type_, TensorType) and type_.dtype is not None and type_.dtype.is_floating_point


class NegatedTwice(Pattern):
    """tanh(x), neg(x) = neg(tanh(neg(x))), neg(x)"""

    def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
        """Match both."""
        x = p.any("x", where=is_float)
        return p.tanh(x), p.neg(x)

    def rewrite(self, m: Match, b: Rewriter) -> tuple[Value, Value]:
        """Let one be computed from the other."""
        y = b.neg(b.neg(b.neg(m.x)))
        return b.neg(b.sinh(b.asinh(b.tanh(y)))), y


class Exchanged(NegatedTwice):
    """tanh(x), neg(x) = -x, asinh(x), which is not so"""

    def rewrite(self, m: Match, b: Rewriter) -> tuple[Value, Value]:
        """Give the second value to the first root."""
        return b.call("aten.mul.Scalar", m.x, -1.0), b.asinh(m.x)


class Factored(Pattern):
    """a c + b c + 1 = (a + b) c + 1"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it in any order."""
        c = p.any("c")
        return p.sum_of(p.mul(p.any("a"), c), p.mul(p.any("b"), c), 1.0)

    def check(self, m: Match) -> str | None:
        """Demand equal types."""
        types = {m.a.type, m.b.type, m.c.type}
        return None if len(types) == 1 and is_float(m.a) and m.a.type.is_known else "types differ"

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Factor it."""
        return b.call("aten.add.Scalar", b.mul(b.add(m.a, m.b), m.c), 1.0)


def test_several_roots_are_grown() -> None:
    assert assert_sound(NegatedTwice, settings=FEW).fired["NegatedTwice"]
    with pytest.raises(UnsoundError, match="values"):
        assert_sound(Exchanged, settings=FEW)


def test_sums_in_any_order_are_grown() -> None:
    seen = assert_sound(Factored, settings=FEW, properties=Properties(non_finite=False))
    assert seen.fired["Factored"] and len(seen.variants) > 1
