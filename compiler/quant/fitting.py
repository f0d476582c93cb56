"""From a placed program to one whose scales, zero points and biases fit the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from compiler.quant.biases import round_to_grid, widen_overflowing
from compiler.quant.calibration import Batch
from compiler.quant.correction import check_form, correct_biases
from compiler.quant.least_error import fit_weights
from compiler.quant.observe.observers import observer_of
from compiler.quant.observe.statistics import Statistics
from compiler.quant.quantizers import Quantizer, quantizers
from compiler.quant.ranges import observe, set_activation_range, set_weight_range
from compiler.quant.sites import sites_of
from ir.errors import InputError
from ir.program import Program
from passes.rewrite.remarks import Remark

_FEW = 31
"""Up to this greatest integer, of six bits, clipping a weight can gain more than it costs."""

Progress = Callable[[str], None]


@attrs.frozen
class Options:
    """How ranges and biases are chosen; `quantize` describes each."""

    observer: str = "mse"
    bias_correction: str | None = "fast"
    power_of_two: bool = False
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        observer_of(self.observer)
        if self.bias_correction is not None:
            check_form(self.bias_correction)
        if type(self.seed) is not int:
            raise InputError(f"seed={self.seed!r} is not an integer", remedy="give one: `seed=0`")


@attrs.define(eq=False)
class Fitted:
    """A program whose quantizers are set.

    Attributes:
        statistics: name of a scale -> what its values were.
        batches: calls of the calibration data that were kept.
        calls: how many calls there were.
        originals: the biases before they were changed, by name: with them the program in float is the model.
    """

    program: Program
    quantizers: dict[str, Quantizer]
    statistics: Mapping[str, Statistics]
    batches: list[Batch]
    calls: int
    remarks: list[Remark]
    originals: dict[str, torch.Tensor]


Unify = Callable[[Program, Mapping[str, Quantizer], Mapping[str, Statistics]], tuple[Mapping[str, str], list[Remark]]]
"""Gives values that share parameters one pair of them: returns name of a scale -> the one that is left, and remarks."""


def fit_program(
    program: Program,
    calibration: Any,
    options: Options,
    *,
    observers: Mapping[str, str] | None = None,
    unify: Unify | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Calibrate a placed program: observe, choose scales and zero points, correct biases. The program is changed.

    Args:
        program: a program with quantizations, whose scales and zero points are weights.
        calibration: an iterable of inputs, or a function of the model (`calibrate` says more).
        options: how ranges and biases are chosen.
        observers: name of a scale -> its observer, where that is another one.
        unify: gives values that share parameters one pair, after they were observed.
        progress: called with the name of each step.

    Raises:
        CalibrationError: when the data does not fit the model, or a place is never reached.
        InputError: when a weight holds no numbers, or a batch norm stands in the way of power-of-two scales.
    """
    tell = progress or (lambda text: None)
    own = observers or {}
    found = quantizers(program)
    for entry in found.values():
        if entry.weight is None and entry.scale.data is None:
            entry.set(torch.ones(()), torch.zeros(()))  # nothing reads them while values are observed
    observed = observe(program, found, calibration, seed=options.seed, progress=lambda text: tell(f"observe: {text}"))
    remarks: list[Remark] = []
    statistics = observed.statistics
    if unify is not None:
        tell("unify")
        left, remarks = unify(program, found, statistics)
        statistics = _merged(statistics, left)
        found = quantizers(program)
    tell("ranges")
    searched: dict[str, Quantizer] = {}
    for name, entry in found.items():
        observer = own.get(name, options.observer)
        if entry.weight is not None:
            set_weight_range([entry], power_of_two=options.power_of_two)
            if observer == "mse" and (entry.ends[1] <= _FEW or options.power_of_two):
                searched[name] = entry
        else:
            chosen = observer_of(observer)
            set_activation_range(entry, statistics[name], chosen, power_of_two=options.power_of_two)
    if searched:
        tell("ranges of weights")
        fit_weights(
            program,
            searched,
            observed.batches,
            power_of_two=options.power_of_two,
            seed=options.seed,
        )
    sites = sites_of(program, found)
    biases = [site.bias for site in sites if site.bias is not None]
    originals = {bias.name: bias.data for bias in biases if bias.data is not None}
    remarks += widen_overflowing(sites)
    if options.bias_correction is not None:
        remarks += correct_biases(
            program,
            found,
            observed.batches,
            form=options.bias_correction,
            seed=options.seed,
            progress=lambda text: tell(f"correct biases: {text}"),
        )
    remarks += round_to_grid(sites, exactly=options.power_of_two)
    return Fitted(program, found, statistics, observed.batches, observed.calls, remarks, originals)


def _merged(statistics: Mapping[str, Statistics], left: Mapping[str, str]) -> dict[str, Statistics]:
    """Return the statistics of each scale that is left: those of all that it stands for, together."""
    merged: dict[str, Statistics] = {}
    for name, seen in statistics.items():
        kept = left.get(name, name)
        merged[kept] = merged[kept].merged(seen) if kept in merged else seen
    return merged
