"""Sizes of 0 and 1: whether types that `torch.export` gives for sizes that depend on data hold there, too.

PyTorch captures a model as if such a size were neither: `squeeze()` keeps the dimension, a size of 1 does not
broadcast. Kernels do otherwise, and then the types of the program would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sympy

from ir.attributes import map_leaves
from ir.builder import infer_types, types_of
from ir.core import Operation
from ir.data_sizes import data_symbols_of_attributes, data_symbols_of_types, introduced
from ir.errors import CaptureError, GraphwrightError
from ir.program import Program
from ir.types import ScalarType, TensorType, simplify_dim, symbols_of, types_agree

_OTHERS = (7, 11, 13, 17, 19, 23, 29, 31)
"""Numbers for the other sizes of an operation: distinct, and neither 0 nor 1."""

Numbers = Mapping[sympy.Symbol, int]


def check_small_sizes(program: Program) -> None:
    """Check the operations on sizes that depend on data.

    Raises:
        CaptureError: for an operation whose results have other types where such a size is 0 or 1.
    """
    for op in program.graph.operations():
        symbols = data_symbols_of_types([value.type for value in op.operand_values]) | data_symbols_of_attributes(op)
        for numbers in _numbers(program, op, sorted(symbols, key=lambda symbol: symbol.name)):
            wrong = _differing(op, numbers)
            if wrong is not None:
                size = next(symbol for symbol in symbols if numbers[symbol] <= 1)
                raise CaptureError(
                    f"{op.name} gives a tensor of type {wrong[1]} where a size that depends on data is "
                    f"{numbers[size]}, and not {wrong[0]} as for larger ones",
                    location=op.location,
                    remedy=f"name the dimension that it is about (`squeeze(1)`), or exclude that size with "
                    f"`torch._check(n > {numbers[size]})`, or keep the module as is with leaf_modules=",
                )


def _numbers(program: Program, op: Operation, symbols: list[sympy.Symbol]) -> Iterator[Numbers]:
    """Yield numbers for all symbols of an operation, in which some of the given ones are 0 or 1."""
    if not symbols:
        return
    own = set(introduced(op))
    dims = [dim for value in (*op.operand_values, *op.results) for dim in _dims(value.type)]
    found = [*symbols_of(dims), *symbols_of(_expressions(op))]
    others = {s: number for s, number in zip(dict.fromkeys(found), _OTHERS * len(found), strict=False) if s not in own}
    for small in (0, 1):
        for chosen in [*[[symbol] for symbol in symbols], symbols] if len(symbols) > 1 else [symbols]:
            numbers = others | dict.fromkeys(chosen, small)
            if all(small in program.symbols[symbol] for symbol in chosen) and not any(
                relation.xreplace(_integers(numbers)) == sympy.false for relation in program.constraints
            ):
                yield numbers


def _integers(numbers: Numbers) -> dict[sympy.Symbol, sympy.Integer]:
    return {symbol: sympy.Integer(number) for symbol, number in numbers.items()}


def _dims(type_: Any) -> Iterable[Any]:
    return (type_.shape or ()) if isinstance(type_, TensorType) else [getattr(type_, "value", None)]


def _expressions(op: Operation) -> list[Any]:
    found: list[Any] = []
    for value in op.attributes.values():
        map_leaves(value, lambda leaf: found.append(leaf) if isinstance(leaf, sympy.Expr) else None)
    return found


def _differing(op: Operation, numbers: Numbers) -> tuple[Any, Any] | None:
    """Return the type that a result has in the program and the one that it has for these numbers, if they differ."""
    integers = _integers(numbers)

    def known(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(map(known, item))
        if isinstance(item, TensorType):
            return TensorType(None if item.shape is None else known(item.shape), item.dtype, item.device)
        if isinstance(item, ScalarType):
            return ScalarType(item.kind, known(item.value))
        return simplify_dim(item.xreplace(integers)) if isinstance(item, sympy.Expr) else item

    types, attributes, extra = types_of(op)
    try:
        given = {name: map_leaves(value, known) for name, value in attributes.items()}
        inferred = infer_types(op.opdef, known(types), given, known(extra))
    except GraphwrightError:
        return None  # the kernel refuses such a size as well
    for value, type_ in zip(op.results, inferred, strict=True):
        wanted = known(value.type)
        if isinstance(wanted, TensorType) and wanted.shape is not None:
            shape = tuple([None if isinstance(dim, sympy.Expr) else dim for dim in wanted.shape])
            wanted = TensorType(shape, wanted.dtype, wanted.device)
        if isinstance(wanted, TensorType) and not types_agree(wanted, type_):
            return value.type, type_
    return None
