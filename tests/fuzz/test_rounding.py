"""What rounding may change is measured, and no more than that is let through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuzz.rounding import Rounding


def _softmax_gradient(scale: float) -> torch.Tensor:
    x = torch.full((4,), 1.5, dtype=torch.float64, requires_grad=True)
    y = torch.softmax(x.expand(3, 4), 1)
    direction = torch.full((3, 4), scale, dtype=torch.float64)
    (slope,) = torch.autograd.grad(y, x, direction)
    return slope


def _cancelling_sum(scale: float) -> torch.Tensor:
    x = torch.linspace(0.1, 1.7, 9, dtype=torch.float64) * scale
    return ((x + 1 / 3) - x - 1 / 3).sum()


@pytest.mark.parametrize("run", [_softmax_gradient, _cancelling_sum])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_what_cancels_may_differ_by_its_rounding(run: Callable[[float], torch.Tensor], scale: float) -> None:
    original = run(scale)
    bound = Rounding(lambda: run(scale)).bound(original, lambda seen: seen)
    assert 0 < bound < 1e-12 * scale


def test_what_does_not_cancel_is_held_to_rounding() -> None:
    x = torch.linspace(1, 2, 8, dtype=torch.float64)
    bound = Rounding(x.exp).bound(x.exp(), lambda seen: seen)
    assert 0 < bound < 1e-13


def test_a_maximum_that_tips_over_excuses_nothing() -> None:
    def run() -> torch.Tensor:
        x = torch.ones(4, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((x * 3.0).max(0).values, x)
        return slope

    assert Rounding(run).bound(run(), lambda seen: seen) < 1e-8


def test_views_writes_and_integers_are_not_moved() -> None:
    def run() -> torch.Tensor:
        x = torch.zeros(4, dtype=torch.float64)
        x[1:3].view(2, 1).fill_(2.0)
        return x[torch.arange(4)] * 0.5

    sample: list[torch.Tensor] = []
    rounding = Rounding(lambda: sample.append(run()) or sample[-1])  # type: ignore[func-returns-value]
    assert rounding.bound(run(), lambda seen: seen) < 1e-14
    assert (sample[0] - torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)).abs().max() < 1e-15
