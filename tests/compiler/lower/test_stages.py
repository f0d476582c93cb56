"""Graphs that call graphs, as `split_module` makes them, are one program."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module

from compiler.driver import transform
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from ir.errors import CaptureError

X = torch.randn(2, 3, 8, 8)


def layer(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = layer(3), layer(4), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        y = self.a(x)
        left, right = (y * self.scale).split(2, 1)
        return self.b(torch.cat([right, left], 1)), y


def stages(model, first="a_"):
    graph = fx.symbolic_trace(model)
    return split_module(graph, model, lambda node: 0 if first in node.name else 1)


def test_rules_match_across_and_inside_of_stages():
    model = Net().eval()
    result = transform(stages(model), patterns=TENSORRT_PATTERNS)
    assert [m.pattern.__name__ for m in result.matches] == ["ConvBNActPattern"] * 2
    assert "nn.opaque" not in result.operations_after
    assert {op.location.module_path.partition(".")[0] for op in result.program.graph.operations()} >= {"submod_0"}
    for a, b in zip(result.model(X), model(X), strict=True):
        torch.testing.assert_close(a, b)
    (key,) = (key for key, names in result.parameter_map.items() if names == ("submod_0.a_0.weight",))
    assert torch.equal(result.model.get_parameter(key), model.a[0].weight)


def test_a_stage_that_is_called_twice():
    inner = fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval())
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("stage", (x,))
    graph.output(graph.call_function(torch.add, (y, graph.call_module("stage", (y,)))))
    model = fx.GraphModule({"stage": inner}, graph)
    given = torch.randn(2, 4, 5, 5)
    result = transform(model, patterns=TENSORRT_PATTERNS)
    assert len(result.matches) == 2
    torch.testing.assert_close(result.model(given), model(given))


def test_a_stage_with_a_hook_is_refused():
    split = stages(Net().eval())
    split.submod_0.register_forward_hook(lambda module, args, result: result * 2)
    with pytest.raises(CaptureError, match="a graph with hooks") as raised:
        transform(split)
    assert raised.value.location is not None and raised.value.remedy


def test_a_stage_can_be_kept():
    split = stages(Net().eval())
    result = transform(split, patterns=TENSORRT_PATTERNS, leaf_modules=("submod_1",))
    assert result.operations_after["nn.opaque"] == 1 and len(result.matches) == 1
    torch.testing.assert_close(result.model(X)[0], split(X)[0])
