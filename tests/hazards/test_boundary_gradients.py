"""Hazards of gradients that go further than one call: through buffers, and of inputs whose flag is set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright import CaptureError, transform
from tests.hazards.holding import FLAT, hold, same


class Recurrent(nn.Module):
    """A hidden state in a buffer, as of spiking neurons: trained through several calls."""

    h: torch.Tensor

    def __init__(self, write: Callable[[Any, torch.Tensor], None]) -> None:
        super().__init__()
        self.fc, self.write = nn.Linear(4, 4), write
        self.register_buffer("h", torch.zeros(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.fc(x) + self.h.clone())
        self.write(self, h)
        return self.h + h


def _assigned(m: Any, h: torch.Tensor) -> None:
    m.h = h


def _copied(m: Any, h: torch.Tensor) -> None:
    m.h.copy_(h)


def _detached(m: Any, h: torch.Tensor) -> None:
    m.h = h.detach()


def _without(m: Any, h: torch.Tensor) -> None:
    with torch.no_grad():
        m.h.mul_(0.5).add_(h)


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("write", [_assigned, _copied, _detached, _without])
def test_gradients_through_a_buffer(write: Callable[[Any, torch.Tensor], None], exported: bool) -> None:
    torch.manual_seed(0)
    model = Recurrent(write)
    if exported:
        if write in (_assigned, _detached):
            pytest.skip("torch.export gives the graph of it as an assignment, which it loses")
        result = transform(torch.export.export(model, (FLAT,)))
    else:
        result = transform(model, (FLAT,))
    slopes = []
    for module in (copy.deepcopy(model), result.model):
        torch.manual_seed(1)
        loss = sum((module(torch.randn(4, 4)).square().sum() for _ in range(3)), torch.zeros(()))
        loss.backward()
        assert module.get_buffer("h").requires_grad is (write in (_assigned, _copied))
        slopes.append([p.grad for p in module.parameters()])
    same(slopes[1], slopes[0])


@pytest.mark.parametrize("write", [_assigned, _detached])
def test_a_call_without_gradients_ends_the_history(write: Callable[[Any, torch.Tensor], None]) -> None:
    torch.manual_seed(0)
    model = Recurrent(write)
    result = transform(model, (FLAT,))
    slopes = []
    for module in (copy.deepcopy(model), result.model):
        module(FLAT)
        for _ in range(2):
            with torch.no_grad():
                module(FLAT)
            module.zero_grad()
            module(FLAT).sum().backward()
        slopes.append([p.grad for p in module.parameters()])
    same(slopes[1], slopes[0])


class Kept(nn.Module):
    c: torch.Tensor

    def __init__(self, step: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("c", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.step(self, x.mean(0))


def _new(m: Any, x: torch.Tensor) -> Any:
    m.c = m.c + x
    return m.c


def _old(m: Any, x: torch.Tensor) -> Any:
    old = m.c
    m.c = m.c + x
    return old


def _old_view(m: Any, x: torch.Tensor) -> Any:
    old = m.c[1:]
    m.c = m.c + x
    return old, m.c


def _itself(m: Any, x: torch.Tensor) -> Any:
    return m.c.add_(x), m.c * 2


def _unwritten(m: Any, x: torch.Tensor) -> Any:
    return m.c, x


@pytest.mark.parametrize("step", [_new, _old, _old_view, _itself, _unwritten])
def test_results_that_are_buffers(step: Callable[[Any, torch.Tensor], Any]) -> None:
    model = Kept(step)
    result = hold(model, FLAT)
    kept = []
    for module in (copy.deepcopy(model), result.model):
        calls = [module(FLAT + i) for i in range(3)]  # a later call must not change what was returned, or must
        kept.append((calls, module.get_buffer("c")))
    same(kept[1], kept[0])


class Sets(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.act(x)
        y: torch.Tensor = self.fc(x)
        return y


@pytest.mark.parametrize("needs", [True, False])
def test_inputs_whose_requires_grad_is_set(needs: bool) -> None:
    model, x = Sets(lambda x: x.requires_grad_(needs)), FLAT.clone().requires_grad_(not needs)
    with pytest.raises(CaptureError, match="sets whether an input requires gradients"):
        transform(model, (x,))
    assert x.requires_grad is not needs
    result = transform(model, (FLAT.clone().requires_grad_(needs),))  # what the remedy says
    same(result.model(FLAT), model(FLAT.clone()))
