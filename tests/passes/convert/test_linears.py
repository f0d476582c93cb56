"""Sibling linears become one: numbers, training, checkpoints both ways, and the near misses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import PassManager, transform
from graphwright.passes import Canonicalize, Convert, Fuse
from graphwright.tensorrt import TENSORRT_FUSION_PATTERNS, TENSORRT_PATTERNS
from ir.text.parser import parse_program
from ir.verify import verify
from passes.convert.linears import MergeLinearsPattern, joint_name
from passes.convert.recompose import RecomposeLinearPattern
from passes.manager.manager import PassContext, run_pass
from tests.passes.compiled import Calls
from tests.zoo.equality import assert_equal_outputs

X = torch.randn(2, 5, 8)


class Attention(nn.Module):
    """Self-attention with two heads of four."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8, bias=bias) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(bias=bias), Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


def block(seed: int, **options: Any) -> Block:
    torch.manual_seed(seed)
    return Block(**options)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_of_one_input_are_one_and_train_as_before(bias: bool) -> None:
    model, other, x = block(0, bias=bias).double(), block(1, bias=bias).double(), X.double()
    result = transform(model, (x,), patterns=(MergeLinearsPattern,), validate="final")
    assert result.operations_after["aten.linear"] == 4 and "aten.cat" not in result.operations_after
    assert result.parameter_map["attn.q_k_v.weight"] == ("attn.q.weight", "attn.k.weight", "attn.v.weight")
    assert not result.parameter_map.untrained
    emitted = result.model
    for name, parameter in emitted.named_parameters():
        assert parameter.requires_grad, name

    emitted.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(emitted(x), other(x))
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = [torch.optim.SGD(module.parameters(), **options) for module in (other, emitted)]
    for _ in range(3):
        for module, optimizer in zip((other, emitted), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    trained = result.parameter_map.revert(emitted.state_dict())
    torch.testing.assert_close(trained, dict(other.state_dict()))


def test_the_fusions_of_attention_match_what_was_merged() -> None:
    model = block(0).eval()
    result = transform(model, (X,), patterns=(MergeLinearsPattern, *TENSORRT_PATTERNS), validate="each")
    assert result.counts()["MHAInProjectionPattern"] == 1
    torch.testing.assert_close(result.model(X), model(X))


def fc(forward: Any, **children: Any) -> nn.Module:
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), **children}
    return Calls(forward, **layers)


def tied() -> nn.Module:
    model = fc(lambda m, x: m.a(x) * m.b(x))
    model.b.weight = model.a.weight
    return model


def in_one_memory() -> nn.Module:
    model = fc(lambda m, x: m.a(x) * m.b(x) * m.c.weight.sum(), c=nn.Linear(8, 8))
    model.c.weight = nn.Parameter(model.a.weight.detach().t())
    return model


def half_frozen() -> nn.Module:
    model = fc(lambda m, x: m.a(x) * m.b(x))
    model.a.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (fc(lambda m, x: m.a(x) * m.b(x + 1)), ""),
        (fc(lambda m, x: m.a(x) * m.b(x), b=nn.Linear(8, 8, bias=False)), "one has a bias, and the other has none"),
        (tied(), "is read elsewhere too, or has two names"),
        (half_frozen(), "b.weight is trained, and a.weight is not"),
        (fc(lambda m, x: (m.a(x), m.b(x))), "its result shows in an output"),
        (fc(lambda m, x: m.a(x).exp() + F.linear(x, m.b.weight * 2, m.b.bias)), "is computed, not a weight"),
    ],
    ids=["inputs", "bias on one", "tied", "half frozen", "outputs", "computed"],
)
def test_near_misses_stay_apart(model: nn.Module, reason: str) -> None:
    result = transform(model, (X,), patterns=(MergeLinearsPattern,), validate="final")
    assert result.operations_after["aten.linear"] == 2 and "aten.split_with_sizes" not in result.operations_after
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert any(reason in remark.message for remark in result.remarks) or not reason


