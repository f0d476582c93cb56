"""Observers: which range of an observed value its grid covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from compiler.quant.observe.grid import Grid
from compiler.quant.observe.statistics import Floats, Statistics
from ir.errors import InputError

PERCENTILE = 99.999
"""The percentage of values that the observer `percentile` covers."""

_LINEAR_BINS = 2048

Range = tuple[float, float]
Observer = Callable[[Statistics, Grid], Range]


def min_max(seen: Statistics, grid: Grid) -> Range:
    """Return the ends themselves: nothing saturates."""
    return seen.low, seen.high


def mse(seen: Statistics, grid: Grid) -> Range:
    """Return the range, within the ends, whose grid has the least squared error.

    A search over fractions of the ends: of both together, then of each while the other stays, each search first coarse
    and then fine around the best. (The trade of clipping against rounding: Banner et al., "Post training 4-bit
    quantization of convolutional networks", 2019; searched on the histogram, as here, by PyTorch's HistogramObserver.)
    """
    bins = seen.bins()
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if low == high:
        return low, high

    def error(shrunk: Range) -> float:
        return grid.error(bins, *grid.parameters(*shrunk))

    best = (low, high)
    if grid.symmetric or not (low and high):
        return _searched(lambda f: (low * f, high * f), error, best)
    best = _searched(lambda f: (low * f, high * f), error, best)
    for _ in range(2):
        start = best
        best = _searched(lambda f, start=start: (start[0], high * f), error, best)  # type: ignore[misc]
        start = best
        best = _searched(lambda f, start=start: (low * f, start[1]), error, best)  # type: ignore[misc]
        if best == start:
            break
    return best


def _searched(shrunk: Callable[[float], Range], error: Callable[[Range], float], best: Range) -> Range:
    """Return the better of `best` and the best of the fractions in (0, 1]; of equals, the widest."""
    least = error(best)
    # An outlier may be thousands of times the rest: a geometric search, then an even one between the neighbours.
    coarse = [0.7**k for k in range(30)]
    errors = [error(shrunk(f)) for f in coarse]
    at = int(np.argmin(errors))
    above, below = coarse[max(at - 1, 0)], coarse[min(at + 1, len(coarse) - 1)]
    for fraction in (coarse[at], *np.linspace(above, below, 24)[1:-1]):
        found = error(shrunk(float(fraction)))
        if found < least:
            least, best = found, shrunk(float(fraction))
    return best


def percentile(seen: Statistics, grid: Grid) -> Range:
    """Return the range that holds `PERCENTILE` percent of the values.

    Of a symmetric grid those are of the magnitudes; else each end leaves out half of the rest.
    """
    part = PERCENTILE / 100
    bins = seen.bins()
    if grid.symmetric:
        end = _quantile(bins.magnitudes().high, bins.magnitudes().count, part)
        return max(-end, seen.low), min(end, seen.high)
    outside = (1 - part) / 2
    low = -_quantile(-bins.low[::-1], bins.count[::-1], 1 - outside)
    return max(low, seen.low), min(_quantile(bins.high, bins.count, 1 - outside), seen.high)


def _quantile(ends: Floats, count: Floats, part: float) -> float:
    """Return the end of the first bin up to which at least `part` of the values lie."""
    total = np.cumsum(count)
    return float(ends[min(int(np.searchsorted(total, part * total[-1])), len(ends) - 1)])


def entropy(seen: Statistics, grid: Grid) -> Range:
    """Return the range whose grid keeps most of the distribution, by the divergence of Kullback and Leibler.

    The calibration of TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017): the magnitudes in 2048 even bins;
    for each range of the first i bins, P is the distribution with the values beyond in its last bin, and Q the same
    bins merged into the steps of the grid and spread again over those that hold something. Both ends shrink by one
    factor.
    """
    bins = seen.bins().magnitudes()
    end = max(-seen.low, seen.high)
    if end <= 0:
        return seen.low, seen.high
    levels = (grid.steps + 1) // 2 if seen.low < 0 else grid.steps + 1
    counts = _even(bins.low, bins.high, bins.count, end)
    best, least = _LINEAR_BINS, np.inf
    for number in range(min(levels, _LINEAR_BINS), _LINEAR_BINS + 1, 16):
        divergence = _divergence(counts, number, levels)
        if divergence <= least:
            best, least = number, divergence
    reach = end * best / _LINEAR_BINS
    return max(-reach, seen.low), min(reach, seen.high)


def _even(low: Floats, high: Floats, count: Floats, end: float) -> Floats:
    """Spread bins, each as uniform, over `_LINEAR_BINS` even ones from 0 to `end`."""
    step = end / _LINEAR_BINS
    wide = np.maximum(high, low + step * 1e-6)
    edges = np.arange(_LINEAR_BINS + 1) * step
    # the values below an edge: those of whole bins, and of the bin that it cuts
    points = np.stack([low, wide], axis=1).reshape(-1)
    before = np.cumsum(count) - count
    below = np.stack([before, before + count], axis=1).reshape(-1)
    total = np.interp(edges, np.maximum.accumulate(points), below)
    total[-1] = count.sum()
    return np.diff(total)


def _divergence(counts: Floats, number: int, levels: int) -> float:
    """Return the divergence of the first `number` bins, the rest in the last, from their `levels` merged bins."""
    inner = counts[:number]
    p = inner.copy()
    p[-1] += counts[number:].sum()
    group = np.arange(number) * levels // number
    held = inner > 0
    sums = np.bincount(group, inner, levels)
    members = np.bincount(group, held, levels)
    q = np.where(held, sums[group] / np.maximum(members[group], 1), 0.0)
    if not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    # a bin of P that Q has not: the smoothing of TensorRT's tools
    floor = 1e-4 / number
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / np.maximum(q[present], floor))))


OBSERVERS: Mapping[str, Observer] = MappingProxyType(
    {"minmax": min_max, "mse": mse, "percentile": percentile, "entropy": entropy}
)
"""Name -> observer."""


def observer_of(name: str) -> Observer:
    """Return the observer of a name.

    Raises:
        InputError: when there is none.
    """
    found = OBSERVERS.get(name)
    if found is None:
        raise InputError(f"there is no observer {name!r}", remedy=f"use one of {', '.join(OBSERVERS)}")
    return found
