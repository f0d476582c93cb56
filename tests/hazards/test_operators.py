"""Operators whose schema, types or tensors are out of the ordinary: equal, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from graphwright import CaptureError, transform
from tests.hazards.compare import assert_same
from tests.hazards.test_capture import Lambda


def test_a_list_among_several_results() -> None:
    def forward(self: nn.Module, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
        counts, (first, second) = torch.histogramdd(x, [a, b])
        return counts + 1, second, first * 2

    edges = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert_same(Lambda(forward), torch.rand(7, 2), *edges, gradients=False)


def test_a_list_among_several_results_of_a_graph() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
            counts, edges = torch.histogramdd(x, [a, b])
            return counts + 1, edges[1]

    args = torch.rand(7, 2), torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, 0.75, 1.0])
    found = transform(fx.symbolic_trace(Model())).model(*args)
    assert all(map(torch.equal, found, Model()(*args)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_embedding_bags(mode: str, include_last_offset: bool) -> None:
    model = nn.EmbeddingBag(10, 3, mode=mode, include_last_offset=include_last_offset)
    assert_same(model, torch.tensor([1, 2, 4, 5]), torch.tensor([0, 2, 4]))


def test_norms_that_scale_and_do_not_shift() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, bias=False), nn.InstanceNorm2d(4, True, bias=False))
    result = assert_same(model, torch.randn(2, 3, 4, 5))["export"]
    assert any(key.endswith("num_batches_tracked") for key in result.model.state_dict())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers_are_refused(layout: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dense = torch.eye(4)
            self.register_buffer("table", dense.to_sparse() if layout == "coo" else dense.to_sparse_csr())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table @ x

    with pytest.raises(CaptureError, match=rf"`0.table` is of layout torch.sparse_{layout}") as caught:
        transform(nn.Sequential(Model()), (torch.randn(4, 4),))
    assert "to_dense" in str(caught.value.remedy)


def test_sparse_and_nested_arguments_are_refused() -> None:
    model = Lambda(lambda self, x: x * 2)
    with pytest.raises(CaptureError, match=r"tensor number 0 of the arguments is of layout torch\.sparse_coo"):
        transform(model, (torch.eye(3).to_sparse(),))
    with pytest.raises(CaptureError, match="tensor number 0 of the arguments is a nested tensor"):
        transform(model, (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),))


def test_sizes_add_up_as_tuples_in_a_graph_without_inputs() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            x = x.reshape(2, 3, 4, 5)
            sizes = x.size()[:-2] + (-1,)  # noqa: RUF005 - a torch.Size cannot be unpacked while it is traced
            return x.reshape(sizes), x.new_zeros(x.size() + (2,)), x.size() + (x.shape[0],)  # noqa: RUF005

    found, expected = transform(fx.symbolic_trace(Model())).model(torch.ones(6, 20)), Model()(torch.ones(6, 20))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert tuple(found[2]) == tuple(expected[2])


def test_nothing_is_folded_on_the_meta_device() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + torch.ones(4, device=x.device).cumsum(0)

    with torch.device("meta"):
        model = Model()
    found = transform(model, (torch.empty(2, 4, device="meta"),)).model(torch.empty(2, 4, device="meta"))
    assert found.is_meta and found.shape == (2, 4)


def test_a_write_through_a_detach_that_detaches_nothing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state: torch.Tensor
            self.register_buffer("state", torch.zeros(2, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state = self.state.detach()
            self.state.add_(1)
            return x + self.state

    model, x = Model(), torch.randn(2, 4)
    emitted = transform(model, (x,)).model
    assert torch.equal(emitted(x), x + 1) and torch.equal(emitted(x), x + 2)


def test_an_operator_in_an_attribute_is_no_state() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packet, self.overload = torch.ops.aten._softmax, torch.ops.aten.hypot.default

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.packet(x, -1, False) + self.overload(x, x)

    assert_same(Model(), torch.randn(2, 4))


def test_a_function_that_calls_itself() -> None:
    def make(weight: torch.Tensor) -> Any:
        def times(x: torch.Tensor, count: int) -> torch.Tensor:
            return x * weight if count == 0 else times(x, count - 1) + 1

        return times

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times = make(torch.arange(4.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.times(x, 2)

    x = torch.randn(2, 4)
    assert torch.equal(transform(Model(), (x,)).model(x), Model()(x))


def test_floats_of_eight_bits_are_compared() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        return x.to(torch.float8_e4m3fn)

    found = transform(Lambda(forward), (torch.randn(2, 4),)).model(torch.ones(2, 4))
    assert found.dtype is torch.float8_e4m3fn
