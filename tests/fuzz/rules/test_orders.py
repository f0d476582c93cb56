"""The order of rules, and of passes that are independent, does not matter for what a program means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_CONVERSION_PATTERNS, TENSORRT_PATTERNS
from fuzz.programs.properties import Finding
from fuzz.rules.orders import ORDERS, InOrder
from fuzz.search.replay import replay
from graphwright import Match, Pattern, PatternBuilder
from graphwright.fuzz import UnsoundError, assert_sound, check, programs
from graphwright.passes import Canonicalize
from passes.apply import Convert
from passes.manager.manager import Fixpoint, Pass

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    "pass_",
    [Canonicalize(), Canonicalize(inference=True), pipeline_of(TENSORRT_PATTERNS)],
    ids=["canonicalize", "inference", "standard"],
)
def test_passes_are_sound_in_any_order(pass_: Any) -> None:
    assert assert_sound(pass_, orders=True, settings=QUICK).changed > 10


def test_orders_differ_and_are_the_same_each_time() -> None:
    pass_ = pipeline_of(TENSORRT_PATTERNS)
    orders = [InOrder(pass_, number).order() for number in range(ORDERS)]
    assert len(set(orders)) == ORDERS
    assert orders == [InOrder(pass_, number).order() for number in range(ORDERS)]
    names = [rule.__name__ for rule in TENSORRT_CONVERSION_PATTERNS]
    firsts = {min(names, key=order.index) for order in orders}
    assert firsts == set(names)


def test_conversions_run_alone_with_canonicalization_in_between() -> None:
    pass_ = pipeline_of(TENSORRT_PATTERNS)

    def conversions(pass_: Pass) -> list[int]:
        (fixpoint,) = (p for p in pass_ if type(p) is Fixpoint)  # type: ignore[attr-defined]
        return [len(p.patterns) if isinstance(p, Convert) else 0 for p in fixpoint]

    shapes = [conversions(InOrder(pass_, number).reordered) for number in range(1, ORDERS)]
    assert all(shape[-1] == 0 and shape.count(1) == len(TENSORRT_CONVERSION_PATTERNS) for shape in shapes)
    assert all({*shape} == {0, 1} for shape in shapes)
    between = {place for shape in shapes for place in range(1, len(shape) - 1) if shape[place] == 0}
    assert {shape[1] for shape in shapes} == {0, 1} and len(between) > len(TENSORRT_CONVERSION_PATTERNS)


class ReluOfRelu(Pattern):
    """relu(relu(x)) = relu(x)"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.relu(p.any("x")))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.relu(m.x)


class SigmoidForOneRelu(Pattern):
    """relu(x) = sigmoid(x): wrong, and hidden by the rule above where that comes first"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.relu(p.any("x")))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.sigmoid(m.x)


def test_a_fault_that_an_order_hides_is_found_and_the_order_is_named(tmp_path: Path) -> None:
    subject = (ReluOfRelu, SigmoidForOneRelu)
    on = programs(operators=("aten.relu",))
    assert assert_sound(subject, on=on, settings=QUICK).fired["SigmoidForOneRelu"] == 0
    with pytest.raises(UnsoundError) as caught:
        assert_sound(subject, on=on, orders=True, settings=QUICK)
    found = caught.value.counterexample
    assert found is not None and found.property == "values"
    assert ": apply(SigmoidForOneRelu, ReluOfRelu)" in found.message
    assert f"# rules: {__name__}:ReluOfRelu, {__name__}:SigmoidForOneRelu\n# order: " in found.file
    file = tmp_path / f"found{found.suffix}"
    file.write_text(found.file)
    with pytest.raises(Finding, match="values"):
        replay(file)
    check(subject, found.case)
