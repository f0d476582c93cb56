"""Symbols of a program: names, ranges, and torch's symbolic sizes as expressions over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from ir.types import Dim, make_symbol, simplify_dim


class DataDependentSizeError(Exception):
    """A size depends on the data of a tensor."""


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
            interval = self._ranges.get(inner)
            if interval is None:
                found[symbol] = SymbolRange()
                continue
            upper = interval.upper
            unbounded = upper in (int_oo, sympy.oo) or int(upper) >= 2**62
            found[symbol] = SymbolRange(max(0, int(interval.lower)), None if unbounded else int(upper))
        return found

    def constraints(self) -> tuple[sympy.Basic, ...]:
        """Return the relations between sizes, beside the ranges, that the graph assumes.

        Python code that asks for a size (`if x.shape[0] % 2`) takes one branch during capture. With `Dim`s that have
        ranges, torch.export refuses a condition that not every size meets; with `Dim.AUTO` it assumes it.

        Raises:
            CaptureError: when a relation cannot be checked on inputs.
        """
        if self._env is None:
            return ()
        ranges = self.ranges()
        found: dict[sympy.Basic, None] = {}
        try:
            for expr, line in guards_of(self._traced, self._env):
                symbols = expr.free_symbols
                if not symbols or not symbols <= self.symbols.keys() or all(s.name in self._names for s in symbols):
                    continue  # always true; about lost symbols; within the user's ranges, which torch.export checked
                constraint = self._renamed(expr)
                if not constraint.is_Relational or formula_of(constraint) is None:
                    raise restricted(format_expression(constraint), line)
                if not follows_from(constraint, ranges):
                    found.setdefault(constraint)
        except UnreadableGuardError as error:
            raise restricted(str(error)) from error
        return tuple(found)


def restricted(what: str, line: str = "", location: Location | None = None) -> CaptureError:
    """Return the error for an unsupported restriction of sizes."""
    return CaptureError(
        f"a dimension marked as dynamic is restricted{f' by `{line}`' if line else ''}: {what}",
        location=location,
        remedy="leave that dimension out of dynamic_shapes=, or make the model independent of its size",
    )
