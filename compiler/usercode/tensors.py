"""Identity and strides of tensors, and the state of random generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree


def foreign_state() -> tuple[Any, ...]:
    """Return the states of the random generators of Python and numpy."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def storage_of(tensor: torch.Tensor) -> int:
    """Return an identity of the storage of a tensor."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def map_tensors(tree: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a tree with a function applied to each tensor, once: one tensor stays one tensor."""
    made: dict[int, torch.Tensor] = {}

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = function(tensor)
        return made[id(tensor)]

    return pytree.tree_map_only(torch.Tensor, apply, tree)


def meaningful_strides(tensor: torch.Tensor) -> list[int]:
    """Return the strides of the dimensions larger than 1."""
    if not tensor.numel() or tensor.layout is not torch.strided:
        return []
    return [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
