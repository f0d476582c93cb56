from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from compiler.quant.observe.grid import MIN_SCALE, Grid, integer_range
from compiler.quant.observe.observers import OBSERVERS, observer_of
from compiler.quant.observe.statistics import Statistics
from compiler.quant.observe.weights import narrower_scales, weight_scales
from ir.errors import InputError

U8, S8 = Grid(0, 255, symmetric=False), Grid(-128, 127, symmetric=True)
U8_POWER = Grid(0, 255, symmetric=False, power_of_two=True)


def seen(*tensors: torch.Tensor) -> Statistics:
    statistics = Statistics()
    for tensor in tensors:
        statistics.add(tensor)
    return statistics


def rounded(x: torch.Tensor, grid: Grid, scale: float, zero: int) -> torch.Tensor:
    return (torch.clamp(torch.round(x.double() / scale) + zero, grid.low, grid.high) - zero) * scale


def squared_error(x: torch.Tensor, grid: Grid, scale: float, zero: int) -> float:
    return float((rounded(x, grid, scale, zero) - x.double()).square().sum())


def test_statistics_do_not_depend_on_the_order_or_the_size_of_calls():
    x = torch.randn(4000) * 3
    whole, parts = seen(x), seen(x[3000:], x[:1], x[1:3000])
    assert (whole.low, whole.high, whole.number) == (parts.low, parts.high, parts.number)
    assert (whole.low, whole.high, whole.number) == (float(x.min()), float(x.max()), 4000)
    assert all(map(np.array_equal, vars_of(whole), vars_of(parts)))
    assert all(map(np.array_equal, vars_of(seen(x[:9]).merged(seen(x[9:]))), vars_of(whole)))


def vars_of(statistics: Statistics):
    bins = statistics.bins()
    return bins.low, bins.high, bins.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_bins_hold_the_values(dtype):
    x = torch.tensor([-3.0, -0.0, 0.0, 1e-3, 1.0, 1.001, 250.0], dtype=dtype)
    bins = seen(x).bins()
    assert bins.count.sum() == 7
    assert np.all(bins.low <= bins.high) and np.all(np.diff(bins.middle) >= 0)
    for value in x.float().tolist():
        assert np.any((bins.low <= value) & (value <= bins.high))
    assert np.all(bins.high - bins.low <= 2.0**-7 * np.maximum(abs(bins.low), abs(bins.high)) + 1e-38)
    assert bins.magnitudes().count.sum() == 7 and bins.magnitudes().low.min() == 0


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "an infinity"), (-math.inf, "an infinity")])
def test_values_that_are_no_numbers_are_refused(bad, word):
    with pytest.raises(InputError, match=word):
        Statistics().add(torch.tensor([1.0, bad]))


def test_nothing_seen_has_no_bins():
    statistics = Statistics()
    statistics.add(torch.empty(0, 3))
    assert statistics.number == 0
    with pytest.raises(InputError, match="nothing was observed"):
        statistics.bins()


@pytest.mark.parametrize("grid", [U8, S8, U8_POWER, Grid(-8, 7, symmetric=True), Grid(-128, 127, symmetric=False)])
@pytest.mark.parametrize(
    "x", [torch.randn(3000), torch.rand(3000) + 2, -torch.rand(3000) * 1e-3, torch.randn(3000) * 1e5]
)
def test_error_of_a_histogram_is_that_of_the_values(grid, x):
    statistics = seen(x)
    for fraction in (1.0, 0.5, 0.05):
        scale, zero = grid.parameters(statistics.low * fraction, statistics.high * fraction)
        assert grid.error(statistics.bins(), scale, zero) == pytest.approx(squared_error(x, grid, scale, zero), rel=0.1)


@pytest.mark.parametrize("grid", [U8, S8, U8_POWER, Grid(-128, 127, symmetric=True, power_of_two=True)])
@pytest.mark.parametrize(
    "ends", [(-1.0, 3.0), (0.0, 6.0), (2.0, 2.5), (-7.0, -6.0), (-1e-30, 1e-30), (-1e30, 5.0), (-0.01, 8.0)]
)
def test_a_grid_covers_its_range_and_zero(grid, ends):
    low, high = ends
    scale, zero = grid.parameters(low, high)
    assert grid.low <= zero <= grid.high and scale >= MIN_SCALE and scale == np.float32(scale)
    assert (grid.low - zero - 0.51) * scale <= min(low, 0) and max(high, 0) <= (grid.high - zero + 0.51) * scale
    if grid.symmetric:
        assert zero == 0
    if grid.power_of_two:
        assert math.log2(scale) == round(math.log2(scale)) and zero % 2 == 0


def test_a_range_that_is_covered_is_not_wider_than_needed():
    assert S8.parameters(-1.27, 0.5) == (float(np.float32(0.01)), 0)
    assert U8.parameters(-1.0, 1.55) == (float(np.float32(0.01)), 100)
    assert U8.parameters(0.0, 2.55) == (float(np.float32(0.01)), 0)
    assert U8_POWER.parameters(0.0, 255.0 / 64) == (1 / 64, 0)
    assert U8_POWER.parameters(0.0, 256.0 / 64) == (1 / 32, 0)


