"""Symbols of a program: their names and ranges, and torch's symbolic sizes as expressions over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.numbers import int_oo

from ir.program import SymbolRange
from ir.types import Dim, make_symbol, simplify_dim


class DataDependentSizeError(Exception):
    """A size depends on the data of a tensor."""


class SymbolTable:
    """Maps torch's symbols to ours: named by the user where a `Dim` was given, else `s0`, `s1`, … in order."""

    def __init__(self, names: Mapping[str, str], exported: ExportedProgram) -> None:
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._names = names
        self._ranges = exported.range_constraints
        self._taken = set(names.values())
        self._memo: dict[sympy.Expr, Dim] = {}

    def _symbol(self, inner: sympy.Symbol) -> sympy.Symbol:
        found = self.symbols.get(inner)
        if found is None:
            name = self._names.get(inner.name)
            if name is None:
                number = 0
                while f"s{number}" in self._taken:
                    number += 1
                name = f"s{number}"
                self._taken.add(name)
            found = self.symbols[inner] = make_symbol(name)
        return found

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
            if free_unbacked_symbols(expr):
                raise DataDependentSizeError(str(expr))
            symbols = sorted(expr.free_symbols, key=lambda s: str(s.name))
            renamed = expr.xreplace({s: self._symbol(s) for s in symbols})
            found = simplify_dim(renamed) if isinstance(renamed, sympy.Expr) else renamed
            self._memo[expr] = found
        return found

    def ranges(self) -> dict[sympy.Symbol, SymbolRange]:
        """Return the ranges of the symbols met so far."""
        found: dict[sympy.Symbol, SymbolRange] = {}
        for inner, symbol in self.symbols.items():
            interval = self._ranges.get(inner)
            if interval is None:
                found[symbol] = SymbolRange()
                continue
            upper = interval.upper
            unbounded = upper in (int_oo, sympy.oo) or int(upper) >= 2**62
            found[symbol] = SymbolRange(max(0, int(interval.lower)), None if unbounded else int(upper))
        return found
