"""Attention of grouped queries: every spelling of repeated keys and values, capped scores, and near misses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.passes.compiled import run

B, H, KV, T, D = 2, 4, 2, 5, 8
SPELLINGS = {
    "expanded": lambda k: k[:, :, None].expand(B, KV, H // KV, T, D).reshape(B, H, T, D),
    "copied": lambda k: k[:, :, None].expand(-1, -1, H // KV, -1, -1).contiguous().view(B, H, T, D),
    "repeated": lambda k: k.unsqueeze(2).repeat(1, 1, H // KV, 1, 1).flatten(1, 2),
    "interleaved": lambda k: k.repeat_interleave(H // KV, 1),
}


def layers():
    return {
        "q": nn.Linear(16, H * D),
        "k": nn.Linear(16, KV * D),
        "v": nn.Linear(16, KV * D),
        "o": nn.Linear(H * D, 16),
    }


def heads(s, x):
    return [layer(x).unflatten(-1, (-1, D)).transpose(1, 2) for layer in (s.q, s.k, s.v)]


def attentions(result):
    """The operators of attention in the result, in regions."""
    found = [op for op in result.program.graph.operations() if op.name == "fused.scaled_dot_product_attention"]
    return [op for region in found for op in region.body.operations()]


def test_heads_are_repeated_by_the_operator():
    def attend(s, x):
        for repeat in SPELLINGS.values():
            q, k, v = heads(s, x)
            y = F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)
            x = x + s.o(y.transpose(1, 2).flatten(2))
        return x

    result = run(attend, torch.randn(B, T, 16), **layers())
    assert [op.attributes["enable_gqa"] and op.attributes["is_causal"] for op in attentions(result)] == [True] * 4
    names = {op.name for op in result.program.graph.operations()}
    assert not names & {"aten.expand", "aten.repeat", "aten.repeat_interleave.self_int", "aten.contiguous"}


def test_heads_in_another_order_stay_repeated():
    def attend(s, x):
        q, k, v = heads(s, x)
        k, v = (t.repeat(1, H // KV, 1, 1) for t in (k, v))  # all heads, then all again
        return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    (attention,) = attentions(run(attend, torch.randn(B, T, 16), **layers()))
    assert not attention.attributes["enable_gqa"]


def test_capped_scores_are_part_of_the_region():
    def attend(s, x):
        q, k, v = heads(s, x)
        scores = q[:, :KV] @ k.transpose(2, 3) * D**-0.5
        scores = torch.tanh(scores / 50.0) * 50.0
        mask = torch.full((T, T), -math.inf).triu(1)
        weights = torch.softmax(scores + mask, -1, dtype=torch.float32).to(x.dtype)
        return (weights @ v).transpose(1, 2).flatten(2)

    names = [op.name for op in attentions(run(attend, torch.randn(B, T, 16), **layers()))]
    assert "aten.tanh" in names
    assert names.count("aten.matmul") == 2


def test_talking_heads_are_left_alone():
    def attend(s, x):
        q, k, v = heads(s, x)
        scores = s.mix((q[:, :KV] @ k.transpose(2, 3)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)

    assert not attentions(run(attend, torch.randn(B, T, 16), mix=nn.Linear(KV, KV), **layers()))
