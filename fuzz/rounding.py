"""How far rounding alone moves the results of a run: Monte Carlo arithmetic.

Results that cancel are rounding errors themselves (the gradient of a softmax over equal numbers, say), and no bound
relative to what is left of them is fair. What they may differ by is measured: the original is run again with every
operand of every operation moved at random by one unit in the last place (D. S. Parker, "Monte Carlo arithmetic", 1997).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import attrs
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.difference import RELATIVE_BOUND

T = TypeVar("T")

SAMPLES = 4
"""Runs with random rounding."""
_SPREAD = 16.0
"""What is allowed, as a multiple of the largest deviation that few samples show."""


class RandomRounding(TorchDispatchMode):
    """Moves every floating-point operand of every operation by at most one unit in the last place.

    Args:
        seed: of the random directions.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)
        self.largest = 0.0
        """The largest finite magnitude of an operand."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        # what aliases or writes its operands must get these themselves; a view rounds nothing
        if not schema.is_mutable and all(result.alias_info is None for result in schema.returns):
            args, kwargs = pytree.tree_map_only(torch.Tensor, self._rounded, (args, kwargs))
        return func(*args, **kwargs)

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        finite = tensor[tensor.isfinite()]
        if finite.numel():
            self.largest = max(self.largest, float(finite.abs().max()))
        units = torch.randint(-1, 2, tensor.shape, generator=self.generator, device="cpu").to(tensor)
        return tensor * (1 + units * torch.finfo(tensor.dtype).eps)


@attrs.define(eq=False)
class Rounding(Generic[T]):
    """What rounding alone may change in a run, measured when it is asked for.

    Args:
        run: runs the original and returns what is seen.
    """

    run: Callable[[], T]
    _samples: list[T] = attrs.field(factory=list, init=False)
    _largest: float = attrs.field(default=0.0, init=False)

    def bound(
        self, original: torch.Tensor, pick: Callable[[T], torch.Tensor | None], relative: float = RELATIVE_BOUND
    ) -> float:
        """Return how far one tensor may be from what it is in the original.

        Args:
            original: the tensor as the original computes it.
            pick: takes the tensor out of what is seen.
            relative: the most that is allowed, relative to the largest magnitude on the way.
        """
        if not self._samples:
            for seed in range(SAMPLES):
                with RandomRounding(seed) as mode:
                    self._samples.append(self.run())
                self._largest = max(self._largest, mode.largest)
        deviation = 0.0
        for sample in map(pick, self._samples):
            if sample is not None and sample.shape == original.shape:
                gap = (original - sample).abs()
                deviation = max(deviation, float(gap.nan_to_num(0.0, 0.0, 0.0).max()) if gap.numel() else 0.0)
        # where a comparison or a maximum tips over the samples are far apart, for no reason of rounding
        return min(_SPREAD * deviation, relative * self._largest)
