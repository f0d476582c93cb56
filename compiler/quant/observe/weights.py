"""Ranges of weights: a scale for each channel."""

from __future__ import annotations

import torch

from compiler.quant.observe.grid import MIN_SCALE
from ir.errors import InputError

WEIGHT_OBSERVERS = ("minmax", "mse")

_FRACTIONS = 24
"""Parts of its largest magnitude that the search for the least error tries as a channel's range."""

_BLOCK = 1 << 16
"""Elements whose candidates are tried together: as many as a core keeps in its cache."""


OF_ZEROS = 2.0**-16
"""The scale of a channel of zeros: kernels have its bias as a multiple of it, so that it must be small."""


def weight_scales(
    weight: torch.Tensor,
    axis: int | None,
    highest: int,
    *,
    observer: str = "minmax",
    power_of_two: bool = False,
) -> torch.Tensor:
    """Return the scales of a weight's symmetric grid of the integers -highest to highest.

    Args:
        weight: a floating-point tensor of any shape.
        axis: the dimension of the channels; None for one scale for all.
        highest: the greatest integer, 127 of int8.
        observer: `minmax`, the largest magnitude of a channel divided by `highest`; or `mse`, the part of that with the
            least squared error.
        power_of_two: whether scales are powers of two.

    Returns:
        f32[C], or f32[] where `axis` is None; `OF_ZEROS` for a channel of zeros.

    Raises:
        InputError: when the weight holds NaN or an infinity, or the observer is unknown.
    """
    if observer not in WEIGHT_OBSERVERS:
        raise InputError(
            f"there is no observer {observer!r} of weights", remedy=f"use one of {', '.join(WEIGHT_OBSERVERS)}"
        )
    data = weight.detach().float()
    rows = data.reshape(1, -1) if axis is None else data.movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    if not bool(torch.isfinite(largest).all()):
        raise InputError(
            "the weight holds NaN or an infinity", remedy="mend the checkpoint, or keep the layer in float"
        )
    scales = _rounded(largest.double() / highest, power_of_two)
    if observer == "mse":
        scales = _least_error(rows, largest.double() / highest, scales, highest, power_of_two)
    scales = torch.where(largest == 0, torch.full_like(scales, OF_ZEROS), scales)
    return scales.float().reshape(()) if axis is None else scales.float()


def _rounded(scales: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    scales = scales.clamp_min(MIN_SCALE)
    if power_of_two:
        return torch.exp2(torch.ceil(torch.log2(scales) - 1e-9))
    return scales.float().double()


def _least_error(
    rows: torch.Tensor, full: torch.Tensor, best: torch.Tensor, highest: int, power_of_two: bool
) -> torch.Tensor:
    """Return the scales with the least error; more steps than those of six bits leave little to gain by clipping."""
    fractions = torch.linspace(1.0, 0.6 if highest > 31 else 0.3, _FRACTIONS, dtype=torch.float64)
    size = max(1, _BLOCK // max(rows.shape[1], 1))
    found = []
    for block, ends, start in zip(rows.split(size), full.split(size), best.split(size), strict=True):
        least = _squared_error(block, start, highest)
        for fraction in fractions[1:]:
            scales = _rounded(ends * fraction, power_of_two)
            error = _squared_error(block, scales, highest)
            better = error < least
            start, least = torch.where(better, scales, start), torch.where(better, error, least)
        found.append(start)
    return torch.cat(found) if found else best


def _squared_error(rows: torch.Tensor, scales: torch.Tensor, highest: int) -> torch.Tensor:
    column = scales[:, None].float()
    rounded = (rows / column).round_().clamp_(-highest, highest).mul_(column)
    return rounded.sub_(rows).square_().sum(1)
