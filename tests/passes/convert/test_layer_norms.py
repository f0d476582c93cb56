"""Layer norms and group norms that are written out become the operators; what looks like one does not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from compiler.driver import transform
from tests.compiler.drafts import randomize
from tests.zoo.equality import assert_equal_outputs

C, GROUPS = 8, 2


def standardized(x, *, mean, var, divides=False):
    scale = torch.sqrt(var + 1e-6) if divides else torch.rsqrt(var + 1e-6)
    return (x - mean) / scale if divides else (x - mean) * scale


def of_sam(x, w, b):
    u = x.mean(1, keepdim=True)
    x = standardized(x, mean=u, var=(x - u).pow(2).mean(1, keepdim=True), divides=True)
    return w[:, None, None] * x + b[:, None, None]


def by_variance(x, w, b):
    x = standardized(x, mean=x.mean(1, keepdim=True), var=x.var(1, keepdim=True, unbiased=False))
    return x * w.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)


def by_both(x, w, b):
    var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    return standardized(x, mean=mean, var=var) * w.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)


def turned(x, w, b):
    x = x.permute(0, 2, 3, 1)
    u = x.mean(-1, keepdim=True)
    x = standardized(x, mean=u, var=(x - u).square().mean(-1, keepdim=True))
    return (w * x + b).permute(0, 3, 1, 2)


def of_groups(x, w, b):
    n, c, h, width = x.shape
    x = x.reshape(n, GROUPS, -1)
    x = standardized(x, mean=x.mean(-1, keepdim=True), var=x.var(-1, keepdim=True, unbiased=False), divides=True)
    return x.reshape(n, c, h, width) * w[:, None, None] + b[:, None, None]


def of_groups_in_five_dimensions(x, w, b):
    n, c, h, width = x.shape
    x = x.reshape(n, GROUPS, c // GROUPS, h, width)
    var, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
    return standardized(x, mean=mean, var=var).reshape(n, c, h, width) * w[None, :, None, None] + b[None, :, None, None]


SPELLINGS = (of_sam, by_variance, by_both, turned, of_groups, of_groups_in_five_dimensions)


class Norm(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
        self.spelling = spelling

    def forward(self, x):
        return self.spelling(x, self.weight, self.bias)


class Net(nn.Module):
    def __init__(self, *spellings):
        super().__init__()
        self.norms = nn.ModuleList(Norm(each) for each in spellings)
        self.convs = nn.ModuleList(nn.Conv2d(C, C, 1) for _ in spellings)
        self.head = nn.Linear(C, 3)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def compiled(*spellings):
    torch.manual_seed(0)
    model, x = randomize(Net(*spellings)).eval(), torch.randn(2, C, 3, 5)
    result = transform(model, (x,))
    assert_equal_outputs(model, result.model, x)
    return result


def names(result):
    return Counter(op.name for op in result.program.graph.operations())


@pytest.fixture(scope="module")
def all_spellings():
    return compiled(*SPELLINGS)


def test_every_spelling_becomes_one_operator_with_its_weights(all_spellings):
    found = names(all_spellings)
    assert (found["fused.layer_norm"], found["fused.group_norm"]) == (4, 2)
    assert {name for name in found if not name.startswith("fused.")} == {"aten.permute", "aten.reshape"}
    kinds = Counter(type(module) for module in all_spellings.model.modules())
    assert (kinds[nn.LayerNorm], kinds[nn.GroupNorm]) == (4, 2)
    assert all(
        m.weight is not None and m.bias is not None for m in all_spellings.model.modules() if type(m) is nn.GroupNorm
    )


def test_the_weights_train_and_checkpoints_convert(all_spellings):
    torch.manual_seed(1)
    other = randomize(Net(*SPELLINGS)).eval()
    x = torch.randn(2, C, 3, 5)
    state = all_spellings.parameter_map.convert(other.state_dict())
    twin = compiled(*SPELLINGS).model
    twin.load_state_dict(state)
    torch.testing.assert_close(twin(x), other(x), rtol=1e-4, atol=1e-5)
    slopes = torch.autograd.grad(twin(x).sum(), list(twin.parameters()))
    assert all(slope.isfinite().all() for slope in slopes)


def of_a_sample(x, w, b):
    return (
        standardized(x, mean=x.mean(1, keepdim=True), var=x.var(1, keepdim=True)) * w[:, None, None] + b[:, None, None]
    )


def of_rows(x, w, b):
    var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
    return standardized(x, mean=mean, var=var) * w[:, None, None] + b[:, None, None]


def outside_of_the_root(x, w, b):
    u = x.mean(1, keepdim=True)
    return (x - u) / ((x - u).pow(2).mean(1, keepdim=True).sqrt() + 1e-6) * w[:, None, None] + b[:, None, None]


def of_groups_across_channels(x, w, b):
    n, c, h, width = x.shape
    x = x.reshape(n, c // GROUPS, GROUPS, -1).transpose(1, 2).reshape(n, GROUPS, -1)
    var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
    x = standardized(x, mean=mean, var=var)
    x = x.reshape(n, GROUPS, c // GROUPS, -1).transpose(1, 2).reshape(n, c, h, width)
    return x * w[:, None, None] + b[:, None, None]


def test_near_misses_keep_their_meaning():
    found = names(compiled(of_a_sample, of_rows, outside_of_the_root, of_groups_across_channels))
    # the groups are in order behind the first permute, and their norm stays between it and the second
    assert (found["fused.layer_norm"], found["fused.group_norm"], found["aten.permute"]) == (0, 1, 2)


def test_a_group_of_one_number_is_computed_as_before():
    # `F.group_norm` and `nn.GroupNorm` refuse it, `torch.group_norm` does not
    class OfOne(nn.Module):
        def forward(self, x):
            return torch.group_norm(x, 2) + x

    x = torch.randn(1, 2)
    assert torch.equal(transform(OfOne(), (x,)).model(x), x)
