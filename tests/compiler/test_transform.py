"""`transform` from the outside: what it takes, returns, refuses, and leaves untouched."""

from __future__ import annotations

import copy
import warnings
from typing import ClassVar

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from graphwright import (
    CaptureError,
    GraphwrightError,
    GraphwrightWarning,
    InputError,
    Pass,
    PassManager,
    Pattern,
    PatternError,
    ValidationError,
    VerificationError,
    pipeline_of,
    transform,
)
from graphwright.passes import Canonicalize, Convert, Fixpoint, Timing
from graphwright.tensorrt import TENSORRT_CONVERSION_PATTERNS, TENSORRT_FUSION_PATTERNS, TENSORRT_PATTERNS
from tests.zoo.equality import assert_equal_outputs, assert_equal_training


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(torch.flatten(self.pool(self.act(self.bn(self.conv(x)))), 1)))


X = torch.randn(2, 3, 8, 8)


def test_result_has_all_it_promises():
    model = Small().eval()
    result = transform(model, (X,), patterns=TENSORRT_PATTERNS)
    assert [m.pattern.__name__ for m in result.matches] == [
        "FlattenLinearToConv1x1Pattern",
        "ConvBNActPattern",
        "ConvBNPattern",
        "AdaptiveAvgPoolPattern",
    ]
    conversion = result.matches[0]
    assert conversion.is_conversion and "fc" in str(conversion.location)
    assert [op.name for op in conversion.replaced] == ["aten.reshape", "aten.dropout", "aten.linear"]
    assert [op.name for op in conversion.created] == ["aten.dropout", "aten.reshape", "aten.conv2d", "aten.reshape"]
    assert result.matches[1].location.file == __file__
    assert "fused.conv_bn_act" in str(result.program)
    assert result.parameter_map["conv.conv.weight"] == ("conv.weight",)
    assert result.model.state_dict()["fc.conv.weight"].shape == (4, 8, 1, 1)
    assert result.model.state_dict()["fc.conv.weight"].data_ptr() == model.fc.weight.data_ptr()
    names = [stage.name for stage in result.stages]
    assert names[:3] == ["observe", "capture", "lower"] and names[-2:] == ["emit", "check"]
    assert_equal_outputs(model, result.model, X)
    assert_equal_training(result, model, X)


def test_a_bare_tensor_keyword_arguments_and_an_exported_program_are_accepted():
    model = Small().eval()
    for result in (
        transform(model, X),
        transform(model, (), {"x": X}),
        transform(torch.export.export(model, (X,))),
        transform(torch.fx.symbolic_trace(model), (X,)),
    ):
        assert len(result.matches) == 4
        with torch.no_grad():
            assert torch.allclose(result.model(x=X), model(X), atol=1e-6)


def test_an_emitted_module_is_transformed_again_with_its_lists_and_dicts():
    class Net(nn.Module):
        def forward(self, x):
            return [x.relu(), {"y": (x, [x + 1])}]

    x = torch.randn(2)
    once = transform(Net(), (x,))
    twice = transform(once.model, (x,))
    assert pytree.tree_structure(twice.model(x)) == pytree.tree_structure(Net()(x))
    assert list(map(type, (twice.model(x), twice.model(x)[1]))) == [list, dict]


