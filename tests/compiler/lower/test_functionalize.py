"""In-place operators, views and writes through them, against eager PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from ir.errors import CaptureError
from ir.verify import verify
from tests.compiler.lower.inplace_cases import CASES, Case
from tests.compiler.lower.lowering import Function, assert_same, lowered, names


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_equals_eager(function: Case) -> None:
    model = Function(function)
    x = torch.randn(4, 6)
    assert_same(lowered(model, x), model, x)


# ---- inputs and buffers ----


def test_write_to_an_input_is_an_extra_output() -> None:
    program = lowered(Function(lambda self, x: x.add_(1) * 2), torch.randn(2))
    (mutation,) = program.convention.mutations
    assert (mutation.input, mutation.buffer, mutation.output) == (0, None, 1)


def test_a_written_input_that_is_returned_is_the_output_of_the_write() -> None:
    program = lowered(Function(lambda self, x: (x * 3, x.add_(1), x)), torch.randn(2))
    (mutation,) = program.convention.mutations
    assert mutation.output == 1 and len(program.graph.outputs) == 2
    assert [leaf.value for leaf in program.convention.outputs] == [0, 1, 1]


def test_a_counter_counts() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        self.count.add_(1)
        return x * self.count

    model = Function(forward, count=torch.zeros(()))
    x = torch.randn(3)
    program = lowered(model, x)
    assert program.weights["count"].is_mutated and not program.weights["count"].is_constant
    assert_same(program, model, x)
    assert float(model.get_buffer("count")) == 0


def test_a_buffer_that_is_assigned_anew() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        self.total = self.total * 0.5 + x.sum()
        return self.total + x

    model = Function(forward, total=torch.ones(()))
    x = torch.randn(3)
    assert_same(lowered(model, x), model, x)


def test_a_cache_is_written_by_slices() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        self.get_buffer("cache")[:, 2:4] = x
        old = self.get_buffer("cache")[:, :2].sum()
        self.get_buffer("cache")[:, 0].zero_()
        return self.cache.sum(1) + old

    model = Function(forward, cache=torch.randn(3, 8))
    x = torch.randn(3, 2)
    program = lowered(model, x)
    assert names(program).count("slice_scatter") == 1
    assert_same(program, model, x)


def test_a_buffer_under_no_grad() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        with torch.no_grad():
            self.ema.mul_(0.9).add_(x.mean(), alpha=0.1)
        return x - self.ema

    model = Function(forward, ema=torch.ones(()))
    x = torch.randn(5)
    assert_same(lowered(model, x), model, x)


def test_two_buffers_of_one_memory_are_refused() -> None:
    memory = torch.zeros(4)
    model = Function(lambda self, x: self.a.add_(1) + self.b + x, a=memory[:2], b=memory[1:3])
    with pytest.raises(CaptureError, match=r"'a' is mutated in forward and shares its memory with b"):
        lowered(model, torch.randn(2))


def test_a_parameter_that_is_written_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.mul_(2)
            return x * self.weight

    with pytest.raises(CaptureError, match=r"parameter 'weight' is mutated|view that aten.detach made"):
        lowered(Model(), torch.randn(2))


def test_write_through_detach_is_refused_with_its_line() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        y.detach().add_(1)
        return y

    with pytest.raises(CaptureError, match=r"writes to a tensor past its gradient") as caught:
        lowered(Function(forward), torch.randn(2))
    assert caught.value.location is not None
    assert caught.value.location.file == __file__


def test_operators_in_place_leave_none_in_the_program() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        return F.relu(x * 2, inplace=True).add_(1)

    assert names(lowered(Function(forward), torch.randn(2))) == ["mul.Scalar", "relu", "add.Scalar"]


def test_a_copied_tensor_stays_fresh_memory() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = torch.empty(2)
        y.copy_(x)
        return y

    program = lowered(Function(forward), torch.randn(2))
    (output,) = program.graph.outputs
    assert output is not None and output.defining_op is not None
    assert output.defining_op.name == "aten.clone"


# ---- FX graphs, where strides are unknown ----

FX_CASES: list[Case] = []


def fx_case(function: Case) -> Case:
    FX_CASES.append(function)
    return function


@fx_case
def fx_relu(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = F.relu(y, inplace=True)
    return y, z


@fx_case
def fx_view(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.view(-1)[3].add_(5)
    y.transpose(0, 1)[2:4].mul_(3)
    return y


@fx_case
def fx_input(self: nn.Module, x: torch.Tensor) -> Any:
    x[1].add_(2)
    return x * 1


@fx_case
def fx_dropout(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    F.dropout(y, 0.5, False).add_(1)
    return y


@fx_case
def fx_dead_reshape(self: nn.Module, x: torch.Tensor) -> Any:
    y = (x * 2).reshape(-1)
    return y.add_(1)


@pytest.mark.parametrize("function", FX_CASES, ids=lambda f: f.__name__)
def test_fx_equals_eager(function: Case) -> None:
    wrapped = _Traced(function)
    model = fx.symbolic_trace(wrapped)
    x = torch.randn(4, 6)
    program = lower(capture(model))
    verify(program)
    assert_same(program, wrapped, x)


class _Traced(nn.Module):
    def __init__(self, function: Case) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def test_fx_refuses_what_depends_on_strides() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        y.reshape(-1).add_(1)
        return y

    with pytest.raises(CaptureError, match="whether the two share memory"):
        lower(capture(fx.symbolic_trace(_Traced(forward))))
