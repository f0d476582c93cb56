"""Strategies for sizes, shapes, dtypes and tensor types."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from ir.caches import cached
from ir.types import Dim, TensorType, make_symbol

_BOOLEANS = st.booleans()
_UP_TO_THREE = st.integers(0, 3)

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64)

SYMBOLS = tuple(make_symbol(name) for name in ("n", "m"))
"""Symbols of the generated types; a program's run gives them small values."""


def dtypes(choices: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[torch.dtype]:
    """Return a strategy for dtypes; shrinks to the first one."""
    return st.sampled_from(choices)


@cached()
def sizes(*, zero: bool = True, symbolic: bool = False) -> st.SearchStrategy[Dim]:
    """Return a strategy for one size: small, often equal to others, sometimes 0, 1 or an expression over `SYMBOLS`."""
    choices: list[Dim] = [2, 3, 2, 3, 3, 1, 1, 4, 4, 5, 6, 8]
    if zero:
        choices.append(0)
    if symbolic:
        n, m = SYMBOLS
        choices += [n, n, m, 2 * n, n + 1, n * m, n, n]
    return st.sampled_from(choices)


@cached()
def shapes(
    min_rank: int = 0, max_rank: int = 5, *, zero: bool = True, symbolic: bool = False
) -> st.SearchStrategy[tuple[Dim, ...]]:
    """Return a strategy for shapes.

    Half of them have equal sizes, so that sizes do not keep a rule from confusing dimensions.
    """
    size = sizes(zero=zero, symbolic=symbolic)
    mixed = [st.tuples(*[size] * rank) for rank in range(min_rank, max_rank + 1)]
    equal = st.builds(lambda one, rank: (one,) * rank, size, st.integers(min_rank, max_rank))
    return st.one_of([*mixed, *[equal] * len(mixed)])


def tensor_types(
    min_rank: int = 0,
    max_rank: int = 5,
    *,
    choices: tuple[torch.dtype, ...] = DTYPES,
    zero: bool = True,
    symbolic: bool = False,
    unknown: bool = False,
) -> st.SearchStrategy[TensorType]:
    """Return a strategy for tensor types on the CPU; with `unknown`, parts of them may be unknown."""
    types = st.builds(TensorType, shapes(min_rank, max_rank, zero=zero, symbolic=symbolic), dtypes(choices))
    return types.flatmap(forgetful) if unknown else types


def one_in_four(draw: st.DrawFn) -> bool:
    """Draw True about once in four times: of few numbers, hypothesis draws the lower half three times as often."""
    return draw(_UP_TO_THREE) >= 2


def without_parts(draw: st.DrawFn, type_: TensorType) -> TensorType:
    """Draw which parts of a type are unknown."""
    shape = type_.shape
    if shape is not None:
        shape = tuple([None if draw(_BOOLEANS) else size for size in shape])
        if one_in_four(draw):
            return TensorType(None, type_.dtype if draw(_BOOLEANS) else None, type_.device)
    return TensorType(shape, None if one_in_four(draw) else type_.dtype, type_.device)


forgetful = st.composite(without_parts)
"""A strategy for a type with some of its parts unknown."""


@cached()
def special_numbers(dtype: torch.dtype, *, finite: bool) -> tuple[float, ...]:
    """Return the numbers of a dtype that rules forget.

    Products of the large and the small ones do not fit the dtype. Values are compared in float64, which takes those of
    the smaller dtypes: there, an input must be of float64 to show it.
    """
    limits = torch.finfo(dtype)
    tiny, large = limits.smallest_normal / 4, math.sqrt(limits.max) * 16
    # the first ones are drawn most often
    return (0.0, -0.0, tiny) if finite else (0.0, -math.inf, math.nan, large, math.inf, -large, 1 / large, -0.0, tiny)