def test_conversions_run_before_fusions_whatever_the_order_of_the_list():
    shuffled = (*reversed(TENSORRT_FUSION_PATTERNS), *TENSORRT_CONVERSION_PATTERNS)
    result = transform(Small().eval(), X, patterns=shuffled)
    assert [m.is_conversion for m in result.matches] == [True, False, False, False]
    assert sorted(result.counts()) == sorted(transform(Small().eval(), X).counts())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transform("model", (X,)), InputError, "nn.Module"),
        (lambda: transform(Small(), [X]), InputError, "tuple"),
        (lambda: transform(Branches()), CaptureError, "example_inputs"),
        (lambda: transform(Small(), dynamic_shapes={"x": {0: 1}}), InputError, "example inputs"),
        (lambda: transform(Small(), (X,), [X]), InputError, "example_kwargs"),
        (lambda: transform(Small(), (X,), patterns=("ConvBN",)), PatternError, "unknown pattern 'ConvBN'"),
        (lambda: transform(Small(), (X,), patterns=Pattern), PatternError, "list or tuple"),
        (lambda: transform(Small(), (X,), pipeline="canonicalize"), InputError, "not a PassManager"),
        (lambda: transform(Small(), (X,), validate="yes"), InputError, "validate='yes'"),
        (lambda: transform("model", validate="final"), InputError, "validate='final' needs example inputs"),
        (lambda: transform(Small(), (torch.randn(2, 4, 8, 8),)), CaptureError, "conv"),
        (lambda: transform(Small(), (X, X)), GraphwrightError, "argument"),
        (lambda: transform(Small(), (X,), leaf_modules=("nowhere",)), InputError, "nowhere"),
        (
            lambda: transform(Small(), (X,), leaf_modules="drops"),
            InputError,
            "similar paths: drop$",
        ),
        (lambda: transform(Small(), (X,), leaf_modules=3), InputError, "leaf_modules=3 is not a list"),
        (lambda: transform(Small(), (X,), leaf_modules=None), InputError, "leaf_modules=None is not a list"),
        (lambda: transform(Small(), (X,), progress=3), InputError, "progress=3 is not a function"),
        (lambda: transform(Small(), (X,), check=3), InputError, "check=3"),
        (lambda: transform(Small(), (X,), strict="yes"), InputError, "strict='yes'"),
        (lambda: transform(Small(), (X,), leaf_modules=[""]), InputError, "the model itself, Small"),
        (
            lambda: transform(Small(), (X,), patterns=TENSORRT_PATTERNS, pipeline=PassManager([])),
            InputError,
            "patterns= and pipeline= are both given",
        ),
        (lambda: transform(Small(), (X,), patterns=[], pipeline=PassManager([])), InputError, "both given"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("leaf", ["conv", nn.Conv2d, ["conv"]])
def test_one_leaf_module_may_stand_alone(leaf):
    result = transform(Small().eval(), (X,), leaf_modules=leaf)
    assert list(result.program.opaques) == ["conv"]


def test_the_result_prints_as_a_short_summary():
    result = transform(Small().eval(), (X,))
    assert repr(result).splitlines() == [
        "TransformResult: GraphModule, 7 operations before, 5 after",
        "  1 conversion: FlattenLinearToConv1x1Pattern 1",
        "  3 fusions: ConvBNActPattern 1, ConvBNPattern 1, AdaptiveAvgPoolPattern 1",
        "  result.model is the module, result.remarks says why, print(result.program) is the IR",
    ]
    assert "  no rewrites" in repr(transform(Small().eval(), (X,), patterns=()))


def test_the_remedy_for_the_root_module_is_no_leaf_module():
    with pytest.raises(CaptureError) as caught:
        transform(Branches(), (torch.randn(2, 3),))
    assert "move that part of Branches.forward into a submodule" in str(caught.value.remedy)
    with pytest.raises(CaptureError) as caught:
        transform(Outer(), (torch.randn(2, 3),))
    assert "keep `inner` as is with leaf_modules=['inner']" in str(caught.value.remedy)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fc(x).sum() > 0:  # LINE
            return x
        return -x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1


def test_data_dependent_control_flow_names_module_and_line_and_leaves_the_model_alone():
    model = Outer().train()
    before = copy.deepcopy(model.__dict__), {k: v.clone() for k, v in model.state_dict().items()}
    with open(__file__) as source:
        line = next(i for i, text in enumerate(source, 1) if "# LINE" in text)
    with pytest.raises(CaptureError) as caught:
        transform(model, (torch.randn(2, 3),))
    text = str(caught.value)
    assert "inner" in text and f"{__file__}:{line}" in text and "leaf_modules" in text
    assert set(model.__dict__) == set(before[0]) and model.training and model.inner.training
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert "forward" not in vars(model.inner)
    result = transform(model.eval(), (torch.randn(2, 3),), leaf_modules=(model.inner,))
    for seed in range(4):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(result.model(x), model(x))


class Wrong(Pattern):
    """relu(x) = x: which is wrong"""

    exact = True

    def pattern(self, p):
        return p.relu(p.any("x"))

    def rewrite(self, m, b):
        return m.x


def test_validation_finds_a_wrong_rule():
    model = Small().eval()
    assert transform(model, X, patterns=(Wrong,), check=False).counts() == {"Wrong": 1}
    with pytest.raises(ValidationError, match=r"does not do what the original does"):
        transform(model, X, patterns=(Wrong,))
    with pytest.raises(ValidationError, match=r"Wrong changes the result"):
        transform(model, X, patterns=(Wrong,), validate="each")
    with pytest.raises(ValidationError, match=r"emitted module differs"):
        transform(model, X, patterns=(Wrong,), check=False, validate="final")


@pytest.mark.parametrize("mode", ["final", "each"])
def test_validation_accepts_right_rules(mode):
    result = transform(Small().eval(), X, validate=mode)
    assert len(result.matches) == 4


def test_without_inputs_only_the_rewrites_are_validated():
    result = transform(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), validate="each")
    assert "validate" not in [stage.name for stage in result.stages]
    assert {"unchecked", "validated"} <= {remark.kind for remark in result.remarks}


def test_a_pattern_that_raises_and_a_pass_that_breaks_the_ir():
    class Raises(Wrong):
        def rewrite(self, m, b):
            raise RuntimeError("no idea")

    with pytest.raises(PatternError, match=r"Raises.*no idea") as caught:
        transform(Small().eval(), X, patterns=(Raises,), strict=True)
    assert "act" in str(caught.value) and __file__ in str(caught.value)
    with pytest.warns(GraphwrightWarning, match=r"Raises skipped: .* raised RuntimeError: no idea"):
        result = transform(Small().eval(), X, patterns=(Raises,))
    assert [(r.rule, r.location.module_path) for r in result.remarks if r.kind == "failed"] == [("Raises", "act")]

    @attrs.frozen
    class Breaks(Pass):
        name: ClassVar[str] = "breaks"

        def run(self, program, context):
            op = program.graph.first
            op.attributes["stride"] = (7, 7)
            program.graph.revision += 1

    with pytest.raises(VerificationError, match="conv2d"):
        transform(Small().eval(), X, pipeline=PassManager([Breaks()]))


