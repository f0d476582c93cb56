"""The source of the operands of a match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from typing_extensions import override

from fuzz.calls.generators import generate_call
from fuzz.calls.source import Unavailable, Wanted
from fuzz.programs.strategy import ProgramSource
from fuzz.rules.dictionary import Numbers
from ir.builder import Builder
from ir.core import Value
from ir.errors import GraphwrightError
from ir.types import Dim, TensorType

_PREFIXES = ("transpose.int", "permute", "slice.Tensor", "expand", "relu", "clone", "mul.Scalar", "to.dtype", "dropout")
PREFIXES = tuple([f"aten.{name}" for name in _PREFIXES])
"""Operators that give an operand other strides, or make it a view of something, in front of the match."""
_ROOM = 4096
"""The largest product of the sizes above 9 in a program: tensors stay small."""


class MatchSource(ProgramSource):
    """Hands out the operands that the pattern fixes."""

    def __init__(self, draw: st.DrawFn, numbers: Numbers, named: frozenset[str], *, symbolic: bool) -> None:
        super().__init__(draw, symbolic=symbolic, half=True)
        self.builder = Builder(self.graph)
        self.dictionary = numbers.named
        self.named = named
        """The names of operators in the rule's code."""
        self.around = numbers.around
        self.sizes = numbers.sizes
        self.near_sizes = numbers.near_sizes
        self._room = _ROOM
        self.pinned: list[Value] = []
        """The fixed operands that have no place in the call yet."""
        self.places: Mapping[int, Any] = {}
        """Place in the call -> the operand that the pattern fixes."""
        self.alike: TensorType | None = None
        """The type of another operand of the same operation: often the next one has it too."""
        self.ranks: frozenset[int] | None = None
        """The ranks that the pattern's literals allow the next first operand; None for any."""
        self.result_ranks: frozenset[int] | None = None
        """The ranks that the pattern's literals allow the result of the next call; None for any."""
        self.returned: list[Value] = []
        """Values that the program returns even if they are used."""

    def in_integers(self) -> None:
        """Take integers or truth values where nothing else is said, also where a generator asks for floats."""
        self.usual = self.one_of((torch.int64, torch.int64, torch.bool))

    def in_floats(self) -> None:
        """Take floats again: the match takes no integers."""
        self.usual = self.usual if self.usual.is_floating_point else torch.float32

    @override
    def size(self) -> Dim:
        """Draw a size, often one that the rule's code names, or a neighbor; few are large."""
        if not self.sizes or self.integer(0, 3) < 3:
            return super().size()
        size = self.hinted(1, max(9, self._room))
        if size > 9:
            self._room //= size
        return size

    @override
    def extent(self, lower: int, upper: int) -> int:
        """Draw the size of a window, often one that the rule's code names."""
        fitting = [n for n in self.sizes if lower <= n <= upper]
        return self.one_of(fitting) if fitting and self.flag() else super().extent(lower, upper)

    def hinted(self, lower: int, upper: int) -> int:
        """Draw an int from a closed range, often one that the rule's code names, or a neighbor."""
        kind = self.integer(0, 7) if self.sizes or self.near_sizes else 0
        fitting = [n for n in (self.near_sizes if kind > 5 else self.sizes) if lower <= n <= upper]
        return self.one_of(fitting) if fitting and kind > 2 else self.integer(lower, min(upper, max(9, lower)))

    @override
    def wanted(self, wanted: Wanted) -> Value:
        """Return the next fixed operand that fits; else one as in any program."""
        whole = not self.usual.is_floating_point
        if whole and self.usual not in wanted.dtypes:
            # whether the operator takes it is what inference says
            wanted = attrs.evolve(wanted, dtypes=(self.usual, *wanted.dtypes))
        for i, value in enumerate(self.pinned):
            if wanted.fits(value.tensor_type):
                return self.pinned.pop(i)
        if whole and self.integer(0, 3) < 3:
            wanted = attrs.evolve(wanted, dtypes=(self.usual,))
        if self.ranks is not None:
            # where none is in the generator's range they win: it stops at rank 4 to stay small
            fitting = [rank for rank in self.ranks if wanted.min_rank <= rank <= wanted.max_rank] or self.ranks
            wanted, self.ranks = attrs.evolve(wanted, min_rank=min(fitting), max_rank=max(fitting)), None
        alike = self.alike
        if alike is not None and attrs.evolve(wanted, condition=None).fits(alike) and self.integer(0, 3) < 3:
            return self._input(alike)
        kind = self.integer(0, 7)
        if kind > 4:
            rank = self.hinted(wanted.min_rank, wanted.max_rank)
            ones = self.hinted(0, rank) if kind > 5 else 0
            shape = (*(self.size() for _ in range(rank - ones)), *(1,) * ones)
            if wanted.zero and rank and self.integer(0, 7) == 7:
                at = self.integer(0, rank - 1)
                shape = (*shape[:at], 0, *shape[at + 1 :])
            dtypes = wanted.dtypes
            usual = [d for d in self.dtypes if d in dtypes and d in (self.usual, dtypes[0])]
            return self._input(TensorType(shape, self.one_of(usual or dtypes)))
        return super().wanted(wanted)

    @override
    def make(
        self, shape: Sequence[Dim], dtype: torch.dtype | None = None, *, bounds: tuple[float, float] | None = None
    ) -> Value:
        """Return the next fixed operand of this type; else one as in any program."""
        if not self.usual.is_floating_point and dtype is not None and dtype.is_floating_point and self.flag():
            dtype = self.usual
        for i, value in enumerate(self.pinned):
            type_ = value.tensor_type
            if type_.shape == tuple(shape) and type_.dtype == (dtype or self.usual):
                return self.pinned.pop(i)
        return super().make(shape, dtype, bounds=bounds)

    @override
    def given(self, place: int) -> Value | None:
        """Return the fixed operand for this place."""
        value = self.places.get(place)
        return value if isinstance(value, Value) else None

    @override
    def taken(self, place: int) -> Value | None:
        """Return the fixed operand for this place, which waits for no other then."""
        value = self.given(place)
        if value in self.pinned:
            self.pinned.remove(value)
        return value

    @override
    def result_rank(self) -> int | None:
        """Draw a rank that the pattern allows for the result of a call; None for any."""
        return None if self.result_ranks is None else self.one_of(sorted(self.result_ranks))

    def new_input(self, type_: TensorType) -> Value:
        """Add an input to the program."""
        return self._input(type_)

    def shuffled(self, items: Sequence[int]) -> tuple[int, ...]:
        """Draw a permutation; shrinks to the one given."""
        return tuple(self.draw(st.permutations(items)))

    def add_prefix(self) -> None:
        """Add an operation whose results the match may use."""
        name = self.one_of(PREFIXES)
        try:
            args, kwargs = generate_call(self, name)
            self.add(self.builder.op(name, *args, **kwargs))
        except (Unavailable, GraphwrightError):
            return
