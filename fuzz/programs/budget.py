"""By how much the values of a run may differ from those of the original: what rounding explains, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic

import attrs
import torch

from compiler.usercode.difference import RELATIVE_BOUND, allowed_error, precision_floor, tensor_difference
from fuzz.programs.rounding import Rounding, T


@attrs.define(eq=False)
class Budget(Generic[T]):
    """By how much tensors of a run may differ from those of the original.

    Allowed is `RELATIVE_BOUND`; what rounding does to the original, where that is measured; and twice what the original
    itself differs by from its run in another precision, where there is one.
    """

    rounding: Rounding[T] | None = None
    """What rounding alone does to the original."""
    other: Callable[[], T] | None = None
    """Runs the original in another precision."""
    coarsest: torch.dtype = torch.float64
    """The float dtype with the fewest digits on the way."""
    may_overflow: bool = False
    """Whether nothing is compared where the original overflows, and the run in the other precision does not."""
    _seen: T | None = attrs.field(default=None, init=False)

    def difference(self, a: Any, b: Any, pick: Callable[[T], Any]) -> str | None:
        """Return how two tensors differ by more than is allowed, or None.

        Args:
            a: of the original.
            b: the one to judge.
            pick: takes the tensor out of what is seen of the original.
        """
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
                # where the original overflows and float64 does not, its own error has no limit
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


def own_error(own: Any, reference: Any, coarsest: torch.dtype) -> float:
    """Return twice the distance from a reference in another precision, and eight units in the last place of its scale.

    The distance may be 0 by chance, and another order of the same operations still moves the last place.
    """
    if not _is_float(own) or not isinstance(reference, torch.Tensor):
        return 0.0
    gap = (own.double() - reference.double()).abs()
    gap, scale = gap[gap.isfinite()], reference[reference.isfinite()].abs()
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
    """Return the most that measured rounding may excuse, relative to the largest magnitude on the way.

    With the few digits of half precision, comparisons tip over so often (the sign that a ReLU's gradient depends on)
    that what rounding does to the original is all there is to go by.
    """
    return math.inf if dtype.itemsize < 4 else precision_floor(dtype)
