"""Numbers in an exported graph: sizes, what Python computes of them, and what `item()` reads from a tensor."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from compiler.lower.regions import RegionLowering
from compiler.lower.symbols import DataDependentSizeError, Unexpressed, is_from_data, own_expression
from ir.locations import Location
from ir.opdef import OpDef, opdef_of_overload
from ir.types import ScalarType


class NumberLowering(RegionLowering):
    """Lowers numbers; a subclass lowers the rest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opdefs: dict[Any, OpDef] = {}
        self._scalars: dict[sympy.Basic, Any] = {}
        """Expression of torch -> the number that was read from a tensor."""

    def _opdef(self, target: torch._ops.OpOverload) -> OpDef:
        found = self._opdefs.get(target)
        if found is None:
            found = self._opdefs[target] = opdef_of_overload(target)
        return found

    def _number(self, node: fx.Node, val: Any, location: Location) -> Any:
        """Return a number: an int, an expression over symbols, or a value that an operation reads from a tensor."""
        expr = own_expression(val) if isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool) else val
        if not is_from_data(expr):
            return self.symbols.dim(val)
        known = self._scalars.get(expr)
        target = node.target
        if known is None and isinstance(target, torch._ops.OpOverload) and _reads_number(target):
            known = self._scalars[expr] = self._read_number(node, target, val, location)
        if known is not None:
            return known
        try:
            return self.symbols.dim(val)
        except DataDependentSizeError as error:
            return Unexpressed(str(error))  # often only an assertion uses it

    def _read_number(self, node: fx.Node, target: torch._ops.OpOverload, val: Any, location: Location) -> Any:
        """Add the operation that reads a number from a tensor; return an expression if it is a size, else the value."""
        if isinstance(val, torch.SymBool):
            self.symbols.note_flag(val)
        kind = "bool" if isinstance(val, torch.SymBool) else "float" if isinstance(val, torch.SymFloat) else "int"
        size = self.symbols.size(val) if kind == "int" else None
        self.functionalizer.location = location
        args = [self._argument(arg) for arg in node.args]
        (handle,) = self.functionalizer.call(
            self._opdef(target), args, {}, (ScalarType(kind, size),), names=(node.name,)
        )
        return handle.value if size is None else self.symbols.dim(val)

    def _note_assertion(self, node: fx.Node) -> None:
        """Note what a node asserts of sizes that depend on data."""
        condition = node.args[0] if node.target is torch.ops.aten._assert_scalar.default else None
        val = condition.meta.get("val") if isinstance(condition, fx.Node) else None
        if isinstance(val, torch.SymBool) and is_from_data(expr := own_expression(val)):
            self.symbols.note_asserted(expr)


def _reads_number(target: torch._ops.OpOverload) -> bool:
    """Return whether an operator reads a number from a tensor, as `item()` does."""
    return torch.Tag.data_dependent_output in target.tags
