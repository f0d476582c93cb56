"""In-place operators, views and writes through them, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compiler.capture import capture
from compiler.lower import lower
from ir.errors import CaptureError
from ir.verify import verify
from tests.compiler.lowering import Function, assert_same, lowered, names

Case = Callable[[nn.Module, torch.Tensor], Any]
CASES: list[Case] = []


def case(function: Case) -> Case:
    CASES.append(function)
    return function


@case
def slice_add(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[:, 1:3] += 1
    return y


@case
def slice_add_input(self: nn.Module, x: torch.Tensor) -> Any:
    x[:, 1:3] += 1
    return x * 2


@case
def view_index(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.view(-1)[0] = 5
    return y


@case
def mask_of_windows(self: nn.Module, x: torch.Tensor) -> Any:
    m = torch.zeros(4, 6)
    m[0:2, 1:3] = 1
    m[-2:, 3:] = 2
    return x + m


@case
def relu_later(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = F.relu(y, inplace=True)
    return y, z


@case
def chunk_add(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    a, b = y.chunk(2, 1)
    a.add_(1)
    return y, a, b


@case
def split_views(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    a, b, c = y.split([1, 2, 3], 1)
    b.mul_(3)
    a.zero_()
    return y, c, b


@case
def unbind_views(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    a, b, *_ = y.unbind(0)
    b.mul_(3)
    return y, a, b


@case
def inplace_input(self: nn.Module, x: torch.Tensor) -> Any:
    return x.add_(1)


@case
def transposed(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.t()[0].add_(7)
    return y


@case
def permuted(self: nn.Module, x: torch.Tensor) -> Any:
    y = x.reshape(2, 2, 6) * 2
    y.permute(2, 0, 1)[1].mul_(5)
    return y


@case
def select_chain(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[1][2:4].copy_(torch.ones(2))
    return y


@case
def integers(self: nn.Module, x: torch.Tensor) -> Any:
    y = (x * 2).to(torch.int64)
    y[1] += True
    y[0] = 7
    return y


@case
def masked(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[y > 0] = 0
    return y


@case
def diagonal(self: nn.Module, x: torch.Tensor) -> Any:
    y = x[:4, :4] * 1
    y.diagonal().fill_(3)
    return y


@case
def unsqueeze_in_place(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.unsqueeze_(0)
    y.add_(1)
    return y


@case
def unsqueeze_of_alias(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = y
    z.unsqueeze_(0)
    return y + 1


@case
def copy_promote(self: nn.Module, x: torch.Tensor) -> Any:
    y = torch.zeros(4, 6, dtype=torch.float64)
    y.copy_(x)
    y[0] = x[1]
    return y


@case
def copy_fresh(self: nn.Module, x: torch.Tensor) -> Any:
    y = torch.empty(4, 6)
    y.copy_(x)
    return y


@case
def add_promote(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.add_(torch.ones(4, 6, dtype=torch.float64))
    return y


@case
def comparison(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.gt_(0)
    return y


@case
def expand_read(self: nn.Module, x: torch.Tensor) -> Any:
    y = x[:, :1] * 2
    z = y.expand(4, 6)
    y.add_(1)
    return z * 1


@case
def contiguous_alias(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = y.contiguous()
    z.add_(1)
    return y


@case
def to_alias(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = y.to(torch.float32)
    z.add_(1)
    return y


@case
def reshape_copy(self: nn.Module, x: torch.Tensor) -> Any:
    y = (x * 2).t()
    z = y.reshape(-1)
    z.add_(1)
    return y, z


@case
def dropout_in_eval_is_its_input(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    z = F.dropout(y, 0.5, False)
    z.add_(1)
    return y


@case
def step_slice(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[::2, 1::2] = 9
    return y


@case
def neg_slice(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[-1, -2:] -= 4
    return y


@case
def index_put(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[torch.tensor([0, 2])] = 1.5
    y[torch.tensor([1]), torch.tensor([1])] += 2
    return y


@case
def scattered(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.scatter_(1, torch.zeros(4, 1, dtype=torch.int64), 3.0)
    y.index_fill_(0, torch.tensor([1]), 2.0)
    return y


@case
def flatten_before_write(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    f = y.flatten()
    y[0] = 0
    return f


@case
def clamp(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.clamp_(min=0).mul_(3).sub_(1).div_(2)
    return y


@case
def setitem_view_other(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    v = y[1:3]
    w = y[2:]
    v.mul_(2)
    w.add_(1)
    return v, w, y


@case
def input_view(self: nn.Module, x: torch.Tensor) -> Any:
    v = x[1]
    v.add_(3)
    return v


@case
def input_as_output(self: nn.Module, x: torch.Tensor) -> Any:
    return x


@case
def duplicated_outputs(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    return y, y, {"a": y, "n": 3, "none": None}, x


@case
def narrow(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.narrow(1, -3, 3).zero_()
    return y


@case
def movedim(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.movedim(0, 1)[2].zero_()
    return y


@case
def unflattened(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.unflatten(1, (2, 3))[:, 1] = 4
    return y


@case
def complex_view(self: nn.Module, x: torch.Tensor) -> Any:
    y = torch.view_as_complex((x * 2).reshape(4, 3, 2))
    y.mul_(2)
    return torch.view_as_real(y)


@case
def copy_of_slice(self: nn.Module, x: torch.Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 1]
    return y


@case
def broadcast(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y += x[0]
    y *= torch.tensor(2.0)
    return y


@case
def addmm_(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.addmm_(x, torch.eye(6))
    return y


@case
def masked_fill(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.masked_fill_(x > 0, -1.0)
    return y.sigmoid_()


@case
def out_argument(self: nn.Module, x: torch.Tensor) -> Any:
    y = torch.empty(4, 6)
    torch.add(x, 1, out=y)
    return y


@case
def scalar_first(self: nn.Module, x: torch.Tensor) -> Any:
    return 2 - x, 2 / x, 2**x, x**2, x // 2, x % 2, 1 + x, -x, x > 0, x == 1, True * x


@case
def squeeze_and_t_in_place(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y.squeeze_().t_()
    return y


@case
def input_view_and_write(self: nn.Module, x: torch.Tensor) -> Any:
    row = x[0]
    x.mul_(2)
    return row, x


@case
def write_of_itself(self: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[0] = y[1]
    y[1:3] += y[2:4].clone()
    return y


@case
def view_after_write(self: nn.Module, x: torch.Tensor) -> Any:
    y = (x * 2).t()
    y.add_(1)
    z = y.t().view(-1)
    y.mul_(3)
    return z, y


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_equals_eager(function: Case) -> None:
    model = Function(function)
    x = torch.randn(4, 6)
    assert_same(lowered(model, x), model, x)


# ---- inputs and buffers ----


def test_write_to_an_input_is_an_extra_output() -> None:
    program = lowered(Function(lambda self, x: x.add_(1)), torch.randn(2))
    (mutation,) = program.convention.mutations
    assert (mutation.input, mutation.buffer, mutation.output) == (0, None, 1)


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
    with pytest.raises(CaptureError, match=r"'a' is written in forward and shares its memory with b"):
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

    with pytest.raises(CaptureError, match=r"parameter 'weight' is written|view that aten.detach made"):
        lowered(Model(), torch.randn(2))


def test_write_through_detach_is_refused_with_its_line() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        y.detach().add_(1)
        return y

    with pytest.raises(CaptureError, match=r"writes through the view that aten.detach made") as caught:
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
