"""What rounding may change is measured, and no more than that is let through."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fuzz.programs.budget import own_error
from fuzz.programs.rounding import Rounding
from ir.errors import EvaluationError


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


def test_a_norm_of_close_numbers_amplifies_rounding_and_the_derivative_says_so() -> None:
    x = torch.tensor([1.0, 1.0 + 2**-10])

    def run(numbers: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.nn.functional.layer_norm(numbers, (2,), eps=1e-6)

    eps = torch.finfo(torch.float32).eps
    rounding = Rounding(run(x), exact=run(x.double()))
    # the numbers are 2**-10 apart, so that half a unit in their last place moves the result about a thousand units
    assert 100 * eps < rounding.first_order(lambda seen: seen, eps) < 1e5 * eps
    smooth = Rounding(x.exp, exact=x.double().exp)
    assert smooth.first_order(lambda seen: seen, eps) < 100 * eps


def test_what_tips_over_has_no_derivative() -> None:
    x = torch.ones(4)

    def run() -> torch.Tensor:
        y = x.double() * 3
        return torch.sign(y - 3)  # whichever way the product is rounded decides

    rounding = Rounding(run, exact=run)
    assert rounding.first_order(lambda seen: seen, 1e-7) == 0.0


def test_without_a_run_in_float64_nothing_is_let_through() -> None:
    def refuses() -> torch.Tensor:
        raise EvaluationError("no")

    assert Rounding(lambda: torch.ones(2)).first_order(lambda seen: seen, 1e-7) == 0.0
    assert Rounding(lambda: torch.ones(2), exact=refuses).first_order(lambda seen: seen, 1e-7) == 0.0


@pytest.mark.parametrize(("dtype", "unbounded"), [(torch.float64, True), (torch.float16, False)])
def test_what_overflows_by_rounding_has_no_bound(dtype: torch.dtype, unbounded: bool) -> None:
    x = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    rounding = Rounding(lambda: torch.relu(x))
    assert (rounding.bound(torch.relu(x), lambda seen: seen) == math.inf) is unbounded


def test_what_overflows_is_no_scale_for_the_rest() -> None:
    own, exact = torch.tensor([1.0, math.inf]), torch.tensor([1.0, 1e39], dtype=torch.float64)
    assert own_error(own, exact, torch.float32) == pytest.approx(1e-6)
