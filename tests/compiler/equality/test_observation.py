"""What is seen of calls of a module: everything that a caller sees, and the module is as it was afterwards."""

from __future__ import annotations

import copy
import random
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from compiler.equality.observation import Observation, copied_arguments, observe, state_kept
from compiler.equality.observation_differences import differences, within
from fuzz.modules.observation import snapshot
from ir.errors import InputError

X = torch.randn(4, 3)


class Counter(nn.Module):
    """Writes to buffers of its own, small and large, re-assigns one, and keeps Python state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.step: torch.Tensor
        self.large: torch.Tensor
        self.register_buffer("step", torch.zeros(()))
        self.register_buffer("large", torch.zeros(1 << 19))
        self.calls: list[int] = []
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        """Return what depends on all of it."""
        self.step = self.step + 1
        self.large[:3] += 1
        self.calls.append(1)
        with torch.no_grad():
            self.weight.mul_(2)
        return {"y": self.norm(x) * self.weight + self.large[:3] * self.step, "n": len(self.calls)}


def calls(module: nn.Module, *args: Any, count: int = 2, **options: Any) -> list[Observation]:
    """Observe calls in a row."""
    with state_kept(module), torch.no_grad():
        return [observe(module, args, **options) for _ in range(count)]


def problems(a: nn.Module, b: nn.Module, *args: Any, relative: float = 0.0) -> list[str]:
    """Return the properties in which two modules differ in either of two calls."""
    pairs = zip(calls(a, *args), calls(b, *args), strict=True)
    return [name for x, y in pairs for name, _ in differences(x, y, judge=within(relative))]


def test_two_calls_are_those_of_the_module_and_leave_it_as_it_was() -> None:
    model, twin = Counter(), Counter()
    before, tables = snapshot(model), [dict(m._buffers) for m in model.modules()]
    values = {name: t.detach().clone() for name, t in model.state_dict().items()}
    first, second = calls(model, X)
    with torch.no_grad():
        for seen, expected in zip((first, second), (twin(X), twin(X)), strict=True):
            assert torch.equal(seen.results[0], expected["y"]) and seen.results[1] == expected["n"]
    assert first.written == {"step", "large", "weight", *(f"norm.{n}" for n in NORM)}
    assert [float(seen.state["step"]) for seen in (first, second)] == [1, 2]
    assert [float(seen.state["large"][0]) for seen in (first, second)] == [1, 2]
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert all(m._buffers[k] is v for m, t in zip(model.modules(), tables, strict=True) for k, v in t.items())
    versions = {"large", "weight"}  # written in place, and put back
    assert [x for x in snapshot(model) if x[0] not in versions] == [x for x in before if x[0] not in versions]


NORM = ("running_mean", "running_var", "num_batches_tracked")


def test_a_module_is_like_itself() -> None:
    assert problems(Counter(), Counter(), X) == []


class Does(nn.Module):
    """Calls a function with itself and its input; has a buffer and a weight."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.arange(3.0))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        """Call it."""
        return self.function(self, x)


def _raise(error: Exception) -> Any:
    raise error


def _counting(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.count += 1
    return x * m.count


@attrs.define
class Pair:
    """A class that no pytree knows."""

    x: Any
    n: int


class Box:
    """Another one."""

    def __init__(self, x: Any) -> None:
        self.x = x


@pytest.mark.parametrize(
    ("original", "other", "found"),
    [
        (lambda m, x: x * 2, lambda m, x: x * 2.001, "values"),
        (lambda m, x: (x, 1), lambda m, x: (x, 2), "values"),
        (lambda m, x: (x + 1, "a"), lambda m, x: [x + 1, "a"], "structure"),
        (lambda m, x: {1: x + 1}, lambda m, x: {True: x + 1}, "structure"),
        (lambda m, x: [{0: x + 1}], lambda m, x: [{0.0: x + 1}], "structure"),
        (lambda m, x: {"a": x + 1, "b": x + 1}, lambda m, x: {"b": x + 1, "a": x + 1}, "structure"),
        (lambda m, x: Box(x * 2), lambda m, x: Box(x * 3), "values"),
        (lambda m, x: x * 2, lambda m, x: (x * 2).double(), "types"),
        (lambda m, x: x * 2, lambda m, x: (x * 2).t().contiguous().t(), "strides"),
        (lambda m, x: x * m.weight, lambda m, x: (x * m.weight).detach(), "gradients"),
        (lambda m, x: x[:2], lambda m, x: x[:2].clone(), "sharing"),
        (lambda m, x: m.weight.view(1, 3), lambda m, x: m.weight.view(1, 3) * 1, "sharing"),
        (lambda m, x: x * 2, lambda m, x: x.mul_(2).clone(), "inputs"),
        (lambda m, x: x * 2, lambda m, x: x * 2 + 0 * torch.rand(3), "random numbers"),
        (_counting, lambda m, x: x * (m.count + 1), "state"),
        (_counting, lambda m, x: (m.count.fill_(1), x * m.count)[1], "state"),
        (lambda m, x: _raise(KeyError("a")), lambda m, x: x * 2, "errors"),
        (lambda m, x: x * 2, lambda m, x: _raise(InputError("a")), "errors"),
        (lambda m, x: _raise(KeyError("a")), lambda m, x: _raise(ValueError("a")), "errors"),
        (lambda m, x: random.random(), lambda m, x: 0.5, "values"),
    ],
)
def test_each_property_is_compared(original: Any, other: Any, found: str) -> None:
    def once(function: Any) -> Observation:
        model = Does(function)
        with state_kept(model):
            return [observe(model, (X,)) for _ in range(2)][1]

    def compare(a: Any, b: Any) -> list[str]:
        return [name for name, _ in differences(once(a), once(b), judge=within(0.0))]

    assert found in compare(original, other)
    assert compare(original, original) == []
    assert compare(other, other) == []


def test_a_parameter_that_is_trained_may_not_be_gone() -> None:
    def slopes(module: nn.Module) -> Observation:
        with state_kept(module), torch.enable_grad():
            return observe(module, (X,), gradients=True)

    trained, untied = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        trained.bias.zero_()
        untied.weight.copy_(trained.weight)
    found = [message for _, message in differences(slopes(trained), slopes(untied), judge=within(0.0))]
    assert found == ["of bias: there is none now, and one before"]
    assert not list(differences(slopes(trained), slopes(copy.deepcopy(trained)), judge=within(0.0)))


def test_what_the_original_does_not_take_may_be_refused() -> None:
    assert problems(Does(lambda m, x: _raise(RuntimeError("a"))), Does(lambda m, x: _raise(InputError("b"))), X) == []


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.numpy(),
        lambda x: Pair(x, 1),
    ],
    ids=["sparse", "quantized", "float8", "numpy", "slots"],
)
def test_tensors_and_objects_of_every_kind(make: Any) -> None:
    first, second = (Does(lambda m, x, r=r: copy.deepcopy(r)) for r in (make(X), make(X + 1)))
    assert calls(first, X)[0].error is None
    assert problems(first, first, X) == []
    assert problems(first, second, X) != []


def test_the_caller_and_its_inputs_are_left_alone() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 3)
    before, states = x.clone(), (torch.get_rng_state(), random.getstate())
    calls(Does(lambda m, x: (x.add_(1), torch.rand(2), random.random())), x)
    assert torch.equal(x, before)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()


def test_inputs_that_are_one_tensor_stay_one() -> None:
    model = Does(lambda m, xs: (xs[0].add_(1), xs[1] * 1)[1])
    (seen,) = calls(model, (X, X), count=1)
    assert torch.equal(seen.results[0], X + 1)
    (seen,) = calls(model, (X, X[:2]), count=1)
    assert torch.equal(seen.results[0], X[:2] + 1)


def test_an_argument_with_a_history_is_copied() -> None:
    x = X.clone().requires_grad_() * 2
    (seen,) = calls(Does(lambda m, x: x.requires_grad), x, count=1)
    assert seen.results == (True,)


def test_objects_that_cannot_be_copied_leave_the_tensors_beside_them_as_they_are() -> None:
    class Stubborn:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError

    x, kept, marked = torch.zeros(3), Stubborn(), torch.zeros(3)
    marked.kept = kept  # type: ignore[attr-defined]
    first, second, view, same, other = copied_arguments([x, x, x[1:], kept, marked])
    assert first is second and first is not x
    view += 1
    assert first.tolist() == [0, 1, 1] and not x.any()
    assert same is kept and other is not marked
