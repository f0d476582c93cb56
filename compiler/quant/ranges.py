"""Ranges: what the calibration shows of each quantizer, and the scales and zero points that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from compiler.quant.calibration import Batch, CalibrationError, CallReader, calibrate
from compiler.quant.observe.grid import Grid
from compiler.quant.observe.observers import Observer
from compiler.quant.observe.statistics import Statistics
from compiler.quant.observe.weights import weight_scales
from compiler.quant.quantizers import Quantizer
from compiler.quant.run import rounding_kernels
from ir.core import Operation
from ir.errors import InputError
from ir.evaluate import evaluate
from ir.program import Program


def _reader(op: Operation) -> str:
    """Return the path of a module that reads what an operation quantizes; a rule for it takes the quantizer out."""
    users = [user for user in op.result.users if user.location.module_path] or [op]
    return users[0].location.module_path or "*"


KEPT_BYTES = 1 << 30
"""How much of the calibration data is kept for what needs it once more."""


@attrs.define(eq=False)
class Observed:
    """What the calibration showed.

    Attributes:
        statistics: name of a scale -> what its values were; of quantizers of weights there is none.
        batches: the calls, the first ones up to `KEPT_BYTES`.
        calls: how many calls there were.
    """

    statistics: dict[str, Statistics]
    batches: list[Batch] = attrs.field(factory=list)
    calls: int = 0


def observe(
    program: Program,
    found: Mapping[str, Quantizer],
    calibration: Any,
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Observed:
    """Run the program in float on the calibration data, and observe what its quantizers read.

    Args:
        program: the placed program.
        found: its quantizers.
        calibration: an iterable of inputs, or a function of the model (`calibrate` says more).
        seed: seeds the random operations of each call.
        progress: called with a text at each call.

    Raises:
        CalibrationError: when the data does not fit the model, is empty, or a value holds NaN or an infinity.
    """
    names = {op: name for name, entry in found.items() if entry.weight is None for op in entry.operations}
    observed = Observed({name: Statistics() for name in names.values()})
    kept = 0

    def rounding(op: Operation, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        name = names.get(op)
        if name is not None:
            try:
                observed.statistics[name].add(x)
            except InputError as error:
                raise CalibrationError(
                    f"in call {observed.calls} of the calibration, {error.message}: the one that `{name}` would scale",
                    location=op.location,
                    remedy=f"leave such inputs out, or keep what reads it in float: `rules={{{_reader(op)!r}: None}}`",
                ) from error
        return x

    kernels = rounding_kernels(rounding)

    def run(batch: Batch) -> Sequence[Any]:
        nonlocal kept
        observed.calls += 1
        if progress is not None:
            progress(f"call {observed.calls}")
        outputs = run_program(program, batch, kernels, seed=seed)
        kept += sum(x.numel() * x.element_size() for x in batch if isinstance(x, torch.Tensor))
        if kept <= KEPT_BYTES or not observed.batches:
            # copies: the data may come in one tensor that is filled anew for each call
            observed.batches.append(tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in batch))
        return outputs

    calibrate(CallReader(program), calibration, run)
    return observed


def run_program(
    program: Program, batch: Batch, kernels: Any, *, seed: int = 0, weights: Mapping[str, torch.Tensor] | None = None
) -> list[Any]:
    """Run a program without gradients, its random operations from a seed; `weights` stand for those of these names.

    Raises:
        CalibrationError: the one that an observer raised.
        EvaluationError: when an operation fails.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return evaluate(program, batch, weights, kernels=kernels)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, CalibrationError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None


@attrs.frozen
class Fit:
    """How well a grid fits a value, from its histogram.

    Attributes:
        sqnr: the power of the value over that of the error, in dB; infinite where there is no error.
        saturated: the part of the values beyond the grid.
    """

    sqnr: float
    saturated: float


def fit(seen: Statistics, grid: Grid, scale: float, zero_point: int) -> Fit:
    """Return how well a grid fits what was seen."""
    bins = seen.bins()
    power = float(bins.count @ ((bins.high**2 + bins.high * bins.low + bins.low**2) / 3))
    first, last = (grid.low - zero_point - 0.5) * scale, (grid.high - zero_point + 0.5) * scale
    width = np.maximum(bins.high - bins.low, 1e-300)
    below = np.clip((first - bins.low) / width, 0, 1)
    above = np.clip((bins.high - last) / width, 0, 1)
    return Fit(
        decibels(power, grid.error(bins, scale, zero_point)), float(bins.count @ (below + above)) / max(seen.number, 1)
    )


def decibels(power: float, error: float) -> float:
    """Return the ratio of two powers in dB; infinite where there is no error."""
    if error <= 0:
        return np.inf
    return float(10 * np.log10(max(power, 1e-300) / error))


def set_activation_range(entry: Quantizer, seen: Statistics, observer: Observer, *, power_of_two: bool) -> None:
    """Choose scale and zero point of a quantizer of values, and write them.

    Raises:
        CalibrationError: when no value was seen.
    """
    if not seen.number:
        raise CalibrationError(
            f"no value was seen that `{entry.name}` would scale",
            location=entry.operation.location,
            remedy="calibrate with inputs that are not empty, or keep the place in float: `rules={PATH: None}`",
        )
    grid = entry.grid(power_of_two=power_of_two)
    scale, zero_point = grid.parameters(*observer(seen, grid))
    entry.set(torch.tensor(scale), torch.tensor(zero_point))


def set_weight_range(entries: Iterable[Quantizer], *, power_of_two: bool) -> None:
    """Choose scales of weights that cover their largest magnitudes, and write them.

    Raises:
        InputError: when a weight holds NaN or an infinity, or has no data.
    """
    for entry in entries:
        weight = entry.weight
        assert weight is not None
        if weight.data is None or weight.data.is_meta:
            raise InputError(
                f"weight {weight.name!r} has no data, so there is no range of it",
                location=entry.operation.location,
                remedy="load a checkpoint before the model is transformed",
            )
        try:
            scales = weight_scales(weight.data, entry.axis, entry.ends[1], power_of_two=power_of_two)
        except InputError as error:
            raise InputError(
                f"weight {weight.name!r}: {error.message}", location=entry.operation.location, remedy=error.remedy
            ) from error
        entry.set(scales, torch.zeros(scales.shape))


def keep_symmetric(entry: Quantizer) -> None:
    """Leave out the integer below -highest where a weight would be rounded to it, as where its range was narrowed.

    The grid is symmetric: a batch norm that changes the sign of a channel is folded into its integers.
    """
    weight, scale, highest = entry.weight, entry.scale.data, entry.ends[1]
    assert weight is not None and weight.data is not None and scale is not None
    data = weight.data.detach()
    column = scale.to(data.device).reshape([-1 if i == entry.axis else 1 for i in range(data.dim())])
    if bool((torch.round(data / column) < -highest).any()):
        for op in entry.operations:
            op.set_attribute("quant_min", -highest)