def test_constants_and_zeros():
    for constant in (3.7, -0.2):
        scale, zero = U8.parameters(constant, constant)
        assert rounded(torch.tensor(constant), U8, scale, zero) == pytest.approx(constant, rel=1e-6)
    assert U8.parameters(0.0, 0.0) == (1.0, 0) == S8.parameters(0.0, 0.0)


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_what_is_no_range_is_refused(ends):
    with pytest.raises(InputError, match="is not a range"):
        U8.parameters(*ends)


def test_reduced_integers():
    assert integer_range(torch.int8) == (-128, 127)
    assert integer_range(torch.uint8) == (0, 255)
    assert integer_range(torch.int8, -7, 7) == (-7, 7)


@pytest.mark.parametrize("grid", [U8, S8])
def test_each_observer_gives_a_range_within_the_ends(grid):
    statistics = seen(torch.randn(20_000), torch.tensor([40.0]))
    for name in OBSERVERS:
        low, high = observer_of(name)(statistics, grid)
        assert statistics.low <= low < 0 < high <= statistics.high


def test_minmax_keeps_an_outlier_and_the_others_do_not():
    x = torch.cat([torch.randn(200_000), torch.tensor([1e4])])
    statistics = seen(x)
    assert observer_of("minmax")(statistics, S8)[1] == 1e4
    assert observer_of("percentile")(statistics, S8)[1] < 10
    # the even bins of the entropy are wider than all but the outlier; a smaller one it leaves out
    assert observer_of("entropy")(seen(torch.cat([x[:-1], torch.tensor([100.0])])), S8)[1] < 20


@pytest.mark.parametrize("outlier", [30.0, 1e4])
@pytest.mark.parametrize("grid", [U8, S8, U8_POWER, Grid(-8, 7, symmetric=True)])
def test_mse_is_the_least_error_of_all_ranges(grid, outlier):
    """Against a search over the values themselves, of far more ranges."""
    x = torch.cat([torch.randn(20_000), torch.tensor([outlier])])
    statistics = seen(x)
    found = squared_error(x, grid, *grid.parameters(*observer_of("mse")(statistics, grid)))
    fractions = [1.02**-k for k in range(0, 420, 6)]
    candidates = [(statistics.low * f, statistics.high * g) for f in (1, 0.95, 0.8, 0.6, 0.4) for g in fractions]
    assert found <= 1.03 * min(squared_error(x, grid, *grid.parameters(*ends)) for ends in candidates)
    assert found <= 1.001 * squared_error(x, grid, *grid.parameters(statistics.low, statistics.high))


def test_mse_of_what_is_never_negative_starts_at_zero():
    low, high = observer_of("mse")(seen(torch.relu(torch.randn(20_000))), U8)
    assert low == 0 and 2 < high < 6


def test_percentile_counts_values():
    x = torch.arange(1, 1_000_001).float()
    assert observer_of("percentile")(seen(x), U8)[1] == pytest.approx(999_995, rel=0.01)
    low, high = observer_of("percentile")(seen(torch.cat([x, -x])), S8)
    assert high == -low == pytest.approx(999_990, rel=0.01)


def test_observers_on_constants_and_zeros():
    for name in OBSERVERS:
        for constant in (0.0, 2.0, -3.0):
            low, high = observer_of(name)(seen(torch.full((50,), constant)), U8)
            scale, zero = U8.parameters(low, high)
            assert float(rounded(torch.tensor(constant), U8, scale, zero)) == pytest.approx(constant, rel=0.01)


def test_unknown_observers_are_named():
    with pytest.raises(InputError, match=r"no observer 'max'.*\n.*minmax, mse, percentile, entropy"):
        observer_of("max")


def test_weights_per_channel():
    weight = torch.tensor([[1.27, -0.5], [0.0, 0.0], [-2.54, 2.0]])
    torch.testing.assert_close(weight_scales(weight, 0, 127), torch.tensor([0.01, 2.0**-16, 0.02]))
    assert torch.equal(weight_scales(weight.T, 1, 127), weight_scales(weight, 0, 127))
    torch.testing.assert_close(weight_scales(weight, None, 127), torch.tensor(0.02))
    assert torch.equal(weight_scales(weight, 0, 127, power_of_two=True), torch.tensor([2.0**-6, 2.0**-16, 2.0**-5]))
    assert weight_scales(torch.empty(0, 3), 0, 127).shape == (0,)


def test_narrower_ranges_of_weights():
    weight = torch.tensor([[1.27, -0.5], [0.0, 0.0]])
    scales = narrower_scales(weight, 0, 7)
    assert torch.equal(scales[0], weight_scales(weight, 0, 7))
    assert len(scales) == 36 and all(torch.all(b < a) for a, b in itertools.pairwise(scales))
    torch.testing.assert_close(scales[-1], 0.3 * scales[0])
    powers = narrower_scales(weight, 0, 127, power_of_two=True)
    assert [float(each[0]) for each in powers] == [2.0**-6, 2.0**-7, 2.0**-8]


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="holds NaN or an infinity"):
        weight_scales(torch.tensor([[1.0, math.inf]]), 0, 127)
