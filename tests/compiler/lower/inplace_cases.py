"""Functions that write in place, through views and to their input, for the tests of functionalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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
