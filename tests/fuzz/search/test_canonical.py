"""A rule that waits for what no canonical program has is an error of its own; one whose literals are matched is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from graphwright import Match, Pattern, PatternBuilder
from graphwright.fuzz import UnsoundError, assert_sound, find_counterexample

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


class LastSoftmax(Pattern):
    """softmax(x, -1) = exp(log_softmax(x, -1))"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.softmax(p.any("x"), dim=-1, dtype=None, name="softmax")

    def check(self, m: Match) -> str | None:
        dtype = m.x.tensor_type.dtype  # softmax takes integers where there are none, and exp makes floats of them
        return None if dtype is not None and dtype.is_floating_point else f"a softmax of {dtype}"

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.exp(b.log_softmax(m.x, m.softmax.attributes["dim"]))


class CodeAsksForTheBack(LastSoftmax):
    """The same, by a condition of its own that no canonical program meets."""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.softmax(p.any("x"), dim=p.attr("dim"), dtype=None, name="softmax")

    def check(self, m: Match) -> str | None:
        return super().check(m) or (None if m.dim == -1 else "not the last dimension")


class PredicateAsksForTheBack(LastSoftmax):
    """The same, by a condition on the attribute."""

    def pattern(self, p: PatternBuilder) -> Any:
        last = p.attr_where(lambda dim: dim == -1, "the last dimension")
        return p.softmax(p.any("x"), dim=last, dtype=None, name="softmax")


class AsksForAnIdentity(LastSoftmax):
    """softmax(permute(x, (0, 1)), -1) = ..., which has no permute once it is canonical"""

    def pattern(self, p: PatternBuilder) -> Any:
        x = p.permute(p.any("x"), dims=(0, 1))
        return p.softmax(x, dim=-1, dtype=None, name="softmax")


class FusesTheBack(LastSoftmax):
    """exp(softmax(x, d)) = fused.exp_softmax(x), by code that asks for -1"""

    is_conversion = False
    is_fusion = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.exp(p.softmax(p.any("x"), name="softmax"), name="exp")

    def check(self, m: Match) -> str | None:
        return None if m.softmax.attributes["dim"] == -1 else "not the last dimension"

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.fuse("exp_softmax", m.ops, parts={m.exp: "exp"}, inputs={m.x: "input"})


def test_a_literal_that_is_counted_from_the_back_is_sound_and_fires_on_canonical_programs() -> None:
    seen = assert_sound(LastSoftmax, settings=QUICK)
    assert seen.canonical["LastSoftmax"] == 10


@pytest.mark.parametrize(
    "rule",
    [
        CodeAsksForTheBack,
        FusesTheBack,
        pytest.param(PredicateAsksForTheBack, marks=pytest.mark.long),
        pytest.param(AsksForAnIdentity, marks=pytest.mark.long),
    ],
)
def test_what_no_canonical_program_has_is_said(rule: type[Pattern]) -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound(rule, settings=QUICK)
    text = str(caught.value)
    assert f"{rule.__name__} matches no canonical program" in text
    assert "and not on its canonical form:" in text
    assert "remedy: let the pattern and its conditions ask for the canonical form" in text
    assert caught.value.counterexample is None


@pytest.mark.long
def test_a_search_for_a_counterexample_says_it_too() -> None:
    with pytest.raises(UnsoundError, match="matches no canonical program"):
        find_counterexample(CodeAsksForTheBack, max_examples=30, seed=1)


def test_rules_that_come_before_canonicalization_need_not_match_after_it() -> None:
    class Before(CodeAsksForTheBack):
        is_conversion = False

    assert assert_sound(Before, settings=QUICK).fired["Before"]
