"""Hazards of memory that is shared in one mode only: a dropout returns its operand itself in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError
from tests.hazards.compare import assert_same

WAYS = ("export", "fx", "shapes")


class Net(nn.Module):
    """Computes a function of a linear layer's result and a dropout."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def _select_of_a_dropout(net: Net, x: torch.Tensor) -> Any:
    y = net.dropout(net.linear(x))
    y.select(0, 0).zero_()
    return y + 0.5


def _views_of_both(net: Net, x: torch.Tensor) -> Any:
    y = net.linear(x)
    z = net.dropout(y)
    first, second = y[0], z[1]
    second.mul_(2)
    return first + 1, z + 1


def _dropout_of_a_view(net: Net, x: torch.Tensor) -> Any:
    y = net.linear(x)
    net.dropout(y[:, :2]).add_(1)
    return y * 2


def _dropout_twice(net: Net, x: torch.Tensor) -> Any:
    y = net.linear(x)
    z = net.dropout(net.dropout(y))
    z.relu_()
    return y, z


def _dropout_of_the_input(net: Net, x: torch.Tensor) -> Any:
    return F.relu(net.dropout(x), inplace=True) + 0


def _write_before(net: Net, x: torch.Tensor) -> Any:
    y = net.linear(x)
    y.relu_()
    return net.dropout(y) + 1


def _write_the_last_use(net: Net, x: torch.Tensor) -> Any:
    y = net.linear(x)
    z = net.dropout(y)
    z += x
    return F.relu_(z)


LOCKED = [_views_of_both, _dropout_of_a_view, _dropout_twice, _dropout_of_the_input]
FREE = [_select_of_a_dropout, _write_before, _write_the_last_use]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", [*FREE, *LOCKED])
def test_what_is_written_through_a_dropout(function: Callable[..., Any], training: bool) -> None:
    torch.manual_seed(0)
    gradients = function is not _dropout_of_the_input or training  # a leaf cannot be written
    results = assert_same(Net(function).train(training), torch.randn(3, 4), ways=WAYS, gradients=gradients)
    for result in results.values():
        if function in FREE:
            result.model.train(not training)
        else:
            with pytest.raises(InputError, match="dropout"):
                result.model.train(not training)


def test_a_functional_dropout_that_follows_no_mode_locks_nothing() -> None:
    def function(net: Net, x: torch.Tensor) -> Any:
        y = net.linear(x)
        F.dropout(y, 0.5, training=False).mul_(2)
        return y + 1

    for result in assert_same(Net(function).eval(), torch.randn(3, 4), ways=WAYS).values():
        result.model.train()
