"""What is observed of one value: its ends, and a histogram of the upper halves of its floats."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ir.errors import InputError

_BINS = 1 << 16
_LOWER = 16
"""Bits of a float32 that the histogram forgets: what is left is sign, exponent and seven bits of the fraction."""

Floats = npt.NDArray[np.float64]


@attrs.frozen(eq=False)
class Bins:
    """The bins of a histogram that hold something, in the order of their values.

    Attributes:
        low: f64[n], the lower end of each bin.
        high: f64[n], its upper end, at least the lower one.
        count: f64[n], how many values it holds.
    """

    low: Floats
    high: Floats
    count: Floats

    @property
    def middle(self) -> Floats:
        """The middles of the bins, f64[n]."""
        return (self.low + self.high) / 2

    def magnitudes(self) -> Bins:
        """Return the bins of the absolute values."""
        negative = self.high <= 0
        low, high = np.where(negative, -self.high, self.low), np.where(negative, -self.low, self.high)
        order = np.argsort(low, kind="stable")
        return Bins(low[order], high[order], self.count[order])


@attrs.define(eq=False)
class Statistics:
    """What a value was over all calls: ends, number of elements and histogram.

    A bin of the histogram holds the values of one bfloat16, truncated: its width is 2^-7 of its values, whatever
    range they turn out to have. So one pass is enough, an outlier takes no resolution from the other values, and
    neither the order of the calls nor their number matters: the statistics of two values together are the sums.

    Attributes:
        low: the least value seen.
        high: the greatest.
        number: how many elements were seen.
    """

    with_histogram: bool = True
    low: float = np.inf
    high: float = -np.inf
    number: int = 0
    _counts: npt.NDArray[np.int64] | None = None

    def add(self, tensor: torch.Tensor) -> None:
        """Add the elements of a floating-point tensor of any shape.

        Raises:
            InputError: when it holds NaN or an infinity.
        """
        if not tensor.numel():
            return
        flat = tensor.detach().reshape(-1).float()
        low, high = (float(end) for end in torch.aminmax(flat))
        if not (np.isfinite(low) and np.isfinite(high)):
            what = "NaN" if np.isnan(low) else "an infinity"
            raise InputError(f"the value holds {what}")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.number += flat.numel()
        if self.with_histogram:
            upper = (flat.view(torch.int32) >> _LOWER).bitwise_and_(_BINS - 1)
            counts = torch.bincount(upper, minlength=_BINS).cpu().numpy()
            self._counts = counts if self._counts is None else self._counts + counts

    def merged(self, other: Statistics) -> Statistics:
        """Return the statistics of both values together."""
        counts = self._counts if other._counts is None else other._counts
        if self._counts is not None and other._counts is not None:
            counts = self._counts + other._counts
        return Statistics(
            self.with_histogram and other.with_histogram,
            min(self.low, other.low),
            max(self.high, other.high),
            self.number + other.number,
            counts,
        )

    def bins(self) -> Bins:
        """Return the bins that hold something, cut to the ends.

        Raises:
            InputError: when nothing was seen, or no histogram was kept.
        """
        if self._counts is None:
            raise InputError("there is no histogram: nothing was observed")
        (index,) = np.nonzero(self._counts)
        magnitude = (index & (_BINS // 2 - 1)).astype(np.uint32)
        near = (magnitude << _LOWER).view(np.float32).astype(np.float64)
        # the bin behind the greatest finite one would begin at infinity
        far = np.minimum(((magnitude + 1) << _LOWER).view(np.float32).astype(np.float64), np.finfo(np.float32).max)
        negative = index >= _BINS // 2
        low, high = np.where(negative, -far, near), np.where(negative, -near, far)
        low, high = np.clip(low, self.low, self.high), np.clip(high, self.low, self.high)
        order = np.argsort(low + high, kind="stable")
        return Bins(low[order], high[order], self._counts[index][order].astype(np.float64))
