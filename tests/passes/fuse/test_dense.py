"""Gated linear layers and group norms become regions, of one linear or of two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from compiler.emitted.fused import FusedGatedLinear, FusedGroupNorm
from compiler.targets.openvino import OPENVINO
from passes.manager.manager import PassManager
from passes.quant.place import PlaceQuantizers
from tests.passes.compiled import run


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
