"""The differences in values that rounding explains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic

import attrs
import torch

from compiler.equality.observation_differences import Pick
from compiler.usercode.difference import RELATIVE_BOUND, allowed_error, precision_floor, tensor_difference
from fuzz.programs.rounding import Rounding, T
from passes.rewrite.bounds.tolerance import Bounds


@attrs.define(eq=False)
class Budget(Generic[T]):
    """The differences from the original that are allowed.

    These are `RELATIVE_BOUND`, the measured effect of rounding on the original, twice the difference between the
    original and its run in another precision.
    """

    rounding: Rounding[T] | None = None
    """The effect of rounding on the original, if it is measured."""
    other: Callable[[], T] | None = None
    """Runs the original in another precision, if that counts."""
    coarsest: torch.dtype = torch.float64
    """The float dtype with the fewest digits in the computation."""
    may_overflow: bool = False
    """Whether elements do not count where the original overflows and the run in the other precision does not."""
    values: bool = True
    """Whether values are compared; else only dtypes and shapes are."""
    bounds: Bounds | None = None
    """Where values change on purpose: they are not compared there, since each rewrite is held to its bound."""
    _seen: T | None = attrs.field(default=None, init=False)

    def difference(self, a: Any, b: Any, pick: Callable[[T], Any]) -> str | None:
        """Return how a tensor `b` differs from the original's `a` by more than is allowed, or None.

        `pick` selects the tensor in an observation of the original.
        """
        if not self._compares(pick) and isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            a, b = a.to("meta"), b.to("meta")
        problem = tensor_difference(a, b, exact=False)
        if problem is None or not _is_float(a) or not isinstance(b, torch.Tensor):
            return problem
        if a.dtype != b.dtype or a.shape != b.shape:
            return problem
        bound = 0.0
        if self.other is not None:
            self._seen = self._seen or self.other()
            reference = pick(self._seen)
            bound = own_error(a, reference, self.coarsest)
            if self.may_overflow and isinstance(reference, torch.Tensor) and reference.shape == a.shape:
                # the error of the original is unbounded there
                kept = a.isfinite() | ~reference.isfinite()
                a, b, pick = a[kept], b[kept], _kept(pick, kept)
        problem = tensor_difference(a, b, exact=False, bound=bound)
        if problem is None or self.rounding is None:
            return problem
        dtypes = (a.dtype, self.coarsest)
        is_double = self.coarsest is torch.float64
        relative = RELATIVE_BOUND if is_double else max(map(_rounding_limit, dtypes))
        bound = max(bound, self.rounding.bound(a, pick, relative))
        problem = tensor_difference(a, b, exact=False, bound=bound)
        if problem is not None:
            eps = max(torch.finfo(dtype).eps for dtype in dtypes)
            bound = max(bound, self.rounding.first_order(pick, eps))
            problem = tensor_difference(a, b, exact=False, bound=bound)
        return None if problem is None else f"{problem}, of which {bound:.3g} is allowed"

    def _compares(self, pick: Callable[[T], Any]) -> bool:
        """Return whether values of a place are compared."""
        if not self.values or self.bounds is None:
            return self.values
        return isinstance(pick, Pick) and pick.intended(self.bounds) is None


def own_error(own: Any, reference: Any, coarsest: torch.dtype) -> float:
    """Return twice the distance from a reference in another precision, plus eight units in the last place of its scale.

    The distance may be 0 by chance, and another order of operations still changes the last place.
    """
    if not _is_float(own) or not isinstance(reference, torch.Tensor):
        return 0.0
    gap = (own.double() - reference.double()).abs()
    finite = gap.isfinite()
    gap, scale = gap[finite], reference[finite].abs()
    floor = max(map(precision_floor, (own.dtype, coarsest)))
    error, size = (float(each.max()) if each.numel() else 0.0 for each in (gap, scale))
    return allowed_error(error, size, floor)


def _is_float(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.is_floating_point()


def _kept(pick: Callable[[T], Any], kept: torch.Tensor) -> Callable[[T], Any]:
    def picked(seen: T) -> Any:
        tensor = pick(seen)
        return tensor[kept] if tensor is not None and tensor.shape == kept.shape else None

    return picked


def _rounding_limit(dtype: torch.dtype) -> float:
    """Return the upper limit for measured rounding, relative to the largest magnitude in the computation.

    There is none in half precision, where comparisons tip over too often (the sign that a ReLU's gradient depends on).
    """
    return math.inf if dtype.itemsize < 4 else precision_floor(dtype)
