"""Structural equality of programs, up to what the text form keeps."""

from __future__ import annotations

from typing import Any

import attrs
import sympy

from ir.attributes import LITERAL_TYPES, Attribute, Ref, attributes_equal, items_of
from ir.core import Graph, Operation, Value
from ir.expressions import format_expression
from ir.program import CallingConvention, InputLeaf, OutputLeaf, Program, Weight
from ir.text.literals import format_attribute
from ir.text.printer import format_parameters
from ir.types import dims_equal, types_equal


@attrs.frozen
class Difference:
    """The first place where two programs differ."""

    place: str
    """What was compared: `operation 3 (aten.relu), result 0`."""
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.place}: {self.left} != {self.right}"


def programs_equal(a: Program, b: Program, *, locations: bool = True) -> Difference | None:
    """Return the first difference of two programs, or None where they are equal.

    Equal means equal structure: the same operations on the same values in the same order, the same types (provably
    equal where they are symbolic), weights, symbols and calling convention. The data of weights, the objects behind
    opaque names, and the names of results, and of constants that are called after them, are not compared.

    Args:
        a: one program.
        b: the other.
        locations: whether the locations of operations count.
    """
    found = (
        _differ("program name", a.name, b.name)
        or (_differ("program location", a.location, b.location) if locations else None)
        or _differ("symbols", _symbols(a), _symbols(b))
        or _differ("constraints", *(list(map(format_expression, p.constraints)) for p in (a, b)))
        or _differ("opaque names", list(a.opaques), list(b.opaques))
        or _differ("module modes", list(a.module_modes.items()), list(b.module_modes.items()))
        or _differ("names of one module", list(a.module_aliases.items()), list(b.module_aliases.items()))
        or _differ("lock on the mode", a.mode_locked, b.mode_locked)
        or _differ("modes after a switch", _modes_after(a), _modes_after(b))
        or _differ("refused surroundings", list(a.surroundings.items()), list(b.surroundings.items()))
        or _compare_conventions(a.convention, b.convention)
        or _differ("weight names", *(list(map(_name, p.weights.values())) for p in (a, b)))
    )
    if found is not None:
        return found
    comparison = _Comparison(locations)
    for weight, other in zip(a.weights.values(), b.weights.values(), strict=True):
        found = comparison.weights(weight, other)
        if found is not None:
            return found
    return comparison.graphs(a.graph, b.graph, "")


def graphs_equal(a: Graph, b: Graph, *, locations: bool = False) -> Difference | None:
    """Return the first difference of two graphs, or None; weights are compared by name.

    Args:
        a: one graph.
        b: the other.
        locations: whether the locations of operations count.
    """
    return _Comparison(locations).graphs(a, b, "")


def _differ(place: str, a: Any, b: Any) -> Difference | None:
    if a == b:
        return None
    if isinstance(a, list) and isinstance(b, list):
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return Difference(f"{place}, number {i}", str(x), str(y))
        return Difference(f"{place}, count", str(len(a)), str(len(b)))
    return Difference(place, str(a), str(b))


_FOLDED = "folded_"
"""What the name of a folded constant begins with, before that of the result."""


def _name(weight: Weight) -> str:
    """Return the name of a weight; a folded constant is called after a result, and results are not compared by name."""
    is_of_result = weight.is_folded and weight.derivation is None and weight.name.startswith(_FOLDED)
    return _FOLDED if is_of_result else weight.name


def _symbols(program: Program) -> list[str]:
    return [f"{symbol.name} in {bounds}" for symbol, bounds in program.symbols.items()]


def _modes_after(program: Program) -> list[tuple[str, str, bool]]:
    return [(switch, *item) for switch, modes in program.modes_after.items() for item in modes.items()]


def _compare_conventions(a: CallingConvention, b: CallingConvention) -> Difference | None:
    return (
        _differ("in_spec", a.in_spec, b.in_spec)
        or _differ("out_spec", a.out_spec, b.out_spec)
        or _differ("parameters", format_parameters(a.parameters), format_parameters(b.parameters))
        or _differ("order of keys", a.keeps_order, b.keeps_order)
        or _differ("arguments", *([(x.name, *_place(x)) for x in c.inputs] for c in (a, b)))
        or _differ("kinds of arguments", *([x.accepts for x in c.inputs] for c in (a, b)))
        or _differ("results", *(list(map(_place, c.outputs)) for c in (a, b)))
        or _differ("mutations", list(a.mutations), list(b.mutations))
        or _differ("views", dict(a.views), dict(b.views))
    )


def _place(leaf: InputLeaf | OutputLeaf) -> tuple[int | None, str]:
    # compared as text, which tells 1 from 1.0 and True and names the class of other objects
    return leaf.value, format_attribute(leaf.constant)