def test_weights_in_the_memory_of_another_stay_parameters_of_their_own() -> None:
    result = transform(in_one_memory(), (X,), patterns=(MergeLinearsPattern,), validate="final")
    assert result.operations_after["aten.cat"] == 1
    assert any("something else is in the same memory" in remark.message for remark in result.remarks)


def test_what_is_in_a_region_or_has_a_hook_stays() -> None:
    model = Gated()
    fused = PassManager([Canonicalize(), Fuse(TENSORRT_FUSION_PATTERNS), Convert([MergeLinearsPattern])])
    result = transform(model, (X,), pipeline=fused, validate="final")
    assert "MergeLinearsPattern" not in result.counts()
    hooked = copy.deepcopy(model)
    hooked.up.register_forward_hook(lambda module, args, out: out * 2)
    result = transform(hooked, (X,), patterns=(MergeLinearsPattern,), validate="final")
    torch.testing.assert_close(result.model(X), hooked(X))


def test_half_precision_and_the_meta_device() -> None:
    model = block(0).to(torch.bfloat16)
    result = transform(model, (X.bfloat16(),), patterns=(MergeLinearsPattern,))
    assert result.operations_after["aten.linear"] == 4
    with torch.device("meta"):
        bare = Block()
    result = transform(bare, (X.to("meta"),), patterns=(MergeLinearsPattern,))
    other, emitted = block(1), result.model.to_empty(device="cpu")
    emitted.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(emitted(X), other(X))


@pytest.mark.parametrize(
    ("names", "joint"),
    [
        (["attn.q.weight", "attn.k.weight"], "attn.q_k.weight"),
        (["q.weight", "k.weight", "v.weight"], "q_k_v.weight"),
        (["wq", "wk"], "wq_wk"),
        (["a.q.fc.weight", "a.k.fc.weight"], "a.q_k.fc.weight"),
        (["a.weight", "b.c.weight"], "a_b_c.weight"),
    ],
)
def test_joint_names(names: list[str], joint: str) -> None:
    assert joint_name(names) == joint


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 5, 4)])
def test_products_with_weights_are_linear_layers(shape):
    """Of an operand of any rank; a weight that is tied to another one stays so."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
            self.table = nn.Embedding(3, 6)

        def forward(self, x):
            return (x @ self.first + self.bias).relu() @ self.table.weight.t() + self.table.weight.sum()

    model, x = Net().eval(), torch.randn(shape)
    result = transform(model, (x,))
    assert_equal_outputs(model, result.model, x)
    names = sorted(op.name for op in result.program.graph.operations())
    assert names == ["aten.add.Tensor", "aten.sum", "fused.linear", "fused.linear_act"]
    assert sum(weight.numel() for weight in result.model.parameters()) == 4 * 6 + 6 + 3 * 6


_BIASED_LATER = """
program "made" {
  parameter %a.weight : f32[4, 3] requires_grad
  parameter %a.bias : f32[4] requires_grad
  parameter %b.weight : f32[4, 3] requires_grad
  parameter %b.bias : f32[4] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3]) {
    %rows = aten.linear(%x, %a.weight, None) : f32[2, 4]
    %g = aten.add.Tensor(%rows, %a.bias) : f32[2, 4]
    %s = aten.silu(%g) : f32[2, 4]
    %u = aten.linear(%x, %b.weight, %b.bias) : f32[2, 4]
    %y = aten.mul.Tensor(%s, %u) : f32[2, 4]
    return %y
  }
}
"""


def test_a_layer_is_not_merged_before_an_earlier_one_that_a_rule_has_just_made() -> None:
    """The later one comes first then; what is between the two would read a result below."""
    program = parse_program(_BIASED_LATER)
    run_pass(Convert((RecomposeLinearPattern, MergeLinearsPattern)), program, PassContext())
    verify(program)
    assert [op.name for op in program.graph.operations()].count("aten.linear") == 1
