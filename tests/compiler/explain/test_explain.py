"""`result.explain`: what became of a place, through which rules, and how far other rules got."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.driver import TransformResult, plan, transform
from compiler.explain.explanation import Explanation
from compiler.pipeline import pipeline_of
from graphwright.tensorrt import TENSORRT_PATTERNS
from ir.errors import InputError
from passes.fuse.conv import ConvBNActPattern, ConvBNPattern
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder


class GeluByHand(Pattern):
    """x/2 * (1 + tanh(a * (x + b * x^3))) = gelu(x)"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Node:
        x = p.any("x")
        cube = p.op("aten.mul.Scalar", p.op("aten.pow.Tensor_Scalar", x, exponent=3), other=0.044715)
        inner = p.op("aten.mul.Scalar", p.add(x, cube, alpha=1), other=0.8)
        half = p.op("aten.mul.Scalar", x, other=0.5)
        return p.mul(half, p.op("aten.add.Scalar", p.tanh(inner), other=1.0, alpha=1))

    def rewrite(self, m, b):
        return b.gelu(m.x, approximate="tanh")


class PickyRelu(Pattern):
    """relu(x) = x, if it were so"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.any("x"), name="relu")

    def check(self, m: Match) -> str | None:
        return "it is never so"

    def rewrite(self, m, b):
        return m.x


class ForgetsToAnswer(PickyRelu):
    """relu(x) = x, with a condition that answers nothing"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.any("x", where=lambda value: None), name="relu")  # type: ignore[return-value]


class Gelu(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * (x * x * x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
        self.second = nn.Conv2d(4, 4, 1)
        self.gelu = Gelu()
        self.fc = nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)
        self.idle = nn.Identity()

    def forward(self, x):
        y = self.idle(self.body(x))
        y = torch.relu(self.second(y) * 2.5 + y)
        return self.fc(self.gelu(torch.flatten(y, 1)))


class Twice(nn.Module):
    def forward(self, x):
        return torch.relu(x) * torch.relu(x).sin()


PATTERNS = (GeluByHand, PickyRelu, *TENSORRT_PATTERNS)


@pytest.fixture(scope="module")
def result() -> TransformResult:
    return transform(Net().eval(), (torch.randn(2, 3, 1, 1),), patterns=PATTERNS, check=False)


def line_of(text: str) -> int:
    return 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if text in line)


def fates(explanation: Explanation) -> list[tuple[str, str]]:
    return [(story.operation.name, story.fate) for story in explanation.operations]


def test_what_became_of_a_module_and_through_which_rule(result):
    explanation = result.explain("body.0")
    (story,) = explanation.operations
    assert (story.operation.name, story.fate) == ("aten.conv2d", "became fused.conv_bn_act")
    (step,) = story.steps
    assert (step.pass_, step.rule) == ("fuse", "ConvBNActPattern")
    assert [op.location.module_path for op in step.replaced] == ["body.0", "body.1", "body.2"]
    line = line_of("self.idle(self.body(x))")
    assert f"aten.conv2d -> f32[2, 4, 1, 1] at `body.0` (test_explain.py:{line})" in str(explanation)
    assert "ConvBNActPattern (fuse) made fused.conv_bn_act of aten.conv2d at `body.0`" in str(explanation)


def test_a_module_stands_for_all_that_is_in_it(result):
    names = ["aten.conv2d", "aten.batch_norm", "aten.relu", "aten.dropout"]
    for place in ("body", "body.*", "bod?"):
        assert [name for name, _ in fates(result.explain(place))] == names
    conv, norm, step, *_ = str(result.explain("body")).splitlines()[1:]  # these two went one way together
    assert "aten.conv2d" in conv and "aten.batch_norm" in norm and "ConvBNActPattern (fuse) made" in step


def test_what_stays_names_the_rule_that_got_furthest_and_the_edge(result):
    explanation = result.explain(f"test_explain.py:{line_of('* 2.5 + y')}")
    stories = {story.operation.name: story for story in explanation.operations}
    assert list(stories) == ["aten.conv2d", "aten.mul.Scalar", "aten.add.Tensor", "aten.relu"]
    refused, furthest, *_ = stories["aten.relu"].near
    assert (refused.rule, refused.outcome) == ("PickyRelu", "refused")
    assert (furthest.rule, furthest.extent) == ("ConvBNAddActPattern", "2 of 3 operations fit")
    (reason,) = furthest.reasons
    assert reason.startswith("operand `self` of aten.add.Tensor") and "is aten.mul.Scalar" in reason
    assert reason.endswith("not aten.batch_norm or an operator with Trait.CONV")


def test_how_far_a_rule_got_with_another_spelling(result):
    near = result.explain("gelu", rule="GeluByHand").rule
    assert (near.outcome, len(near.fits), near.wanted) == ("partial", 7, 8)
    (reason,) = near.reasons
    assert "is aten.mul.Tensor at `gelu`, not aten.pow.Tensor_Scalar (test_explain.py:" in reason
    assert near == result.explain("gelu", rule=GeluByHand).rule


@pytest.mark.parametrize(
    ("at", "rule", "outcome", "reason"),
    [
        ("body.0", "ConvBNActPattern", "applied", "the pass `fuse` made fused.conv_bn_act of these"),
        ("body.1", "ConvBNPattern", "taken", "ConvBNActPattern was there first, and took aten.conv2d, aten.batch_norm"),
        ("body.2", "PickyRelu", "refused", "it is never so (test_explain.py:"),
        ("second", "ConvBNAddActPattern", "partial", "the output of aten.conv2d at `second` goes to aten.mul.Scalar"),
        ("fc", "ConvBNPattern", "none", "its pattern is about aten.batch_norm, an operator with Trait.CONV"),
        ("second", "NoDropout", "none", "its pattern is about aten.dropout or"),
        ("body.3", "NoDropout", "refused", "p of aten.dropout at `body.3` is 0.1, not 0.0"),
    ],
)
def test_how_far_a_rule_got_at_a_place(result, at, rule, outcome, reason):
    explanation = result.explain(at, rule=rule)
    assert explanation.rule.outcome == outcome
    assert reason in " ".join(explanation.rule.reasons)
    assert reason in str(explanation) and rule in str(explanation)


