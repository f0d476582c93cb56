"""What `assert_sound` says of what is no wrong rewrite: mistakes of a strategy, of a rule's spelling, of its habits."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from graphwright import Match, Pattern, PatternBuilder
from graphwright.fuzz import Case, Properties, assert_sound, check, find_counterexample
from graphwright.ir import parse_program
from ir.errors import InputError
from passes.rewrite.remarks import GraphwrightWarning

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))
ILL_FORMED = """
program "wrong" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2]) {
    %a = aten.neg(%x) : f32[2]
    %b = aten.neg(%a) : f32[3]
    return %b
  }
}
"""


def test_programs_of_a_strategy_of_ones_own_are_verified() -> None:
    with pytest.raises(InputError, match="`on` draws a program that is ill-formed"):
        assert_sound(TakesEverySecond, on=st.builds(parse_program, st.just(ILL_FORMED)), settings=QUICK)


class WaitsForView(Pattern):
    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.op("aten.view", p.any("x"), name="view"))

    def check(self, m: Match) -> str | None:
        return None if all(type(size) is int for size in m.view.attributes["size"]) else "it views a size of the inputs"

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.op("aten.view", b.relu(m.x), m.view.attributes["size"]).result


def test_a_rule_that_no_model_will_meet_is_warned_of() -> None:
    with pytest.warns(GraphwrightWarning, match=r"WaitsForView .* no aten.view \(write aten.reshape\) in one"):
        assert_sound(WaitsForView, settings=QUICK, properties=Properties(strides=False))


class ScaledNorm(Pattern):
    """layer_norm(x, n, w) * s = layer_norm(x, n, w * s); of one number, gradients are 0 here and 1e-15 there"""

    def pattern(self, p: PatternBuilder) -> Any:
        norm = p.layer_norm(p.any("x"), p.any("w"), None, normalized_shape=p.attr("n"), eps=p.attr("eps"))
        return p.mul(norm, p.any("s"))

    def check(self, m: Match) -> str | None:
        w, s = m.w and m.w.tensor_type, m.s.tensor_type
        same = w is not None and (w.shape, w.dtype) == (s.shape, s.dtype) and s.dtype == m.x.tensor_type.dtype
        return None if same and m.s.is_weight and m.w.is_weight else "other shapes"

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.layer_norm(m.x, m.n, b.mul(m.w, m.s), None, m.eps)


def test_noise_in_a_gradient_of_zero_is_no_difference() -> None:
    text = """
program "one" {
  parameter %w : f32[1] requires_grad
  parameter %s : f32[1] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4, 1]) {
    %norm = aten.layer_norm(%x, %w, None) {normalized_shape=[1]} : f32[4, 1]
    %mul = aten.mul.Tensor(%norm, %s) : f32[4, 1]
    return %mul
  }
}
"""
    for seed in range(8):
        assert check(ScaledNorm, Case.seeded(text, seed=seed)).fired


class InfinityTimesZero(Pattern):
    """x * 0 = 0 of finite numbers alone"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.mul.Scalar", p.op("aten.relu", p.any("x")), other=0.0)

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.op("aten.mul.Scalar", b.op("aten.clamp", b.relu(m.x), None, 1.0).result, 0.0).result


@pytest.mark.long
def test_what_is_not_finite_can_be_left_out() -> None:
    finite = Properties(non_finite=False, strides=False)
    found = find_counterexample(
        InfinityTimesZero, max_examples=500, seed=4, properties=attrs.evolve(finite, non_finite=True)
    )
    assert found is not None
    assert "an input holds NaN or infinity" in str(found)
    assert find_counterexample(InfinityTimesZero, max_examples=300, seed=4, properties=finite) is None


class TakesEverySecond(Pattern):
    seen = 0

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.neg", p.op("aten.neg", p.any("x")))

    def check(self, m: Match) -> str | None:
        TakesEverySecond.seen += 1
        return None if TakesEverySecond.seen % 2 == 0 else "not this time"

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.clone(m.x)


def test_a_rule_that_keeps_something_is_told_so() -> None:
    with pytest.raises(InputError, match="TakesEverySecond does not always say the same of one match"):
        assert_sound(TakesEverySecond, settings=settings(QUICK, max_examples=400))
