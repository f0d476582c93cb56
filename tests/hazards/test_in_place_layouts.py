"""In-place operators keep the strides of the tensor they write, through every kind of view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from graphwright import GraphwrightError, transform
from tests.hazards.compare import assert_same
from tests.hazards.test_capture import Lambda

OPERATORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "index_add_": lambda y: y.index_add_(0, torch.tensor([1, 0]), torch.ones(2, *y.shape[1:], dtype=y.dtype)),
    "index_copy_": lambda y: y.index_copy_(0, torch.tensor([1]), torch.ones(1, *y.shape[1:], dtype=y.dtype)),
    "index_put_": lambda y: y.index_put_((torch.tensor([1, 0]),), torch.ones((), dtype=y.dtype)),
    "masked_fill_": lambda y: y.masked_fill_(torch.ones(y.shape, dtype=torch.bool).tril(), 5.0),
    "masked_scatter_": lambda y: y.masked_scatter_(torch.ones(y.shape, dtype=torch.bool).tril(), torch.ones_like(y)),
    "scatter_add_": lambda y: y.scatter_add_(0, torch.zeros(1, *y.shape[1:], dtype=torch.int64), torch.ones_like(y)),
    "scatter_": lambda y: y.scatter_(0, torch.zeros(1, *y.shape[1:], dtype=torch.int64), 3.0),
    "cumsum_": lambda y: y.cumsum_(0),
    "tril_": lambda y: y.tril_(),
    "renorm_": lambda y: y.renorm_(2, 0, 0.5),
    "mvlgamma_": lambda y: y.abs_().add_(3).mvlgamma_(2),
    "copy_": lambda y: y.copy_(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)),
    "copy_ of another dtype": lambda y: y.copy_(torch.arange(y.numel()).reshape(y.shape)),
    "add_": lambda y: y.add_(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)),
    "lerp_": lambda y: y.lerp_(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape), 0.5),
    "polygamma_": lambda y: y.abs_().add_(1).polygamma_(1),
    "pow_": lambda y: y.abs_().pow_(torch.full(y.shape, 2.0, dtype=y.dtype)),
    "floor_divide_": lambda y: y.floor_divide_(torch.full(y.shape, 0.7, dtype=y.dtype)),
    "ldexp_": lambda y: y.ldexp_(torch.ones(y.shape, dtype=torch.int64)),
    "out=": lambda y: torch.mul(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape), 2, out=y),
}
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.transpose(-1, 0),
    "permuted": lambda x: x.permute(1, 2, 0),
    "moved": lambda x: x.movedim(0, 1),
    "selected and transposed": lambda x: x[1].t(),
    "a part, transposed": lambda x: x[:2].transpose(1, 2),
    "a slice in steps": lambda x: x[:, ::2].transpose(0, 2),
    "one more dimension": lambda x: x.transpose(0, 2).unsqueeze(1),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_strides_stay(operator: str) -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        results = []
        for view in VIEWS.values():
            whole = x * 2
            seen = view(whole)
            OPERATORS[operator](seen)
            results += [whole, seen]
        return results

    # PyTorch has no gradient for some, and for a copy of constants one of zeros
    gradients = operator not in ("floor_divide_", "mvlgamma_", "out=") and not operator.startswith("copy_")
    assert_same(Lambda(forward), torch.randn(4, 3, 5), gradients=gradients)


@pytest.mark.parametrize("operator", ["index_add_", "masked_fill_", "cumsum_", "add_", "copy_"])
def test_channels_last_stays(operator: str) -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = (x * 2).contiguous(memory_format=torch.channels_last)
        OPERATORS[operator](y)
        return y

    assert_same(Lambda(forward), torch.randn(2, 3, 4, 5), gradients=operator != "copy_")


def test_addmm() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = (x * 2).t()
        y.addmm_(x.t(), torch.eye(3, dtype=x.dtype))
        return y

    assert_same(Lambda(forward), torch.randn(3, 4))


def test_sizes_that_are_open() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = (x * 2).t()
        y.masked_fill_(y > 0, 1.0)
        y.cumsum_(0)
        return y

    model = Lambda(forward)
    result = transform(model, (torch.randn(3, 4),), dynamic_shapes={"args": ({0: torch.export.Dim("n", min=2)},)})
    x = torch.randn(7, 4)
    found, expected = result.model(x), model(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


class _Traced(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * 2).t()
        y.masked_fill_(y > 0, 1.0)
        y.cumsum_(0)
        return y


def test_a_graph_without_inputs() -> None:
    x = torch.randn(3, 4)
    found, expected = transform(fx.symbolic_trace(_Traced())).model(x), _Traced()(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_a_contiguous_tensor_is_not_copied() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        return y.masked_fill_(x > 0, 1.0).cumsum_(0)

    result = transform(Lambda(forward), (torch.randn(3, 4),))
    assert not {"aten.contiguous", "aten.permute", "aten.clone"} & set(result.operations_after)


def test_as_strided_in_place() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        y.as_strided_((2, 2), (4, 1))
        y.mul_(3)
        return y

    assert_same(Lambda(forward), torch.randn(3, 4))


# ---- statistics that are inputs


def batch_norm(_: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    return nn.functional.batch_norm(x, mean, variance, training=True)


def instance_norm(_: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    return nn.functional.instance_norm(x, mean, variance, use_input_stats=True)


def read_before_and_after(self: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    before = mean + 1
    y = batch_norm(self, batch_norm(self, x, mean, variance), mean, variance)
    return before, y, mean + 1, variance


def of_their_own(self: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
    mean, variance = mean * 2, variance * 2
    return mean + 1, batch_norm(self, x, mean, variance), mean + 1


@pytest.mark.parametrize("function", [batch_norm, instance_norm, read_before_and_after, of_their_own])
def test_statistics_that_are_inputs(function: Callable[..., Any]) -> None:
    assert_same(Lambda(function), torch.randn(2, 3, 4), torch.zeros(3), torch.ones(3), gradients=False)


@pytest.mark.parametrize("captured_by", ["traced", "shapes"])
def test_statistics_that_are_inputs_of_a_graph(captured_by: str) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
            return nn.functional.batch_norm(x, mean, variance, training=True)

    args = torch.randn(2, 3, 4), torch.zeros(3), torch.ones(3)
    graph = fx.symbolic_trace(Model())
    if captured_by == "shapes":
        fx.passes.shape_prop.ShapeProp(graph).propagate(*(arg.clone() for arg in args))
    emitted = transform(graph).model
    given, expected = [[arg.clone() for arg in args] for _ in range(2)]
    assert torch.equal(emitted(*given), Model()(*expected))
    assert all(map(torch.equal, given, expected)) and not torch.equal(given[1], args[1])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_view_of_statistics_that_are_inputs_is_refused(when: str) -> None:
    def forward(self: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
        views = [mean.view(-1)] if when == "before" else []
        y = batch_norm(self, x, mean, variance)
        views += [mean.view(-1)] if when == "after" else []
        return y, views[0] + 1

    with pytest.raises(GraphwrightError, match="statistics that are not buffers") as caught:
        transform(Lambda(forward), (torch.randn(2, 3, 4), torch.zeros(3), torch.ones(3)))
    assert caught.value.remedy is not None


def test_statistics_that_are_written_by_the_model_too() -> None:
    def forward(self: nn.Module, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
        y = batch_norm(self, x, mean, variance)
        mean.add_(1)
        return y

    with pytest.raises(GraphwrightError, match="input 1 is mutated here and by a normalization"):
        transform(Lambda(forward), (torch.randn(2, 3, 4), torch.zeros(3), torch.ones(3)))
