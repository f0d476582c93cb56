"""Sizes that depend on data: symbols that results of operations define, as in `nonzero`.

A size of an input is known when the call begins. A size that depends on data is known after the operation whose result
has it: the operation introduces its symbol. Types and attributes may name the symbol below that operation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import sympy

from ir.attributes import LITERAL_TYPES, iter_leaves
from ir.core import Graph, Operation, Value
from ir.expressions import format_expression, linear_solution
from ir.program import Program, SymbolRange
from ir.types import Dim, ScalarType, TensorType, Type, data_symbols_in, is_data_symbol, simplify_dim


@attrs.frozen
class Definition:
    """Where a symbol gets its number: `slope * symbol + offset` is a size of a value, or the value of a scalar.

    Attributes:
        symbol: the symbol.
        value: the tensor or scalar.
        dim: the number of the dimension; None for a scalar.
        slope: the factor of the symbol.
        offset: what is added to it.
    """

    symbol: sympy.Symbol
    value: Value
    dim: int | None
    slope: int = 1
    offset: int = 0


def dims_of(type_: Type) -> Iterator[tuple[int | None, Dim | None]]:
    """Yield the dimensions of a type with their numbers; of a scalar its value, without a number."""
    if isinstance(type_, TensorType):
        yield from enumerate(type_.shape or ())
    elif isinstance(type_, ScalarType):
        yield None, type_.value


def data_symbols_of_types(types: Iterable[Type]) -> set[sympy.Symbol]:
    """Return the symbols in the dimensions of types that depend on data."""
    return {symbol for type_ in types for _, dim in dims_of(type_) for symbol in data_symbols_in(dim)}


def data_symbols_of_attributes(op: Operation) -> set[sympy.Symbol]:
    """Return the symbols in the attributes of an operation, and of those in its body, that depend on data."""
    found: set[sympy.Symbol] = set()
    for value in op.attributes.values():
        if type(value) not in LITERAL_TYPES:
            found.update(*map(data_symbols_in, iter_leaves(value)))
    for inner in () if op.body is None else op.body.operations():
        found |= data_symbols_of_attributes(inner)
    return found


def introduced(op: Operation) -> tuple[sympy.Symbol, ...]:
    """Return the symbols that results of an operation have, and neither its operands nor its attributes."""
    found = data_symbols_of_types([value.type for value in op.results])
    if found:
        found -= data_symbols_of_types([value.type for value in op.operand_values])
    if found:
        found -= data_symbols_of_attributes(op)
    return tuple(sorted(found, key=lambda symbol: symbol.name))


def definitions(op: Operation) -> Iterator[Definition]:
    """Yield where the symbols that an operation introduces get their numbers, from plain sizes where it has such."""
    wanted = introduced(op)
    places = [(value, number, dim) for value in op.results for number, dim in dims_of(value.type)] if wanted else ()
    solved = [
        Definition(solution[0], value, number, *solution[1:])
        for value, number, dim in places
        if isinstance(dim, sympy.Expr) and (solution := linear_solution(dim)) is not None
    ]
    solved.sort(key=lambda found: (found.slope != 1 or found.offset != 0, found.value.is_unused))
    for symbol in wanted:
        yield from [found for found in solved if found.symbol == symbol][:1]


def has_data_symbols(program: Program) -> bool:
    """Return whether sizes of a program depend on data."""
    return any(map(is_data_symbol, program.symbols))


def defining_operations(program: Program) -> dict[sympy.Symbol, Operation]:
    """Return the operation that first introduces each symbol that depends on data."""
    found: dict[sympy.Symbol, Operation] = {}
    for op in program.graph.operations() if has_data_symbols(program) else ():
        for symbol in introduced(op):
            found.setdefault(symbol, op)
    return found


def values_of_sizes(program: Program) -> Iterator[Value]:
    """Yield the results that define sizes which depend on data."""
    for op in dict.fromkeys(defining_operations(program).values()):
        yield from (definition.value for definition in definitions(op))


def data_symbols_of_boundary(program: Program) -> set[sympy.Symbol]:
    """Return the symbols that depend on data in what a program returns, and in the relations that each call checks."""
    constants = [leaf.constant for leaf in program.convention.outputs]
    return {symbol for each in (*constants, *program.constraints) for symbol in data_symbols_in(each)}


class NamedSizes:
    """The sizes that depend on data and that a program names below some operation; walk it from the end."""

    def __init__(self, program: Program, definers: Mapping[sympy.Symbol, Operation] | None = None) -> None:
        """Begin at the end; `definers` are the `defining_operations` of the program, where they are known."""
        self._definers = defining_operations(program) if definers is None else definers
        self._ranges = program.symbols
        self._named = data_symbols_of_boundary(program) if self._definers else set()

    def needs(self, op: Operation) -> bool:
        """Return whether an operation is the first to define a size that is named below, or that a call must check."""
        return any(
            self._definers.get(definition.symbol) is op
            and (definition.symbol in self._named or not is_certain(definition, self._ranges))
            for definition in (definitions(op) if self._definers else ())
        )

    def keep(self, op: Operation) -> None:
        """Note what an operation that stays names."""
        if self._definers:
            self._named |= data_symbols_of_attributes(op)


def undefined_sizes(program: Program) -> Iterator[tuple[str, Operation | None]]:
    """Yield where a program names a size that no operation above defines: a message, and the operation."""
    if has_data_symbols(program):
        known: set[sympy.Symbol] = set()
        yield from _undefined(program.graph, known, None)
        yield from _unknown(data_symbols_of_boundary(program) - known, "the results and relations of the program", None)


def _undefined(
    graph: Graph, known: set[sympy.Symbol], owner: Operation | None
) -> Iterator[tuple[str, Operation | None]]:
    """Yield what is undefined in a graph; add what it defines to `known`."""
    yield from _unknown(data_symbols_of_types([value.type for value in graph.inputs]) - known, "inputs", owner)
    for op in graph.operations():
        if op.body is None:
            yield from _unknown(data_symbols_of_attributes(op) - known, f"attributes of {op.name}", op)
        else:
            yield from _undefined(op.body, set(known), op)
        solved = {definition.symbol for definition in definitions(op)}
        for symbol in introduced(op):
            if symbol not in solved:
                yield f"results of {op.name} have the size {symbol.name}, but do not tell its number", op
        known |= solved


def _unknown(symbols: set[sympy.Symbol], what: str, op: Operation | None) -> Iterator[tuple[str, Operation | None]]:
    if symbols:
        names = ", ".join(sorted(symbol.name for symbol in symbols))
        yield f"{what} name the size {names}, which no operation above defines", op


def mentions(graph: Graph, symbols: Iterable[sympy.Symbol], without: Iterable[Operation] = ()) -> bool:
    """Return whether attributes of operations, other than some, name one of the symbols."""
    wanted, skipped = set(symbols), set(without)
    return any(op not in skipped and not wanted.isdisjoint(data_symbols_of_attributes(op)) for op in graph.operations())


def is_certain(definition: Definition, ranges: Mapping[sympy.Symbol, SymbolRange]) -> bool:
    """Return whether a symbol that depends on data cannot leave its range, so that its number need not be checked."""
    bounds = ranges.get(definition.symbol, SymbolRange())
    if definition.dim is None or definition.slope != 1 or definition.offset or bounds.lower > 0:
        return False
    if bounds.upper is None:
        return True
    op = definition.value.defining_op
    most = None if op is None else most_of(op)
    if isinstance(most, sympy.Expr):  # a product of sizes
        upper = {s: ranges[s].upper for s in most.free_symbols if s in ranges and ranges[s].upper is not None}
        most = simplify_dim(most.subs(upper))
    return type(most) is int and most <= bounds.upper


def most_of(op: Operation) -> Dim | None:
    """Return the most that a size which an operation introduces can be; None where it is not known."""
    most = op.opdef.facts.most
    return None if most is None else most(tuple(map(_types_of, op.grouped_operands())))


def _types_of(entry: Any) -> Any:
    return tuple(map(_types_of, entry)) if isinstance(entry, tuple) else entry.type if entry is not None else None


class DataSizes:
    """The sizes of a program that depend on data, in runs of it: what defines them, and what they must fulfil."""

    def __init__(self, program: Program) -> None:
        self.ranges = program.symbols
        self.relations = tuple(relation for relation in program.constraints if data_symbols_in(relation))
        self._definitions: dict[Operation, tuple[Definition, ...]] = {}

    def define(self, op: Operation, results: Sequence[Any], numbers: dict[sympy.Symbol, sympy.Integer]) -> str | None:
        """Add the numbers of the sizes that the results of an operation define.

        Return why a size must not be what it is, or None.
        """
        found = self._definitions.get(op)
        if found is None:
            found = self._definitions[op] = tuple(definitions(op))
        for definition in found:
            symbol, result = definition.symbol, results[definition.value.index]
            size = int(result) if definition.dim is None else result.shape[definition.dim]
            number, rest = divmod(size - definition.offset, definition.slope)
            known = numbers.setdefault(symbol, sympy.Integer(number))
            wrong = f"the size {symbol}, which depends on data, is {number}"
            if rest or known != number:
                return f"{wrong}, not {known}" if known != number else f"{size} is no size of the form {definition}"
            if number not in self.ranges.get(symbol, SymbolRange()):
                return f"{wrong}, which is not in its range {self.ranges[symbol]}"
            for relation in self.relations:
                if symbol in relation.free_symbols and relation.xreplace(numbers) == sympy.false:
                    return f"{wrong}, for which {format_expression(relation)} does not hold"
        return None


def data_sizes_of(program: Program) -> DataSizes | None:
    """Return the sizes of a program that depend on data, or None where it has none."""
    return DataSizes(program) if has_data_symbols(program) else None
