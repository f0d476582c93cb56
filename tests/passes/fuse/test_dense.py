"""Linear layers, their gates and norms, transposed convolutions with norms, and group norms become regions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.models import randomize_batch_norm
from compiler.driver import transform
from compiler.emitted.fused import (
    FusedConvTransposeBN,
    FusedConvTransposeBNAct,
    FusedGatedLinear,
    FusedGroupNorm,
    FusedLinearBNAct,
    FusedModule,
)
from compiler.pipeline import pipeline_of
from compiler.targets.openvino import OPENVINO
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from passes.fold.batch_norm import FoldBatchNorm
from passes.manager.manager import PassManager
from passes.quant.place import PlaceQuantizers
from tests.passes.compiled import run
from tests.zoo.equality import assert_equal_outputs, assert_equal_training


def kinds(result):
    return [op.attributes["kind"] for op in result.program.graph.operations() if op.body is not None]


def test_gates_of_two_linears_and_of_the_halves_of_one():
    def mlp(s, x):
        x = x + s.down(F.silu(s.gate(x)) * s.up(x))
        x = x + s.down(s.up(x) * F.gelu(s.gate(x), approximate="tanh"))
        a, b = s.both(x).chunk(2, -1)
        x = x + s.down(F.silu(a) * b)
        a, b = s.both(x).split(6, dim=-1)
        return s.down(a * torch.sigmoid(b))

    layers = {name: nn.Linear(4, 6) for name in ("gate", "up")} | {"both": nn.Linear(4, 12), "down": nn.Linear(6, 4)}
    result = run(mlp, torch.randn(2, 3, 4), **layers)
    assert kinds(result) == ["gated_linear", "linear"] * 4
    assert sum(type(module) is FusedGatedLinear for module in result.model.modules()) == 2  # the others are generated


def test_what_is_no_gate_stays():
    def mlp(s, x):
        u = s.up(x)
        shared = F.silu(s.gate(x)) * u + u
        other = F.silu(s.gate(x)) * s.up(x + 1)
        wrong = F.elu(s.gate(x)) * s.up(x)
        return shared + other + wrong

    result = run(mlp, torch.randn(2, 4), gate=nn.Linear(4, 6), up=nn.Linear(4, 6))
    assert "gated_linear" not in kinds(result)


def test_both_linears_of_a_gate_read_one_quantized_input():
    result = run(
        lambda s, x: F.silu(s.gate(x)) * s.up(x),
        torch.randn(4, 16),
        patterns=OPENVINO.patterns,
        gate=nn.Linear(16, 16),
        up=nn.Linear(16, 16),
    )
    program = PassManager([PlaceQuantizers("openvino")])(result.program)
    (region,) = [op for op in result.program.graph.operations() if op.body is not None]
    names = [op.name for op in region.body.operations()]
    assert names.count("aten.linear") == 2
    remarks = [remark.message for remark in program.log.remarks]
    assert sum("is s8" in message for message in remarks) == 2
    assert sum("`input` of gated_linear" in message for message in remarks) == 1


def test_a_group_norm_takes_its_activation():
    result = run(lambda s, x: F.silu(s.norm(x)), torch.randn(2, 4, 3, 3), norm=nn.GroupNorm(2, 4))
    assert kinds(result) == ["group_norm"]
    (module,) = [m for m in result.model.modules() if isinstance(m, FusedGroupNorm)]
    assert [type(child) for child in module.children()] == [nn.GroupNorm, nn.SiLU]


class Decoder(nn.Module):
    """A linear layer, and transposed convolutions, of which one has groups, each with a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.fc_norm = nn.Linear(5, 16 * 4), nn.BatchNorm1d(16 * 4)
        self.up, self.norm = nn.ConvTranspose2d(16, 16, 2, stride=2, bias=False), nn.BatchNorm2d(16)
        self.last, self.last_norm = nn.ConvTranspose2d(16, 32, 3, padding=1, groups=2), nn.BatchNorm2d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decode."""
        x = self.fc_norm(self.fc(x)).relu().unflatten(1, (16, 2, 2))
        return self.last_norm(self.last(self.norm(self.up(x)).relu()))


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    model = Decoder().train()
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    return model, transform(model, (torch.randn(3, 5),))


DECODER = ["linear_bn_act", "conv_transpose_bn_act", "conv_transpose_bn"]


def test_norms_behind_transposed_convolutions_and_linears_are_fused_and_train(decoder):
    model, result = decoder
    assert kinds(result) == DECODER
    classes = [type(module) for module in result.model.modules() if isinstance(module, FusedModule)]
    assert classes == [FusedLinearBNAct, FusedConvTransposeBNAct, FusedConvTransposeBN]
    names = result.parameter_map
    assert [names[key] for key in result.model.state_dict()] == [(key,) for key in model.state_dict()]
    assert_equal_training(result, model, torch.randn(3, 5))
    for module in (model, result.model):
        module.eval()
    assert_equal_outputs(model, result.model, torch.randn(3, 5))
    for module in (model, result.model):
        module.train()


@pytest.mark.parametrize(
    ("target", "integers"),
    [("tensorrt", DECODER), ("openvino", DECODER[:2]), ("onnxruntime", DECODER[:1])],
)
def test_they_have_quantization_points_where_the_target_wants_them(decoder, target, integers):
    model, _ = decoder
    result = transform(model, (torch.randn(3, 5),), target=target, check=False)
    PassManager([PlaceQuantizers(target)])(result.program)
    axes = {}
    for region in result.program.graph.operations():
        inner = [] if region.body is None else [op for op in region.body.operations() if op.name == "quant.quantize"]
        if inner:
            axes[region.attributes["kind"]] = [op.attributes["axis"] for op in inner]
    assert list(axes) == integers
    assert axes == {kind: [1 if "transpose" in kind else 0] for kind in integers}


def test_a_norm_of_another_dimension_than_the_features_stays():
    result = run(lambda s, x: s.norm(s.fc(x)), torch.randn(2, 3, 4), fc=nn.Linear(4, 3), norm=nn.BatchNorm1d(3))
    assert kinds(result) == ["linear"]
    assert any("not rows of features" in remark.message for remark in result.remarks)


def test_in_inference_the_norms_are_folded(decoder):
    model, _ = decoder
    model = copy.deepcopy(model).eval()
    pipeline = pipeline_of(TENSORRT_PATTERNS).insert_before("fuse", FoldBatchNorm())
    result = transform(model, (torch.randn(3, 5),), pipeline=pipeline)
    assert "aten.batch_norm" not in str(result.program)
    assert kinds(result) == ["linear_act"]
