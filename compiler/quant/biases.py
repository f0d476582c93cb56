"""Biases as the kernels add them: 32-bit integers on the grid of the products."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from compiler.quant.observe.grid import MIN_SCALE
from compiler.quant.sites import Site, remark
from ir.errors import InputError
from ir.program import weight_of
from passes.rewrite.remarks import Remark

_LARGEST = 2.0**31 - 2.0**8
"""The largest bias: what rounds to a float32 below the end of an int32."""


def widen_overflowing(sites: Iterable[Site]) -> list[Remark]:
    """Widen scales of weights whose channel has a bias that is no int32 on the grid of the products.

    A kernel adds the bias as an integer of the unit s_x·s_w. One beyond 2^31 is that much larger than all that the
    channel's weights can add up to, so coarser weights lose nothing that a result would show.
    """
    remarks = []
    for site in sites:
        added, scale = added_to_products(site), site.quantizer.scale.data
        if added is None or site.input is None or site.input.scale.data is None or scale is None:
            continue
        unit = float(site.input.scale.data)
        least = (added.abs() / (unit * _LARGEST)).clamp_min(MIN_SCALE)
        # the weight of a transposed convolution has the channels of one group, which all groups share
        wide = least.reshape(-1, len(scale)).amax(0) if scale.dim() else least.max()
        overflows = wide > scale.double()
        if not bool(overflows.any()):
            continue
        # a power of two stays one
        rounded_up = torch.exp2(torch.ceil(torch.log2(wide)))
        site.quantizer.scale.data = torch.where(overflows, rounded_up.to(scale.dtype), scale)
        count = int(overflows.sum())
        text = f"the scale of `{site.quantizer.name}` was widened in {count} channels, whose bias overflowed int32"
        remarks.append(remark(site, "bias-overflow", text, "applied"))
    return remarks


def added_to_products(site: Site) -> torch.Tensor | None:
    """Return what is added to the products of each channel, f64[C], in the layer's own unit; None where nothing is."""
    assert site.owners is not None
    weight = weight_of(site.owners.outer(site.layer.operand("bias")))
    own = None if weight is None or weight.data is None or weight.data.is_meta else weight.data.detach().double()
    if site.result is site.layer:
        return own
    mean, variance = site.norm_weight("running_mean"), site.norm_weight("running_var")
    if mean is None or variance is None or mean.is_meta:
        return own
    beta = site.norm_weight("bias")
    # gamma·(x - mean)/sigma + beta = gamma/sigma·(x - mean + beta·sigma/gamma); a gamma of 0 leaves no products at all
    added = (0.0 if own is None else own) - mean.double()
    if beta is not None:
        gain = _gain(site, variance)
        added = added + torch.where(gain == 0, torch.zeros_like(gain), beta.double() / gain)
    return added


_EXACT = 2**24
"""Integers up to this are float32 numbers."""


def round_to_grid(sites: Iterable[Site], *, exactly: bool = False) -> list[Remark]:
    """Round biases to multiples of s_x·s_w, as kernels have them, so that engines add what the program adds.

    Behind a batch norm what it adds to the products is rounded, as the file has it when the norm is folded.

    Args:
        sites: the layers.
        exactly: for scales of powers of two, with which sums are exact then: remarks tell where that is not so.

    Raises:
        InputError: where a batch norm stands between a layer and its bias, with `exactly`.
    """
    remarks = []
    for site in sites:
        if exactly and site.result is not site.layer:
            raise InputError(
                f"scales of powers of two need batch norms folded, and one stands behind `{site.layer.location.where}`",
                location=site.layer.location,
                remedy="fold them: `transform(..., target=t, "
                'pipeline=pipeline_of(TARGETS[t].patterns).insert_before("fuse", FoldBatchNorm()))`',
            )
        if site.bias is None:
            if exactly and "has no bias" not in site.no_bias:
                remarks.append(remark(site, "bias-grid", f"not on the grid of the products: {site.no_bias}"))
            continue
        data, scale, added = site.bias.data, site.quantizer.scale.data, added_to_products(site)
        if site.input is None or site.input.scale.data is None or data is None or scale is None or added is None:
            continue
        unit = scale.double() * site.input.scale.data.double()
        unit = unit.repeat(len(added) // len(unit)) if unit.dim() else unit
        on_grid = torch.round(added / unit) * unit
        variance = None if site.result is site.layer else site.norm_weight("running_var")
        moved = on_grid if variance is None else data.detach().double() + (on_grid - added) * _gain(site, variance)
        site.bias.data = torch.nn.Parameter(moved.to(data.dtype), requires_grad=data.requires_grad)
    return remarks + ([found for site in sites if (found := _inexact(site)) is not None] if exactly else [])


def _gain(site: Site, variance: torch.Tensor) -> torch.Tensor:
    """Return the factor of each channel in the batch norm behind a layer, f64[C]."""
    gamma = site.norm_weight("weight")
    gain = torch.rsqrt(variance.double() + site.result.attributes["eps"])
    return gain if gamma is None else gain * gamma.double()


def _inexact(site: Site) -> Remark | None:
    """Say where the sums of a layer may be larger than the integers that float32 holds."""
    weight, scale = site.quantizer.weight, site.quantizer.scale.data
    if site.input is None or site.input.scale.data is None or weight is None or weight.data is None or scale is None:
        return None
    axis = site.quantizer.axis
    shape = [-1 if dim == axis else 1 for dim in range(weight.data.dim())] if axis is not None else []
    low, high = site.quantizer.ends
    integers = torch.round(weight.data.detach().double() / scale.double().reshape(shape)).clamp(low, high)
    zero_point = site.input.zero_point.data
    zero = 0 if zero_point is None else int(zero_point)
    reach = max(abs(end - zero) for end in site.input.ends)
    # a transposed convolution of groups has the channels of one group in its weight, and adds up fewer rows
    rows = integers if axis is None else integers.movedim(axis, 0)
    if not rows.numel():
        return None
    sums = (rows.reshape(len(rows), -1) if rows.dim() else rows.reshape(1, 1)).abs().sum(1) * reach
    if site.bias is not None and site.bias.data is not None:
        unit = scale.double() * site.input.scale.data.double()
        sums = sums.amax() + (site.bias.data.detach().double().abs().amax() / unit.min())
    if float(sums.max()) <= _EXACT:
        return None
    text = f"its sums may reach {float(sums.max()):.3g}, beyond 2^24: float32 may round them, and engines otherwise"
    return remark(site, "exact-sums", text)
