"""Values of the columns of the operator table: how an operator moves elements, where its results are stored.

Each value is a claim about the kernel, which `fuzz/calls/columns.py` checks on drawn calls.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from ir.types import wrap


class Layout(enum.Enum):
    """Where the elements of a result come from, for operators that compute none."""

    SAME = "the operand's own, in their order"
    DETACHED = "as SAME, without their gradient"
    RESHAPE = "the operand's own in row-major order, dimensions regrouped"
    PERMUTE = "dimensions in the order of `dims`"
    SWAP = "two dimensions swapped, which the two attributes number"
    REVERSE = "dimensions in reverse order"
    SWAP_LAST = "the last two dimensions swapped"
    MOVE = "dimensions moved from `source` to `destination`"
    EXPAND = "dimensions of size 1 repeated"
    SELECT = "one index of a dimension, which is removed"
    SLICE = "a range of a dimension, by `start`, `end` and `step`"
    NARROW = "a range of a dimension, by `start` and `length`"
    SPLIT = "consecutive pieces of a dimension, one a result"
    UNBIND = "each index of a dimension, one a result"
    DIAGONAL = "the places where two dimensions have one index"
    STRIDED = "places of the storage, whatever the operand's dimensions are"

    @property
    def reorders(self) -> bool:
        """Whether the operator only permutes dimensions."""
        return self in (Layout.PERMUTE, Layout.SWAP, Layout.REVERSE, Layout.SWAP_LAST, Layout.MOVE)

    @property
    def is_part(self) -> bool:
        """Whether a result is a part of the operand, so that its storage has other elements in between."""
        return self in _PARTS


_PARTS = frozenset(
    {Layout.SELECT, Layout.SLICE, Layout.NARROW, Layout.SPLIT, Layout.UNBIND, Layout.DIAGONAL, Layout.STRIDED}
)


def permutation(layout: Layout, attributes: Mapping[str, Any], rank: int) -> tuple[int, ...] | None:
    """Return the permutation of dimensions that an operator makes; None where the attributes do not fit."""
    order: list[int | None] = list(range(rank))
    if layout is Layout.REVERSE:
        order.reverse()
    elif layout is Layout.SWAP_LAST:
        order[-2:] = reversed(order[-2:]) if rank >= 2 else [None]
    elif layout is Layout.PERMUTE:
        order = [wrap(dim, rank) for dim in attributes["dims"]]
    elif layout is Layout.SWAP and rank:
        a, b = (wrap(dim, rank) for dim in attributes.values())
        if a is None or b is None:
            return None
        order[a], order[b] = b, a
    elif layout is Layout.MOVE and rank:
        moved = [attributes[end] for end in ("source", "destination")]
        sources, places = ([wrap(dim, rank) for dim in (d if isinstance(d, tuple) else (d,))] for d in moved)
        if None in (*sources, *places) or not len(sources) == len(places) == len({*sources}) == len({*places}):
            return None
        to = dict(zip(places, sources, strict=True))
        rest = iter([dim for dim in order if dim not in sources])
        order = [to[place] if place in to else next(rest) for place in range(rank)]
    found = tuple([dim for dim in order if dim is not None])
    return found if sorted(found) == list(range(rank)) and len(order) == rank else None


class StorageRule(enum.Enum):
    """Which storage a result is in, where the schema does not say."""

    FRESH = "its own, though the schema or a tag of PyTorch allows a view"
    EITHER = "the first operand's where strides, dtype and device allow it; else its own"
    DEMANDED = "the first operand's; where strides do not allow it, the call fails"


class StrideRule(enum.Enum):
    """What the strides of a result depend on, for dense operands."""

    CONTIGUOUS = "nothing: it is contiguous"
    FIXED = "not those of the operands"
    FORMAT = "the operands' memory format: it is contiguous or channels_last"
    PASSED = "those of the first operand: contiguous and channels_last stay what they are"


class Dims(enum.Enum):
    """What the attribute `dim` refers to, where canonical programs count it from the front."""

    ALONG = "one dimension"
    REDUCED = "the dimensions of a reduction, whose order means nothing"
