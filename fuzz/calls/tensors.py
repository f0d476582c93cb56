"""Tensors of random numbers for the inputs and weights of generated programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ir.quant.kernels import QUANTIZED

_ZEROS_ONE_IN = 6


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype, seed: int, bounds: tuple[float, float] | None = None
) -> torch.Tensor:
    """Return a tensor with random values: normal ones, or uniform in `bounds` (ints below the upper one).

    Without bounds, integers are small, but those of a quantized dtype take all numbers.

    With some seeds, a quarter of the normal ones are zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        if bounds is None:
            normal = torch.randn(shape, generator=generator, dtype=dtype)
            if seed % _ZEROS_ONE_IN == 0 and seed:
                # of one sign, since which of two zeros is the larger one depends on the order of memory
                zero = -0.0 if seed % (2 * _ZEROS_ONE_IN) else 0.0
                normal[torch.rand(shape, generator=generator) < 0.25] = zero
            return normal
        low, high = bounds
        return torch.rand(shape, generator=generator, dtype=dtype) * (high - low) + low
    if bounds is None and dtype in QUANTIZED:
        limits = torch.iinfo(dtype)
        bounds = limits.min, limits.max + 1
    low, high = map(int, bounds or ((0, 2) if dtype is torch.bool else (0, 5)))
    return torch.randint(low, max(high, low + 1), tuple(shape), generator=generator).to(dtype)
