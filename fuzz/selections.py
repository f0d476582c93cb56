"""A strategy for programs whose sizes depend on data: masks, `nonzero`, numbers that are sizes, and what uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from fuzz.programs.case import Case, positional_convention
from ir.builder import Builder
from ir.core import Graph, Operation, Value
from ir.program import CallingConvention, Program, SymbolRange, Weight, WeightKind
from ir.types import Dim, ScalarType, TensorType, data_symbols_in, make_symbol

_ROWS, _COLUMNS = 5, 4
_MASKS = ((1, 0, 1, 1, 0), (1, 1, 1, 1, 1), (0, 0, 0, 0, 0), (0, 0, 1, 0, 0), (1, 1, 0, 0, 0))


class _Selections:
    """A program that grows; `values` are tensors of two dimensions, `masks` those that select rows of the input."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.program = Program("selections", Graph(), CallingConvention(None, None))
        graph = self.program.graph
        self.x = graph.add_input(TensorType((_ROWS, _COLUMNS), torch.float32), "x")
        self.masks = [graph.add_input(TensorType((_ROWS,), torch.bool), name) for name in ("m", "n")]
        self.number = graph.add_input(TensorType((), torch.int64), "k")
        self.builder = Builder(graph)
        self.values: list[Value] = [self.x]
        self.sizes: list[Dim] = []
        self.by_mask: dict[Value, Dim] = {}

    def op(self, name: str, *args: Any, size: Dim | None = None, **kwargs: Any) -> Operation:
        """Add an operation; a size of its results that is not known is `size`, or a new symbol."""
        made = self.builder.op(f"aten.{name}", *args, **kwargs)
        for result in made.results:
            type_ = result.type
            if isinstance(type_, TensorType) and None in (type_.shape or ()):
                size = self.new_size() if size is None else size
                result.type = TensorType(tuple([size if d is None else d for d in type_.shape or ()]), type_.dtype)
        return made

    def new_size(self, most: int | None = None) -> Dim:
        """Declare a size that depends on data."""
        symbol = make_symbol(f"u{len(self.program.symbols)}")
        self.program.symbols[symbol] = SymbolRange(0, most)
        self.sizes.append(symbol)
        return symbol

    def one_of(self, values: list[Value]) -> Value:
        return self.draw(st.sampled_from(values))

    # ---- steps: each adds operations ----

    def select(self) -> None:
        """Select rows by a mask; by one mask, the same number of rows each time."""
        rows = [v for v in self.values if v.tensor_type.shape[0] == _ROWS]  # type: ignore[index]
        mask = self.one_of(self.masks)
        made = self.op("index.Tensor", self.one_of(rows), [mask], size=self.by_mask.get(mask))
        self.by_mask[mask] = made.result.tensor_type.shape[0]  # type: ignore[index]
        self.values.append(made.result)

    def places(self) -> None:
        """Take the places of what is positive, and the elements there."""
        positive = self.op("gt.Scalar", self.one_of(self.values), 0).result
        first, second = self.op("where", positive).results
        if positive.tensor_type.shape == self.x.tensor_type.shape and self.draw(st.booleans()):
            self.values.append(self.op("index_select", self.x, 0, first).result)
        self.values.append(self.op("stack", [first, second], 1).result)

    def elements(self) -> None:
        """Select elements, in one column."""
        value = self.one_of(self.values)
        chosen = self.op("masked_select", value, self.op("lt.Scalar", value, 1).result).result
        self.values.append(self.op("unsqueeze", chosen, -1).result)

    def first_rows(self) -> None:
        """Take as many rows as a number says."""
        size = self.new_size(_ROWS)
        item = self.builder.op("aten.item", self.number)
        item.results[0].type = ScalarType("int", size)
        self.values.append(self.op("slice.Tensor", self.x, 0, None, size).result)

    def unary(self) -> None:
        names = ("neg", "abs", "clone", "relu", "contiguous", "alias", "zeros_like", "ones_like")
        self.values.append(self.op(self.draw(st.sampled_from(names)), self.one_of(self.values)).result)

    def binary(self) -> None:
        one = self.one_of(self.values)
        other = self.one_of([v for v in self.values if v.type == one.type])
        self.values.append(self.op(self.draw(st.sampled_from(("add.Tensor", "mul.Tensor"))), one, other).result)

    def layer(self) -> None:
        """A linear layer, and perhaps an activation."""
        columns = (torch.float32, _COLUMNS)
        found = [v for v in self.values if (v.tensor_type.dtype, v.tensor_type.shape[1]) == columns]  # type: ignore[index]
        weight = Weight(
            f"w{len(self.program.weights)}",
            WeightKind.PARAMETER,
            TensorType((_COLUMNS, _COLUMNS), torch.float32),
            torch.linspace(-1, 1, _COLUMNS**2).reshape(_COLUMNS, _COLUMNS),
            requires_grad=True,
        )
        made = self.op("linear", self.one_of(found), self.program.add_weight(weight)).result
        self.values.append(self.op("relu", made).result if self.draw(st.booleans()) else made)

    def moved(self) -> None:
        """Move elements to and fro: by a reshape, a transposition, or as one row."""
        value = self.one_of(self.values)
        rows, columns = value.tensor_type.shape or ()
        kind = self.draw(st.integers(0, 3))
        if kind == 0:
            made = self.op("reshape", self.op("reshape", value, [-1]).result, [rows, columns])
        elif kind == 1:
            made = self.op("transpose.int", self.op("transpose.int", value, 0, 1).result, 0, 1)
        elif kind == 2:
            made = self.op("squeeze.dim", self.op("unsqueeze", value, 0).result, 0)
        else:
            made = self.op("slice.Tensor", value, 1, 0, 1)
        self.values.append(made.result)

    def joined(self) -> None:
        one = self.one_of(self.values)
        alike = (one.tensor_type.dtype, one.tensor_type.shape[1])  # type: ignore[index]
        found = [v for v in self.values if (v.tensor_type.dtype, v.tensor_type.shape[1]) == alike]  # type: ignore[index]
        self.values.append(self.op("cat", [one, self.one_of(found)]).result)

    def summed(self) -> None:
        """Sum over the rows, or scatter what was selected back to its rows."""
        mask = self.one_of(self.masks)
        rows = self.by_mask.get(mask)
        found = [v for v in self.values if v.tensor_type.shape == (rows, _COLUMNS)]
        floats = [v for v in found if v.tensor_type.dtype is torch.float32]
        if rows is not None and floats and self.draw(st.booleans()):
            places = self.op("squeeze.dim", self.op("nonzero", mask, size=rows).result, 1).result
            self.values.append(self.op("index_add", self.x, 0, places, self.one_of(floats)).result)
        else:
            self.values.append(self.op("sum.dim_IntList", self.one_of(self.values), [0], keepdim=True).result)

    def created(self) -> None:
        """Make a tensor of a size that is known by now."""
        known = [s for s in self.sizes for _ in range(2)] + [d for d in self._heights() if data_symbols_in(d)]
        if known:
            size = self.draw(st.sampled_from(known))
            self.values.append(self.op("full", [size + 1, 2], 2.0, dtype=torch.float32).result)

    def _heights(self) -> list[Dim]:
        return [v.tensor_type.shape[0] for v in self.values]  # type: ignore[index]

    def finish(self) -> None:
        """Return some of the values; the others may be dead."""
        unused = [v for v in self.values if v.is_unused and v is not self.x]
        kept = [v for v in unused if self.draw(st.integers(0, 3))]
        self.program.graph.set_outputs(kept or [self.one_of(self.values)])
        self.program.convention = positional_convention(self.program.graph)


_STEPS: tuple[Callable[[_Selections], None], ...] = (
    *(_Selections.select, _Selections.places, _Selections.elements, _Selections.first_rows, _Selections.select),
    *(_Selections.unary, _Selections.binary, _Selections.layer, _Selections.moved, _Selections.joined),
    *(_Selections.summed, _Selections.created, _Selections.created),
)


@st.composite
def selections(draw: st.DrawFn, max_steps: int = 8) -> tuple[Program, Case]:
    """Return a strategy for a program with sizes that depend on data, and a case of it.

    The masks of the case may select all rows, none, or one; its number may be any that fits.
    """
    grown = _Selections(draw)
    for _ in range(max_steps):
        if draw(st.integers(0, 15)) == 0:
            break
        draw(st.sampled_from(_STEPS))(grown)
    grown.finish()
    x = torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    masks = [torch.tensor(draw(st.sampled_from(_MASKS)), dtype=torch.bool) for _ in grown.masks]
    number = torch.tensor(draw(st.integers(0, _ROWS)))
    return grown.program, Case.of(grown.program, (x, *masks, number))
