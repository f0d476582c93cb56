"""Hazards that somebody found who did not build the boundary."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from graphwright import CaptureError, transform
from tests.hazards.holding import FLAT, X, hold, run, same


class Swapped(nn.Module):
    a: torch.Tensor
    b: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.ones(4))
        self.register_buffer("b", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a, self.b = self.b, self.a
        return x + self.a


class Stateful(nn.Module):
    h: torch.Tensor
    c: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 3, batch_first=True)
        self.register_buffer("h", torch.zeros(1, 4, 3))
        self.register_buffer("c", torch.zeros(1, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, c) = self.lstm(x, (self.h, self.c))
        self.h, self.c = h.detach(), c.detach()
        return torch.as_tensor(y)


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.weights = [self.fc.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + F.linear(x, self.weights[0])


class Inverted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, not self.training)


def test_buffers_that_change_places() -> None:
    hold(Swapped(), FLAT)
    hold(nn.Sequential(Swapped()), FLAT)


def test_a_recurrent_layer_that_keeps_its_state() -> None:
    hold(Stateful(), X[:, 0])


def test_a_parameter_that_a_list_holds_is_trained_whole() -> None:
    model = InAList()
    result = transform(model, (FLAT,))
    for module in (model, result.model):
        module(FLAT).sum().backward()
    key = next(key for key, names in result.parameter_map.items() if names == ("fc.weight",))
    same(result.model.get_parameter(key).grad, model.fc.weight.grad)


def test_the_mode_that_a_module_is_in_changes_nothing() -> None:
    for mode in (True, False):
        model = Inverted().train(mode)
        emitted = transform(model, (FLAT,)).model
        same(run(emitted.train(mode), FLAT), run(model, FLAT))


def test_a_list_that_holds_a_buffer_is_left_as_it_was() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.zeros(4))
            self.held = [self.a]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held[0].add_(1)
            return x + self.a

    model = Writes()
    try:
        transform(model, (FLAT,))
    except CaptureError:
        pass
    else:
        raise AssertionError("a graph cannot express it")
    assert not model.get_buffer("a").any()
