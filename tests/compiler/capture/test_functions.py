"""A `torch.autograd.Function` is part of the graph where its backward is the derivative of its forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright import CaptureError, transform
from tests.hazards.holding import FLAT, hold


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class Scaled(torch.autograd.Function):
    """In the newer spelling, with an argument that is no tensor."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, factor: float = 2.0) -> Any:
        return x @ weight * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        scaled = gradients[0] * ctx.factor
        return scaled @ weight.t(), x.t() @ scaled, None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].clamp(-50, 50)


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None


class Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: nn.Module) -> torch.Tensor:
        y: torch.Tensor = module(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


swish: Callable[..., Any] = Swish.apply
rounded: Callable[..., Any] = Rounded.apply


class Calls(nn.Module):
    def __init__(self, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.act, self.call = nn.Linear(4, 4), nn.ReLU(), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self, self.fc(x))


def gradient(module: nn.Module) -> torch.Tensor:
    x = FLAT.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(x).pow(2).sum(), x)
    return found


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: swish(x),
        lambda m, x: Scaled.apply(x, m.fc.weight),
        lambda m, x: Swish.apply(x) if m.training else x * x.sigmoid(),
    ],
    ids=["bound", "setup_context", "in training"],
)
def test_a_backward_that_is_the_derivative_is_the_graphs(call: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    model = Calls(call).eval()
    result = hold(model, FLAT)
    assert not result.program.mode_locked
    torch.testing.assert_close(gradient(result.model.eval()), gradient(model))


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda m, x: rounded(x), "Rounded.*it is not the derivative of its forward"),
        (lambda m, x: Rounded.apply(x), "Rounded.*it is not the derivative of its forward"),
        (lambda m, x: Clipped.apply(x), "Clipped.*it is not the derivative of its forward"),
        (lambda m, x: Marked.apply(x) + x, "Marked.*mark_non_differentiable"),
        (lambda m, x: Counted.apply(x, m.act), "Counted.*it is given a ReLU"),
    ],
)
def test_another_backward_is_refused(call: Callable[[Any, torch.Tensor], torch.Tensor], why: str) -> None:
    model = nn.Sequential(Calls(call)).eval()
    with pytest.raises(CaptureError, match=f"lose the backward of {why}"):
        transform(model, (FLAT,))
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_a_submodule_with_another_backward_is_kept_as_the_remedy_says() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda m, x: rounded(x))).eval()
    result = transform(model, (FLAT,), leaf_modules=["1"])
    torch.testing.assert_close(gradient(result.model), gradient(model))


def test_a_bound_function_is_refused_without_inputs_too() -> None:
    with pytest.raises(CaptureError, match="lose the backward of Rounded"):
        transform(Calls(lambda m, x: rounded(x)).eval())
