"""Strides that mean nothing: those of dimensions of size 1."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class OtherUnitStrides(TorchDispatchMode):
    """Gives every result other strides for its dimensions of size 1, where they mean nothing.

    Args:
        level: which other strides, one of `LEVELS`.
    """

    _ALIKE = 5
    _RANDOM = _ALIKE + 2
    LEVELS = range(_RANDOM + 6)
    """Up to `_ALIKE` they get one stride; then those that a contiguous tensor has, and one in channels_last; from
    `_RANDOM` on each dimension gets one of its own."""

    def __init__(self, level: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level = level

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return pytree.tree_map_only(torch.Tensor, self.restride, func(*args, **(kwargs or {})))

    def restride(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an equal tensor with other strides for its dimensions of size 1."""
        if 1 not in tensor.shape or tensor.layout is not torch.strided:
            return tensor
        pairs = list(zip(tensor.shape, tensor.stride(), strict=True))
        # as if the dimension stood inside of the innermost other one, of the next one, and so on
        if self.level >= self._RANDOM:
            chance = random.Random(self.level)
            reached = [1, *(size * stride for size, stride in pairs if size != 1)]
            return tensor.as_strided(
                tensor.shape, [chance.choice(reached) if size == 1 else stride for size, stride in pairs]
            )
        if self.level >= self._ALIKE:
            rank = len(pairs)
            inner_first = (
                [1, *range(rank - 1, 1, -1), 0] if self.level > self._ALIKE and rank > 2 else range(rank)[::-1]
            )
            strides, reach = [stride for _, stride in pairs], 1
            for dim in inner_first:
                if pairs[dim][0] == 1:
                    strides[dim] = reach
                reach = strides[dim] * pairs[dim][0]
            return tensor.as_strided(tensor.shape, strides)
        places = [1, *sorted(size * stride for size, stride in pairs if size != 1)]
        unit = places[min(self.level, len(places) - 1)]
        return tensor.as_strided(tensor.shape, [unit if size == 1 else stride for size, stride in pairs])
