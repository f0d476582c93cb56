"""`quantize`: from a result in float and calibration data to a quantized model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compiler.codegen import emit
from compiler.driver import TransformResult
from compiler.emitted import quantization
from compiler.onnx.inference import own_current_weights
from compiler.quant.fitting import Options, fit_program
from compiler.quant.formats import Int8, apply_formats, check_formats, checked_rules
from compiler.quant.observe.observers import observer_of
from compiler.quant.observe.statistics import Statistics
from compiler.quant.quantizers import Quantizer, is_quantized, operations, quantizers
from compiler.quant.ranges import fit
from compiler.quant.result import Quantized
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program, copy_program
from ir.verify import verify
from passes.quant.place import place
from passes.quant.tables import Table, find_table
from passes.quant.unify import unify_quantizers, with_conflicts
from passes.rewrite.remarks import Remark

_WORST_CUT = 3.0
"""Sharing parameters must not cost a value more than this, in dB."""


def quantize(
    result: TransformResult,
    calibration: Any,
    *,
    rules: Any = None,
    default: Int8 = Int8(),  # noqa: B008 - frozen
    observer: str = "mse",
    bias_correction: str | None = "fast",
    power_of_two: bool = False,
    table: str | Table | None = None,
    seed: int = 0,
    progress: bool | Callable[[str], None] = True,
) -> Quantized:
    """Quantize a model after training: place quantizers as the target wants them, and choose their ranges from data.

    Args:
        result: what `transform` returned, for a model in eval mode. The weights are those that `result.model` now has.
            It is not changed, and the quantized model has weights of its own.
        calibration: an iterable of inputs (each a tensor, a tuple of the arguments, or a dict of them by name), among
            them a `DataLoader`, whose labels beside the inputs are left out; or a function that is given the model, and
            calls it. It is read once. Some hundred inputs like those of the model's use are enough.
        rules: ordered, the last that means a place decides: a mapping from keys to None (float) or an `Int8`. A key is
            a glob of module paths or of kinds of regions, a type of modules, or a function of a `Site`.
        default: the integers of places that no rule means.
        observer: how ranges are chosen: "minmax", "mse" (least squared error), "percentile" or "entropy". Weights have
            a scale for each channel, which covers their largest magnitude; under "mse", those of six bits or fewer one
            of which the layer's results have the least error.
        bias_correction: "fast" corrects what rounded weights shift in the mean of each channel, all layers in one run;
            "sequential" whatever shifts it, layer after layer, and so wants data that is much like that of the model's
            use; None leaves biases alone. A correction is kept only where it lowers the error on a part of the data
            that it was not computed from.
        power_of_two: whether scales are powers of two, zero points even, and biases on the grid of the products. Then
            arithmetic on the integers is exact in float32, and every engine gives the same bits, as long as sums stay
            within 2^24 (others are remarked). Batch norms must be folded.
        table: where the target has integers; by default that of the result's target.
        seed: seeds random operations of the model. The same arguments give the same result.
        progress: whether a progress bar is shown (on a terminal), or a function of a text to call instead.

    Raises:
        InputError: for wrong arguments, a model that is quantized already or in training mode, a rule that means
            nothing, or gives a format to what stays in float.
        CalibrationError: when the data is empty, does not fit the model, holds NaN, or never reaches a place.
    """
    options = Options(observer, bias_correction, power_of_two, seed)
    if not isinstance(result, TransformResult):
        raise InputError(
            f"quantize was given a {type(result).__qualname__}", remedy="pass what `transform(model, inputs)` returned"
        )
    if not isinstance(default, Int8):
        raise InputError(f"default={default!r} is not an Int8", remedy="write `default=Int8()`")
    chosen = result.target.table if table is None else table
    if chosen is None:
        raise InputError(
            f"the target {result.target.name!r} says nowhere where it has integers", remedy="pass a `table=`"
        )
    used = find_table(chosen)
    made_rules = checked_rules(rules)
    _check_program(result.program)
    with _shown(progress) as tell:
        program = copy_program(result.program)
        own_current_weights(program, result.model)
        tell("place")
        placement = place(program, used, made_rules)
        if not placement.placed:
            reasons = "; ".join(dict.fromkeys(each.reason for each in placement.places))
            raise InputError(
                f"nothing of the model can be quantized for {placement.table}: {reasons or 'it has no operations'}",
                location=program.location,
                remedy="print the placement of another target, or leave out rules",
            )
        check_formats(placement, made_rules)
        observers = apply_formats(placement, made_rules, default, quantizers(program))
        names: dict[str, str] = {}

        def unify(
            placed: Program, found: Mapping[str, Quantizer], seen: Mapping[str, Statistics]
        ) -> tuple[Mapping[str, str], list[Remark]]:
            nonlocal placement
            unified = unify_quantizers(placed, used, _Refusal(found, seen, options, observers))
            names.update(unified.names)
            placement = with_conflicts(placement, unified, used)
            return unified.names, [join.remark for join in unified.joins]

        fitted = fit_program(program, calibration, options, observers=observers, unify=unify, progress=tell)
        tell("emit")
        verify(program)
        emitted = emit(program)
    return Quantized(
        model=emitted.module,
        program=program,
        source=result,
        parameter_map=emitted.parameter_map,
        placement=placement,
        remarks=tuple(fitted.remarks),
        fitted=fitted,
        options=options,
        names=names,
    )


def _check_program(program: Program) -> None:
    again = f"{quantization.Quantizer.__module__}.{quantization.Quantizer.__qualname__}"
    emitted = any(part.module_class == again for op, _ in operations(program.graph) for part in op.location.parts)
    if is_quantized(program) or emitted:
        raise InputError(
            "the model is quantized already",
            location=program.location,
            remedy="quantize the result of the model in float, with all rules at once",
        )
    for op, _ in operations(program.graph):
        # a normalization without running statistics computes its own in both modes
        if op.in_training and not (op.opdef.has(Trait.NORMALIZES) and op.operand("running_mean") is None):
            raise InputError(
                f"{op.name} is in training mode, and its ranges would be those of training",
                location=op.location,
                remedy="transform the model in eval mode: `transform(model.eval(), inputs)`; what is quantized can be "
                "trained",
            )


class _Refusal:
    """Keeps values apart that would lose too much on common parameters."""

    def __init__(
        self,
        found: Mapping[str, Quantizer],
        seen: Mapping[str, Statistics],
        options: Options,
        observers: Mapping[str, str],
    ) -> None:
        self._found = found
        self._seen = seen
        self._options = options
        self._observers = observers

    def __call__(self, kept: Sequence[str], other: Sequence[str]) -> str | None:
        """Return why two classes, given by the names of their scales, must not share parameters; None if they may."""
        names = [name for name in (*kept, *other) if name in self._seen and self._seen[name].number]
        if len(names) < 2:
            return None
        together = self._seen[names[0]]
        for name in names[1:]:
            together = together.merged(self._seen[name])
        common = self._parameters(kept[0], together)
        for name in names:
            seen, grid = self._seen[name], self._found[name].grid(power_of_two=self._options.power_of_two)
            alone = fit(seen, grid, *self._parameters(name, seen)).sqnr
            shared = fit(seen, grid, *common).sqnr
            if alone - shared > _WORST_CUT:
                return f"`{name}` would lose {alone - shared:.1f} dB, more than {_WORST_CUT:g}, on common parameters"
        return None

    def _parameters(self, name: str, seen: Statistics) -> tuple[float, int]:
        observer = observer_of(self._observers.get(name, self._options.observer))
        grid = self._found[name].grid(power_of_two=self._options.power_of_two)
        return grid.parameters(*observer(seen, grid))


@contextmanager
def _shown(progress: bool | Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yield the function to call with the name of each step, which a bar on the terminal shows."""
    if callable(progress):
        yield progress
        return
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("quantize"), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        yield lambda text: bar.update(task, description=text)
