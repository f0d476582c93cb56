"""Strategies for sizes, shapes, dtypes and tensor types."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from ir.caches import cached
from ir.types import Dim, TensorType, make_symbol

_BOOLEANS = st.booleans()
_WEIGHTED = 127
"""From this width on, hypothesis prefers the bounds of a range."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64)

SYMBOLS = tuple(make_symbol(name) for name in ("n", "m"))
"""Symbols of the generated types; a program's run gives them small values."""


@cached()
def integers(lower: int, upper: int) -> st.SearchStrategy[int]:
    """Return the strategy for a range, cached: making strategies costs more than drawing from them."""
    return st.integers(lower, upper)


def draw_integer(draw: st.DrawFn, lower: int, upper: int) -> int:
    """Draw an int from a closed range; shrinks to `lower`.

    A program takes some fifty small choices. Half of the time of each is what hypothesis notes about a strategy, which
    nobody asks of a number; so it is drawn without one, where this version of hypothesis lets us.
    """
    choose = getattr(getattr(draw, "__self__", None), "draw_integer", None)
    if choose is None or upper - lower >= _WEIGHTED:
        return draw(integers(lower, upper))
    number: int = choose(lower, upper)
    return number


def dtypes(choices: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[torch.dtype]:
    """Return a strategy for dtypes; shrinks to the first one."""
    return st.sampled_from(choices)


@cached()
def _sizes(*, zero: bool, symbolic: bool) -> tuple[Dim, ...]:
    choices: list[Dim] = [2, 3, 2, 3, 3, 1, 1, 4, 4, 5, 6, 8]
    if zero:
        choices.append(0)
    if symbolic:
        n, m = SYMBOLS
        choices += [n, n, m, 2 * n, n + 1, n * m, n, n]
    return tuple(choices)


def draw_size(draw: st.DrawFn, *, zero: bool = True, symbolic: bool = False) -> Dim:
    """Draw one size: small, often equal to others, sometimes 0, 1 or an expression over `SYMBOLS`."""
    choices = _sizes(zero=zero, symbolic=symbolic)
    return choices[draw_integer(draw, 0, len(choices) - 1)]


def draw_shape(
    draw: st.DrawFn, min_rank: int = 0, max_rank: int = 5, *, zero: bool = True, symbolic: bool = False
) -> tuple[Dim, ...]:
    """Draw a shape.

    Some have equal sizes, as many as there are of one rank, so that sizes do not keep a rule from confusing dimensions.
    """
    count = max_rank - min_rank + 1
    kind = draw_integer(draw, 0, count)
    if kind == count:
        one = draw_size(draw, zero=zero, symbolic=symbolic)
        return (one,) * draw_integer(draw, min_rank, max_rank)
    return tuple([draw_size(draw, zero=zero, symbolic=symbolic) for _ in range(min_rank + kind)])


sizes = st.composite(draw_size)
shapes = st.composite(draw_shape)
"""Strategies for what `draw_size` and `draw_shape` draw."""


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
    return draw_integer(draw, 0, 3) >= 2


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
