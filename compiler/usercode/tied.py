"""Weights that have several names, in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from compiler.usercode.containers import same_content
from ir.errors import InputError


def find_tied(names: Iterable[str], tensors: Mapping[str, Any]) -> Any:
    """Return what a checkpoint has under the names of one weight; None where it has nothing.

    Raises:
        InputError: when it has different tensors under two of them.
    """
    present = [name for name in dict.fromkeys(names) if name in tensors]
    for other in present[1:]:
        if not _are_equal(tensors[present[0]], tensors[other]):
            raise InputError(
                f"the checkpoint has different tensors under {present[0]!r} and {other!r}, which are one in the model",
                remedy="it was trained without the tie: untie the model before it is transformed, or choose one: "
                f"`state_dict[{other!r}] = state_dict[{present[0]!r}]`",
            )
    return tensors[present[0]] if present else None


def _are_equal(a: Any, b: Any) -> bool:
    """Return whether two entries hold the same; what has no numbers to compare does."""
    if a is b or not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta or (a.layout, b.layout) != (torch.strided, torch.strided):
        return True
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return same_content(a.detach().cpu(), b.detach().cpu())
