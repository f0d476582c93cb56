"""How far rounding alone moves the results of a run: Monte Carlo arithmetic.

Results that cancel are rounding errors themselves (the gradient of a softmax over equal numbers, say), and no bound
relative to what is left of them is fair. What they may differ by is measured: the original is run again with every
operand of every operation moved at random by one unit in the last place (D. S. Parker, "Monte Carlo arithmetic", 1997).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import attrs
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.usercode.difference import RELATIVE_BOUND
from ir.errors import EvaluationError

T = TypeVar("T")

SAMPLES = 4
"""Runs with random rounding."""
_SPREAD = 16.0
"""What is allowed, as a multiple of the largest deviation that few samples show."""
_STEP = 2.0**-32
_RATIO = 16.0


class RandomRounding(TorchDispatchMode):
    """Moves every floating-point operand of every operation by at most one unit in the last place.

    Args:
        seed: of the random directions.
        unit: what an operand is moved by, relative to its size; None for a unit in the last place of its dtype.
    """

    def __init__(self, seed: int, unit: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit = unit
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
        return tensor * (1 + units * (self.unit or torch.finfo(tensor.dtype).eps))


@attrs.define(eq=False)
class Rounding(Generic[T]):
    """What rounding alone may change in a run, measured when it is asked for.

    Args:
        run: runs the original and returns what is seen.
        exact: does so in float64, and raises an `EvaluationError` where that is not possible.
    """

    run: Callable[[], T]
    exact: Callable[[], T] | None = None
    _steps: tuple[T, list[T], list[T]] | None = attrs.field(default=None, init=False)
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
                # where rounding alone makes float64 overflow, what is left are numbers by chance
                if original.dtype is torch.float64 and bool((original.isfinite() & ~sample.isfinite()).any()):
                    return math.inf
                gap = (original - sample).abs()
                deviation = max(deviation, float(gap.nan_to_num(0.0, 0.0, 0.0).max()) if gap.numel() else 0.0)
        # where a comparison or a maximum tips over the samples are far apart, for no reason of rounding
        return min(_SPREAD * deviation, relative * self._largest)

    def first_order(self, pick: Callable[[T], torch.Tensor | None], eps: float) -> float:
        """Return how far units in the last place of size `eps` move a tensor to first order; 0 where they tip it over.

        The limit of `bound` knows nothing of how large terms are inside of a kernel: a norm over two close numbers
        divides their difference by something small. So the derivative itself is measured: in float64, by two steps so
        small that next to nothing tips over, of which one must do sixteen times what the other does.

        Args:
            pick: takes the tensor out of what is seen.
            eps: relative size of a unit in the last place.
        """
        if self.exact is None:
            return 0.0
        try:
            self._steps = self._steps or (self.exact(), self._moved(_STEP), self._moved(_STEP / _RATIO))
        except EvaluationError:
            return 0.0
        origin, *moved = self._steps
        base = pick(origin)
        far, near = (max(_distance(base, pick(sample)) for sample in samples) for samples in moved)
        if not near or not _RATIO / 2 < far / near < _RATIO * 2:
            return 0.0
        return _SPREAD * far * eps / _STEP

    def _moved(self, unit: float) -> list[T]:
        assert self.exact is not None
        samples = []
        for seed in range(SAMPLES):
            with RandomRounding(seed, unit):
                samples.append(self.exact())
        return samples


def _distance(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    """Return the largest difference between two tensors of one shape; infinite where one of them is not finite."""
    if a is None or b is None or a.shape != b.shape or not a.numel():
        return 0.0
    both = a.isfinite() & b.isfinite()
    if not bool((both | ((a == b) | (a.isnan() & b.isnan()))).all()):
        return math.inf
    gap = (a - b)[both].abs()
    return float(gap.max()) if gap.numel() else 0.0
