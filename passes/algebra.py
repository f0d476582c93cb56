"""Sums and products as polynomials, so that formulas are recognised in whatever order they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from ir.core import Operation, Value
from ir.types import TensorType, shapes_equal
from passes.canonicalize.base import filled_with

Monomial = frozenset[tuple[Value, int]]
"""The product of values to a power each."""
_ONE: Monomial = frozenset()
_MAX_TERMS = 8
_MAX_OPERATIONS = 24
_TOLERANCE = 1e-10


@attrs.define(eq=False)
class Polynomial:
    """A value as a sum of products of other values, which it does not look into.

    Attributes:
        terms: the coefficient of each product.
        values: the values in the products, in the order in which they were met.
        ops: the operations between these and the value.
    """

    terms: dict[Monomial, float]
    values: list[Value] = attrs.field(factory=list)
    ops: list[Operation] = attrs.field(factory=list)

    def coefficient(self, *values: Value) -> float:
        """Return the coefficient of a product of values."""
        return self.terms.get(product_of(values), 0.0)

    def is_sum_of(self, *terms: tuple[float, Sequence[Value]]) -> bool:
        """Return whether it has these terms (coefficient, values) up to rounding, and no others."""
        wanted = {product_of(values): number for number, values in terms}
        return self.terms.keys() == wanted.keys() and all(
            math.isclose(self.terms[each], number, rel_tol=_TOLERANCE) for each, number in wanted.items()
        )


def product_of(values: Sequence[Value]) -> Monomial:
    """Return the product of some values."""
    powers: dict[Value, int] = {}
    for value in values:
        powers[value] = powers.get(value, 0) + 1
    return frozenset(powers.items())


def polynomial(root: Value) -> Polynomial | None:
    """Return a floating tensor as a polynomial; None where it is no sum or product, or a large one.

    Values with several users are not looked into, and all in it have the shape and dtype of `root`, or are numbers.
    """
    found = Polynomial({})
    terms = _expanded(root, root, found)
    if not found.ops or terms is None:
        return None
    found.terms = terms
    return found


def _expanded(value: Value, root: Value, found: Polynomial) -> dict[Monomial, float] | None:
    op = value.defining_op
    if op is not None and (value is root or value.has_one_use()) and _is_like(value, root):
        if len(found.ops) >= _MAX_OPERATIONS:
            return None
        mark = len(found.ops)
        found.ops.append(op)
        terms = _of_operation(op, root, found)
        if terms is not None:
            return terms if len(terms) <= _MAX_TERMS else None
        del found.ops[mark:]
    number: int | float | None = filled_with(value)
    type_ = value.type
    if number is not None and isinstance(type_, TensorType) and type_.rank == 0:
        return {_ONE: float(number)}
    if not _is_like(value, root):
        return None
    if value not in found.values:
        found.values.append(value)
    return {product_of((value,)): 1.0}


def _is_like(value: Value, root: Value) -> bool:
    a, b = value.type, root.type
    if not (isinstance(a, TensorType) and isinstance(b, TensorType)) or a.dtype is None or a.dtype != b.dtype:
        return False
    return a.dtype.is_floating_point and shapes_equal(value.known_shape, root.known_shape)


def _of_operation(op: Operation, root: Value, found: Polynomial) -> dict[Monomial, float] | None:
    name, attributes = op.name, op.attributes
    if name in ("aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor"):
        if attributes.get("alpha", 1) != 1:
            return None
        a, b = (_expanded(each, root, found) for each in op.operand_values)
        if a is None or b is None:
            return None
        if name == "aten.mul.Tensor":
            return _times(a, b)
        return _plus(a, b, 1.0 if name == "aten.add.Tensor" else -1.0)
    if name == "aten.pow.Tensor_Scalar" and attributes["exponent"] in (2, 3):
        a = _expanded(op.operand_values[0], root, found)
        return None if a is None else _power(a, int(attributes["exponent"]))
    if name == "aten.square":
        a = _expanded(op.operand_values[0], root, found)
        return None if a is None else _power(a, 2)
    other = attributes.get("other")
    if name not in _BY_NUMBER or not isinstance(other, (int, float)) or attributes.get("alpha", 1) != 1:
        return None
    number = float(other)
    if not math.isfinite(number) or (name == "aten.div.Scalar" and number == 0):
        return None
    a = _expanded(op.operand_values[0], root, found)
    if a is None:
        return None
    if name == "aten.add.Scalar":
        return _plus(a, {_ONE: number}, 1.0)
    if name == "aten.sub.Scalar":
        return _plus(a, {_ONE: number}, -1.0)
    return {each: c * number if name == "aten.mul.Scalar" else c / number for each, c in a.items()}


_BY_NUMBER = frozenset(f"aten.{name}.Scalar" for name in ("add", "sub", "mul", "div"))


def _plus(a: dict[Monomial, float], b: dict[Monomial, float], sign: float) -> dict[Monomial, float]:
    total = dict(a)
    for each, number in b.items():
        total[each] = total.get(each, 0.0) + sign * number
    return total


def _times(a: dict[Monomial, float], b: dict[Monomial, float]) -> dict[Monomial, float]:
    total: dict[Monomial, float] = {}
    for first, x in a.items():
        for second, y in b.items():
            powers = dict(first)
            for value, power in second:
                powers[value] = powers.get(value, 0) + power
            each = frozenset(powers.items())
            total[each] = total.get(each, 0.0) + x * y
    return total


def _power(a: dict[Monomial, float], exponent: int) -> dict[Monomial, float]:
    total = a
    for _ in range(exponent - 1):
        total = _times(total, a)
    return total
