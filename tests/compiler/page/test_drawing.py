from __future__ import annotations

import pytest
import torch
from torch import nn

from compiler.page.drawing import MODULE, OPERATION, REGION, Drawing, draw
from graphwright import transform

pytestmark = pytest.mark.xdist_group("page")


def lines(drawing: Drawing) -> list[str]:
    """The items as an indented text."""
    return [f"{'  ' * item.depth}{item.label}{f' | {item.place}' if item.place else ''}" for item in drawing.items]


def test_operations_are_in_the_boxes_of_their_modules(result, history) -> None:
    assert lines(draw(history.captured, history.modules)) == [
        "x",
        "scale",
        "shared · call 1 | Sequential",
        "  conv2d | 0",
        "  tanh | 1",
        "blocks.0 | Block",
        "  conv2d | conv",
        "  batch_norm | bn",
        "  relu | act",
        "  add",
        "mul",
        "blocks.1 | Block",
        "  conv2d | conv",
        "  batch_norm | bn",
        "  relu | act",
        "  add",
        "mul",
        "shared · call 2 | Sequential",
        "  conv2d | 0",
        "  tanh | 1",
        "abs",
        "adaptive_avg_pool2d",
        "flatten",
        "κεφαλή | Sequential",
        "  linear | 0",
        "  gelu | 1",
        "  linear | 2",
        "permute",
        "permute",
        "output 0",
        "output 1",
    ]


def test_regions_are_boxes_with_their_parts(result, history) -> None:
    drawing = draw(result.program, history.modules)
    regions = [number for number, item in enumerate(drawing.items) if item.kind == REGION]
    parts = {number: [item.label for item in drawing.items if item.parent == number] for number in regions}
    assert ["conv2d", "batch_norm", "relu"] in parts.values()
    assert len(drawing.operations) == result.program.graph.num_operations


@pytest.mark.parametrize("which", ["before", "after"])
def test_boxes_come_before_what_is_in_them_and_values_go_forward(result, history, which) -> None:
    drawing = draw(result.program if which == "after" else history.captured)
    assert all(item.parent < number for number, item in enumerate(drawing.items))
    assert all(drawing.items[item.parent].kind in (MODULE, REGION) for item in drawing.items if item.parent >= 0)
    assert all(edge.source < edge.target for edge in drawing.edges)
    assert all(drawing.items[edge.source].kind not in (MODULE, REGION) for edge in drawing.edges)
    read = {edge.target for edge in drawing.edges}
    assert all(number in read for number, item in enumerate(drawing.items) if item.kind == OPERATION)


def test_what_needs_no_input_is_drawn_where_it_is_used() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            scaled = torch.exp(self.weight * 2)
            return self.b(self.a(x)) @ scaled

    drawing = draw(transform(Net().eval(), torch.randn(2, 4), patterns=(), check=False).program)
    assert [item.label for item in drawing.items] == ["x", "linear", "linear", "mul", "exp", "matmul", "output"]
