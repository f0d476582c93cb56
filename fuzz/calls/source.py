"""Sources of operands for generated calls.

A call generator (`fuzz.calls.generators`) takes operands from a `Source` and draws attributes that fit. The source
decides whether operands are new (`FreshSource`, for one call alone) or values of a growing program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import attrs
import sympy
import torch
from hypothesis import strategies as st
from typing_extensions import override

from fuzz.calls.types import FLOATS, draw_integer, draw_shape, draw_size
from ir.core import Graph, Value
from ir.types import Dim, TensorType

T = TypeVar("T")
Condition = Callable[[TensorType], bool]


class Unavailable(Exception):  # noqa: N818 - control flow of the strategies, no error
    """There is no operand of the requested kind."""


@attrs.frozen
class Wanted:
    """What a call generator demands of an operand."""

    min_rank: int
    max_rank: int
    dtypes: tuple[torch.dtype, ...]
    zero: bool
    """Whether sizes may be 0."""
    condition: Condition | None = None
    """What an existing operand must fulfil, too."""

    def fits(self, type_: TensorType) -> bool:
        """Return whether an operand of this type is as demanded."""
        return (
            self.min_rank <= (type_.rank or 0) <= self.max_rank
            and type_.dtype in self.dtypes
            and (type_.device is None or type_.device.type != "meta")  # its numbers are nowhere
            and (self.zero or 0 not in (type_.shape or ()))
            and (self.condition is None or self.condition(type_))
        )


class Source:
    """Draws operands and attributes."""

    def __init__(self, draw: st.DrawFn, *, symbolic: bool = False) -> None:
        self.draw = draw
        self.symbolic = symbolic
        self.training = False
        """Whether operators may be in training mode."""
        self.symbols: tuple[sympy.Symbol, ...] = ()
        """The symbols that may be numbers of a call."""
        self.devices: tuple[torch.device | None, ...] = (None,)
        """The devices of new tensors."""
        self.parameters: list[tuple[Value, Value]] = []
        """The scales and zero points of the quantizations so far."""

    def one_of(self, choices: Sequence[T]) -> T:
        """Draw one of the choices; shrinks to the first.

        Raises:
            Unavailable: when there is none.
        """
        if not choices:
            raise Unavailable
        return choices[self.integer(0, len(choices) - 1)]

    def integer(self, lower: int, upper: int) -> int:
        """Draw an int from a closed range; shrinks to `lower`."""
        return lower if lower == upper else draw_integer(self.draw, lower, upper)

    def place(self, count: int) -> int:
        """Draw one of `count` places, the last as often as the first; of a range, the lower half comes more often."""
        place = self.integer(0, count - 1)
        return count - 1 - place if count > 1 and self.flag() else place

    def extent(self, lower: int, upper: int) -> int:
        """Draw the size of a window; small by default."""
        return self.integer(lower, max(lower, min(upper, 3)))

    def flag(self) -> bool:
        """Draw a bool; shrinks to False."""
        return bool(draw_integer(self.draw, 0, 1))

    def dtype(self, choices: Sequence[torch.dtype | None]) -> torch.dtype | None:
        """Draw a dtype, or None, to convert to."""
        return self.one_of(choices)

    def size(self) -> Dim:
        """Draw a positive size for a new tensor."""
        return draw_size(self.draw, zero=False)

    def tensor(
        self,
        min_rank: int = 0,
        max_rank: int = 4,
        *,
        dtypes: tuple[torch.dtype, ...] = FLOATS,
        zero: bool = True,
        condition: Condition | None = None,
    ) -> Value:
        """Return an operand with a rank in the range, one of the dtypes and, without `zero`, no size that is 0.

        An existing one also fulfils `condition`; a new one need not.
        """
        return self.wanted(Wanted(min_rank, max_rank, dtypes, zero, condition))

    def wanted(self, wanted: Wanted) -> Value:
        """Return an operand as `tensor` describes it."""
        raise NotImplementedError

    def make(
        self, shape: Sequence[Dim], dtype: torch.dtype | None = None, *, bounds: tuple[float, float] | None = None
    ) -> Value:
        """Return an operand of exactly this type, with values in `bounds`; ints are below the upper one.

        The default dtype is the usual floating one of the source, float32 mostly.
        """
        raise NotImplementedError

    def given(self, place: int) -> Value | None:
        """Return the operand that is given for a place of the call; None if any may be drawn."""
        return None

    def taken(self, place: int) -> Value | None:
        """Return the operand that is given for a place, as one that the call uses; None if any may be drawn."""
        return self.given(place)

    def allowing(self, *dtypes: torch.dtype) -> AbstractContextManager[None]:
        """Let operands be of these dtypes inside the `with` block, though programs have few of them."""
        return nullcontext()

    def result_rank(self) -> int | None:
        """Draw the rank that the result of a call must have; None if any will do."""
        return None

    def written(self, value: Value | None) -> None:
        """Note that an operator mutates an operand, a weight that nothing else may read."""

    def like(self, value: Value, shape: Sequence[Dim], **options: Any) -> Value:
        """Return an operand of a shape, with the dtype of `value`."""
        dtype = value.tensor_type.dtype
        assert dtype is not None
        return self.make(shape, dtype, **options)


class FreshSource(Source):
    """Makes each operand a new input of one graph."""

    def __init__(self, draw: st.DrawFn, *, symbolic: bool = False) -> None:
        super().__init__(draw, symbolic=symbolic)
        self.graph = Graph()

    @override
    def wanted(self, wanted: Wanted) -> Value:
        """Return a new input."""
        shape = draw_shape(self.draw, wanted.min_rank, wanted.max_rank, zero=wanted.zero, symbolic=self.symbolic)
        return self.graph.add_input(TensorType(shape, self.one_of(wanted.dtypes)), f"x{len(self.graph.inputs)}")

    @override
    def make(
        self,
        shape: Sequence[Dim],
        dtype: torch.dtype | None = None,
        *,
        bounds: tuple[float, float] | None = None,
    ) -> Value:
        """Return a new input, which has no values."""
        return self.graph.add_input(TensorType(tuple(shape), dtype or torch.float32), f"x{len(self.graph.inputs)}")


def shape_of(value: Value) -> tuple[Dim, ...]:
    """Return the shape of a value whose shape is known."""
    shape = value.tensor_type.shape
    assert shape is not None
    return tuple([d for d in shape if d is not None])


def is_int(size: Dim) -> bool:
    """Return whether a size is a number."""
    return type(size) is int


def divisors(size: Dim) -> list[int]:
    """Return the divisors of a size; only 1 for a symbolic size or 0."""
    if type(size) is not int or size == 0:
        return [1]
    return [n for n in range(1, size + 1) if size % n == 0]


def any_dim(source: Source, rank: int) -> int:
    """Draw the number of a dimension, counted from either end; 0 for a scalar."""
    return source.integer(-rank, rank - 1) if rank else 0


def static_dim(source: Source, value: Value) -> int:
    """Draw the number of a dimension, of a static one if there is any."""
    shape = shape_of(value)
    static = [i for i, d in enumerate(shape) if is_int(d)]
    chosen = source.one_of(static or list(range(len(shape))))
    return chosen - len(shape) if source.flag() else chosen


def ranked(source: Source, *, zero: bool = True) -> Value:
    """Draw a tensor that is not a scalar, if possible with a static size."""
    return source.tensor(1, zero=zero, condition=lambda t: t.shape is not None and any(type(d) is int for d in t.shape))


def along(source: Source, *, zero: bool = True) -> tuple[Value, int, Dim]:
    """Draw a tensor and one of its dimensions; return both, and the size of the dimension."""
    x = ranked(source, zero=zero)
    dim = static_dim(source, x)
    return x, dim, shape_of(x)[dim]


def numbers_below(source: Source, shape: Sequence[Dim], size: Dim) -> Value:
    """Draw ints below a size; all are 0 if the size is symbolic."""
    return source.make(shape, torch.int64, bounds=(0, size if type(size) is int else 1))
