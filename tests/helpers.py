"""What tests of several rooms share: real models at a size that runs in a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models import REAL_MODELS, example_input, randomize_batch_norm, real_model

__all__ = ["REAL_MODELS", "example_input", "model_params", "quick_model", "randomize_batch_norm", "real_model"]

_QUICK_SIZE = 64
_SMALL = ("resnet18", "mobilenet_v3_large", "efficientnet_b0", "resnet50")


def model_params(names: Iterable[str] = REAL_MODELS, *, by: str | None = None) -> list[Any]:
    """Return parameters of a test, the names of models; the larger ones are `long`.

    Args:
        names: of `REAL_MODELS`.
        by: a second parameter of each, such as the way of capture.
    """
    return [
        pytest.param(*((name,) if by is None else (name, by)), marks=() if name in _SMALL else pytest.mark.long)
        for name in names
    ]


def quick_model(name: str, *, batch: int = 2, seed: int = 0, **options: object) -> tuple[nn.Module, torch.Tensor]:
    """Makes one of `REAL_MODELS` with all its layers, ten classes and f32[batch, 3, 64, 64] images.

    Returns:
        the model in eval mode, with every constant value randomised, and the images.
    """
    options.setdefault("num_classes", 10)
    if name == "vit_b_16":
        options.setdefault("image_size", _QUICK_SIZE)
    return real_model(name, seed=seed, **options), example_input(batch=batch, size=_QUICK_SIZE, seed=seed)
