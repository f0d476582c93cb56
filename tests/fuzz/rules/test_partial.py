"""What `explain` says of a rule agrees with the matcher, on drawn programs and on wrong comparisons."""

from __future__ import annotations

import pytest
from hypothesis import settings

from fuzz.rules.instances import instances
from fuzz.rules.names import RULES
from fuzz.rules.partial import explained_otherwise
from fuzz.search.counterexample import UnsoundError
from fuzz.search.sound import assert_sound
from passes.canonicalize.identity import NoArithmetic
from passes.canonicalize.spelling import SpellRelu6
from passes.explain.partial import Tree
from passes.fuse.conv import ConvBNAddActPattern
from passes.rewrite.pattern import Pattern
from tests.drawn import draws


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_matchers_agree_on_examples(rule: type[Pattern]) -> None:
    for example in rule.examples:
        assert explained_otherwise(rule(), example.program()) is None


@pytest.mark.parametrize("rule", [ConvBNAddActPattern, SpellRelu6, NoArithmetic])
def test_the_matchers_agree_on_drawn_programs(rule: type[Pattern]) -> None:
    for made in draws(instances(rule()), 10):
        assert explained_otherwise(made.rule, made.program) is None


def test_a_disagreement_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.search.judge.explained_otherwise", lambda rule, program: "it is told otherwise")
    with pytest.raises(UnsoundError, match=r"explained.*\n?.*it is told otherwise"):
        assert_sound(SpellRelu6(), settings=settings(max_examples=100))


def test_a_wrong_comparison_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ConvBNAddActPattern.examples[0].program()
    monkeypatch.setattr(Tree, "whole_at", lambda self, op: False)
    monkeypatch.setattr("passes.explain.partial.orders", lambda node: ())
    with pytest.raises(ValueError, match="max"):
        explained_otherwise(ConvBNAddActPattern(), program)
    monkeypatch.setattr("passes.explain.partial.orders", lambda node: (node,))
    program = ConvBNAddActPattern.examples[1].program()  # the residual comes first
    assert "matches at aten.add.Tensor, and is explained so" in (
        explained_otherwise(ConvBNAddActPattern(), program) or ""
    )
