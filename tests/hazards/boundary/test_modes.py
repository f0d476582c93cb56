"""Hazards of modes: layers that are not what their class says, train() and eval() of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError, transform
from tests.hazards.holding import FLAT, X, follows, hold, same

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


class OwnRecurrent(nn.LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        state = [x.new_zeros(2, x.shape[1], 3) for _ in range(2)]
        return torch.lstm(x, state, self._flat_weights, True, 2, 0.5, self.training, False, False)[0]


ONE_OPERATOR: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(36, 3, 2, dropout=0.5)),
    "gru": lambda: nn.Sequential(nn.Flatten(2), nn.GRU(36, 3, 2, dropout=0.5, bidirectional=True, batch_first=True)),
    "rnn": lambda: nn.Sequential(nn.Flatten(2), nn.RNN(36, 3, 2, dropout=0.5)),
    "own lstm": lambda: nn.Sequential(nn.Flatten(2), OwnRecurrent(36, 3, 2)),
    "rrelu": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.RReLU()),
    "F.rrelu": lambda: Parent(nn.Identity(), lambda m, x: F.rrelu(x, 0.1, 0.3, m.training)),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", ONE_OPERATOR)
def test_a_layer_that_draws_or_tracks_inside_of_one_operator_follows(name: str, mode: bool) -> None:
    assert follows(hold(ONE_OPERATOR[name]().train(mode), X))


def test_a_forward_of_the_instance() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
    model[1].forward = lambda x: F.dropout(x, 0.5, True)
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


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


@pytest.mark.parametrize("mode", [True, False])
def test_a_block_called_with_computed_parameters(mode: bool) -> None:
    def call(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, {name: p * 2 for name, p in block.named_parameters()}, (x,))

    assert follows(hold(Parent(Block(), call).train(mode), X))


def test_a_norm_with_counting_code_of_its_own_follows() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.num_batches_tracked.add_(1)
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )

    for mode in (True, False):
        assert follows(hold(nn.Sequential(nn.Conv2d(4, 4, 1), Own(4)).train(mode), X))
