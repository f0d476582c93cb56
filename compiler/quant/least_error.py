"""Ranges of weights with few steps: those with which the layers' results have the least error on calibration data.

What clipping takes from weights points to zero, so it adds up in a result, where rounding errors cancel. The squared
error of the weights themselves does not see that, and clips too much or in the wrong channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from compiler.quant.calibration import Batch
from compiler.quant.observe.weights import narrower_scales
from compiler.quant.quantizers import Quantizer
from compiler.quant.ranges import keep_symmetric, run_program
from compiler.quant.run import rounding_kernels, unrounded
from compiler.quant.sites import Site, is_convolution, sites_of
from ir.attributes import Ref
from ir.core import Operation
from ir.fake import kernel_call
from ir.program import Program

_CALLS = 4
"""How many calls judge ranges."""

_RESULTS = 1024
"""How many results of a channel are looked at in each call; of a convolution, those of one input at least."""


def fit_weights(
    program: Program,
    found: Mapping[str, Quantizer],
    batches: Sequence[Batch],
    *,
    power_of_two: bool = False,
    seed: int = 0,
) -> None:
    """Narrow the ranges of weights where that lowers the error of the results of their layers.

    Args:
        program: the program, whose weights have scales that cover them.
        found: the quantizers of weights to be searched; others are left alone, and those that no layer reads.
        batches: calls of the calibration data.
        power_of_two: whether scales are powers of two.
        seed: seeds random operations.
    """
    sites = {site.layer: site for site in sites_of(program, found)}
    searches: dict[str, _Search] = {}
    for site in sites.values():
        entry, weight = site.quantizer, site.quantizer.weight
        if entry.name not in searches and weight is not None and weight.data is not None:
            scales = narrower_scales(weight.data, entry.axis, entry.ends[1], power_of_two=power_of_two)
            searches[entry.name] = _Search(entry, scales)

    def judge(op: Operation, operands: Sequence[Any]) -> None:
        site = sites.get(op)
        if site is not None:
            searches[site.quantizer.name].add(site, operands)

    kernels = {**rounding_kernels(unrounded), **{op.name: judge for op in sites}}
    for batch in batches[:_CALLS] if sites else ():
        run_program(program, batch, kernels, seed=seed)
    for search in searches.values():
        search.choose()


@attrs.define(eq=False)
class _Search:
    """The ranges that are tried for one weight, and the errors of its channels' results.

    Attributes:
        entry: the quantizer of the weight.
        scales: the scales to try, each of the shape of the quantizer's, the widest first.
        errors: f64[len(scales), C], the squared errors summed; None where no result was seen.
    """

    entry: Quantizer
    scales: list[torch.Tensor]
    errors: torch.Tensor | None = None

    def add(self, site: Site, operands: Sequence[Any]) -> None:
        """Run a layer on some inputs of one call, with the error of each range in place of its weight."""
        x, weight = _sample(site, operands), operands[1]
        if not x.numel():
            return
        found = []
        for scale in self.scales:
            error = _result(site.layer, x, _rounding_error(self.entry, weight, scale))
            rows = error.movedim(_channel(site.layer, x, weight), 0).flatten(1).double()
            # the groups of a transposed convolution share the scales of one
            found.append(rows.square_().sum(1).reshape(-1, scale.numel()).sum(0))
        errors = torch.stack(found)
        self.errors = errors if self.errors is None else self.errors + errors

    def choose(self) -> None:
        """Give the quantizer the best scale of each channel, of equals the widest."""
        if self.errors is None:
            return
        best = self.errors.argmin(0)
        scales = torch.stack(self.scales).reshape(len(self.scales), -1)
        chosen = scales.gather(0, best[None].to(scales.device))[0].reshape(self.scales[0].shape)
        self.entry.set(chosen, torch.zeros(chosen.shape))
        keep_symmetric(self.entry)


def _rounding_error(entry: Quantizer, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    column = scale.to(weight).reshape([-1 if i == entry.axis else 1 for i in range(weight.dim())])
    highest = entry.ends[1]
    return (weight / column).round_().clamp_(-highest, highest).mul_(column).sub_(weight)


def _sample(site: Site, operands: Sequence[Any]) -> torch.Tensor:
    """Return some of the inputs of a layer, spread over the batch."""
    x: torch.Tensor = operands[0]
    weight: torch.Tensor = operands[1]
    if not is_convolution(site.layer):
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: max(len(rows) // _RESULTS, 1)][:_RESULTS]
    if x.dim() < weight.dim() or len(x) < 2:
        return x  # one input
    results = _result(site.layer, x[:1], weight)[0, 0].numel()
    wanted = max(_RESULTS // max(results, 1), 1)
    return x[:: max(len(x) // wanted, 1)][:wanted]


def _result(layer: Operation, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what a layer makes of inputs with a weight, without a bias."""
    operands = [x, weight, *[None] * (len(layer.operands) - 2)]

    def resolve(leaf: Any) -> Any:
        return operands[leaf.index] if isinstance(leaf, Ref) else leaf

    grouped = layer.opdef.group(operands, layer.segments)
    kernel, args, kwargs = kernel_call(layer.opdef, grouped, layer.attributes, resolve)
    assert kernel is not None
    result: torch.Tensor = kernel(*args, **kwargs)
    return result


def _channel(layer: Operation, x: torch.Tensor, weight: torch.Tensor) -> int:
    return x.dim() - weight.dim() + 1 if is_convolution(layer) else x.dim() - 1
