"""Rules applied in reverse make programs that are equal by construction; passes must see that they are."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.rules.reverse import COPIES, REVERSIBLE, Inflated, hosts, inflated
from graphwright.fuzz import UnsoundError, assert_sound, check, programs
from graphwright.passes import Canonicalize
from ir.text.printer import print_program
from passes.canonicalize import CANONICALIZATION_RULES
from passes.canonicalize.identity import NoAlias
from passes.rewrite.pattern import Pattern, instantiate

QUICK = settings(max_examples=25, suppress_health_check=list(HealthCheck))

RARE = {
    "PermuteWithoutUnits": "three operations, whose shapes and orders must be drawn right at once",
    "SplitBeforePermute": "the same",
    "SpatialMeanToPool": "the rule fires on few instances, so that few programs hold a pool of this kind",
    "MatmulOfBatches": "three reshapes, whose shapes must be drawn right at once",
    "WriteOutConvPadding": "few convolutions have padding that a word could stand for",
}
"""Rules that take more than 30 programs, most of all because what they build is rare in programs; all take 150."""


_SLOW = ("QuantizeBeforeCat", "DequantizeBehindCat", "SpellNative")
"""Rules whose programs take longest to draw."""


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=pytest.mark.long if rule.__name__ in _SLOW else (), id=rule.__name__)
        for rule in REVERSIBLE
    ],
)
def test_every_rule_is_applied_in_reverse(rule: type[Pattern]) -> None:
    if rule.__name__ in RARE and settings().max_examples < 1000:
        pytest.skip("it takes long; HYPOTHESIS_PROFILE=thorough")
    strategy = inflated(st.one_of(programs(), hosts(rule())), rules=(rule,))
    search = settings(
        max_examples=150 if rule.__name__ in RARE else 30,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    found = find(strategy, lambda drawn: bool(drawn.rules), settings=search)
    assert set(found.rules) == {rule.__name__}
    assert print_program(found.program) != print_program(found.original)


def test_most_rules_are_applied_in_reverse_often() -> None:
    assert set(REVERSIBLE) == set(CANONICALIZATION_RULES) and len(RARE) <= len(REVERSIBLE) // 9


@settings(QUICK)
@given(inflated(), st.data())
def test_what_is_put_in_is_part_of_the_case(drawn: Inflated, data: st.DataObject) -> None:
    case = drawn.case(())
    assert case.original == print_program(drawn.original)
    assert case.one_text == (not {rule.__name__ for rule in COPIES} & set(drawn.rules))
    assert case.of_original().build().graph.num_operations == drawn.original.graph.num_operations


@pytest.mark.parametrize("pass_", [Canonicalize(), pipeline_of(TENSORRT_PATTERNS)], ids=["canonicalize", "standard"])
def test_passes_are_sound_on_inflated_programs(pass_: Any) -> None:
    assert assert_sound(pass_, on=inflated(), settings=QUICK).changed > 10


@attrs.frozen
class CanonicalizeWithout(Canonicalize):
    """Canonicalization that has forgotten a rule: right, but not complete."""

    def rules(self) -> tuple[type[Pattern], ...]:
        return tuple(rule for rule in Canonicalize.rules(self) if rule is not NoAlias)


def test_a_forgotten_rule_leaves_two_texts() -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound(CanonicalizeWithout(), on=inflated(rules=(NoAlias,)), settings=QUICK)
    found = caught.value.counterexample
    assert found is not None and found.property == "one text"
    assert "which is equal by construction to:" in str(found)
    assert found.case.one_text
    assert "one_text=True" in found.file
    with pytest.raises(AssertionError, match="one text"):
        check(CanonicalizeWithout(), found.case)
    check(Canonicalize(), found.case)


def test_what_is_said_to_be_equal_and_is_not_is_found() -> None:
    strategy = inflated(programs(operators=("aten.relu", "aten.mul.Scalar")), rules=(NoAlias,))
    search = settings(max_examples=500, derandomize=True, database=None, phases=[Phase.generate])
    drawn = find(strategy, lambda drawn: "return %mul" in print_program(drawn.original), settings=search)
    inputs = [
        torch.ones([int(d) for d in v.tensor_type.shape or () if d is not None]) for v in drawn.original.graph.inputs
    ]
    case = drawn.case(inputs)
    wrong = attrs.evolve(case, original=case.original.replace("other=", "other=7"))
    check(Canonicalize(), case)
    with pytest.raises(AssertionError, match="reverse application"):
        check(Canonicalize(), wrong)


def test_all_rules_but_those_about_copies_lead_to_one_text() -> None:
    assert len(instantiate(COPIES)) < len(REVERSIBLE) / 4
