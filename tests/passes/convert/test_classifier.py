"""Flatten and linear become a convolution: every spelling, wherever the sizes of 1 stand, and no look-alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.driver import transform
from ir.text.parser import parse_program
from passes.convert.classifier import FlattenLinearToConv1x1Pattern, FlattenLinearToConvPattern
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from passes.rewrite.matching import compile_rule
from passes.rewrite.remarks import GraphwrightWarning
from tests.passes.compiled import image, run
from tests.zoo.equality import assert_equal_outputs, assert_equal_training

FLATTENS = {
    "flatten": lambda s, x: s.fc(torch.flatten(x, 1)),
    "reshape": lambda s, x: s.fc(x.reshape(x.shape[0], -1)),
    "view": lambda s, x: s.fc(x.view(-1, 4)),
    "squeeze": lambda s, x: s.fc(x.squeeze(3).squeeze(2)),
    "squeeze twice": lambda s, x: s.fc(x.squeeze(-1).squeeze(-1)),
    "flatten in two steps": lambda s, x: s.fc(x.flatten(2).flatten(1)),
    "links": lambda s, x: s.fc(F.dropout(F.gelu(torch.flatten(x, 1)), 0.3, s.training)),
    "inplace": lambda s, x: s.fc(F.relu(torch.flatten(x, 1), inplace=True)),
}


class Pooled(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.pool, self.fc = first, nn.AdaptiveAvgPool2d(1), nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(F.relu(self.first(x) * 2)), 1))


def test_without_shapes_a_convolution_tells_the_rank_of_what_is_pooled():
    traced = torch.fx.symbolic_trace(Pooled(nn.Conv2d(4, 12, 1)).eval())
    result = transform(traced, patterns=(FlattenLinearToConv1x1Pattern,))
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    assert_equal_outputs(traced, result.model, image())


def test_without_shapes_a_pool_may_take_five_dimensions():
    traced = torch.fx.symbolic_trace(Pooled(nn.Identity()).eval())
    with pytest.warns(GraphwrightWarning, match="C x 1 x 1 cannot be proved"):
        result = transform(traced, patterns=(FlattenLinearToConv1x1Pattern,))
    x = torch.randn(2, 4, 3, 5, 5)
    assert torch.equal(result.model(x), traced(x))


@pytest.mark.parametrize("spelling", FLATTENS)
def test_every_spelling_of_flatten_is_converted(spelling):
    result = run(
        lambda s, x: FLATTENS[spelling](s, s.pool(x)), image(), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(4, 3)
    )
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1


class ChannelsNorm(nn.LayerNorm):
    """The norm of the channels of a map, as ConvNeXt has it: they are moved last for it, and back."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.norm, self.flatten = nn.AdaptiveAvgPool2d(1), ChannelsNorm(4), nn.Flatten()
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(4, 3)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return self.fc(self.drop(self.flatten(self.norm(self.pool(x)))))


@pytest.mark.parametrize(
    ("captured_by", "batch"), [("symbolic", 2), *((by, batch) for by in ("export", "fx", "shapes") for batch in (1, 2))]
)
def test_the_classifier_of_convnext_is_converted(captured_by, batch):
    model, x = ConvNeXtHead().eval(), image(batch, 4, 6, 5)
    given = torch.fx.symbolic_trace(model) if captured_by in ("fx", "shapes") else model
    if captured_by == "shapes":
        torch.fx.passes.shape_prop.ShapeProp(given).propagate(x)
    symbolic = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1, max=64)},)} if captured_by == "symbolic" else {}
    result = transform(given, None if captured_by == "shapes" else (x,), **symbolic)
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    assert_equal_outputs(model, result.model, x)
    assert_equal_training(result, model, x)
    if symbolic:
        assert_equal_outputs(model, result.model, image(5, 4, 6, 5))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda s, x: s.fc(x.flatten(1)), (2, 1, 1, 4)),
        (lambda s, x: s.fc(x.reshape(2, 4)), (1, 2, 1, 4)),
        (lambda s, x: s.fc(x.reshape(2, 4)), (1, 1, 2, 4)),
        (lambda s, x: s.fc(x.flatten(0, 2)), (2, 1, 1, 4)),
        (lambda s, x: s.fc(x.permute(2, 1, 0, 3).reshape(2, 4)), (1, 1, 2, 4)),
        (lambda s, x: s.fc(F.gelu(x.reshape(2, 4))), (2, 1, 4, 1)),
    ],
)
def test_the_sizes_of_1_of_a_pooled_map_may_stand_anywhere(function, shape):
    patterns = (FlattenLinearToConvPattern, FlattenLinearToConv1x1Pattern)
    result = run(function, image(*shape), patterns=patterns, fc=nn.Linear(4, 3))
    assert result.counts() == {"FlattenLinearToConv1x1Pattern": 1}
    assert tuple(result.model.state_dict()["fc.weight"].shape) == (3, 4, 1, 1)


@pytest.mark.parametrize(
    "mean",
    [
        lambda s, x: s.fc(x.mean([2, 3])),
        lambda s, x: s.fc(x.mean((-1, -2))),
        lambda s, x: s.fc(x.mean([2, 3], keepdim=True).flatten(1)),
        lambda s, x: s.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)),
    ],
)
def test_every_spelling_of_global_pooling_is_converted(mean):
    result = run(mean, image(), fc=nn.Linear(4, 3))
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    assert result.counts()["AdaptiveAvgPoolPattern"] == 1


