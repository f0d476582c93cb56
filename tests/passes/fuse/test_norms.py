"""Norms are fused in the spellings of the libraries, and look-alikes are left alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from compiler.driver import transform
from tests.compiler.drafts import randomize
from tests.zoo.equality import assert_equal_outputs

C = 6


class Llama(nn.Module):
    """As in transformers; T5 does not cast what it multiplies."""

    def __init__(self, squares=lambda x: x.pow(2)):
        super().__init__()
        self.weight, self.squares = nn.Parameter(torch.ones(C)), squares

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(self.squares(x).mean(-1, keepdim=True) + 1e-6)).to(dtype)


class T5(Llama):
    def forward(self, x):
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(self.weight.dtype)


class Gemma(Llama):
    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1.0 + self.weight.float())).type_as(x)


class Divided(Llama):
    def forward(self, x):
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * self.weight


class Timm(Llama):
    def forward(self, x):
        return x * torch.rsqrt(torch.mean(x.square(), dim=(-1,), keepdim=True) + 1e-6) * self.weight


class Unweighted(Llama):
    def forward(self, x):
        return x * (x**2).mean(-1, keepdim=True).add(1e-6).pow(-0.5)


SPELLINGS = (partial(nn.RMSNorm, C), Llama, T5, Gemma, Divided, Timm, Unweighted)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(norm() for norm in SPELLINGS)
        self.linears = nn.ModuleList(nn.Linear(C, C) for _ in SPELLINGS)

    def forward(self, x):
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + linear(norm(x))
        return x


def regions(result):
    return [op for op in result.program.graph.operations() if op.attributes.get("kind") == "rms_norm"]


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    model, x = randomize(Net()).eval(), torch.randn(2, 3, C)
    result = transform(model, (x,))
    assert_equal_outputs(model, result.model, x)
    return result


def test_every_spelling_becomes_one_module(compiled):
    """The operator with its weight; a weight with 1 added is computed in the region."""
    assert len(regions(compiled)) == len(SPELLINGS)
    assert all([op.name for op in region.body.operations()].count("aten.rms_norm") == 1 for region in regions(compiled))
    modules = {name: type(module) for name, module in compiled.model.named_modules() if type(module) is nn.RMSNorm}
    assert list(modules) == [
        "norms.0.norm",
        "norms.1.norm",
        "norms.2.norm",
        "norms.4.norm",
        "norms.5.norm",
        "norms.6_rms_norm.norm",
    ]
    assert {op.name for op in compiled.program.graph.operations() if op.body is None} == {"aten.add.Tensor"}


def test_casts_are_part_of_the_region():
    model, x = Net().to(torch.bfloat16).eval(), torch.randn(2, 3, C, dtype=torch.bfloat16)
    result = transform(model, (x,))
    assert torch.equal(result.model(x), model(x))
    assert {op.name for op in result.program.graph.operations() if op.body is None} == {"aten.add.Tensor"}


def test_a_norm_alone_keeps_its_strides():
    model = Llama().eval()
    x = torch.randn(2, C, 3).transpose(1, 2)
    result = transform(model, (x,))
    assert len(regions(result)) == 1
    assert result.model(x).stride() == model(x).stride()


@pytest.mark.parametrize(
    "look_alike",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
        lambda x: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6),
        lambda x: x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + 1e-6),
        lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ],
)
def test_look_alikes_stay(look_alike):
    class Alike(nn.Module):
        def forward(self, x):
            return look_alike(x)

    x = torch.randn(3, 3, 3)
    result = transform(Alike(), (x,))
    assert not regions(result)
    assert_equal_outputs(Alike(), result.model, x)