def test_operators_and_values_are_places_as_well(result):
    assert fates(result.explain("aten.relu")) == [("aten.relu", "became fused.conv_bn_act"), ("aten.relu", "stays")]
    assert fates(result.explain("relu")) == fates(result.explain("aten.relu"))
    assert fates(result.explain("fused.conv_bn")) == [("aten.conv2d", "became fused.conv_bn")]
    (op,) = [op for op in result.program.graph.operations() if op.name == "fused.conv_bn"]
    for place in (op, op.result, f"%{op.result.name}"):
        assert fates(result.explain(place)) == [("aten.conv2d", "became fused.conv_bn")]
    assert fates(result.explain("%flatten")) == [("aten.flatten.using_ints", "became aten.reshape")]


def test_all_of_the_model_or_of_one_rule(result):
    explanation = result.explain()
    assert explanation.about == "Net"
    assert sum(result.operations_before.values()) == len(explanation.operations)
    about = result.explain(rule="ConvBNActPattern")
    assert "ConvBNActPattern (fuse) made fused.conv_bn_act" in str(about)
    assert {near.rule for story in about.operations for near in story.near} == {"ConvBNActPattern"}


def test_it_is_plain_data(result):
    data = json.loads(json.dumps(result.explain("body").to_json()))
    assert (data["about"], data["rule"], len(data["operations"])) == ("body", None, 4)
    assert data["operations"][0]["steps"][0]["rule"] == "ConvBNActPattern"
    near = json.loads(json.dumps(result.explain("gelu", rule="GeluByHand").to_json()))["rule"]
    assert (near["fits"][0]["module_path"], near["wanted"]) == ("gelu", 8)


def test_a_module_without_operations_says_so(result):
    for place in ("unused", "idle"):
        (note,) = result.explain(place).notes
        assert "has no operation in the captured program" in note


@pytest.mark.parametrize(
    ("arguments", "rule", "message"),
    [
        ("bodi.0", None, "did you mean body.0"),
        ("%rel", None, "did you mean %relu"),
        ("%nothing_like_it", None, "shows all"),
        ("%x", None, "%x is an input of the model"),
        ("%fc.weight", None, "%fc.weight is a weight of the model"),
        ("aten.sellu", None, "nothing in the model is 'aten.sellu'"),
        (3, None, "3 is no place"),
        ("", None, "'' is no place"),
        ("fc", "ConvBN", "did you mean ConvBNPattern"),
        ("fc", 3, "rule=3 is no rule"),
        (None, "Nonsense", "its rules are"),
    ],
)
def test_what_is_unknown_is_an_error_that_names_what_is_near(result, arguments, rule, message):
    with pytest.raises(InputError) as caught:
        result.explain(arguments, rule=rule)
    assert message in str(caught.value)


def test_a_value_of_another_program_is_refused(result):
    other = transform(nn.ReLU(), (torch.randn(2),), check=False)
    with pytest.raises(InputError, match=r"is not a value of `result.program`"):
        result.explain(other.program.graph.inputs[0])


def test_what_scopes_and_plans_leave_out_and_what_passes_remove():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.0), nn.ReLU()).eval()
    x = torch.randn(2, 3, 4, 4)
    scoped = transform(
        model, (x,), pipeline=pipeline_of((ConvBNActPattern, ConvBNPattern)).with_scope("fuse", skip="3"), check=False
    )
    assert fates(scoped.explain("2")) == [("aten.dropout", "is gone")]
    assert "NoDropout" in str(scoped.explain("2"))
    merged = transform(Twice(), (x,), check=False).explain("aten.relu")
    assert fates(merged) == [("aten.relu", "stays"), ("aten.relu", "is gone")]
    assert "eliminate-common-subexpressions took out aten.relu" in str(merged)
    near = scoped.explain("0", rule="ConvBNActPattern").rule
    assert (near.outcome, near.reasons) == ("refused", ("aten.relu at `3` is left out by skip=3",))

    planned = plan(model, (x,), patterns=(ConvBNActPattern, ConvBNPattern))
    planned.disable(rule="ConvBNActPattern")
    result = transform(model, (x,), plan=planned, check=False)
    planned.enable()  # the plan goes on; the result was made by what it was
    near = result.explain("0", rule="ConvBNActPattern").rule
    assert (near.outcome, "it is switched off in the plan" in near.reasons[0]) == ("refused", True)
    assert fates(result.explain("0")) == [("aten.conv2d", "became fused.conv_bn")]


def test_a_rule_that_fails_is_said_to():
    with pytest.warns(UserWarning, match="ForgetsToAnswer skipped"):
        found = transform(Net().eval(), (torch.randn(2, 3, 1, 1),), patterns=(ForgetsToAnswer,), check=False)
    near = found.explain("body.2", rule="ForgetsToAnswer").rule
    assert (near.outcome, len(near.reasons)) == ("failed", 1)
    assert "the condition `where` of the value 'x' returned None" in near.reasons[0]
    assert f"ForgetsToAnswer failed, and was passed over; {near.reasons[0]}" in str(found.explain("body.2"))
