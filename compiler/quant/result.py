"""What `quantize` returns: the program, its module, and what is known of each place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch.fx import GraphModule
from typing_extensions import override

from compiler.driver import TransformResult
from compiler.emitted.parameter_map import ParameterMap
from compiler.quant.calibration import Batch
from compiler.quant.correction import noise_and_power, rounded_outputs
from compiler.quant.fitting import Fitted, Options
from compiler.quant.quantizers import Quantizer
from compiler.quant.ranges import Fit, decibels, fit, run_program
from compiler.quant.report import PlaceReport, QuantizationReport, type_name, worst_first
from compiler.quant.run import rounded, rounding_kernels, unrounded
from compiler.runtime.deployable import Deployable
from ir.core import Operation
from ir.errors import InputError
from ir.program import Program
from passes.quant.place import Place, Placement
from passes.rewrite.remarks import Remark

_MEASURED = 4
"""How many calls of the calibration data measure the error of the outputs."""


@attrs.define(eq=False, repr=False)
class Quantized(Deployable):
    """A quantized model: `print` shows what was quantized, how well, and why.

    SQNR, sensitivity and report are those of the model as it was quantized, whatever `model` has learned since.

    Attributes:
        model: the emitted module. It computes in float what the integers stand for, and can be trained.
        program: the IR with its quantizations; `print(q.program)` is its text form.
        source: the result in float that was quantized.
        parameter_map: new `state_dict` key -> original key(s). A converted checkpoint of the original has the biases
            before they were corrected, and no scales: load it with `strict=False` and quantize again.
        placement: each place, and why it is in integers or not.
        remarks: what was unified, widened and corrected, and what not, with reasons.
    """

    model: GraphModule
    program: Program
    source: TransformResult
    parameter_map: ParameterMap
    placement: Placement
    remarks: tuple[Remark, ...]
    _fitted: Fitted
    _options: Options
    _names: dict[str, str]
    """Name of a scale when it was placed -> of the one that it shares."""
    _sensitivity: dict[str, float] = attrs.field(factory=dict)
    _sqnr: float | None = None

    @property
    def sqnr(self) -> float:
        """The power of the outputs in float over that of the difference, in dB, on a few calls of the calibration."""
        if self._sqnr is None:
            outputs = rounded_outputs(
                self.program, self._fitted.quantizers, self._calls(), self._fitted.originals, seed=self._options.seed
            )
            self._sqnr = _sqnr(noise_and_power(outputs))
        return self._sqnr

    def _calls(self) -> Sequence[Batch]:
        return self._fitted.batches[:_MEASURED]

    def sensitivity(self, *, calls: int = 1) -> dict[str, float]:
        """Measure the outputs with one quantizer at a time, all others in float; the report has them from then on.

        It runs the model once for each quantizer.

        Args:
            calls: how many calls of the calibration data to measure on.

        Returns:
            Name of the scale -> power of the outputs in float over that of the difference, in dB, the worst first.

        Raises:
            InputError: when `calls` is not a positive number.
        """
        if type(calls) is not int or calls < 1:
            raise InputError(f"calls={calls!r} is not a positive number", remedy="measure on at least 1 call")
        program, seed = self.program, self._options.seed
        batches = self._fitted.batches[:calls]
        weights = self._fitted.originals
        exact = [
            run_program(program, batch, rounding_kernels(unrounded), seed=seed, weights=weights) for batch in batches
        ]
        found: dict[str, float] = {}
        for name, entry in self._fitted.quantizers.items():
            chosen = set(entry.operations)

            def alone(
                op: Operation, x: torch.Tensor, *parameters: torch.Tensor, chosen: set[Operation] = chosen
            ) -> torch.Tensor:
                return rounded(op, x, *parameters) if op in chosen else x

            kernels = rounding_kernels(alone)
            outputs = [run_program(program, batch, kernels, seed=seed, weights=weights) for batch in batches]
            found[name] = _sqnr(noise_and_power(zip(outputs, exact, strict=True)))
        self._sensitivity = dict(sorted(found.items(), key=lambda item: item[1]))
        return dict(self._sensitivity)

    @override
    def _example(self) -> tuple[torch.Tensor, ...] | None:
        return tuple(self._fitted.batches[0]) if self._fitted.batches else None

    @override
    def _float_result(self) -> TransformResult:
        return self.source

    def report(self) -> QuantizationReport:
        """Return what was quantized, how well and why, as data."""
        return QuantizationReport(
            model=self.program.name,
            target=self.placement.table,
            calls=self._fitted.calls,
            observer=self._options.observer,
            sqnr=self.sqnr,
            measured=len(self._calls()),
            places=worst_first([self._place(place) for place in self.placement.places]),
            remarks=tuple(str(remark) for remark in self.remarks),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as dicts, lists, strings and numbers, ready for `json.dump`."""
        return self.report().to_json()

    def _place(self, place: Place) -> PlaceReport:
        entry = self._fitted.quantizers.get(self._names.get(place.scale, place.scale))
        scores = None if entry is None else self._fit(entry)
        return PlaceReport(
            value=place.value if entry is None else _value_name(entry, place),
            region=place.site.kind,
            module=place.module,
            role=place.role,
            type="" if entry is None else type_name(entry.dtype, entry.ends),
            scale="" if entry is None else entry.name,
            scale_value=None if entry is None or entry.scale.data is None else float(entry.scale.data.max()),
            zero_point=None if entry is None or entry.zero_point.data is None else int(entry.zero_point.data.max()),
            sqnr=None if scores is None else scores.sqnr,
            saturated=None if scores is None else scores.saturated,
            output_sqnr=None if entry is None else self._sensitivity.get(entry.name),
            reason=place.reason,
            source=place.source,
        )

    def _fit(self, entry: Quantizer) -> Fit:
        scale, zero_point = entry.scale.data, entry.zero_point.data
        assert scale is not None and zero_point is not None
        if entry.weight is None:
            grid = entry.grid(power_of_two=self._options.power_of_two)
            return fit(self._fitted.statistics[entry.name], grid, float(scale), int(zero_point))
        data = entry.weight.data
        assert data is not None
        weight = data.detach()
        difference = rounded(entry.operation, weight, scale, zero_point).double() - weight.double()
        shape = [-1 if i == entry.axis else 1 for i in range(weight.dim())]
        reach = (entry.ends[1] + 0.5) * (scale if entry.axis is None else scale.reshape(shape))
        saturated = float((weight.abs() > reach).double().mean()) if weight.numel() else 0.0
        return Fit(decibels(float(weight.double().square().sum()), float(difference.square().sum())), saturated)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.report()

    def __str__(self) -> str:
        return str(self.report())

    def __repr__(self) -> str:
        count = len(self._fitted.quantizers)
        return f"Quantized: {self.program.name} for {self.placement.table}, {count} quantizers; print it"


def _value_name(entry: Quantizer, place: Place) -> str:
    """Return the name of the value that is quantized; a dequantized operand has none of its own."""
    source = entry.operation.operands[0]
    return place.value or ("" if source is None else source.name)


def _sqnr(powers: tuple[float, float]) -> float:
    noise, power = powers
    return decibels(power, noise)
