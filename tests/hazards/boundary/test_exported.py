"""Hazards of exported programs: which of them may change their mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError, transform
from tests.hazards.boundary.test_modes import FrozenNorm, MCDropout, NormsStay, OtherMomentum
from tests.hazards.holding import FLAT, X, run, same

# ---- exported programs ----


class Reads(nn.Module):
    def __init__(self, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, self.fc(x))


def _scaled_in_training(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if m.training else x


class OnlyInTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand_like(x) if self.training else x


EXPORTED: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "self.training": (lambda: Reads(lambda m, x: x * 2 if m.training else x), FLAT),
    "a function": (lambda: Reads(_scaled_in_training), FLAT),
    "a module without a trace": (lambda: nn.Sequential(nn.Linear(4, 4), OnlyInTraining(), nn.ReLU()), FLAT),
    "F.dropout": (lambda: Reads(lambda m, x: F.dropout(x, 0.5, m.training)), FLAT),
    "always": (lambda: MCDropout(0.5), FLAT),
    "torch.rrelu": (lambda: Reads(lambda m, x: torch.rrelu(x, 0.1, 0.3, m.training)), FLAT),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5), X[0]),
    "frozen norm": (lambda: nn.Sequential(FrozenNorm(4)), X),
    "other momentum": (lambda: nn.Sequential(OtherMomentum(4)), X),
    "train() of its own": (NormsStay, X),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_programs_switch_only_where_it_is_known_what_follows(name: str, mode: bool) -> None:
    make, x = EXPORTED[name]
    model = make().train(mode)
    exported = torch.export.export(model, (x,))
    unsaid, said = transform(exported), transform(exported, training=mode)
    for result in (unsaid, said):
        same(run(result.model, x), run(exported.module(), x))
        with pytest.raises(InputError, match="is valid"):
            result.model.train(not mode)
    if name == "train() of its own" and mode:
        with pytest.raises(InputError, match="would change some of them"):
            said.model.train()  # the graph does not tell that it leaves the norms in eval
        return
    said.model.train(mode)
    try:
        unsaid.model.train(mode)
    except InputError as error:
        assert "training=" in str(error)  # noqa: PT017 - whether a layer tells is the layer's
    else:
        with pytest.raises(InputError, match="training="):
            transform(exported, training=not mode)


def test_only_exported_programs_are_told_their_mode() -> None:
    with pytest.raises(InputError, match="training="):
        transform(nn.Linear(4, 4), (FLAT,), training=False)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x * 2
        return self.drop(h), h


def test_a_dropout_beside_what_it_was_given() -> None:
    result = transform(torch.export.export(Both().eval(), (X,)))  # torch.export returns the dropout twice
    with pytest.raises(InputError, match="is returned twice"):
        result.model.train()
    result = transform(torch.export.export(Both(), (X,)))
    same(run(result.model.train(), X), run(Both(), X))


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.training else x


def test_modules_at_the_end_of_a_sequential_that_compute_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Doubled())).eval()
    result = transform(torch.export.export(model, (FLAT,)), training=False)
    result.model.eval()
    with pytest.raises(InputError, match="'1' that does not appear in the graph"):
        result.model.train()


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.bn.eval()
        y: torch.Tensor = self.bn(x)
        return y


def test_an_exported_program_that_sets_modes_itself() -> None:
    result = transform(torch.export.export(Frozen(), (X,)))
    with pytest.raises(InputError, match=r"sets a mode in Frozen\.forward"):
        result.model.train()


class UnderNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.bn(x)


def _tracking_norm() -> nn.Module:
    return nn.InstanceNorm2d(4, track_running_stats=True)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.Sequential(nn.Flatten(1, 2), nn.GRU(6, 3, 2, dropout=0.5)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.RReLU()),
        _tracking_norm,
        UnderNoGrad,
    ],
)
def test_layers_of_exported_programs_follow(make: Callable[[], nn.Module], mode: bool) -> None:
    model = make().train(mode)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assigned during export")  # a GRU's own list of its weights
        result = transform(torch.export.export(model, (X,)))
    if make is _tracking_norm and mode:  # one that is told not to track, and does in both modes, looks alike
        with pytest.raises(InputError, match="may depend on it"):
            result.model.eval()
        return
    assert result.model.training is mode
    for switch in (mode, not mode, mode):
        model.train(switch)
        result.model.train(switch)
        same(run(result.model, X), run(model, X))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_decomposed_program_follows_no_mode() -> None:
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), (FLAT,))
    result = transform(exported.run_decompositions())
    same(result.model(FLAT), exported.module()(FLAT))
    with pytest.raises(InputError, match="decomposed"):
        result.model.train()
