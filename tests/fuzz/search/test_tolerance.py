"""The fuzzer holds each rewrite of a rule that changes numbers on purpose to what the rule states."""

from __future__ import annotations

import pytest
from hypothesis import settings

from fuzz.search.counterexample import UnsoundError
from fuzz.search.sound import assert_sound
from ir.core import Value
from passes.rewrite.bounds.tolerance import Tolerance
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

FEW = settings(max_examples=25, deadline=None, database=None)


class TanhGelu(Pattern):
    """gelu(x) = gelu(x, approximate="tanh"), up to 1e-3"""

    tolerance = Tolerance(1e-3)

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it."""
        return p.gelu(p.any("x"), approximate="none")

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Approximate."""
        return b.gelu(m.x, approximate="tanh")


class Boastful(TanhGelu):
    """gelu(x) = gelu(x, approximate="tanh"), up to 1e-7, which is not so"""

    tolerance = Tolerance(1e-7)


def test_each_rewrite_is_held_to_the_bound() -> None:
    assert assert_sound(TanhGelu, settings=FEW).fired["TanhGelu"]
    with pytest.raises(UnsoundError, match="Boastful changes the result"):
        assert_sound(Boastful, settings=FEW)