def test_a_pipeline_instead_of_patterns():
    manager = pipeline_of(TENSORRT_PATTERNS)
    text = str(manager)
    assert text.startswith("canonicalize,fixpoint(convert{patterns=FlattenLinearToConv1x1Pattern,")
    assert transform(Small().eval(), X, pipeline=manager).counts() == transform(Small().eval(), X).counts()
    bare = transform(Small().eval(), X, pipeline=PassManager())
    assert bare.matches == () and type(bare.model.conv) is nn.Conv2d
    assert set(bare.model.state_dict()) == set(Small().state_dict())


def test_stages_are_the_passes_of_the_pipeline():
    told: list[str] = []
    timing = Timing()
    pipeline = pipeline_of(TENSORRT_PATTERNS).with_instruments(timing)
    result = transform(Small().eval(), (X,), pipeline=pipeline, progress=told.append)
    stages = [stage.name for stage in result.stages]
    assert told == stages
    assert stages[3:-3] == ["canonicalize", "convert+canonicalize", "fuse"]
    assert {"apply-canonical-rules", "convert", "fuse"} <= timing.seconds.keys()


def test_a_fixpoint_may_be_the_whole_pipeline():
    pipeline = Fixpoint([Canonicalize(), Convert(TENSORRT_CONVERSION_PATTERNS)])
    result = transform(Small().eval(), (X,), pipeline=pipeline)
    assert result.stages[3].name == "canonicalize+convert"
    assert result.counts() == {"FlattenLinearToConv1x1Pattern": 1}


def test_without_shapes_a_rule_that_needs_them_is_skipped_with_a_warning_that_names_the_node():
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d((4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.pool(x))

    traced = torch.fx.symbolic_trace(Pools())
    with pytest.warns(GraphwrightWarning, match=r"RemoveIdentityAdaptiveAvgPoolPattern skipped.*`pool`"):
        result = transform(traced)
    assert any(remark.kind == "skipped" for remark in result.remarks)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(result.model(x), traced(x))
    torch.fx.passes.shape_prop.ShapeProp(traced).propagate(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = transform(traced)
    assert result.counts()["RemoveIdentityAdaptiveAvgPoolPattern"] == 1
    assert torch.equal(result.model(x), traced(x))


def test_other_sizes_than_compiled_for_are_refused_not_wrong():
    result = transform(Small().eval(), X)
    with pytest.raises(InputError, match=r"x.*dynamic_shapes"):
        result.model(torch.randn(3, 3, 8, 8))


def test_one_compilation_does_not_disturb_the_next():
    model = Small().eval()
    first, second = transform(model, X), transform(model, X)
    assert str(first.program) == str(second.program)
    assert first.model.code == second.model.code
    assert first.counts() == second.counts()


@pytest.mark.parametrize("layer", [nn.LSTM(4, 5, 2, bidirectional=True), nn.GRU(4, 5, batch_first=True), nn.RNN(4, 3)])
def test_recurrent_layers_keep_their_list_of_parameters(layer):
    layer.eval()
    listed = [id(weight) for weight in layer._flat_weights]
    x = torch.randn(2, 3, 4)
    result = transform(layer, (x,))
    assert [id(weight) for weight in layer._flat_weights] == listed
    assert_equal_outputs(layer, result.model, x)


def test_a_module_without_inputs_is_traced_with_fx():
    model = Small().eval()
    model.unused = nn.Sequential(nn.Linear(2, 2))
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.warns(GraphwrightWarning, match=r"`pool`.*unknown"):
        result = transform(model, patterns=TENSORRT_CONVERSION_PATTERNS)
    assert result.counts() == {"FlattenLinearToConv1x1Pattern": 1}
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert "unused.0.weight" in result.model.state_dict()
    assert result.matches[0].location.file == __file__
    for size in (1, 3):
        assert_equal_outputs(model, result.model, torch.randn(size, 3, 9, 9))


def test_without_inputs_code_that_depends_on_the_mode_is_kept_or_refused():
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn_like(x) if self.training else x

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.noise = nn.Linear(3, 3), Noise()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.noise(self.fc(x))

    class ReadsItself(Reads):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if self.training else self.fc(-x)

    model = Reads().eval()
    result = transform(model)
    x = torch.randn(2, 3)
    for mode in (False, True):
        outputs = []
        for module in (model.train(mode), result.model.train(mode)):
            torch.manual_seed(1)
            outputs.append(module(x))
        assert torch.equal(*outputs)
    with pytest.raises(InputError, match=r"self.training"):
        transform(ReadsItself())
