"""Hazards of state: buffers that are assigned, hidden state, randomness that is not PyTorch's."""

from __future__ import annotations

import collections
import itertools
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compiler.usercode.containers import Container, collect
from graphwright import CaptureError, transform
from tests.hazards.boundary.test_modes import Parent
from tests.hazards.holding import FLAT, hold, same

# ---- state ----


class Counting(nn.Module):
    def __init__(self, step: Callable[[Any], None]) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros(()))
        self.update = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.update(self)
        return x * self.step


def _assign(m: Any) -> None:
    m.step = m.step + 1


def _setattr(m: Any) -> None:
    setattr(m, "step", m.step * 2 + 1)  # noqa: B010


def _entry(m: Any) -> None:
    m._buffers["step"] = m.step + 1


@pytest.mark.parametrize("step", [_assign, _setattr, _entry])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_buffers_that_are_assigned(step: Callable[[Any], None], depth: int) -> None:
    model: nn.Module = Counting(step)
    for _ in range(depth):
        model = nn.Sequential(nn.Linear(4, 4), model)
    hold(model, FLAT)


def test_a_buffer_that_the_parent_assigns() -> None:
    def call(inner: Any, x: torch.Tensor) -> torch.Tensor:
        inner.step = inner.step + x.mean().detach()
        return inner(x)

    hold(Parent(Counting(_assign), call), FLAT)


def test_a_buffer_of_another_shape_is_refused() -> None:
    def grow(m: Any) -> None:
        m.step = torch.cat([m.step.reshape(-1), m.step.reshape(-1)])

    with pytest.raises(CaptureError):
        transform(nn.Sequential(Counting(grow)), (FLAT[:1, :1],))


COUNT = {"n": 0}
ARRAY = np.zeros(3)
NUMBER = 0


class Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Private:
    __slots__ = ("__n", "filled")
    filled: int

    def __init__(self) -> None:
        self.__n = 0

    def count(self) -> int:
        self.__n += 1
        return self.__n


class Held:
    n = 0

    def count(self) -> int:
        self.n += 1
        return self.n


def _counting(held: Any) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    return lambda m, x: x * held.count()


class Hidden(nn.Module):
    total = 0

    def __init__(self, state: Any, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.state, self.act = state, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, x)


def _array(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state += 1
    return x * float(m.state[0])


def _slots(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state.n += 1
    return x * m.state.n


def _global_dict(m: Any, x: torch.Tensor) -> torch.Tensor:
    COUNT["n"] += 1
    return x * COUNT["n"]


def _global_array(m: Any, x: torch.Tensor) -> torch.Tensor:
    ARRAY[0] += 1
    return x * float(ARRAY[0])


def _global_number(m: Any, x: torch.Tensor) -> torch.Tensor:
    global NUMBER  # noqa: PLW0603 - that is the hazard
    NUMBER += 1
    return x * NUMBER


def _class_attribute(m: Any, x: torch.Tensor) -> torch.Tensor:
    type(m).total += 1
    return x * type(m).total


def _closure() -> Callable[[Any, torch.Tensor], torch.Tensor]:
    n = 0

    def act(m: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return x * n

    return act


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "itertools.count": lambda: Hidden(itertools.count(1), lambda m, x: x * next(m.state)),
    "array": lambda: Hidden(np.zeros(2), _array),
    "RandomState": lambda: Hidden(np.random.RandomState(0), lambda m, x: x * m.state.rand()),
    "Generator": lambda: Hidden(np.random.default_rng(0), lambda m, x: x * m.state.random()),
    "random.Random": lambda: Hidden(random.Random(0), lambda m, x: x * m.state.random()),
    "slots": lambda: Hidden(Slots(), _slots),
    "global dict": lambda: Hidden(None, _global_dict),
    "global array": lambda: Hidden(None, _global_array),
    "global number": lambda: Hidden(None, _global_number),
    "class attribute": lambda: Hidden(None, _class_attribute),
    "closure": lambda: Hidden(None, _closure()),
    "deque": lambda: Hidden(collections.deque([1.0, 2.0]), lambda m, x: x * (m.state.rotate() or m.state[0])),
    "iterator": lambda: Hidden(iter([1, 2, 3, 4, 5, 6, 7, 8, 9]), lambda m, x: x * next(m.state)),
    "random": lambda: Hidden(None, lambda m, x: x * random.random()),
    "numpy.random": lambda: Hidden(None, lambda m, x: x * float(np.random.rand())),
    "manual_seed": lambda: Hidden(None, lambda m, x: (torch.manual_seed(0), x * torch.rand(()))[1]),
    "generator": lambda: Hidden(None, lambda m, x: x * torch.rand((), generator=torch.Generator().manual_seed(3))),
}


def _numpy_numbers() -> bytes:
    state: Any = np.random.get_state()
    numbers: bytes = state[1].tobytes()
    return numbers


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("depth", [0, 1])
def test_hidden_state_and_foreign_randomness(name: str, depth: int) -> None:
    COUNT["n"], ARRAY[:] = 5, 5
    model = HIDDEN[name]()
    if depth:
        model = nn.Sequential(nn.Linear(4, 4), model)
    states = random.getstate(), _numpy_numbers(), torch.random.get_rng_state()
    with pytest.raises(CaptureError) as raised:
        transform(model, (FLAT,))
    assert raised.value.location is not None and raised.value.remedy, raised.value
    assert random.getstate() == states[0]
    assert _numpy_numbers() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert COUNT["n"] == 5 and ARRAY[0] == 5


def test_objects_of_a_notebook_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))  # it has no file
    held = Held()
    with pytest.raises(CaptureError):
        transform(Hidden(None, _counting(held)), (FLAT,))
    assert held.count() == 1


def test_private_slots_are_watched() -> None:
    held = Private()
    with pytest.raises(CaptureError):
        transform(Hidden(None, _counting(held)), (FLAT,))
    assert held.count() == 1


def test_slots_are_restored() -> None:
    held = Private()
    found: list[Container] = []
    assert len(list(collect("held", held, found, {}))) == 2
    held.count()
    held.filled = 1
    assert found[0].differences() == ["_Private__n", "filled"]
    found[0].restore()
    assert held.count() == 1
    assert not hasattr(held, "filled")


def test_backward_through_a_buffer_that_is_assigned_afterwards() -> None:
    class After(nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x) * self.scale
            self.scale = self.scale * 0.5
            return y

    model = After()
    result = hold(model, FLAT)
    for module in (model, result.model):
        module(FLAT).sum().backward()
    (key,) = (key for key, names in result.parameter_map.items() if names == ("fc.weight",))
    same(result.model.get_parameter(key).grad, model.fc.weight.grad)
