"""Attribute values: every argument of an operation that is not a tensor."""

from __future__ import annotations

import ast
import numbers
from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Any

import attrs
import sympy
import torch

from ir.types import simplify_dim


@attrs.frozen(slots=True)
class Ref:
    """A place inside an attribute that holds operand number `index` of the operation.

    It occurs where a size or scalar is computed at run time, as in `reshape(x, [%n, -1])`.

    Attributes:
        index: number of the operand in `Operation.operands`.
    """

    index: int


@attrs.frozen(slots=True)
class UnknownObject:
    """Stands for a Python object that text names only by its class."""

    class_name: str


Attribute = Any
"""None, bool, number, str, sympy.Expr, torch dtype/device/layout/memory_format, Ref, or a tuple of these.

The arguments of an opaque call may also be lists, dicts with constants as keys, and slices of these.
"""

LITERAL_TYPES = frozenset(
    {NoneType, bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Exact types of the constants that text and Python code can hold; subclasses, such as enums, do not count."""

_COMPARABLE = LITERAL_TYPES - {float, complex}
"""Types whose values are the same where `==` says so."""

ATTRIBUTE_TYPES = (*LITERAL_TYPES, sympy.Expr, Ref)


def literal_of(value: Any) -> Any:
    """Return a literal, or a plain tuple, list or dict of literals, unchanged; an `UnknownObject` for anything else."""
    return value if _is_literal(value) else unknown_object(value)


def _is_literal(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_literal, value))
    if type(value) is dict:
        return all(_is_literal(key) and _is_literal(item) for key, item in value.items())
    return type(value) in LITERAL_TYPES


def is_written_exactly(value: Any) -> bool:
    """Return whether Python reads the `repr` of a literal, or of a tuple of literals, as an equal one."""
    if type(value) is tuple:
        return all(map(is_written_exactly, value))
    if type(value) is not complex:
        return type(value) in LITERAL_TYPES
    try:
        return attributes_equal(ast.literal_eval(repr(value)), value)
    except ValueError:
        return False  # with NaN or infinity


def unknown_object(value: Any) -> UnknownObject:
    """Return the placeholder for an object in text."""
    if isinstance(value, UnknownObject):
        return value
    kind = type(value)
    return UnknownObject(f"{kind.__module__}.{kind.__qualname__}")


def normalize_attribute(value: Any) -> Attribute:
    """Return `value` with lists as tuples, constant expressions as ints, and enums and NumPy's numbers as plain ones.

    Raises:
        TypeError: when the value or an element is not of an attribute type.
    """
    if type(value) in LITERAL_TYPES:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(normalize_attribute(item) for item in value)
    if isinstance(value, sympy.Expr):
        return simplify_dim(value)
    if isinstance(value, str):
        return str.__str__(value)  # `str(member)` of an enum is its name
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, numbers.Complex):
        return complex(value)
    if isinstance(value, ATTRIBUTE_TYPES):
        return value
    raise TypeError(f"a {type(value).__qualname__} is not an attribute value")


def iter_leaves(value: Attribute) -> Iterator[Attribute]:
    """Yield the leaves of an attribute, depth first."""
    items = None if type(value) in LITERAL_TYPES else items_of(value)
    if items is None:
        yield value
    else:
        for item in items:
            yield from iter_leaves(item)


def items_of(value: Attribute) -> Iterable[Attribute] | None:
    """Return the items of a tuple, list, dict or slice; None for a leaf."""
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, dict):
        return value.values()
    return (value.start, value.stop, value.step) if isinstance(value, slice) else None


def is_deeper(tree: Any, limit: int) -> bool:
    """Return whether tuples, lists, dicts and slices are nested more than `limit` deep."""
    level = [tree]
    for _ in range(limit + 1):
        level = [part for item in level for part in items_of(item) or ()]
    return bool(level)


def has_ref(value: Attribute) -> bool:
    """Return whether `value` contains a `Ref`."""
    return any(type(leaf) is Ref for leaf in iter_leaves(value))


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to each leaf; named tuples keep their class."""
    if type(value) in LITERAL_TYPES:
        return function(value)  # most are
    if isinstance(value, tuple):
        items = [map_leaves(item, function) for item in value]
        if type(value) is tuple:
            return tuple(items)
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items) if type(value).__module__ == "torch.return_types" else tuple(items)
    if isinstance(value, list):
        return [map_leaves(item, function) for item in value]
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_leaves(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)


def attribute_key(value: Attribute) -> Any:
    """Return a hashable key that tells apart what `==` does not: 1, 1.0 and True; 0.0 and -0.0; NaN equals itself."""
    if type(value) in _COMPARABLE:
        return (type(value).__name__, value)  # most are
    if isinstance(value, tuple):
        return tuple(map(attribute_key, value))
    if isinstance(value, list):
        return ("list", *map(attribute_key, value))
    if isinstance(value, dict):
        return ("dict", *((attribute_key(key), attribute_key(item)) for key, item in value.items()))
    if isinstance(value, slice):
        return ("slice", *map(attribute_key, (value.start, value.stop, value.step)))
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, complex):
        return ("complex", value.real.hex(), value.imag.hex())
    return (type(value).__name__, value)


def attributes_equal(a: Attribute, b: Attribute) -> bool:
    """Return whether two attribute values are the same value of the same type."""
    if type(a) is type(b) and type(a) in _COMPARABLE:
        return bool(a == b)
    return bool(attribute_key(a) == attribute_key(b))
