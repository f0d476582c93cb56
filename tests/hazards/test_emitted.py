"""Hazards of the emitted module: its names, state, code, copies and strides, whatever the original is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.hazards.compare import assert_same


class TwoPlaces(nn.Module):
    """One linear layer, once where it can be a convolution and once where it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x.flatten(1)), self.head(x.flatten())


class WithoutGradient(nn.Module):
    """One layer, once with gradients and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            y = F.relu(self.layer(x))
        return y, self.layer(y)


@pytest.mark.parametrize(
    ("model", "shape", "ways"),
    [(TwoPlaces(), (1, 4, 1, 1), ("export", "fx", "shapes")), (WithoutGradient(), (2, 4), ("export", "conversions"))],
)
def test_what_is_invented_stands_beside_a_layer_and_not_inside(
    model: nn.Module, shape: tuple[int, ...], ways: tuple[str, ...]
) -> None:
    assert_same(model, torch.randn(shape), ways=ways)


class Scalars(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return a.reshape(1, 1), b.squeeze(), b.reshape(()) * 2, a.expand(2, 3), a + b, a.flatten(), a.sum(), a[None]


def test_ranks_zero_and_one() -> None:
    assert_same(Scalars(), torch.tensor(2.0), torch.tensor([3.0]), ways=("export", "shapes"))


class NormFunctions(nn.Module):
    """Norms whose weights are computed, so that no module fits."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(6)) for _ in "ab")
        self.c, self.d = (nn.Parameter(torch.randn(4)) for _ in "cd")

    def forward(self, x: torch.Tensor) -> Any:
        return (
            F.layer_norm(x, (6,), self.a, self.b + 1, 0.1),
            F.layer_norm(x, (6,), None, self.b),
            F.group_norm(x, 2, self.c * 2, self.d, 0.2),
            F.rms_norm(x, (6,), self.a * 2, 0.1),
            F.batch_norm(x, None, None, self.c * 2, self.d, True, 0.1, 0.2),
        )


def test_norms_as_functions() -> None:
    assert_same(NormFunctions(), torch.randn(2, 4, 6))


class Formats(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (
            x.contiguous(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
            x.clone(memory_format=torch.preserve_format),
            x.to(torch.float32, memory_format=torch.channels_last),
        )


def test_memory_formats_are_saved_and_leave_the_dtype_alone() -> None:
    result = assert_same(Formats(), torch.randn(2, 3, 4, 4), ways=("export", "conversions"))["export"]
    result.model._guard = nn.Identity()  # the guard holds for float64 inputs
    assert [y.dtype for y in result.model(torch.randn(2, 3, 4, 4))] == [torch.float32] * 4


class KeywordNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = {"class": nn.Linear(4, 4), "def": nn.ReLU(), "a b": nn.Tanh(), "0": nn.Linear(4, 4)}
        self.layers = nn.ModuleDict(layers)
        self.scales = nn.ParameterDict({"lambda": torch.randn(4), "in": torch.randn(4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x * self.scales["lambda"] + self.scales["in"]


def test_modules_and_parameters_that_are_called_like_keywords() -> None:
    result = assert_same(KeywordNames(), torch.randn(3, 4), ways=("export", "conversions"))["conversions"]
    assert {"layers.class.weight", "scales.in"} <= set(result.model.state_dict())


class TorchAsArgument(nn.Module):
    def forward(self, torch: Any, operator: Any) -> Any:
        return F.gelu(torch) + operator, torch.reshape(2, 6), F.relu(operator), operator.new_zeros(3)


class ConstantsAsArguments(nn.Module):
    def forward(self, inf: Any, nan: Any) -> Any:
        return inf.masked_fill(nan > 0, float("-inf")), nan.clamp(0, float("inf")), inf + 1


class FxNamesAsArguments(nn.Module):
    def forward(self, _guard: Any, getattr: Any, *, device: Any) -> Any:  # noqa: A002
        return _guard + getattr, device.new_ones(2), F.relu(device)


class SelfAsArgument(nn.Module):
    def forward(this, self: Any) -> Any:  # noqa: N805
        return self * 2


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (TorchAsArgument(), ()),
        (ConstantsAsArguments(), ()),
        (FxNamesAsArguments(), ("device",)),
        (SelfAsArgument(), ()),
    ],
)
def test_arguments_that_are_called_like_what_the_code_uses(model: nn.Module, names: tuple[str, ...]) -> None:
    positional = model.forward.__code__.co_argcount - 1
    args = [torch.randn(3, 4) for _ in range(positional)]
    kwargs = {name: torch.randn(3, 4) for name in names}
    assert_same(model, *args, kwargs=kwargs)


class FunctionOfAModulesStatistics(nn.Module):
    """`F.batch_norm` counts no batches, whoever's statistics it uses."""

    def __init__(self, training: bool | None) -> None:
        super().__init__()
        self.conv, self.bn, self.training_ = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bn = self.bn
        training = self.training if self.training_ is None else self.training_
        return F.relu(
            F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, training, 0.3, 0.01)
        )


class OwnBatchNorm(nn.Module):
    """Counts its batches itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)


class Subclass(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize(
    "model",
    [*map(FunctionOfAModulesStatistics, (None, False, True)), OwnBatchNorm(), nn.Sequential(Subclass(4))],
)
def test_batches_are_counted_by_those_who_count(model: nn.Module, mode: bool) -> None:
    assert_same(model.train(mode), torch.randn(2, 4, 3, 3))
