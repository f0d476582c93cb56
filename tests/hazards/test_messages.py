"""Plain situations in which a message was wrong, or the result: each message has a place, and a remedy that works."""

from __future__ import annotations

import copy
import pickle
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
    refused(model, X, message="updates running_mean, which was written in forward before", place=place)
    # the remedies
    hold(nn.Sequential(Forgets(track_running_stats=False)), X)
    kept = transform(model, (X,), leaf_modules=["0"]).model
    original = copy.deepcopy(model)
    for _ in range(2):
        same(kept(X), original(X))
    same(kept.state_dict(), original.state_dict())
