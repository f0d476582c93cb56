"""Hazards of capture where the model is an FX graph that is never run: structures, indices, dtypes and writes."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from graphwright import GraphwrightError, transform
from tests.hazards.compare import assert_same

FX = ("fx", "shapes")
Pair = collections.namedtuple("Pair", "a b")


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: torch.Tensor) -> Any:
        y = F.relu(self.conv(x))
        values, indices = self.pool(y)
        return F.max_pool2d(y, 3, return_indices=True), self.unpool(values, indices), F.adaptive_max_pool2d(y, 2, True)


def test_the_indices_of_pooling() -> None:
    assert_same(Pools(), torch.randn(2, 3, 16, 16), ways=FX)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 5, batch_first=True), nn.GRU(4, 5), nn.LSTM(4, 5, proj_size=3)])
def test_states_of_recurrent_layers(layer: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> Any:
            y, state = self.layer(x)
            return y * 2, state, self.layer(x)

    assert_same(Model(), torch.randn(3, 6, 4), ways=FX)


@fx.wrap
def own(x: torch.Tensor, k: int) -> Any:
    return {"a": (x * k, [x + 1])}


@fx.wrap
def own_pair(x: torch.Tensor) -> Any:
    return x * 2, (x + 1, x - 1)


class Structures(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        a, rest = own_pair(x)
        b, c = rest
        return Pair(a, {"b": b}), c, own(x, 3), own_pair(x + 1), [F.relu(x)]


def test_structures_that_no_operator_returns() -> None:
    assert_same(Structures(), torch.randn(3, 4), ways=FX)


class NamedResults(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        values, indices = x.min(0, keepdim=True)
        return values, indices, x.max(1).values, x.topk(2).indices, torch.sort(x, 1)[0]


def test_results_by_name() -> None:
    assert_same(NamedResults(), torch.randn(3, 4), ways=FX)


class OtherDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(3, 3, dtype=torch.bool)))

    def forward(self, x: torch.Tensor) -> Any:
        mask = self.mask.to(x.dtype)
        return x @ mask, x.to(device=x.device), x.half().to(dtype=x.dtype), x.new_zeros(x.shape[0]) + mask.sum()


def test_dtypes_that_are_read_from_tensors() -> None:
    assert_same(OtherDtypes(), torch.randn(2, 3), ways=FX)


class SplitHeads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, -1)
        return q @ k.mT @ v


def test_pieces_whose_size_is_computed() -> None:
    assert_same(SplitHeads(), torch.randn(2, 5, 12), ways=FX)


class Formats(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last), x.data * 2


def test_conversions_without_a_dtype() -> None:
    assert_same(Formats(), torch.randn(2, 3, 4, 4), ways=FX)


class Casts(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.float(memory_format=torch.channels_last), x.double(memory_format=torch.channels_last)


def test_casts_to_a_memory_format() -> None:
    assert_same(Casts(), torch.randn(2, 3, 4, 4), ways=FX)


class WritesData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.clamp_(max=0.5)
        return x * self.weight


class AllPieces(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.chunk(2)


@pytest.mark.parametrize(
    ("model", "message"), [(WritesData(), "'weight' is mutated"), (AllPieces(), "number of pieces is not known")]
)
def test_refusals(model: nn.Module, message: str) -> None:
    with pytest.raises(GraphwrightError, match=message):
        transform(fx.symbolic_trace(model))


def test_results_with_names_keep_them() -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            top = x.topk(2)
            return x.max(1), torch.min(x, 0, keepdim=True), x.sort(), top, top.values, {"a": x.cummax(0)}

    result = assert_same(Named(), torch.randn(3, 4), ways=FX)["fx"]
    assert type(result.model(torch.randn(3, 4).double())[0]) is torch.return_types.max


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm1d(4, track_running_stats=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.a(x), self.b(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6)])
def test_instance_norm_of_an_unknown_rank(shape: tuple[int, ...], training: bool) -> None:
    assert_same(Norms().train(training), torch.randn(shape), ways=FX)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(F.relu(self.bn(self.conv(x))))


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Block) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(Block(), nn.Conv2d(4, 4, 1)), (4, 4, 3, 3)),
        (nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (2, 5, 8)),
    ],
)
def test_what_follows_the_mode_inside_of_a_leaf_follows_it(
    model: nn.Module, shape: tuple[int, ...], training: bool
) -> None:
    graph = LeafTracer().trace(model)
    traced = fx.GraphModule(model, graph).train(training)
    stacks = [node.meta.get("nn_module_stack") for node in graph.nodes]
    result = assert_same(traced, torch.randn(shape))["export"]
    assert result.model._mode_locked is None
    assert [node.meta.get("nn_module_stack") for node in graph.nodes] == stacks
