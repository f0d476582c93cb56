"""Whether results depend on the strides of size-1 dimensions, which are meaningless."""

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
    """Changes the strides of size-1 dimensions of every result, in a way that depends on a level, one of `LEVELS`."""

    _ALIKE = 5
    _RANDOM = _ALIKE + 2
    LEVELS = range(_RANDOM + 6)
    """Below `_ALIKE`, all get one stride. Then come the strides of a contiguous tensor, and of one in channels_last.
    From `_RANDOM` on, each dimension gets a random one."""

    def __init__(self, level: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level = level

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return pytree.tree_map_only(torch.Tensor, self.restride, func(*args, **(kwargs or {})))

    def restride(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an equal tensor with other strides for its size-1 dimensions."""
        if 1 not in tensor.shape or tensor.layout is not torch.strided:
            return tensor
        pairs = list(zip(tensor.shape, tensor.stride(), strict=True))
        # as if the dimension stood within the innermost other one, within the next one, and so on
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
    """Return whether a run does not depend on the strides of size-1 dimensions.

    Args:
        show: runs something in a given mode and returns what is observed.
        alike: compares two observations.
        others: further modes to try.
    """
    usual = show(nullcontext())
    return all(alike(usual, show(mode)) for mode in (*map(OtherUnitStrides, OtherUnitStrides.LEVELS), *others))
