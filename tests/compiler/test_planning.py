"""Plans: what they list, what is switched off, and models that are not the planned ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compiler.driver import plan, transform
from compiler.pipeline import pipeline_of
from compiler.planning import Plan
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from graphwright.passes import Canonicalize, FoldBatchNorm, Timing
from ir.errors import InputError, PatternError
from passes.apply import Convert
from passes.manager.manager import PassManager
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import GraphwrightWarning
from tests.compiler.test_scopes import Block, Net, Wide, X, net
from tests.passes.compiled import Calls
from tests.zoo.equality import assert_equal_outputs

__all__ = ["net"]  # the fixture


def listed(made: Plan) -> list[str]:
    return [f"{each}{'' if each.is_on else ' off'}" for each in made]


ALL = [
    "ConvBNActPattern at body.0.conv, body.0.bn, body.0.act",
    "ConvBNActPattern at body.1.conv, body.1.bn, body.1.act",
    "ConvBNPattern at head.0, head.1",
]


def test_a_plan_lists_what_transform_does_and_does_nothing(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = plan(net, X)
    assert listed(made) == ALL
    assert [each.kind for each in made] == ["fusion"] * 3 and made[2].modules == ("head.0", "head.1")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    result, followed = transform(net, X), transform(net, X, plan=made)
    assert str(followed.program) == str(result.program)
    assert [str(match) for match in followed.matches] == [str(match) for match in result.matches]
    assert str(made).splitlines()[0] == "   0       ConvBNActPattern  body.0.conv, body.0.bn, body.0.act"
    assert repr(made) == "<Plan of 3 rewrites, 0 of them off>" and len(made) == 3
    assert str(plan(net, X, patterns=())) == "no rewrites"


@pytest.mark.parametrize("number", range(3))
def test_each_rewrite_can_be_switched_off_alone(net: Net, number: int) -> None:
    made = plan(net, X)
    made.disable(made[number])
    assert not made[number].is_on and made[number].key == plan(net, X)[number].key
    result = transform(net, X, plan=made, validate="each")
    assert_equal_outputs(net, result.model, X)
    assert len(result.matches) == sum(each.is_on for each in made)
    (remark,) = (remark for remark in result.remarks if remark.kind == "off")
    assert remark.rule == ALL[number].split()[0] and remark.message == "it is switched off in the plan"


def test_what_matches_in_the_place_of_a_rewrite_that_is_off_is_listed(net: Net) -> None:
    made = plan(net, X)
    made.disable(rule="ConvBNAct*", module="body.0")
    assert listed(made) == [f"{ALL[0]} off", ALL[1], "ConvBNPattern at body.0.conv, body.0.bn", ALL[2]]
    made.disable(rule="ConvBN*", module="body.0.*")
    result = transform(net, X, plan=made)
    assert type(result.model.get_submodule("body.0.conv")) is nn.Conv2d
    made.enable(rule="ConvBNPattern")
    assert transform(net, X, plan=made).counts() == {"ConvBNActPattern": 1, "ConvBNPattern": 2}
    made.enable()
    assert listed(made) == ALL


def test_modules_are_meant_by_class_too(net: Net) -> None:
    made = plan(net, X)
    made.disable(module=Block)
    assert all(each.is_on == each.modules[0].startswith("head") for each in made)
    made.enable(module=[Wide, "nothing"])
    assert [each.modules[0] for each in made if each.is_on] == ["body.1.conv", "head.0"]


def test_a_rule_that_matches_what_another_made_is_planned() -> None:
    class ReluToTanh(Pattern):
        """relu(x) = tanh(x), wrong on purpose"""

        is_conversion = True

        def pattern(self, p: Any) -> Any:
            return p.relu(p.any("x"))

        def rewrite(self, m: Any, b: Any) -> Any:
            return b.tanh(m.x)

    class TanhToSigmoid(ReluToTanh):
        def pattern(self, p: Any) -> Any:
            return p.tanh(p.any("x"))

        def rewrite(self, m: Any, b: Any) -> Any:
            return b.sigmoid(m.x)

    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Identity()))
    pipeline = PassManager([Convert([ReluToTanh, TanhToSigmoid])])
    made = plan(model, torch.ones(2), pipeline=pipeline)
    assert sorted(listed(made)) == [
        "ReluToTanh at 0",
        "ReluToTanh at 1.0",
        "TanhToSigmoid at 0",
        "TanhToSigmoid at 1.0",
    ]
    made.disable(rule="ReluToTanh", module="0")
    assert "TanhToSigmoid at 0" not in listed(made) and "TanhToSigmoid at 1.0" in listed(made)
    names = [op.name for op in transform(model, torch.ones(2), plan=made, check=False).program.graph.operations()]
    assert names == ["aten.relu", "aten.sigmoid"]


def test_calls_of_one_module_are_told_apart_by_number() -> None:
    model = Calls(lambda self, x: self.block(self.block(x)), block=nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())).eval()
    made = plan(model, X)
    assert listed(made) == ["ConvBNActPattern at block.0, block.1", "ConvBNActPattern at block.0, block.1, number 1"]
    made.disable(made[0])
    result = transform(model, X, plan=made)
    kinds = [op.name for op in result.program.graph.operations()]
    assert kinds == ["fused.conv_bn", "aten.relu", "fused.conv_bn_act"]
    assert_equal_outputs(model, result.model, X)


def test_passes_that_fold_are_planned_and_instruments_are_told_of_the_real_run_alone(net: Net) -> None:
    timing = Timing()
    pipeline = pipeline_of(TENSORRT_PATTERNS).insert_before("fuse", FoldBatchNorm(), Canonicalize(inference=True))
    made = plan(net, X, pipeline=pipeline.with_instruments(timing))
    made.disable(rule="FoldBatchNorm*", module="head")
    assert not timing.seconds
    result = transform(net, X, plan=made)
    assert timing.seconds
    left = [path for path, module in result.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["head.0.bn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "ConvBn*"}, r"is of a rule 'ConvBn\*'\n  remedy: did you mean ConvBNPattern"),
        ({"rule": "Linear*"}, r"is of a rule 'Linear\*'\n  remedy: rules are ConvBNActPattern, ConvBNPattern$"),
        ({"module": "bdy.0"}, r"is in a module 'bdy.0'\n  remedy: did you mean body.0"),
        (
            {"module": nn.LSTM},
            r"in a module 'class:torch.nn.modules.rnn.LSTM'\n  remedy: modules are body.0.conv, body.0",
        ),
        (
            {"rule": "ConvBNPattern", "module": "zzz"},
            r"of a rule .* in a module 'zzz'\n  remedy: modules of ConvBNPattern are",
        ),
        ({"rule": 3}, "rule=3 is no text"),
        ({"module": lambda op: True}, "a plan knows no operations"),
    ],
)
def test_a_switch_that_means_nothing_names_what_is_near(net: Net, options: dict[str, Any], message: str) -> None:
    made = plan(net, X)
    for switch in (made.disable, made.enable):
        with pytest.raises(InputError, match=message) as caught:
            switch(**options)
        assert caught.value.remedy
    assert listed(made) == ALL


def test_what_is_no_rewrite_of_the_plan_is_refused(net: Net) -> None:
    made, other = plan(net, X), plan(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).eval(), X)
    with pytest.raises(InputError, match=r"3 is no rewrite of a plan\n  remedy: give one of its list"):
        made.disable(3)
    with pytest.raises(InputError, match="no rewrite of the plan is one of those given"):
        made.disable(other[0])


def test_another_model_than_the_planned_one_is_refused_with_the_place(net: Net) -> None:
    made = plan(net, X)
    transform(net, torch.randn(3, 4, 9, 9), plan=made)  # other sizes, other numbers: the same rewrites
    net.body[1].act = nn.Softmax(1)
    with pytest.raises(InputError, match="the model is another one than was planned:") as caught:
        transform(net, X, plan=made)
    assert f"\n  {ALL[1]} was planned, and does not match\n" in caught.value.message
    assert "ConvBNPattern at body.1.conv, body.1.bn matches, and was not planned" in caught.value.message
    transform(net, X, plan=plan(net, X))
    shared = Calls(lambda self, x: (lambda y: self.act(y) + y)(self.conv(x)), conv=nn.Conv2d(4, 4, 1), act=nn.ReLU())
    alone = Calls(lambda self, x: self.act(self.conv(x)), conv=nn.Conv2d(4, 4, 1), act=nn.ReLU())
    with pytest.raises(
        InputError, match=r"was planned, and does not match \(the output of aten.conv2d at `conv` has 2 us"
    ):
        transform(shared.eval(), X, plan=plan(alone.eval(), X))


def test_arguments_beside_a_plan_are_refused(net: Net) -> None:
    made = plan(net, X)
    for options in ({"patterns": TENSORRT_PATTERNS}, {"pipeline": PassManager()}, {"target": "openvino"}):
        with pytest.raises(InputError, match="a plan has its target and its pipeline"):
            transform(net, X, plan=made, **options)
    with pytest.raises(InputError, match="plan=3 is no plan"):
        transform(net, X, plan=3)
    assert transform(net, X, plan=plan(net, X, target="openvino")).target.name == "openvino"


def test_a_faulty_rule_is_one_when_the_plan_is_made(net: Net) -> None:
    class Faulty(Pattern):
        def pattern(self, p: Any) -> Any:
            return p.relu(p.any("x"))

        def rewrite(self, m: Any, b: Any) -> Any:
            return m.y

    with pytest.raises(PatternError, match="the rewrite of Faulty"):
        plan(net, X, patterns=[Faulty], strict=True)
    with pytest.warns(GraphwrightWarning, match="Faulty skipped"):
        assert listed(plan(net, X, patterns=[Faulty])) == []