class _Comparison:
    """A walk of two graphs in step, with the pairs of corresponding values."""

    def __init__(self, locations: bool) -> None:
        self._locations = locations
        self._partner: dict[Value, Value] = {}

    def weights(self, a: Weight, b: Weight) -> Difference | None:
        place = f"weight {a.name}"
        self._partner[a.value] = b.value
        if not types_equal(a.type, b.type):
            return Difference(f"{place}, type", str(a.type), str(b.type))
        fields = ("kind", "requires_grad", "persistent", "is_mutated", "carries_gradient", "is_folded", "aliases")
        found = (_differ(f"{place}, {name}", getattr(a, name), getattr(b, name)) for name in fields)
        if (first := next(filter(None, found), None)) is not None:
            return first
        if a.derivation is None or b.derivation is None:
            return _differ(f"{place}, derivation", a.derivation, b.derivation)
        if a.derivation.sources != b.derivation.sources:
            return _differ(f"{place}, sources", a.derivation.sources, b.derivation.sources)
        inner = programs_equal(a.derivation.program, b.derivation.program, locations=self._locations)
        return inner and attrs.evolve(inner, place=f"{place}, derivation, {inner.place}")

    def graphs(self, a: Graph, b: Graph, prefix: str) -> Difference | None:
        found = _differ(f"{prefix}number of inputs", len(a.inputs), len(b.inputs))
        if found is not None:
            return found
        for x, y in zip(a.inputs, b.inputs, strict=True):
            self._partner[x] = y
            place = f"{prefix}input {x.index}"
            if x.name != y.name:
                return Difference(f"{place}, name", x.name, y.name)
            if not types_equal(x.type, y.type):
                return Difference(f"{place} ({x.name}), type", str(x.type), str(y.type))
        for i, (p, q) in enumerate(zip(a.operations(), b.operations(), strict=False)):
            found = self._operations(p, q, f"{prefix}operation {i} ({p.name})")
            if found is not None:
                return found
        return (
            _differ(f"{prefix}number of operations", a.num_operations, b.num_operations)
            or self._operands(a.outputs, b.outputs, f"{prefix}return")
            or (
                _differ(f"{prefix}return, location", a.return_op.location, b.return_op.location)
                if self._locations
                else None
            )
        )

    def _operations(self, a: Operation, b: Operation, place: str) -> Difference | None:
        if a.opdef is not b.opdef:
            return Difference(f"{place}, operator", a.name, b.name)
        schema_a, schema_b = a.num_schema_operands, b.num_schema_operands
        found = (
            _differ(f"{place}, segments", a.segments, b.segments)
            or self._operands(a.operands[:schema_a], b.operands[:schema_b], place)
            or self._attributes(a, b, place)
            or _differ(f"{place}, number of results", len(a.results), len(b.results))
            or (_differ(f"{place}, location", a.location, b.location) if self._locations else None)
        )
        if found is not None:
            return found
        for x, y in zip(a.results, b.results, strict=True):
            self._partner[x] = y
            if not types_equal(x.type, y.type):
                return Difference(f"{place}, result {x.index}, type", str(x.type), str(y.type))
        if a.body is None or b.body is None:
            return _differ(f"{place}, body", a.body, b.body)
        return self.graphs(a.body, b.body, f"{place}, body, ")

    def _operands(self, a: tuple[Value | None, ...], b: tuple[Value | None, ...], place: str) -> Difference | None:
        if len(a) != len(b):
            return Difference(f"{place}, number of operands", str(len(a)), str(len(b)))
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not self._same(x, y):
                return Difference(f"{place}, operand {i}", repr(x), repr(y))
        return None

    def _same(self, a: Value | None, b: Value | None) -> bool:
        if a is None or b is None:
            return a is b
        if a in self._partner:
            return self._partner[a] is b
        # graphs without programs: weights correspond by name
        return a.is_weight and b.is_weight and a.name == b.name

    def _attributes(self, a: Operation, b: Operation, place: str) -> Difference | None:
        found = _differ(f"{place}, attribute names", sorted(a.attributes), sorted(b.attributes))
        if found is not None:
            return found
        for name, value in a.attributes.items():
            other = b.attributes[name]
            if not self._same_attribute(value, other, a, b):
                return Difference(f"{place}, attribute {name}", format_attribute(value), format_attribute(other))
        return None

    def _same_attribute(self, x: Attribute, y: Attribute, a: Operation, b: Operation) -> bool:
        if type(x) in LITERAL_TYPES and type(y) in LITERAL_TYPES:
            return attributes_equal(x, y)
        items, others = items_of(x), items_of(y)
        if items is not None and others is not None:
            if type(x) is not type(y) or (isinstance(x, dict) and list(x) != list(y)):
                return False
            items, others = list(items), list(others)
            return len(items) == len(others) and all(map(lambda p, q: self._same_attribute(p, q, a, b), items, others))
        if isinstance(x, Ref) and isinstance(y, Ref):
            return self._same(a.operands[x.index], b.operands[y.index])
        if isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr):
            return dims_equal(x, y)
        return attributes_equal(x, y)
