"""Symbols of a program: names, ranges, and torch's symbolic sizes as expressions over them.

A size that depends on data, as of `nonzero`, is named `u0`, `u1`, …; two that the graph asserts to be equal are one. A
number that `item()` reads may be negative, or is not an int: it is a value of the program then, and no symbol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils._sympy.numbers import int_oo

from compiler.capture.captured import Traced
from compiler.lower.guards import UnreadableGuardError, follows_from, guards_of
from ir.errors import CaptureError
from ir.expressions import format_expression, formula_of
from ir.locations import Location
from ir.program import SymbolRange
from ir.types import Dim, is_data_symbol, make_symbol, simplify_dim


class DataDependentSizeError(Exception):
    """A size, or a number in an expression, depends on the data of a tensor in a way that no symbol expresses."""


@attrs.frozen
class Unexpressed:
    """A number of the graph that no symbol expresses; using it in a program is an error."""

    text: str


def own_expression(number: torch.SymInt | torch.SymFloat | torch.SymBool) -> sympy.Basic:
    """Return the expression of a number, without what PyTorch puts in the place of sizes that it takes for equal.

    Tracing again (`run_decompositions`) makes new symbols, which stand for those of the first time.
    """
    node = number.node
    found: sympy.Basic = node._expr
    renamed = node.shape_env.unbacked_renamings if node.shape_env is not None else {}
    return found.xreplace(dict(renamed)) if renamed else found


def is_from_data(expr: Any) -> bool:
    """Return whether a symbolic expression of torch depends on the data of a tensor."""
    return isinstance(expr, sympy.Basic) and bool(free_unbacked_symbols(expr))


class SymbolTable:
    """Maps torch's symbols to ours: named by the user where a `Dim` was given, else `s0`, `s1`, … in order."""

    def __init__(self, names: Mapping[str, str], traced: Traced) -> None:
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._names = names
        self._traced = traced
        self._ranges = traced.exported.range_constraints
        self._taken = set(names.values())
        self._memo: dict[sympy.Expr, Dim] = {}
        self._env: ShapeEnv | None = None
        self._asserted: dict[sympy.Basic, None] = {}
        self._same: dict[sympy.Symbol, sympy.Symbol] = {}
        self._flags: set[sympy.Symbol] = set()
        """Symbols of torch that are 1 where a bool is true."""
        self._untrue: set[sympy.Basic] = set()
        self._widened: dict[sympy.Symbol, SymbolRange] = {}

    def _symbol(self, inner: sympy.Symbol) -> sympy.Symbol:
        found = self.symbols.get(inner)
        if found is None and inner in self._same:
            found = self.symbols[inner] = self._symbol(self._same[inner])
        if found is None:
            name = self._names.get(inner.name)
            if name is None or is_data_symbol(make_symbol(name)):
                letter, number = "u" if is_from_data(inner) else "s", 0
                while f"{letter}{number}" in self._taken:
                    number += 1
                name = f"{letter}{number}"
                self._taken.add(name)
            found = self.symbols[inner] = make_symbol(name)
        return found

    def is_size(self, inner: sympy.Symbol) -> bool:
        """Return whether a symbol of torch stands for an int that is not negative."""
        bounds = self._ranges.get(inner)
        if inner in self._flags or not inner.is_integer:
            return False
        return not is_from_data(inner) or (bounds is not None and bounds.lower >= 0)

    def note_flag(self, flag: torch.SymBool) -> None:
        """Note a bool that was read from a tensor."""
        self._flags |= own_expression(flag).free_symbols

    def type_dim(self, size: Any) -> Dim:
        """Return a size of a tensor.

        Raises:
            DataDependentSizeError: when `dim` does.
            CaptureError: when PyTorch has put a number, or another size, in the place of a size that depends on data.
        """
        if isinstance(size, torch.SymInt) and free_unbacked_symbols(own_expression(size)) - free_unbacked_symbols(size):
            raise CaptureError(
                f"the model is right only where a size that depends on data is {size}, and nothing checks that",
                remedy="slice or pad to that size, or keep the module as is with leaf_modules=",
            )
        return self.dim(size)

    def size(self, number: torch.SymInt) -> Dim | None:
        """Return the symbol of a number that was read from a tensor; None where it may be negative."""
        inner = own_expression(number)
        return self._symbol(inner) if inner.is_Symbol and self.is_size(inner) else None

    def widen(self, symbol: sympy.Symbol, most: Dim | None) -> None:
        """Correct the range of a size: PyTorch bounds `masked_select` by its operand, which may be broadcast."""
        for inner, known in self.symbols.items():
            bounds = self._range(inner)
            if known == symbol and bounds.upper is not None and type(most) is int and bounds.upper < most:
                self._untrue.add(inner <= bounds.upper)
                self._widened[inner] = SymbolRange(bounds.lower, most)

    def note_asserted(self, expr: sympy.Basic) -> None:
        """Note a relation between sizes that depend on data, which the graph asserts."""
        self._asserted.setdefault(expr)
        if isinstance(expr, sympy.Eq) and all(side.is_Symbol and is_from_data(side) for side in expr.args):
            first, second = sorted(expr.args, key=lambda inner: int(inner.name.lstrip("u")))
            self._same.setdefault(second, self._same.get(first, first))

    def dim(self, size: Any) -> Dim:
        """Return a size (int, SymInt or SymFloat) as an int or an expression over our symbols.

        Raises:
            DataDependentSizeError: when it depends on the data of a tensor.
        """
        if type(size) is int:
            return size
        if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
            return size
        expr = size.node.expr
        found = self._memo.get(expr)
        if found is None:
            unsized = [s for s in free_unbacked_symbols(expr) if not self.is_size(s)]
            if unsized:
                raise DataDependentSizeError(str(expr))
            self._env = size.node.shape_env
            renamed = self._renamed(expr)
            found = simplify_dim(renamed) if isinstance(renamed, sympy.Expr) else renamed
            self._memo[expr] = found
        return found

    def _renamed(self, expr: sympy.Basic) -> sympy.Basic:
        symbols = sorted(expr.free_symbols, key=lambda s: str(s.name))
        return expr.xreplace({s: self._symbol(s) for s in symbols})

    def ranges(self) -> dict[sympy.Symbol, SymbolRange]:
        """Return the ranges of the symbols seen so far."""
        found: dict[sympy.Symbol, SymbolRange] = {}
        for inner, symbol in self.symbols.items():
            bounds, other = self._range(inner), found.get(symbol, SymbolRange())
            uppers = [each.upper for each in (bounds, other) if each.upper is not None]
            found[symbol] = SymbolRange(max(bounds.lower, other.lower), min(uppers, default=None))
        return found

    def _range(self, inner: sympy.Symbol) -> SymbolRange:
        interval = self._ranges.get(inner)
        if interval is None or inner in self._widened:
            return self._widened.get(inner, SymbolRange())
        upper = interval.upper
        unbounded = upper in (int_oo, sympy.oo) or int(upper) >= 2**62
        return SymbolRange(max(0, int(interval.lower)), None if unbounded else int(upper))

    def constraints(self) -> tuple[sympy.Basic, ...]:
        """Return the relations between sizes, beside the ranges, that the graph assumes.

        Python code that asks for a size (`if x.shape[0] % 2`) takes one branch during capture. With `Dim`s that have
        ranges, torch.export refuses a condition that not every size meets; with `Dim.AUTO` it assumes it.

        Raises:
            CaptureError: when a relation cannot be checked on inputs.
        """
        ranges = self.ranges()
        found: dict[sympy.Basic, None] = {}
        for expr in self._asserted:
            if expr in self._untrue or (self._flags and expr.free_symbols <= self._flags):
                continue
            if not isinstance(expr, sympy.Rel) or not all(map(self.is_size, expr.free_symbols)):
                raise _unchecked(expr)
            relation = self._renamed(expr)
            if relation == sympy.true or follows_from(relation, ranges):
                continue
            if formula_of(relation) is None:
                raise _unchecked(relation)
            found.setdefault(relation)
        if self._env is None:
            return tuple(found)
        try:
            for expr, line in guards_of(self._traced, self._env):
                symbols = expr.free_symbols
                if not symbols or not symbols <= self.symbols.keys() or all(s.name in self._names for s in symbols):
                    continue  # always true; about lost symbols; within the user's ranges, which torch.export checked
                for constraint in sympy.And.make_args(self._renamed(expr)):
                    if not constraint.is_Relational or formula_of(constraint) is None:
                        raise restricted(format_expression(constraint), line)
                    if not follows_from(constraint, ranges):
                        found.setdefault(constraint)
        except UnreadableGuardError as error:
            raise restricted(str(error)) from error
        return tuple(found)


def _unchecked(relation: sympy.Basic) -> CaptureError:
    return CaptureError(
        f"the model assumes `{format_expression(relation)}` of numbers that depend on data, which no code can check",
        remedy="leave that `torch._check` out, or keep the module as is with leaf_modules=",
    )


def restricted(what: str, line: str = "", location: Location | None = None) -> CaptureError:
    """Return the error for an unsupported restriction of sizes."""
    return CaptureError(
        f"a dimension marked as dynamic is restricted{f' by `{line}`' if line else ''}: {what}",
        location=location,
        remedy="leave that dimension out of dynamic_shapes=, or make the model independent of its size",
    )
