"""Hazards of the module around the graph: arguments, modes, state, surroundings, randomness, checkpoint."""

from __future__ import annotations

import collections
import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import CaptureError, InputError, TransformResult, transform

X = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
FLAT = X[:, :, 0, 0].contiguous()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def run(module: nn.Module, *args: Any, seed: int = 3, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def hold(model: nn.Module, *args: Any, calls: int = 2, kwargs: dict[str, Any] | None = None) -> TransformResult:
    """Transform a model; hold calls, modes (where they may be switched) and buffers of the result to the original."""
    named = kwargs or {}
    result = transform(model, args, named or None)
    original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
    for switch in (None, "train", "eval", "train"):
        if switch is not None:
            try:
                getattr(emitted, switch)()
            except InputError:
                continue
            getattr(original, switch)()
        for _ in range(calls):
            same(run(emitted, *args, **named), run(original, *args, **named))
        ours = dict(emitted.named_buffers(remove_duplicate=False))
        for key, names in result.parameter_map.items():
            if key in ours and len(names) == 1:
                same(ours[key], original.get_buffer(names[0]))
    return result


def follows(result: TransformResult) -> bool:
    return not result.program.mode_locked


# ---- layers that are not what their class says ----


class MCDropout(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p, training=True)


class FrozenNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class OtherMomentum(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.7, self.eps
        )


class Doubled(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Parent(nn.Module):
    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.inner, x + 1)


def _called(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m(x)


LAYERS = {
    "always dropout": lambda: MCDropout(0.5),
    "frozen": lambda: FrozenNorm(4),
    "batch statistics": lambda: BatchStatistics(4),
    "other momentum": lambda: OtherMomentum(4),
    "super": lambda: Doubled(4),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_code_and_not_its_class(name: str, mode: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), LAYERS[name](), nn.ReLU()).train(mode)
    assert follows(hold(model, X))


def test_a_forward_of_the_instance() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
    model[1].forward = lambda x: F.dropout(x, 0.5, True)  # type: ignore[method-assign]
    assert follows(hold(model.eval(), X))


def _without_gradients(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return m(x)


DIRECT = {
    "forward": lambda m, x: m.forward(x),
    "of the class": lambda m, x: type(m).forward(m, x),
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
    "no_grad": _without_gradients,
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("inner", [lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, momentum=None), nn.Dropout])
@pytest.mark.parametrize("way", DIRECT)
def test_layers_called_otherwise(way: str, inner: Callable[[], nn.Module], mode: bool) -> None:
    assert follows(hold(Parent(inner(), DIRECT[way]).train(mode), X))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_as_the_root(momentum: float | None, mode: bool) -> None:
    assert follows(hold(nn.BatchNorm2d(4, momentum=momentum).train(mode), X))


# ---- modes ----


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.bn(self.conv(x)).relu())


class NormsStay(Backbone):
    def train(self, mode: bool = True) -> NormsStay:
        super().train(mode)
        self.bn.eval()
        return self


class DropoutStays(Backbone):
    def train(self, mode: bool = True) -> DropoutStays:
        super().train(mode)
        self.drop.train()
        return self


class EvalInForward(Backbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.bn.eval()
        return super().forward(x)


@pytest.mark.parametrize("switched", [None, "train", "eval"])
@pytest.mark.parametrize("cls", [Backbone, NormsStay, DropoutStays])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential])
def test_train_and_eval_of_the_user(cls: type[nn.Module], switched: str | None, wrap: Any) -> None:
    model = wrap(cls())
    if switched is not None:
        getattr(model, switched)()
    assert follows(hold(model, X))


def test_a_norm_that_forward_puts_into_eval() -> None:
    hold(EvalInForward(), X)
    hold(EvalInForward().eval(), X)


def test_train_that_does_more_is_no_switch() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.low = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
            self.merged = False

        def train(self, mode: bool = True) -> Merging:
            super().train(mode)
            if self.merged == mode:
                self.fc.weight.data += self.low.data if not mode else -self.low.data
                self.merged = not mode
            return self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if self.merged else self.fc(x) + x @ self.low.t()

    model = Merging()
    before = model.fc.weight.detach().clone()
    result = transform(model, (FLAT,))
    assert torch.equal(model.fc.weight, before)
    same(result.model(FLAT), model(FLAT))
    with pytest.raises(InputError, match="train\\(\\) or eval\\(\\) of the model"):
        result.model.eval()


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


def _table(m: Any) -> None:
    m._buffers["step"] = m.step + 1


@pytest.mark.parametrize("step", [_assign, _setattr, _table])
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


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("depth", [0, 1])
def test_hidden_state_and_foreign_randomness(name: str, depth: int) -> None:
    COUNT["n"], ARRAY[:] = 5, 5
    model = HIDDEN[name]()
    if depth:
        model = nn.Sequential(nn.Linear(4, 4), model)
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state()
    with pytest.raises(CaptureError) as raised:
        transform(model, (FLAT,))
    assert raised.value.location is not None and raised.value.remedy, raised.value
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert COUNT["n"] == 5 and ARRAY[0] == 5
