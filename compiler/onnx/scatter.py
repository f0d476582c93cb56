"""Scattering, where PyTorch's exporter writes a mean as an assignment, or a source that is larger than the indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

_REDUCTIONS = {"add": "sum", "multiply": "prod"}
"""What `scatter` calls a reduction -> what `scatter_reduce` calls it."""


def _taken(src: Any, index: Any) -> Any:
    """Return the part of a source that is read: ONNX has one number for each index."""
    for dim, (size, wanted) in enumerate(zip(src.shape, index.shape, strict=True)):
        if type(size) is not int or size != wanted:
            src = src.narrow(dim, 0, wanted)
    return src


def _scatter(x: Any, index: Any, src: Any, *, dim: int) -> Any:
    return torch.ops.aten.scatter.src(x, dim, index, _taken(src, index))


def _scatter_add(x: Any, index: Any, src: Any, *, dim: int) -> Any:
    return torch.ops.aten.scatter_add.default(x, dim, index, _taken(src, index))


def _scatter_reduce(x: Any, index: Any, src: Any, *, dim: int, reduce: str, include_self: bool = True) -> Any:
    """A mean is the sum of what falls on a place, by its number; a place on which nothing falls keeps its own."""
    scatter = torch.ops.aten.scatter_reduce.two
    src = _taken(src, index)
    if reduce != "mean":
        return scatter(x, dim, index, src, reduce, include_self=include_self)
    own = torch.ones_like(x) if include_self else torch.zeros_like(x)
    count = torch.ops.aten.scatter_add.default(own, dim, index, torch.ones_like(src)).clamp(min=1)
    total = scatter(x, dim, index, src, "sum", include_self=include_self)
    return total / count if x.is_floating_point() else torch.div(total, count, rounding_mode="floor")


def _scatter_reduced(x: Any, index: Any, src: Any, *, dim: int, reduce: str) -> Any:
    return _scatter_reduce(x, index, src, dim=dim, reduce=_REDUCTIONS[reduce])


def _scatter_number(x: Any, index: Any, *, dim: int, value: float, reduce: str) -> Any:
    src = torch.full_like(index, value, dtype=x.dtype)
    return _scatter_reduce(x, index, src, dim=dim, reduce=_REDUCTIONS[reduce])


SCATTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "aten.scatter.src": _scatter,
        "aten.scatter.reduce": _scatter_reduced,
        "aten.scatter.value_reduce": _scatter_number,
        "aten.scatter_add": _scatter_add,
        "aten.scatter_reduce.two": _scatter_reduce,
    }
)
"""Operator -> its function of operands and attributes."""
