"""Opaque modules that return their argument in eval mode are dropped where nothing will train, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphwright import pipeline_of, transform
from graphwright.passes import Canonicalize
from graphwright.tensorrt import TENSORRT_PATTERNS


class DropPath(nn.Module):
    """Stochastic depth: whole samples are dropped in training, nothing in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.5))


class ReadsShape(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.shape[0] > 1 else x * 2


class ReadsRank(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.dim() > 1 else x * 2


class Writes(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.add_(1))


class Views(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view_as(x)


class Counts(DropPath):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Draws(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        return super().forward(x)


class Residual(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.conv(x)) + x


X = torch.randn(2, 4, 5, 5)


def compiled(drop: nn.Module, *, inference: bool, **options: Any) -> Any:
    model = Residual(drop).eval()
    pipeline = pipeline_of(TENSORRT_PATTERNS)
    if inference:
        pipeline = pipeline.insert_before("fuse", Canonicalize(inference=True))
    result = transform(model, (X,), pipeline=pipeline, leaf_modules=(type(drop),), **options)
    torch.testing.assert_close(result.model(X.clone()), model(X.clone()))
    return result


@pytest.mark.parametrize("dynamic", [False, True])
def test_stochastic_depth_goes_for_inference_and_the_residual_is_fused(dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch", min=2, max=9)},) if dynamic else None
    result = compiled(DropPath(), inference=True, dynamic_shapes=shapes)
    assert next(type(m).__name__ for m in result.model.children()) == "FusedConvBNAddAct"
    assert "nn.opaque" not in str(result.program)


def test_stochastic_depth_stays_where_the_model_may_train() -> None:
    result = compiled(DropPath(), inference=False)
    assert "nn.opaque" in str(result.program)
    assert next(type(m).__name__ for m in result.model.children()) == "FusedConvBN"


@pytest.mark.parametrize(
    "drop", [ReadsShape(), ReadsRank(), Writes(), Views(), Counts(), Draws()], ids=lambda m: type(m).__name__
)
def test_what_asks_anything_of_its_argument_stays(drop: nn.Module) -> None:
    assert "nn.opaque" in str(compiled(drop, inference=True).program)


def test_hooks_stay() -> None:
    drop = DropPath()
    drop.register_forward_hook(lambda module, args, result: result * 3)
    assert "nn.opaque" in str(compiled(drop, inference=True).program)
