"""The effect of rounding on results, measured by Monte Carlo arithmetic.

Results that cancel are rounding errors themselves (the gradient of a softmax over equal numbers), so a bound relative
to their size is not fair. Instead the original is run again with every operand of every operation moved at random by
one unit in the last place (D. S. Parker, "Monte Carlo arithmetic", 1997).
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
"""The allowed multiple of the largest deviation of a few samples."""
_STEP = 2.0**-32
_RATIO = 16.0


class RandomRounding(TorchDispatchMode):
    """Moves every floating-point operand of every operation by at most one unit in the last place.

    Args:
        seed: of the random directions.
        unit: the relative step; None for a unit in the last place of the operand's dtype.
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
        # operators that alias or mutate their operands need the operands themselves; a view does not round
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
    """The effect of rounding on a run, measured on demand.

    Args:
        run: runs the original and returns an observation.
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
        """Return how much a tensor that `pick` selects may differ from the original's.

        The upper limit is relative to the largest magnitude in the computation.
        """
        if not self._samples:
            for seed in range(SAMPLES):
                with RandomRounding(seed) as mode:
                    self._samples.append(self.run())
                self._largest = max(self._largest, mode.largest)
        deviation = 0.0
        for sample in map(pick, self._samples):
            if sample is not None and sample.shape == original.shape:
                # where rounding makes float64 overflow, the other numbers are accidental
                if original.dtype is torch.float64 and bool((original.isfinite() & ~sample.isfinite()).any()):
                    return math.inf
                gap = (original - sample).abs()
                deviation = max(deviation, float(gap.nan_to_num(0.0, 0.0, 0.0).max()) if gap.numel() else 0.0)
        # a comparison or a maximum that tips over moves samples far apart, which is not rounding
        return min(_SPREAD * deviation, relative * self._largest)

    def first_order(self, pick: Callable[[T], torch.Tensor | None], eps: float) -> float:
        """Return the first-order effect of units in the last place of size `eps` on a tensor; 0 if it is not linear.

        The limit of `bound` does not cover large terms inside a kernel: a norm over two close numbers divides their
        difference by a small number. So the derivative is measured in float64 by two steps, small enough that hardly
        anything tips over. One must have sixteen times the effect of the other.

        Args:
            pick: selects the tensor in an observation.
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
    """Return the largest difference between two tensors; infinite if their infinities or NaN differ."""
    if a is None or b is None or a.shape != b.shape or not a.numel():
        return 0.0
    both = a.isfinite() & b.isfinite()
    if not bool((both | ((a == b) | (a.isnan() & b.isnan()))).all()):
        return math.inf
    gap = (a - b)[both].abs()
    return float(gap.max()) if gap.numel() else 0.0
