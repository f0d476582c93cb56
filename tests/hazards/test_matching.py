"""Hazards of matching: literals, ranks and sizes, look-alikes, masks, overlapping matches, the order of effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.hazards.compare import assert_same
from tests.hazards.test_folding import Net, bn, conv


def flattens(m: Any, x: torch.Tensor) -> Any:
    return (
        m.l(torch.flatten(x, 1)),
        m.k(torch.flatten(x)),
        m.l(x.squeeze(3).squeeze(2)),
        m.l(x.view(x.size(0), 4)),
        m.l(x.mean((2, 3))),
        m.l(x.permute(0, 2, 3, 1)),
        m.one(x),
        m.one(torch.flatten(x, 1, 2)),
        m.k(x.reshape(1, 8)),
    )


def means(m: Any, x: torch.Tensor) -> Any:
    return (
        m.l(x.mean((2, 3), keepdim=True).flatten(1)),
        m.l(F.relu(F.adaptive_avg_pool2d(x, 1).flatten(1))),
        m.three(x.mean((1, 2))),
        m.l(x.sum((2, 3))),
        m.l(torch.softmax(x.mean((2, 3)), 1)),
        m.all(x.flatten(1)),
        m.l(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.0)),
    )


def test_what_flattens_a_map_and_what_does_not() -> None:
    layers = {"l": nn.Linear(4, 3), "k": nn.Linear(8, 3), "one": nn.Linear(1, 3)}
    assert_same(Net(flattens, **layers), torch.randn(2, 4, 1, 1), ways=("export", "shapes"))
    layers = {"l": nn.Linear(4, 3), "three": nn.Linear(3, 3), "all": nn.Linear(36, 3)}
    assert_same(Net(means, **layers), torch.randn(2, 4, 3, 3), ways=("export", "shapes"))


def test_a_batch_of_one_and_no_batch_at_all() -> None:
    model = Net(lambda m, x: (m.l(x.squeeze()), m.l(x.flatten(1)), m.l(x.flatten())), l=nn.Linear(4, 3))
    assert_same(model, torch.randn(1, 4, 1, 1), ways=("export", "shapes"))

    def unbatched(m: Any, x: torch.Tensor) -> Any:
        y = F.relu(m.c(x))
        return m.l(y.flatten()), y + x, F.adaptive_avg_pool2d(y, 1), m.l(y.mean((1, 2)))

    assert_same(Net(unbatched, c=conv(), l=nn.Linear(4, 3)), torch.randn(4, 1, 1), ways=("export", "shapes"))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 0, 4), (1, 1, 1, 1, 4)])
def test_ranks_of_linear_and_empty_inputs(shape: tuple[int, ...]) -> None:
    layers = (nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.LayerNorm(2))
    assert_same(nn.Sequential(*layers), torch.randn(shape))


def test_an_empty_batch() -> None:
    model = nn.Sequential(conv(), bn(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    assert_same(model, torch.randn(0, 4, 3, 3))


def norms(m: Any, x: torch.Tensor) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
        centred / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        (x - x.mean(-2, keepdim=True)) / torch.sqrt(x.var(-2, keepdim=True, unbiased=False) + 1e-5),
        m.n(x),
        m.m(x),
        m.r(x),
    )


def test_look_alikes_of_norms() -> None:
    layers = {
        "n": nn.LayerNorm(8, eps=0.1, bias=False),
        "m": nn.LayerNorm((6, 8), elementwise_affine=False),
        "r": nn.RMSNorm(8),
    }
    assert_same(Net(norms, **layers), torch.randn(2, 6, 8))


# ---- attention


def heads(t: torch.Tensor) -> torch.Tensor:
    return t.view(t.shape[0], -1, 2, 4).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, attend: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("lower", torch.tril(torch.ones(5, 5, dtype=torch.bool)))
        self.register_buffer("nothing", torch.zeros(5, 5, dtype=torch.bool))
        self.register_buffer("bias", torch.randn(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        return self.o(self.attend(self, q, k, v).transpose(1, 2).flatten(2))


sdpa = F.scaled_dot_product_attention
INF = float("inf")
ATTENTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "plain": lambda m, q, k, v: sdpa(q, k, v),
    "bool mask": lambda m, q, k, v: sdpa(q, k, v, attn_mask=m.lower),
    "float mask": lambda m, q, k, v: sdpa(q, k, v, attn_mask=m.bias),
    "all masked": lambda m, q, k, v: sdpa(q, k, v, attn_mask=m.nothing),
    "causal": lambda m, q, k, v: sdpa(q, k, v, is_causal=True),
    "causal, unequal": lambda m, q, k, v: sdpa(q, k[:, :, :3], v[:, :, :3], is_causal=True),
    "scale": lambda m, q, k, v: sdpa(q, k, v, scale=0.3),
    "dropout": lambda m, q, k, v: sdpa(q, k, v, dropout_p=0.2 if m.training else 0.0),
    "grouped": lambda m, q, k, v: sdpa(q, k[:, :1], v[:, :1], enable_gqa=True),
    "query as key": lambda m, q, k, v: sdpa(q, q, v),
    "written": lambda m, q, k, v: torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v,
    "written, divided": lambda m, q, k, v: torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v,
    "scaled before": lambda m, q, k, v: torch.softmax((q * 0.5) @ k.transpose(-2, -1), -1) @ v,
    "written, masked": lambda m, q, k, v: torch.softmax((q @ k.mT * 0.5).masked_fill(~m.lower, -INF), -1) @ v,
    "written, all masked": lambda m, q, k, v: torch.softmax((q @ k.mT).masked_fill(~m.nothing, -INF), -1) @ v,
    "written, biased": lambda m, q, k, v: torch.softmax(q @ k.mT * 0.5 + m.bias, -1) @ v,
    "written, dropped": lambda m, q, k, v: F.dropout(torch.softmax(q @ k.mT, -1), 0.3, m.training) @ v,
    "other softmax dim": lambda m, q, k, v: torch.softmax(q @ k.mT * 0.5, -2) @ v,
    "key not transposed": lambda m, q, k, v: torch.softmax(q @ k.reshape(-1, 2, 4, 5), -1) @ v,
    "added after": lambda m, q, k, v: (torch.softmax(q @ k.mT * 0.5, -1) + 1) @ v,
    "multiplied": lambda m, q, k, v: torch.softmax(q @ k.mT * m.bias, -1) @ v,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_and_its_look_alikes(name: str) -> None:
    assert_same(Attention(ATTENTIONS[name]).eval(), torch.randn(2, 5, 8))


def swapped(m: Any, x: torch.Tensor) -> torch.Tensor:
    v, k, q = m.qkv(x).chunk(3, -1)
    return sdpa(heads(q), heads(k), heads(v))


def head_first(m: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = m.qkv(x).view(x.shape[0], -1, 2, 12).transpose(1, 2).chunk(3, -1)
    return sdpa(q, k, v)


def weights_too(m: Any, x: torch.Tensor) -> Any:
    q, k, v = m.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    weights = torch.softmax(q @ k.mT * 0.5, -1)
    return weights @ v, weights


@pytest.mark.parametrize("forward", [swapped, head_first, weights_too])
def test_joint_projections(forward: Any) -> None:
    assert_same(Net(forward, qkv=nn.Linear(8, 24)), torch.randn(2, 5, 8), ways=("export", "fx", "shapes"))


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(x.shape[0 if self.layer.self_attn.batch_first else 1], 5, dtype=torch.bool)
        return self.layer(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropouts_behind_attention_drop_the_same_elements(batch_first: bool) -> None:
    assert_same(Encoder(batch_first).train(), torch.randn((2, 5, 8) if batch_first else (5, 2, 8)))


# ---- overlapping matches, and effects that a match would move


def overlapping(m: Any, x: torch.Tensor) -> Any:
    a, b = m.c(x), m.d(x)
    y = F.relu(a + b)
    z = F.relu(F.relu(F.relu(m.e(y))))
    return m.b(m.e(z)) + m.b(m.d(z)), y + z, m.c(m.d(m.e(x))), F.relu(b + x)


@pytest.mark.parametrize("training", [False, True])
def test_overlapping_matches(training: bool) -> None:
    model = Net(overlapping, c=conv(), d=conv(), e=conv(), b=bn()).train(training)
    assert_same(model, torch.randn(2, 4, 5, 5), ways=("export", "fx", "shapes"))


def test_dropouts_draw_in_the_order_of_the_original() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.a(x.flatten(1))
        z = m.b(x * 2)
        return m.l(y), z

    model = Net(forward, l=nn.Linear(4, 3), a=nn.Dropout(0.3), b=nn.Dropout(0.4)).train()
    assert_same(model, torch.randn(8, 4, 1, 1), ways=("export", "conversions", "shapes"))


def test_batch_norms_update_in_the_order_of_the_original() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y, z = m.b(m.c(x)), m.b(m.d(x))
        return F.relu(z), F.relu(y + z), F.relu(y), m.b(x)

    assert_same(Net(forward, c=conv(), d=conv(), b=bn()).train(), torch.randn(4, 4, 3, 3), ways=("export", "fx"))


class WideBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.bias = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.flatten(x, 1), self.weight, self.bias)


def test_a_bias_for_each_row_is_none_of_a_convolution() -> None:
    result = assert_same(WideBias(), torch.randn(4, 3, 1, 1))["export"]
    assert not [match for match in result.matches if match.is_conversion]
