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


class Truncated(nn.Module):
    """Keeps a state with a gradient, and does something to it first."""

    state: torch.Tensor

    def __init__(self, before: Callable[[Any], Any]) -> None:
        super().__init__()
        self.before = before
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to what is left of the state."""
        self.before(self)
        self.state = self.state * 0.5 + self.fc(x)
        return self.state * 2


def _with_state(module: Any, value: torch.Tensor) -> Any:
    module.state = value
    return module


def _halved(module: Any) -> None:
    with torch.no_grad():
        module.state.mul_(0.5)


TRUNCATIONS: dict[str, Callable[[Any], Any]] = {
    "detach_": lambda m: m.state.detach_(),
    "detach": lambda m: _with_state(m, m.state.detach()),
    "detach and add": lambda m: _with_state(m, m.state.detach() + 1),
}


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_history_that_forward_cuts(name: str) -> None:
    model = Truncated(TRUNCATIONS[name])
    emitted = transform(copy.deepcopy(model), (FLAT,)).model
    for module in (model, emitted):
        for _ in range(3):
            module(FLAT).sum().backward()
    (bias,) = (p for key, p in emitted.named_parameters() if key.endswith("bias"))
    same(bias.grad, model.fc.bias.grad)
    exported = torch.export.export(transform(Truncated(TRUNCATIONS[name]), (FLAT,)).model, (FLAT,)).module()
    for _ in range(2):
        exported(FLAT)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "requires_grad": (lambda m: m.state.requires_grad and _with_state(m, m.state.detach()), "asks whether the buffer"),
    "grad_fn": (lambda m: m.state.grad_fn and _with_state(m, m.state.detach()), "asks whether the buffer"),
    "is_leaf": (lambda m: m.state.is_leaf and _with_state(m, m.state + 1), "asks whether the buffer"),
    "no_grad": (_halved, "bypasses autograd"),
    "set": (lambda m: m.state.set_(m.state + 1), "set_.. replaces the storage of a tensor"),
    "flag": (lambda m: m.state.detach_().requires_grad_(), "sets whether the buffer 'state' requires gradients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_done_to_a_state_and_no_graph_can_do(name: str) -> None:
    before, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message) as raised:
        transform(Truncated(before), (FLAT,))
    assert raised.value.location is not None and raised.value.remedy


def test_masks_that_are_written_by_operators_in_place() -> None:
    class Masked(nn.Module):
        seen: torch.Tensor
        bits: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4, dtype=torch.bool))
            self.register_buffer("bits", torch.arange(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen |= (x > 0).any(0)
            self.seen &= x[0] < 1
            self.seen ^= x[1] > 0
            self.bits <<= 1
            self.bits %= 7
            return x * self.seen + self.bits

    hold(Masked(), FLAT)


def test_a_parameter_in_the_place_of_a_buffer() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.state: torch.Tensor
            self.register_buffer("state", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state = self.fc.bias
            return x + self.state

    with pytest.raises(CaptureError, match="replaces the buffer 'state' with a parameter"):
        transform(Weighted(), (FLAT,))


STATES: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "assigned": lambda m, y: _with_state(m, m.state * 0.5 + y),
    "written": lambda m, y: m.state.copy_(m.state.clone() * 0.5 + y),
    "detached": lambda m, y: _with_state(m, m.state.detach_() * 0.5 + y),
}


class Stateful(nn.Module):
    """Keeps a state with a gradient."""

    state: torch.Tensor

    def __init__(self, step: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.step = step
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to the state."""
        self.step(self, self.fc(x))
        return self.state * 2


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("exported", [True, False])
def test_a_model_whose_state_has_a_history(name: str, exported: bool) -> None:
    model = Stateful(STATES[name])
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    if exported:
        program = torch.export.export(model, (FLAT,))
        program.module()(FLAT)
        emitted, state = transform(program).model, program.state_dict["state"]
    else:
        model(FLAT)
        emitted, state = transform(model, (FLAT,)).model, model.state
    twin = Stateful(STATES[name])
    twin.load_state_dict(weights | {"state": state.detach()})
    for _ in range(2):
        same(emitted(FLAT), twin(FLAT))
