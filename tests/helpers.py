"""What tests of several rooms share: real models at a size that runs in a second."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models import REAL_MODELS, example_input, randomize_batch_norm, real_model

__all__ = ["REAL_MODELS", "example_input", "quick_model", "randomize_batch_norm", "real_model"]

_QUICK_SIZE = 64


def quick_model(name: str, *, batch: int = 2, seed: int = 0, **options: object) -> tuple[nn.Module, torch.Tensor]:
    """Makes one of `REAL_MODELS` with all its layers, ten classes and f32[batch, 3, 64, 64] images.

    Returns:
        the model in eval mode, with every constant value randomised, and the images.
    """
    options.setdefault("num_classes", 10)
    if name == "vit_b_16":
        options.setdefault("image_size", _QUICK_SIZE)
    return real_model(name, seed=seed, **options), example_input(batch=batch, size=_QUICK_SIZE, seed=seed)
