"""Hazards of modes that are not one: mixed before the capture, switched below the root, another eval()."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError, transform
from ir.text.parser import parse_program
from ir.text.printer import print_program
from tests.hazards.holding import FLAT, X, hold, run, same


class Head(nn.Module):
    def __init__(self, act: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.bn, self.fc, self.act = nn.BatchNorm1d(4), nn.Linear(4, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, self.fc(self.bn(x)))


def _dropout(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, m.training)


def _other(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x if m.training else x.softmax(-1)


def _two(a: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Head(_dropout), Head(a))


SWITCHES: list[Callable[[nn.Module], object]] = [
    lambda m: m.train(),
    lambda m: m.eval(),
    lambda m: m.get_submodule("0").train(),
    lambda m: m.get_submodule("1").train(),
    lambda m: m.get_submodule("1").eval(),
    lambda m: m.get_submodule("1.bn").eval(),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", ["", "1", "1.bn"])
@pytest.mark.parametrize("act", [_dropout, _other])
def test_modules_in_several_modes(act: Callable[..., torch.Tensor], frozen: str, training: bool) -> None:
    model = _two(act).train(training)
    if frozen:
        model.get_submodule(frozen).train(not training)
    result = transform(model, (FLAT,))
    same(run(result.model, FLAT), run(copy.deepcopy(model), FLAT))
    refused = 0
    for switch in SWITCHES:
        original, emitted = copy.deepcopy(model), pickle.loads(pickle.dumps(result.model))
        try:
            switch(emitted)
        except InputError:
            refused += 1
            continue
        switch(original)
        same(run(emitted, FLAT), run(original, FLAT))
    assert bool(refused) is (act is _other)


def test_a_lock_holds_below_the_root() -> None:
    result = transform(_two(_other).eval(), (FLAT,))
    for path in ("0", "1"):
        with pytest.raises(InputError, match="it calls softmax in one mode only"):
            result.model.get_submodule(path).train()
    result.model.get_submodule("1").eval()
    result.model.get_submodule("1.bn").train()  # a layer follows by itself
    assert result.model.get_submodule("1.bn").training


def _drops(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x if m.training and random.random() < 0.1 else x * 2


def _seeds(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(4, generator=torch.Generator().manual_seed(1)) if m.training else x


@pytest.mark.parametrize(
    ("act", "does"), [(_drops, "draws random numbers from random"), (_seeds, "sets a random gener")]
)
def test_randomness_of_the_other_mode_is_named_with_its_place(act: Callable[..., torch.Tensor], does: str) -> None:
    result = transform(nn.Sequential(Head(act)).eval(), (FLAT,))
    with pytest.raises(InputError, match=rf"in the other mode the model {does}.*`0` \(Head\), .*test_switches\.py:\d+"):
        result.model.train()


class OwnEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.drop(self.fc(x))
        return y

    def eval(self) -> OwnEval:
        super().eval()
        self.drop.train()
        return self


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential])
def test_eval_of_ones_own_beside_train_false(wrap: Callable[[nn.Module], nn.Module], training: bool) -> None:
    model = wrap(OwnEval()).train() if training else wrap(OwnEval()).eval()
    result = hold(model, FLAT)
    program = parse_program(print_program(result.program))
    assert program.modes_after == result.program.modes_after
    below: list[Callable[[nn.Module], nn.Module]] = [lambda m: m] if wrap is not nn.Sequential else []
    below += [lambda m: m.get_submodule("0")] if wrap is nn.Sequential else []
    for part in below:
        for switch in (lambda m: m.eval(), lambda m: m.train(False), lambda m: m.train(), lambda m: m.eval()):
            switch(part(model))
            switch(part(result.model))
            same(run(result.model, FLAT), run(model, FLAT))


class Frozen(nn.BatchNorm2d):
    """Stays in eval mode, whatever is asked for."""

    def train(self, mode: bool = True) -> Frozen:
        """Ask for it."""
        return super().train(False)


class Awake(nn.Dropout):
    """Stays in training mode."""

    def train(self, mode: bool = True) -> Awake:
        """Ask for it."""
        return super().train()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_switches_of_a_layer_that_has_its_own(mode: bool, first: int) -> None:
    layers = [nn.Conv2d(4, 4, 1), Frozen(4), nn.ReLU(), Awake(0.5)]
    model = nn.Sequential(*layers[first:]).train(mode)
    emitted = hold(model, X).model
    for again in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        (norm,) = (m for m in again.modules() if isinstance(m, nn.BatchNorm2d))
        drop = again.get_submodule(str(len(model) - 1))
        for switch in ("train", "eval"):
            for module in (norm, drop):
                getattr(module, switch)()
            assert not norm.training
            assert all(module.training for module in drop.modules())
        assert repr(norm).startswith("BatchNorm2d(4")
        torch.export.export(again, (X,))
