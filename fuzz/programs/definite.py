"""Equal tensors in other memory layouts, and whether results depend on strides that mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.equality import unit_strides
from compiler.equality.observation import Observation
from compiler.equality.unit_strides import OtherUnitStrides
from fuzz.programs.budget import Budget
from fuzz.programs.observation import differences, observe
from ir.errors import EvaluationError
from ir.program import Program


class OwnPlaces(TorchDispatchMode):
    """Gives every element of a result its own memory; those of an expansion share one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return pytree.tree_map_only(torch.Tensor, _with_own_places, func(*args, **(kwargs or {})))


def _with_own_places(tensor: torch.Tensor) -> torch.Tensor:
    shares = any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.contiguous() if shares else tensor


def is_definite(program: Program, inputs: Sequence[Any]) -> bool:
    """Return whether bits and strides of the results do not depend on the strides of size-1 dimensions.

    PyTorch does not specify these, and rewrites of reshapes change them. Yet some kernels (convolutions) choose their
    memory format by them, and with it the order of their sums. Then bits and strides of the original are accidental.
    """

    def alike(a: Observation, b: Observation) -> bool:
        return all(name not in ("values", "strides") for name, _ in differences(a, b))

    return unit_strides.is_definite(partial(_show, program, inputs), alike)


def has_definite_gradients(program: Program, inputs: Sequence[Any]) -> bool:
    """Return whether gradients in float64 do not depend on the strides of size-1 dimensions and expansions.

    PyTorch has wrong ones. The gradient of batch norm in eval mode mistakes a map of width 1 for one in channels_last,
    and confuses the channels. It also reads beyond the memory of an expanded scale.
    """

    def alike(a: Observation, b: Observation) -> bool:
        return all(name != "gradients" for name, _ in differences(a, b, Budget()))

    try:
        show = partial(_show, program, inputs, double=True, gradients=True)
        return unit_strides.is_definite(show, alike, [OwnPlaces()])
    except EvaluationError:
        return True  # it cannot be told


def _show(program: Program, inputs: Sequence[Any], mode: AbstractContextManager[Any], **options: bool) -> Observation:
    with mode:
        if isinstance(mode, OtherUnitStrides):
            inputs = [mode.restride(x) if isinstance(x, torch.Tensor) else x for x in inputs]
        return observe(program, inputs, **options)


def is_standard(x: Any) -> bool:
    """Return whether a tensor is contiguous or channels_last."""
    if not isinstance(x, torch.Tensor) or x.is_contiguous():
        return True
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def transposed(x: Any) -> Any:
    """Return an equal tensor whose memory runs through the dimensions in the reverse order."""
    if not isinstance(x, torch.Tensor) or x.dim() < 2:
        return x
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channels_last(x: Any) -> Any:
    """Return an equal tensor in channels_last, where it has four dimensions."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last)
