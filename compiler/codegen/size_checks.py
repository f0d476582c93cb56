"""Checks of sizes that depend on data, in emitted code: those that the captured graph assumes and no kernel ensures."""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch

from compiler.codegen.scope import Scope
from compiler.emitted.sizes import check_size
from ir.core import Operation
from ir.data_sizes import Definition, definitions, is_certain
from ir.expressions import format_expression
from ir.program import Program, SymbolRange
from ir.types import data_symbols_in


class SizeChecks:
    """Emits the checks, each below the operation after which all of its sizes are known."""

    def __init__(self, scope: Scope, program: Program) -> None:
        self.scope = scope
        self.ranges = program.symbols
        self._pending = [relation for relation in program.constraints if data_symbols_in(relation)]
        self._known: dict[sympy.Symbol, Operation] = {}

    def define(self, op: Operation) -> None:
        """Define the sizes that an emitted operation introduces, and check them."""
        new: list[sympy.Symbol] = []
        for definition in definitions(op):
            symbol = definition.symbol
            first = self._known.setdefault(symbol, op)
            if first is op:
                new.append(symbol)
                self.scope.define_symbols(definition.value)
                self._check_range(definition)
            elif not _have_same_mask(first, op):
                size = self.scope.size_of(definition)
                same = self.scope.call(operator.eq, (size, self.scope.size(symbol)))
                self._require(same, f"size {definition.dim} of {definition.value.name or op.name} == {symbol.name}", op)
        for relation in [r for r in self._pending if new and data_symbols_in(r) <= self._known.keys()]:
            self._pending.remove(relation)
            self._require(self.scope.size(relation), format_expression(relation), op)

    def _check_range(self, definition: Definition) -> None:
        if is_certain(definition, self.ranges):
            return
        symbol, op = definition.symbol, definition.value.defining_op
        bounds = self.ranges.get(symbol, SymbolRange())
        size = self.scope.size(symbol)
        if bounds.lower > 0 or definition.dim is None:
            self._require(self.scope.call(operator.ge, (size, bounds.lower)), f"{symbol.name} >= {bounds.lower}", op)
        if bounds.upper is not None:
            self._require(self.scope.call(operator.le, (size, bounds.upper)), f"{symbol.name} <= {bounds.upper}", op)

    def _require(self, holds: Any, text: str, op: Operation | None) -> None:
        place = op.location.source if op is not None else ""
        self.scope.call(check_size, (holds, text, place))


def _have_same_mask(first: Operation, again: Operation) -> bool:
    """Return whether two selections are by one mask, so that they have one size."""
    masks = [value for value in first.operand_values if getattr(value.type, "dtype", None) is torch.bool]
    return any(value in again.operand_values for value in masks)
