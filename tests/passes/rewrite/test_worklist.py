"""The worklist driver misses no match."""

from __future__ import annotations

from typing import Any

from ir.builder import Builder
from ir.core import Value
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from tests.passes.building import f32, names, program


class Deep(Pattern):
    """exp(sigmoid(neg(cos(x)))) = tanh(x)"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.exp(p.sigmoid(p.neg(p.cos(p.any("x")))))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.tanh(m.x)


class SinBelowErf(Pattern):
    """erf(sin(x)), erf being behind all other users of sin(x) = erf(cos(x)), for all users"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.erf(p.op("aten.sin", p.any("x"), name="sin"))

    def rewrite(self, m: Match, b: Any) -> None:
        with b.at(m.sin):
            b.replace_value(m.sin.result, b.cos(m.x))


def test_a_match_far_from_the_rewrite_that_makes_it_is_found() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        sin = b.sin(x)
        return b.exp(b.sigmoid(b.neg(sin))), b.erf(sin)

    p = program([f32(2, 3)], body)
    assert run_worklist(p, RuleIndex([Deep(), SinBelowErf()]), RewriteLog()) == 2
    assert names(p) == ["aten.cos", "aten.tanh", "aten.erf"]
