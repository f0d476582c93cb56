"""Scopes on models: by path, class and predicate, in every capture; and scopes that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from compiler.driver import transform
from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from graphwright.passes import Canonicalize, FoldBatchNorm
from ir.core import Operation
from ir.errors import InputError
from ir.opdef import Trait
from passes.manager.manager import PassManager
from passes.rewrite.pattern import scoped

STANDARD = pipeline_of(TENSORRT_PATTERNS)


class Block(nn.Module):
    """A residual block; all but the addition is in its children."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x))) + x


class Wide(Block):
    """Another class of blocks."""


class Net(nn.Module):
    """Two blocks, and a head of a convolution with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), Wide())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.top = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.head(self.body(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


X = torch.randn(2, 4, 6, 6)


def fused(model: Any, pipeline: PassManager, *args: Any) -> list[str]:
    """The first modules of the regions."""
    result = transform(model, *args, pipeline=pipeline)
    return [op.location.module_path for op in result.program.graph.operations() if op.body is not None]


def test_batch_norm_is_folded_outside_of_the_head(net: Net) -> None:
    pipeline = STANDARD.insert_before("fuse", FoldBatchNorm(skip="head"), Canonicalize(inference=True))
    result = transform(net, X, pipeline=pipeline)
    torch.testing.assert_close(result.model(X), net(X))
    left = [path for path, module in result.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["head.0.bn"]
    (remark,) = (r for r in result.remarks if r.kind == "outside")
    assert remark.rule == "FoldBatchNormPattern" and "`head.0` is left out by skip=head" in remark.message


def test_one_convolution_is_left_unfused_and_the_report_says_why(net: Net) -> None:
    result = transform(net, X, pipeline=STANDARD.with_scope("fuse", skip="body.0.conv"))
    assert type(result.model.get_submodule("body.0.conv")) is nn.Conv2d
    assert len(result.matches) == 2
    kept = {r.location.module_path: r.reason for r in result.remarks if r.kind == "kept"}
    assert "ConvBNActPattern: aten.conv2d at `body.0.conv` is left out by skip=body.0.conv" in kept["body.0.bn"]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, ["body.0.conv", "body.1.conv", "head.0"]),
        ({"only": "*"}, ["body.0.conv", "body.1.conv", "head.0"]),
        ({"skip": Block}, ["head.0"]),
        ({"only": Wide}, ["body.1.conv"]),
        ({"only": "class:Block", "skip": "body.1"}, ["body.0.conv"]),
        (
            {"only": nn.Sequential, "skip": lambda op: op.opdef.has(Trait.ACTIVATION)},
            ["body.0.conv", "body.1.conv", "head.0"],
        ),
    ],
    ids=["none", "all", "skip class", "only class", "both", "predicate"],
)
def test_scopes_mean_the_same_in_every_capture(net: Net, scope: dict[str, Any], expected: list[str]) -> None:
    pipeline = STANDARD.with_scope("fuse", **scope)
    assert fused(net, pipeline, X) == expected
    assert fused(torch.export.export(net, (X,), strict=False), pipeline) == expected
    assert fused(fx.symbolic_trace(net), pipeline, X) == expected


def test_a_scope_of_the_pipeline_holds_for_all_of_it(net: Net) -> None:
    whole = PassManager(STANDARD.passes, skip=["head", "body.1"])
    assert fused(net, whole, X) == ["body.0.conv"]
    assert fused(net, parse_pipeline(str(whole)), X) == ["body.0.conv"]


def test_a_pattern_in_a_scope(net: Net) -> None:
    patterns = [scoped(p, skip="class:Wide") if p.__name__ == "ConvBNActPattern" else p for p in TENSORRT_PATTERNS]
    result = transform(net, X, patterns=patterns)
    assert result.counts() == {"ConvBNActPattern": 1, "ConvBNPattern": 2}


def test_a_scope_that_means_nothing_is_refused(net: Net) -> None:
    for wrong, remedy in (
        ("haed", "did you mean head"),
        (
            "encoder.*",
            "modules are body, body.0, body.0.act, body.0.bn, body.0.conv, body.1, body.1.act, body.1.bn and",
        ),
        ("class:Blok", r"did you mean Block\?"),
        (nn.LSTM, "classes are "),
    ):
        for pipeline in (
            STANDARD.with_scope("fuse", skip=wrong),
            PassManager(STANDARD.passes, only=wrong),
            pipeline_of([scoped(TENSORRT_PATTERNS[0], only=wrong)]),
        ):
            with pytest.raises(InputError, match=f"the scope .* means nothing in this model\n  remedy: {remedy}"):
                transform(net, X, pipeline=pipeline)
    assert fused(net, STANDARD.with_scope("fuse", only=Net), X) == ["body.0.conv", "body.1.conv", "head.0"]
    # a module that leaves no operation is one of the model all the same
    transform(net, X, pipeline=STANDARD.with_scope("fuse", skip=["top", nn.Identity]))


def test_nothing_of_what_is_left_out_changes(net: Net) -> None:
    def texts(pipeline: PassManager) -> list[str]:
        program = transform(net, X, pipeline=pipeline).program
        return [str(op) for op in program.graph.operations() if in_head(op)]

    def in_head(op: Operation) -> bool:
        return op.location.module_path.startswith("head")

    inference = STANDARD.insert_before("fuse", FoldBatchNorm(), Canonicalize(inference=True))
    assert len(texts(PassManager(inference.passes, skip="head"))) == len(texts(PassManager())) == 2
