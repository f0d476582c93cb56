"""Bias correction: what rounding shifts in the mean of a channel goes into the bias of its layer.

A correction is judged on data that it was not computed from: it is kept, channel by channel, where it lowers the
squared error of the layer there, and all together where they lower the error of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from compiler.quant.calibration import Batch
from compiler.quant.quantizers import Quantizer
from compiler.quant.ranges import decibels, run_program
from compiler.quant.run import rounded, rounding_kernels, rounding_once, unrounded
from compiler.quant.sites import Site, is_convolution, remark, sites_of
from ir.core import Operation
from ir.errors import InputError
from ir.evaluate import Stepper
from ir.program import Program
from passes.rewrite.remarks import Remark

FORMS = ("fast", "sequential")

Outputs = tuple[Sequence[Any], Sequence[Any]]
"""The outputs of one call, rounded and in float."""

Powers = tuple[float, float]

_PARTS = 4
"""One part in so many of the calibration data judges corrections."""


def check_form(form: str) -> None:
    """Demand that a form of correction is one that there is.

    Raises:
        InputError: when it is not.
    """
    if form not in FORMS:
        known = ", ".join(map(repr, FORMS))
        raise InputError(f"there is no bias correction {form!r}", remedy=f"use one of {known}, or None")


@attrs.define(eq=False)
class _Sums:
    """Sums of values by channel, as of what rounding adds: of the data to correct by, and of that to judge by.

    Attributes:
        sums: of the two parts, each f64[C].
        numbers: how many values of a channel are in each part.
    """

    sums: list[torch.Tensor | float] = attrs.field(factory=lambda: [0.0, 0.0])
    numbers: list[int] = attrs.field(factory=lambda: [0, 0])

    def add(self, part: int, x: torch.Tensor, channel: int) -> None:
        if not x.numel():
            return
        dims = [i for i in range(x.dim()) if i != channel]
        self.sums[part] = self.sums[part] + (x.sum(dims, dtype=torch.float64) if dims else x.double())
        self.numbers[part] += x.numel() // x.shape[channel]

    def correction(self) -> torch.Tensor | None:
        """Return what to add to each channel, f64[C]; None where nothing helps.

        Adding c changes the squared error by c² + 2·c·m, m the mean shift of the part that judges.
        """
        if not all(self.numbers):
            return None
        fitted, judged = (
            torch.as_tensor(total) / number for total, number in zip(self.sums, self.numbers, strict=True)
        )
        helps = fitted * fitted - 2 * fitted * judged < 0
        both = (torch.as_tensor(self.sums[0]) + self.sums[1]) / sum(self.numbers)
        return torch.where(helps, -both, torch.zeros_like(both)) if bool(helps.any()) else None


def correct_biases(
    program: Program,
    found: Mapping[str, Quantizer],
    batches: Sequence[Batch],
    *,
    form: str,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Remark]:
    """Change the biases of a program, whose ranges are set, where that makes it closer to the program in float.

    `sequential` goes from layer to layer, and measures each in the program that is rounded and corrected up to it.
    `fast` takes the shift that rounded weights cause, (W' - W)·E[x] with the mean of the inputs in float, for all
    layers in one run (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019).

    Args:
        program: the program; the corrected biases become weights with data of their own.
        found: its quantizers.
        batches: the calls to correct by. One in four judges; of fewer calls, a quarter of each along dimension 0.
        form: `fast` or `sequential`.
        seed: seeds random operations.
        progress: called with the name of each layer.

    Returns:
        Remarks: what was corrected, and why other layers were not.

    Raises:
        InputError: when the form is unknown.
    """
    check_form(form)
    sites = sites_of(program, found)
    remarks = [remark(site, "bias-correction", f"not corrected: {site.no_bias}") for site in sites if site.bias is None]
    sites = [site for site in sites if site.bias is not None]
    before = {site.bias.name: site.bias.data for site in sites if site.bias is not None and site.bias.data is not None}
    correct = _sequential if form == "sequential" else _fast
    corrected, outputs = correct(program, found, sites, batches, seed, progress or (lambda text: None))
    if corrected:
        changed = {name: program.weights[name].data for name in before}
        _restore(program, before)
        plain = list(rounded_outputs(program, found, batches, before, seed=seed, exact=[exact for _, exact in outputs]))
        if _error(outputs, batches) < _error(plain, batches):
            _restore(program, changed)
        else:
            corrected = {}
            remarks.append(
                Remark(
                    "missed",
                    "bias-correction",
                    program.location,
                    "no bias was corrected: all corrections together raise the error of the outputs on held-back data",
                )
            )
    elif sites and not _judges(batches):
        remarks.append(
            Remark(
                "missed",
                "bias-correction",
                program.location,
                "no bias was corrected: one input is not enough to correct by some and judge by others",
            )
        )
    for site in sites:
        count = corrected.get(site, 0)
        if count and site.bias is not None:
            text = f"bias `{site.bias.name}` corrected in {count} channels"
            remarks.append(remark(site, "bias-correction", text, "applied"))
    return remarks


def _restore(program: Program, data: Mapping[str, Any]) -> None:
    for name, tensor in data.items():
        program.weights[name].data = tensor


def _part_of(number: int, batches: Sequence[Batch]) -> int | None:
    """Return the part that a call belongs to: 0 corrects, 1 judges; None where each call is in both."""
    return None if len(batches) < _PARTS else int(number % _PARTS == _PARTS - 1)


def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both parts of a tensor of one call, along dimension 0."""
    rows = x.shape[0] if x.dim() else 0
    held = max(rows // _PARTS, 1) if rows > 1 else 0
    return x[: rows - held], x[rows - held :]


def _judges(batches: Sequence[Batch]) -> bool:
    rows = [x.shape[0] for batch in batches for x in batch if isinstance(x, torch.Tensor) and x.dim()]
    return len(batches) >= _PARTS or any(count > 1 for count in rows)


def _apply(site: Site, shift: _Sums) -> int:
    """Correct the bias of a site; return in how many channels."""
    correction = shift.correction()
    assert site.bias is not None
    data = site.bias.data
    if correction is None or data is None or correction.shape != data.shape:
        return 0
    new = (data.detach().double() + correction.to(data.device)).to(data.dtype)
    if not bool(torch.isfinite(new).all()):
        return 0
    site.bias.data = torch.nn.Parameter(new, requires_grad=data.requires_grad)
    return int((correction != 0).sum())


def _sequential(
    program: Program,
    found: Mapping[str, Quantizer],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    seed: int,
    progress: Callable[[str], None],
) -> tuple[dict[Site, int], list[Outputs]]:
    """Correct layer after layer; all calls go through the program side by side, in float and rounded."""
    seen: dict[Operation, torch.Tensor] = {}
    wanted: dict[Operation, list[Site]] = {}
    for site in sites:
        wanted.setdefault(site.outer, []).append(site)
    results = {site.result for site in sites}

    def watch(op: Operation, values: Sequence[Any]) -> None:
        if op in results:
            seen[op] = values[0]

    rounding = rounding_once({op for entry in found.values() if entry.weight is not None for op in entry.operations})
    exact, rough = rounding_kernels(unrounded), rounding_kernels(rounding)
    floats = [Stepper(program, batch, watch=watch, kernels=exact) for batch in batches]
    roughs = [Stepper(program, batch, watch=watch, kernels=rough) for batch in batches]
    corrected: dict[Site, int] = {}

    def step(run: Stepper, op: Operation, **options: bool) -> None:
        torch.manual_seed(seed)
        run.step(op, **options)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for op in program.graph.operations():
            here = wanted.get(op, [])
            shifts = {site: _Sums() for site in here}
            if here:
                progress(here[0].layer.location.where)
            for number, (plain, rough_run) in enumerate(zip(floats, roughs, strict=True)):
                step(plain, op)
                expected = {site: seen[site.result] for site in here}
                step(rough_run, op, keeps_operands=bool(here))
                for site in here:
                    difference = seen[site.result] - expected[site]
                    for part, rows in _parts(difference, _part_of(number, batches)):
                        shifts[site].add(part, rows, site.channel_of(difference))
            seen.clear()
            for site in here:
                corrected[site] = _apply(site, shifts[site])
            for rough_run in roughs if here else ():
                for site in here:
                    assert site.bias is not None and site.bias.data is not None
                    rough_run.weights[site.bias.name] = site.bias.data
                step(rough_run, op)
    outputs: list[Outputs] = [(run.outputs(), plain.outputs()) for run, plain in zip(roughs, floats, strict=True)]
    return {site: count for site, count in corrected.items() if count}, outputs


def _parts(x: torch.Tensor, part: int | None) -> Iterable[tuple[int, torch.Tensor]]:
    """Return what of a tensor of one call, whose part is given, belongs to which part."""
    return enumerate(_split(x)) if part is None else [(part, x)]


def _fast(
    program: Program,
    found: Mapping[str, Quantizer],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    seed: int,
    progress: Callable[[str], None],
) -> tuple[dict[Site, int], list[Outputs]]:
    """Correct all layers by the means of their inputs in float, taken in one run of each call."""
    layers = {site.layer: site for site in sites if is_correctable(site)}
    inputs = {site: _Sums() for site in layers.values()}
    number = 0

    def take(op: Operation, operands: Sequence[Any]) -> None:
        site = layers.get(op)
        if site is None:
            return
        x = operands[0]
        channel = x.dim() - 1 if not is_convolution(op) else site.channel_of(x)
        for part, rows in _parts(x, _part_of(number, batches)):
            inputs[site].add(part, rows, channel)

    kernels = {**rounding_kernels(unrounded), **{op.name: take for op in layers}}
    exact = []
    for number, batch in enumerate(batches):
        progress(f"call {number + 1}")
        exact.append(run_program(program, batch, kernels, seed=seed))
    corrected: dict[Site, int] = {}
    for site, seen in inputs.items():
        shift = _Sums(numbers=seen.numbers)
        for part, (total, count) in enumerate(zip(seen.sums, seen.numbers, strict=True)):
            if count:
                shift.sums[part] = _shift_of(site, torch.as_tensor(total) / count) * count
        corrected[site] = _apply(site, shift)
    corrected = {site: count for site, count in corrected.items() if count}
    return corrected, list(rounded_outputs(program, found, batches, {}, seed=seed, exact=exact)) if corrected else []


def is_correctable(site: Site) -> bool:
    """Return whether the mean result of a layer follows from the mean of its inputs: not of a transposed one."""
    return not site.layer.opdef.short_name.startswith("conv_transpose")


@torch.no_grad()
def _shift_of(site: Site, means: torch.Tensor) -> torch.Tensor:
    """Return what rounded weights add to each channel of a site's result, f64[C], where the inputs have these means."""
    entry = site.quantizer
    assert entry.weight is not None and entry.weight.data is not None
    scale, zero_point = entry.scale.data, entry.zero_point.data
    assert scale is not None and zero_point is not None
    weight = entry.weight.data.detach()
    difference = (rounded(entry.operation, weight, scale, zero_point) - weight).double()
    if is_convolution(site.layer):
        groups = means.shape[0] // difference.shape[1]
        inner = difference.flatten(2).sum(2).unflatten(0, (groups, -1))
        shift = torch.einsum("goc,gc->go", inner, means.reshape(groups, -1)).flatten()
    else:
        shift = difference @ means
    return shift * _gain(site)


def _gain(site: Site) -> torch.Tensor | float:
    """Return by what a batch norm behind the layer multiplies each channel."""
    if site.result is site.layer:
        return 1.0
    variance, gamma = site.norm_weight("running_var"), site.norm_weight("weight")
    assert variance is not None
    gain = torch.rsqrt(variance.double() + site.result.attributes["eps"])
    return gain if gamma is None else gain * gamma.double()


def rounded_outputs(
    program: Program,
    found: Mapping[str, Quantizer],
    batches: Iterable[Batch],
    originals: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    exact: Sequence[Sequence[Any]] = (),
) -> Iterator[Outputs]:
    """Yield the outputs of each call, rounded and in float.

    Args:
        program: a program whose ranges are set.
        found: its quantizers.
        batches: the calls.
        originals: the weights in float that were corrected since, by name.
        seed: seeds random operations.
        exact: the outputs in float, where they are known.
    """
    weights = {op for entry in found.values() if entry.weight is not None for op in entry.operations}
    rounding = rounding_once(weights)
    for number, batch in enumerate(batches):
        noisy = run_program(program, batch, rounding_kernels(rounding), seed=seed)
        if exact:
            yield noisy, exact[number]
        else:
            yield noisy, run_program(program, batch, rounding_kernels(unrounded), seed=seed, weights=originals)


def noise_and_power(outputs: Iterable[Outputs], part: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Powers:
    """Return the squares of the errors of all floating-point outputs, and of the outputs in float, each summed.

    Where all outputs are integers or truth values: how many differ, and how many there are.
    """
    noise = power = differing = number = 0.0
    has_floats = False
    for noisy, exact in outputs:
        for one, other in zip(noisy, exact, strict=True):
            if isinstance(other, torch.Tensor) and not other.is_floating_point():
                differing += float((part(one) != part(other)).sum())
                number += part(other).numel()
            elif isinstance(other, torch.Tensor):
                has_floats = True
                expected = part(other.detach()).double()
                noise += float((part(one.detach()).double() - expected).square().sum())
                power += float(expected.square().sum())
    return (noise, power) if has_floats else (differing, number)


def _error(outputs: Sequence[Outputs], batches: Sequence[Batch]) -> float:
    """Return the error of the outputs in the part that judges, relative to their power, in dB."""
    held = [each for number, each in enumerate(outputs) if _part_of(number, batches) == 1]
    noise, power = noise_and_power(held) if held else noise_and_power(outputs, lambda x: _split(x)[1] if x.dim() else x)
    return -decibels(power, noise)
