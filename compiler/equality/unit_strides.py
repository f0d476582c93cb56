"""Strides that mean nothing: those of dimensions of size 1."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


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
        reached = [1, *(size * stride for size, stride in pairs if size != 1)]
        if self.level >= self._RANDOM:
            chance = random.Random(self.level)
            strides = [chance.choice(reached) if size == 1 else stride for size, stride in pairs]
        elif self.level >= self._ALIKE:
            dims = range(len(pairs))[::-1]
            inner_first = [1, *dims[:-2], 0] if self.level > self._ALIKE and len(pairs) > 2 else dims
            strides, reach = [stride for _, stride in pairs], 1
            for dim in inner_first:
                if pairs[dim][0] == 1:
                    strides[dim] = reach
                reach = strides[dim] * pairs[dim][0]
        else:
            places = [1, *sorted(reached[1:])]
            unit = places[min(self.level, len(places) - 1)]
            strides = [unit if size == 1 else stride for size, stride in pairs]
        return tensor.as_strided(tensor.shape, strides)


def is_definite(
    show: Callable[[AbstractContextManager[Any]], T],
    alike: Callable[[T, T], bool] = operator.eq,
    others: Iterable[TorchDispatchMode] = (),
) -> bool:
    """Return whether what a run shows does not depend on strides that mean nothing.

    Args:
        show: runs something in a mode that it is given, and returns what is seen.
        alike: whether what is seen is equal.
        others: modes to try beside those that change the strides of dimensions of size 1.
    """
    usual = show(nullcontext())
    return all(alike(usual, show(mode)) for mode in (*map(OtherUnitStrides, OtherUnitStrides.LEVELS), *others))
