"""Plain situations in which a message was wrong, or the result: each message has a place, and a remedy that works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import transform
from tests.hazards.holding import FLAT, X, hold, line_of, refused, run, same

# ---- writes that are none ----


class WritesByDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        F.dropout(x, 0.5, self.training, inplace=True)
        return x, x * 2


@pytest.mark.parametrize("model", [nn.Sequential(nn.Dropout(inplace=True)), WritesByDropout()])
@pytest.mark.parametrize("mode", [False, True])
def test_an_inplace_dropout_writes_nothing_in_eval(model: nn.Module, mode: bool) -> None:
    model.train(mode)
    emitted = pickle.loads(pickle.dumps(hold(model, FLAT).model))
    x = FLAT.clone().requires_grad_()
    same(emitted.eval()(x), model.eval()(x))
    assert x._version == 0
    for module in (emitted.train(), model.train()):
        with pytest.raises(RuntimeError, match="a leaf Variable"):
            module(x)
    ours, theirs = FLAT.clone(), FLAT.clone()
    for module, given in ((emitted, ours), (model, theirs)):
        torch.manual_seed(0)
        module(given)
    same(ours, theirs)


def test_an_inplace_dropout_of_an_example_that_requires_a_gradient() -> None:
    model = nn.Sequential(nn.Dropout(inplace=True)).eval()
    x = FLAT.clone().requires_grad_()
    emitted = transform(model, (x,)).model
    assert emitted(x) is x and model(x) is x


# ---- another dtype ----


@pytest.mark.parametrize(
    ("pool", "x"),
    [
        (nn.FractionalMaxPool2d(2, output_size=3), X),
        (nn.FractionalMaxPool3d(2, output_ratio=0.5), X[None]),
        (nn.FractionalMaxPool2d(2, output_size=3, _random_samples=torch.rand(4, 4, 2)), X),
    ],
)
def test_fractional_pooling_in_another_dtype(pool: nn.Module, x: torch.Tensor) -> None:
    model = nn.Sequential(nn.ReLU(), pool)
    emitted = transform(model, (x,)).model
    for module in (emitted, model):
        module.double()
    assert torch.equal(run(emitted, x.double()), run(model, x.double()))


# ---- exceptions that the model catches ----


class Tries(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return x.reshape(3, 7)
        except RuntimeError:
            return x.reshape(-1) + 1


def test_a_call_that_raises_and_is_caught_is_no_part_of_the_result() -> None:
    hold(Tries(), FLAT)
    exported = torch.export.export(Tries(), (FLAT,))
    refused(exported, message="the exported program itself fails on its example inputs.*try:")
    graph = torch.fx.symbolic_trace(Tries())
    refused(graph, FLAT, message="the model itself fails on the example inputs: RuntimeError: shape")


# ---- statistics ----


class Forgets(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4, **options)

    def forward(self, x: torch.Tensor) -> Any:
        self.bn.reset_running_stats()
        return self.bn(x)


def test_statistics_that_forward_resets() -> None:
    model = nn.Sequential(Forgets())
    place = f"at `0.bn` (BatchNorm2d), {line_of(Forgets, 'return self.bn')}"
    refused(model, X, message="counts its batches in a number, which was mutated in forward before", place=place)
    # the remedies
    hold(nn.Sequential(Forgets(track_running_stats=False)), X)
    kept = transform(model, (X,), leaf_modules=["0"]).model
    original = copy.deepcopy(model)
    for _ in range(2):
        same(kept(X), original(X))
    same(kept.state_dict(), original.state_dict())


class Sets(nn.Module):
    def __init__(self, act: Callable[[nn.BatchNorm2d], Any]) -> None:
        super().__init__()
        self.act, self.bn = act, nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> Any:
        self.act(self.bn)
        return self.bn(x)


def _halve(bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None
    bn.running_mean = bn.running_mean * 0.5


def _count_anew(bn: nn.BatchNorm2d) -> None:
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked.zero_()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_halve, "updates what forward puts in the place of '0.bn.running_mean'"),
        (_count_anew, "counts its batches in a number, which was mutated in forward before"),
    ],
)
def test_statistics_that_forward_sets(act: Callable[[nn.BatchNorm2d], Any], message: str) -> None:
    model = nn.Sequential(Sets(act)).train()
    place = f"at `0.bn` (BatchNorm2d), {line_of(Sets, 'return self.bn')}"
    refused(model, X, message=message, place=place)
    kept = transform(model, (X,), leaf_modules=["0"]).model
    original = copy.deepcopy(model)
    for _ in range(2):
        same(kept(X), original(X))
    same(kept.state_dict(), original.state_dict())


# ---- random numbers that are drawn again ----


class Forks(nn.Module):
    def __init__(self, *, draws: bool) -> None:
        super().__init__()
        self.draws = draws

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            y = F.dropout(x, 0.5, self.draws) * 2
        return y + torch.rand_like(x)


class SetsBack(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.get_rng_state()
        y = torch.rand_like(x)
        torch.set_rng_state(state)
        return x + y


@pytest.mark.parametrize(("model", "line"), [(Forks(draws=True), "with torch"), (SetsBack(), "torch.set_rng_state")])
def test_random_numbers_that_are_drawn_again(model: nn.Module, line: str) -> None:
    model = nn.Sequential(model)
    place = f"at `0` ({type(model[0]).__name__}), {line_of(type(model[0]), line)}"
    refused(model, FLAT, message="forward resets a random generator", place=place)
    # the remedies
    emitted = transform(model, (FLAT,), leaf_modules=["0"]).model
    for module in (emitted, model):
        torch.manual_seed(0)
        module(FLAT)
    torch.manual_seed(0)
    ours = [emitted(FLAT), emitted(FLAT)]
    torch.manual_seed(0)
    same(ours, [model(FLAT), model(FLAT)])
    hold(nn.Sequential(Forks(draws=False)), FLAT)


def test_random_numbers_that_are_drawn_again_in_the_other_mode() -> None:
    class InTraining(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                with torch.random.fork_rng():
                    return x + torch.rand_like(x)
            return x * 2

    hold(nn.Sequential(nn.Linear(4, 4), InTraining()).eval(), FLAT)


# ---- hooks of all modules ----

EVERY = nn.modules.module


def doubles(module: nn.Module, *given: Any) -> Any:
    if isinstance(module, nn.Linear):
        return given[-1] * 2 if isinstance(given[-1], torch.Tensor) else (given[-1][0] * 2,)
    return None


def same_object(module: nn.Module, *given: Any) -> Any:
    return given[-1]


@pytest.mark.parametrize("name", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_all_modules(name: str) -> None:
    register = getattr(EVERY, name.replace("register", "register_module"))
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    known = dict(EVERY._global_forward_hooks), dict(EVERY._global_forward_pre_hooks)
    handle = register(doubles)
    try:
        refused(
            model, FLAT, message=r"a hook of all modules \(doubles", place=f"at `0` (Linear), {line_of(doubles, '')}"
        )
        expected = model(FLAT)
    finally:
        handle.remove()
    getattr(model[0], name)(doubles)  # the remedy
    result = transform(model, (FLAT,))
    same(result.model(FLAT), expected)
    handle = register(same_object)
    try:
        same(transform(model, (FLAT,)).model(FLAT), expected)
    finally:
        handle.remove()
    assert known == (dict(EVERY._global_forward_hooks), dict(EVERY._global_forward_pre_hooks))


def test_backward_hooks_of_all_modules() -> None:
    seen: list[Any] = []

    def sees(module: nn.Module, *gradients: Any) -> None:
        seen.append(module)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for register in (EVERY.register_module_full_backward_hook, EVERY.register_module_full_backward_pre_hook):
        handle = register(sees)
        try:
            refused(model, FLAT, message="all modules have a backward hook", place=line_of(sees, ""))
        finally:
            handle.remove()
    result = transform(model, (FLAT,))  # the remedy
    result.model.register_full_backward_hook(sees)
    result.model(FLAT.clone().requires_grad_()).sum().backward()
    assert seen == [result.model]


# ---- modules in plain lists ----


class Listed(nn.Module):
    def __init__(self, container: type) -> None:
        super().__init__()
        self.norms: Any = container([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(x)
        return x


class Refers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.layers = [self.fc]
        self.aside = [nn.Dropout(0.5).eval()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aside[0](self.layers[0](x)) + nn.LayerNorm(4)(x)


@pytest.mark.parametrize("mode", [False, True])
def test_modules_in_plain_lists(mode: bool) -> None:
    listed = Listed(list)
    listed.norms[0].train(mode)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), listed)
    place = f"at `1` (Listed), {line_of(Listed, 'x = norm(x)')}"
    refused(model, X, message=r"forward calls a BatchNorm2d in `1\.norms`", place=place)
    # the remedies
    hold(nn.Sequential(nn.Conv2d(4, 4, 1), Listed(nn.ModuleList)), X)
    kept = transform(model, (X,), leaf_modules=["1"]).model
    same(kept(X), copy.deepcopy(model)(X))
    for norm in listed.norms:
        norm.eval().requires_grad_(False)
    same(transform(model, (X,)).model(X), model(X))


def test_modules_in_lists_that_learn_nothing_or_are_submodules_too() -> None:
    hold(Refers(), FLAT)


# ---- results and arguments that say something of tensors ----


class Tells(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> Any:
        return x + 1, getattr(x, self.name)


class IsTold(nn.Module):
    def forward(self, x: torch.Tensor, y: Any) -> Any:
        return x.to(y.dtype if isinstance(y, torch.Tensor) else y)


@pytest.mark.parametrize("name", ["dtype", "device", "layout"])
def test_a_result_that_is_no_tensor_but_said_by_one(name: str) -> None:
    place = line_of(Tells, "def forward")
    error = refused(Tells(name), FLAT, message=f"a result of forward is a torch.{name}", place=place)
    assert f"the caller has it as `y.{name}`" in str(error)
    result = transform(Tells("real"), (FLAT,)).model  # the remedy
    assert getattr(result(FLAT)[0], name) == Tells(name)(FLAT)[1]


def test_an_argument_that_is_no_tensor_but_said_by_one() -> None:
    error = refused(IsTold(), FLAT, torch.float64, message="an argument of forward is a torch.dtype", place=__file__)
    assert "ask a tensor for it in forward (`x.dtype`)" in str(error)
    same(transform(IsTold(), (FLAT, FLAT.double())).model(FLAT, FLAT.double()), FLAT.double())  # the remedy