@pytest.mark.parametrize(
    ("function", "shape", "features"),
    [
        (lambda s, x: s.fc(torch.flatten(x, 1)), (2, 4, 2, 2), 16),
        (lambda s, x: s.fc(torch.flatten(x, 2)), (2, 4, 1, 4), 4),
        (lambda s, x: s.fc(torch.flatten(x, 0, 2)), (2, 3, 1, 4), 4),
        (lambda s, x: s.fc(x.reshape(1, 8)), (2, 4, 1, 1), 8),
        (lambda s, x: s.fc(x.reshape(4, 2)), (2, 4, 1, 1), 2),
        (lambda s, x: s.fc(torch.flatten(x, 1)), (2, 4, 1), 4),
        (lambda s, x: s.fc(torch.flatten(x, 1)), (2, 4, 1, 1, 1), 4),
        (lambda s, x: (lambda y: (s.fc(y), y))(torch.flatten(x, 1)), (2, 4, 1, 1), 4),
        (lambda s, x: s.fc(torch.softmax(torch.flatten(x, 1), 1)), (2, 4, 1, 1), 4),
        (lambda s, x: s.fc(x.reshape(2, 4)), (4, 1, 1, 2), 4),
        (lambda s, x: s.fc(x.reshape(4, 4)), (2, 1, 2, 4), 4),
        (lambda s, x: s.fc(x.flatten(1)), (2, 2, 1, 2), 4),
    ],
)
def test_look_alikes_of_the_classifier_are_left_alone(function, shape, features):
    result = run(function, image(*shape), fc=nn.Linear(features, 3))
    assert "FlattenLinearToConv1x1Pattern" not in result.counts()


def test_a_larger_map_becomes_a_full_window_when_asked_for():
    layers = {"fc": nn.Linear(4 * 3 * 2, 5), "second": nn.Linear(5, 2, bias=False), "drop": nn.Dropout(0.5)}

    def forward(s, x):
        return s.second(s.drop(F.relu(s.fc(torch.flatten(x, 1)))))

    patterns = (FlattenLinearToConvPattern, FlattenLinearToConv1x1Pattern)
    result = run(forward, image(2, 4, 3, 2), patterns=patterns, **layers)
    assert result.counts() == {"FlattenLinearToConvPattern": 1, "FlattenLinearToConv1x1Pattern": 1}
    assert tuple(result.model.state_dict()["fc.weight"].shape) == (5, 4, 3, 2)
    result = run(forward, image(2, 4, 3, 2), **layers)
    assert "FlattenLinearToConvPattern" not in result.counts()


def test_a_tied_classifier_weight_stays_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(torch.flatten(x, 1)).relu())

    model = Tied().eval()
    result = transform(model, (image(2, 4, 1, 1),), validate="each")
    assert_equal_outputs(model, result.model, image(2, 4, 1, 1))
    storages = {p.untyped_storage().data_ptr() for p in result.model.parameters()}
    assert model.a.weight.untyped_storage().data_ptr() in storages and len(storages) == 3


@pytest.mark.filterwarnings("ignore::passes.rewrite.remarks.GraphwrightWarning")
@pytest.mark.parametrize("size", [(None, 1), (1, None), (None, None)])
def test_a_pool_to_a_size_that_the_program_computes(size):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(4, 3)).eval()
    result = transform(torch.fx.symbolic_trace(model))
    assert "FlattenLinearToConv1x1Pattern" not in result.counts()
    assert_equal_outputs(model, result.model, image(2, 4, 1, 1))
    pattern = RemoveIdentityAdaptiveAvgPoolPattern()
    text = """
        program "case" {
          graph(%x : f32[2, 4, 6, 5], %n : int) {
            %y = aten.adaptive_avg_pool2d(%x) {output_size=[%n, 5]} : ?
            return %y
          }
        }"""
    (match,) = [variant.try_match(parse_program(text).graph.first) for variant in compile_rule(pattern)]
    assert "to a size that the program computes" in pattern.check(match)


@pytest.mark.parametrize(
    ("middle", "left", "edge"),
    [
        ((nn.Flatten(), nn.LayerNorm(4), nn.Dropout(0.5)), {"aten.dropout"}, "dropout at `3` is aten.layer_norm"),
        (
            (nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5)),
            {"aten.dropout", "aten.batch_norm"},
            "dropout at `3` is aten.batch_norm",
        ),
        ((nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Flatten()), {"aten.dropout", "aten.batch_norm"}, ""),
    ],
    ids=["layer norm", "batch norm", "on the map"],
)
@pytest.mark.parametrize("training", [True, False])
def test_heads_with_a_norm_or_dropout_are_fused_or_left_alone_for_an_edge(middle, left, edge, training):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), *middle, nn.Linear(4, 3)).train(training)
    result = transform(model, (image(),))
    stay = {op.name for op in result.program.graph.operations() if op.body is None and op.name != "aten.reshape"}
    assert stay == left
    assert any(op.name in ("fused.linear", "fused.conv_bn") for op in result.program.graph.operations())
    kept = {remark.operation: remark.reason for remark in result.remarks if remark.kind == "kept"}
    for name in left:
        assert f"operand `input` of {name} at `" in kept[name], kept[name]
    if edge:
        assert edge in str(result.explain("4", rule="FlattenLinearToConv1x1Pattern"))
    else:
        assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
