"""Ranges of weights: a scale for each channel."""

from __future__ import annotations

import torch

from compiler.quant.observe.grid import MIN_SCALE
from ir.errors import InputError

OF_ZEROS = 2.0**-16
"""The scale of a channel of zeros: kernels have its bias as a multiple of it, so that it must be small."""


def weight_scales(
    weight: torch.Tensor,
    axis: int | None,
    highest: int,
    *,
    power_of_two: bool = False,
) -> torch.Tensor:
    """Return the scales of a weight's symmetric grid of the integers -highest to highest: nothing saturates.

    Args:
        weight: a floating-point tensor of any shape.
        axis: the dimension of the channels; None for one scale for all.
        highest: the greatest integer, 127 of int8.
        power_of_two: whether scales are powers of two.

    Returns:
        f32[C], or f32[] where `axis` is None; `OF_ZEROS` for a channel of zeros.

    Raises:
        InputError: when the weight holds NaN or an infinity.
    """
    data = weight.detach().float()
    rows = data.reshape(1, -1) if axis is None else data.movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    if not bool(torch.isfinite(largest).all()):
        raise InputError(
            "the weight holds NaN or an infinity", remedy="mend the checkpoint, or keep the layer in float"
        )
    scales = _rounded(largest.double() / highest, power_of_two)
    scales = torch.where(largest == 0, torch.full_like(scales, OF_ZEROS), scales)
    return scales.float().reshape(()) if axis is None else scales.float()


def _rounded(scales: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    scales = scales.clamp_min(MIN_SCALE)
    if power_of_two:
        return torch.exp2(torch.ceil(torch.log2(scales) - 1e-9))
    return scales.float().double()


def narrower_scales(
    weight: torch.Tensor, axis: int | None, highest: int, *, power_of_two: bool = False
) -> list[torch.Tensor]:
    """Return the scales of a weight's whole range and of parts of it, the widest first; each as `weight_scales`.

    Raises:
        InputError: as `weight_scales`.
    """
    whole = weight_scales(weight, axis, highest, power_of_two=power_of_two)
    parts = [0.5**k for k in range(3)] if power_of_two else [1 - 0.02 * k for k in range(36)]
    return [(whole * part).clamp_min(MIN_SCALE) for part in parts]
