"""Grids of integers: what scale and zero point cover a range, and what error a grid makes."""

from __future__ import annotations

import math

import attrs
import numpy as np
import torch

from compiler.quant.observe.statistics import Bins, Floats
from ir.errors import InputError

MIN_SCALE = 2.0**-60
"""The least scale: the product of two is a normal float32, and values below it are zero to any network."""


@attrs.frozen
class Grid:
    """The integers `low` to `high`, and how the scale of a range is chosen.

    Attributes:
        low: the least integer, negative for a signed type.
        high: the greatest.
        power_of_two: whether scales are powers of two, and zero points even.
    """

    low: int
    high: int
    symmetric: bool
    """Whether the zero point is 0."""
    power_of_two: bool = False

    @property
    def steps(self) -> int:
        """The number of steps between the ends."""
        return self.high - self.low

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Return the scale, as a float32 has it, and the zero point of the grid that covers a range, and 0 with it.

        A constant is a range, too: the grid reaches from it to 0. The range of nothing but 0 has the scale 1.

        Raises:
            InputError: when an end is not finite, or the ends are the wrong way round.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(f"[{low}, {high}] is not a range")
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return 1.0, 0 if self.symmetric else self._zero_point(1.0, 0.0)
        if self.symmetric:
            # by the nearer end: -128 is one step further than 127; an unsigned grid has no negative side at all
            return self._scale(max(high, -low if self.low < 0 else 0.0) / self.high), 0
        scale = self._scale((high - low) / self.steps)
        while self.power_of_two and not self._covers(scale, low, high):
            scale *= 2
        return scale, self._zero_point(scale, low)

    def _scale(self, scale: float) -> float:
        scale = max(scale, MIN_SCALE)
        if self.power_of_two:
            return float(2.0 ** math.ceil(math.log2(scale) - 1e-9))
        return float(np.float32(scale))

    def _zero_point(self, scale: float, low: float) -> int:
        exact = self.low - low / scale
        nearest = 2 * round(exact / 2) if self.power_of_two else round(exact)
        return max(self.low, min(self.high, nearest))

    def _covers(self, scale: float, low: float, high: float) -> bool:
        """Return whether the ends of a range are within half a step of the grid's."""
        zero = self._zero_point(scale, low)
        return (self.low - zero - 0.5) * scale <= low and high <= (self.high - zero + 0.5) * scale

    def error(self, bins: Bins, scale: float, zero_point: int) -> float:
        """Return the sum of squared errors of the values of a histogram, taken as uniform within each bin.

        The error of x is x - s·n, with n = x/s rounded and held between the ends. Its square has the integral
        s³·(n/12 + (x/s - n)³/3) from 0 to x, so a bin's mean is exact, however many steps or parts of one it spans.
        """
        first, last = self.low - zero_point, self.high - zero_point

        def integral(x: Floats) -> Floats:
            u = x / scale
            n = np.clip(np.rint(u), first, last)
            return n / 12 + (u - n) ** 3 / 3  # type: ignore[no-any-return]

        width = bins.high - bins.low
        middle = bins.middle / scale
        at_middle = (middle - np.clip(np.rint(middle), first, last)) ** 2
        is_narrow = width <= 1e-6 * scale  # differences of integrals would cancel
        safe = np.where(is_narrow, 1.0, width / scale)
        mean = np.where(is_narrow, at_middle, (integral(bins.high) - integral(bins.low)) / safe)
        return float(bins.count @ mean) * scale * scale


def integer_range(dtype: torch.dtype, quant_min: int | None = None, quant_max: int | None = None) -> tuple[int, int]:
    """Return the least and the greatest integer that a quantizer of a type gives."""
    info = torch.iinfo(dtype)
    low = int(info.min) if quant_min is None else quant_min
    return low, int(info.max) if quant_max is None else quant_max
