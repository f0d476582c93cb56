"""Literals: expressions, types, attributes and locations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import sympy
import torch
from sympy.core.relational import Relational
from torch.utils._sympy.numbers import int_oo

from ir.attributes import Attribute, Ref, UnknownObject, unknown_object
from ir.expressions import BINARY_OPERATORS, UNARY_POWER, apply_function, apply_operator, format_expression, negate
from ir.locations import Location
from ir.text.lexer import END, Lexer, is_readable
from ir.types import (
    CPU,
    DTYPES_BY_NAME,
    UNKNOWN_TENSOR,
    Dim,
    OpaqueType,
    ScalarType,
    TensorType,
    Type,
    make_symbol,
)

_CONSTANTS = {"inf": float("inf"), "nan": float("nan"), "oo": sympy.oo, "int_oo": int_oo}
_KEYWORDS = {"None": None, "True": True, "False": False}

RESERVED_SYMBOLS = frozenset({*_CONSTANTS, *_KEYWORDS})
"""Names with a meaning in expressions, which a symbol cannot have."""


def parse_type(text: str) -> Type:
    """Return the type that `text` stands for: `f32[batch, 3]`, `int(2*seq)`, `?`, `opaque`.

    Raises:
        ParseError: when it is not a type; the message points at the place.
    """
    lexer = Lexer(text)
    type_ = Literals(lexer).type()
    expect_end(lexer)
    return type_


def parse_attribute(text: str) -> Attribute:
    """Return the attribute value that `text` stands for, as `format_attribute` writes it.

    Raises:
        ParseError: when it is not one; the message points at the place.
    """
    lexer = Lexer(text)
    value = Literals(lexer).attribute()
    expect_end(lexer)
    return value


def format_attribute(value: Attribute, refer: Callable[[int], str] = lambda index: f"&{index}") -> str:
    """Return the text of an attribute, or of a constant in the calling convention; `refer` gives that of a `Ref`."""
    if isinstance(value, tuple):
        return f"[{', '.join([format_attribute(item, refer) for item in value])}]"
    if value is None or type(value) is bool or (type(value) is int and is_readable(value)):
        return repr(value)
    if type(value) is float:
        return repr(value)
    if type(value) is str:
        return json.dumps(value)
    if isinstance(value, list):
        return f"list({', '.join([format_attribute(item, refer) for item in value])})"
    if isinstance(value, dict):
        items = [f"{format_attribute(key)}: {format_attribute(item, refer)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join([format_attribute(part, refer) for part in parts])})"
    if isinstance(value, Ref):
        return refer(value.index)
    if type(value) is complex:
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, sympy.Basic):
        text = format_expression(value)
        return text if value.free_symbols else f"expr({text})"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, torch.device):
        return f'device("{value}")'
    return f"opaque({json.dumps(unknown_object(value).class_name)})"


def expect_end(lexer: Lexer) -> None:
    """Check that nothing follows.

    Raises:
        ParseError: when something does.
    """
    if lexer.kind != END:
        raise lexer.error(f"expected the end of the text, found {lexer.describe()}")


class Literals:
    """Reads the literals of one text.

    `refer` turns the name of a value in an attribute into a `Ref`, and `symbol` the name of a symbol into a size.
    """

    def __init__(
        self, lexer: Lexer, refer: Callable[[], Ref] | None = None, symbol: Callable[[str], Dim] = make_symbol
    ) -> None:
        self.lexer = lexer
        self._refer = refer
        self._symbol = symbol
        # text up to the closing bracket -> (type, number of tokens); most types occur often
        self._types: dict[str, tuple[TensorType, int]] = {}

    # Expressions

    def expression(self, power: int = 0) -> Any:
        """Return a number or a symbolic expression; it ends at operators that bind weaker than `power`."""
        lexer = self.lexer
        left = self._operand()
        while lexer.kind == "mark" and lexer.text in BINARY_OPERATORS:
            strength = BINARY_OPERATORS[lexer.text][0]
            if strength < power:
                break
            place = lexer.index
            operator = lexer.next()
            lexer.enter()
            right = self.expression(strength if operator == "**" else strength + 1)
            lexer.leave()
            try:
                left = apply_operator(operator, left, right)
            except ValueError as error:
                raise lexer.error(str(error), index=place) from error
        return int(left) if isinstance(left, sympy.Integer) else left

    def _operand(self) -> Any:
        lexer = self.lexer
        kind = lexer.kind
        if kind == "int":
            return lexer.next_int()
        if kind == "float":
            return float(lexer.next())
        if lexer.accept("-"):
            place = lexer.index - 1
            lexer.enter()
            value = self.expression(UNARY_POWER)
            lexer.leave()
            try:
                return negate(value)
            except ValueError as error:
                raise lexer.error(str(error), index=place) from error
        if lexer.accept("("):
            lexer.enter()
            value = self.expression()
            lexer.leave()
            lexer.expect(")")
            return value
        if kind == "name":
            place = lexer.index
            name = lexer.next()
            if lexer.accept("("):
                args = self._list(")", self.expression)
                try:
                    return apply_function(name, args)
                except ValueError as error:
                    raise lexer.error(str(error), index=place) from error
            if name in _CONSTANTS:
                return _CONSTANTS[name]
            if "." in name or name in _KEYWORDS:
                raise lexer.error(f"{name!r} is not the name of a symbol", index=place)
            return self._symbol(name)
        raise lexer.error(f"expected a number or an expression, found {lexer.describe()}")

    def _list(self, end: str, element: Callable[[], Any]) -> list[Any]:
        """Return the elements up to the mark `end`, separated by commas."""
        lexer = self.lexer
        items: list[Any] = []
        if lexer.accept(end):
            return items
        lexer.enter()
        while True:
            items.append(element())
            if lexer.accept(end):
                lexer.leave()
                return items
            if not lexer.accept(","):
                raise lexer.error(f"expected ',' or {end!r}, found {lexer.describe()}")

    # Types

    def dims(self) -> list[Dim]:
        """Return known dimensions in brackets."""
        self.lexer.expect("[")
        return self._list("]", self._known_dim)

    def _known_dim(self) -> Dim:
        place = self.lexer.index
        dim = self.dim()
        if dim is None:
            raise self.lexer.error("expected an int or an expression over symbols", index=place)
        return dim

    def dim(self) -> Dim | None:
        """Return a dimension, None for `?`."""
        lexer = self.lexer
        if lexer.accept("?"):
            return None
        place = lexer.index
        value = self.expression()
        if type(value) is int and value < 0:
            raise lexer.error("a dimension cannot be negative", index=place)
        if type(value) is int or (isinstance(value, sympy.Expr) and value.free_symbols):
            return value
        raise lexer.error("expected a dimension: an int, an expression over symbols, or '?'", index=place)

    def type(self) -> Type:
        """Return a type."""
        lexer = self.lexer
        name = lexer.text
        bracket = lexer.texts[lexer.index + 1] if lexer.kind != END else ""
        if bracket == "[":
            return self._tensor_type()
        place = lexer.index
        if lexer.accept("?"):
            return UNKNOWN_TENSOR
        if lexer.accept("opaque"):
            return OpaqueType()
        if name in ("int", "float", "bool"):
            lexer.next()
            if not lexer.accept("("):
                return ScalarType(name)
            value = self.expression()
            lexer.expect(")")
            if type(value) is not int and not isinstance(value, sympy.Expr):
                raise lexer.error("the value of a scalar type is an int or an expression over symbols", index=place)
            return ScalarType(name, value)
        raise lexer.error(f"expected a type, found {lexer.describe()}", remedy="write it as `f32[2, 3]`, `int` or `?`")

    def _tensor_type(self) -> TensorType:
        lexer = self.lexer
        first = lexer.index
        try:
            end = lexer.texts.index("]", first)
        except ValueError:
            end = first  # `expect` below reports what is missing
        key = " ".join(lexer.texts[first : end + 1])
        known = self._types.get(key)
        if known is not None:
            type_, count = known
            lexer.index += count
        else:
            name = lexer.next()
            dtype = None if name == "?" else _dtype(name)
            if dtype is None and name != "?":
                raise lexer.error(
                    f"there is no dtype {name!r}", index=first, remedy=f"use one of {', '.join(DTYPES_BY_NAME)}"
                )
            lexer.expect("[")
            shape: tuple[Dim | None, ...] | None = None
            if lexer.at("*") and lexer.texts[lexer.index + 1] == "]":
                lexer.index += 2
            else:
                shape = tuple(self._list("]", self.dim))
            type_ = TensorType(shape, dtype, CPU)
            self._types[key] = (type_, lexer.index - first)
        return attrs.evolve(type_, device=self._device()) if lexer.accept("@") else type_

    def _device(self) -> torch.device | None:
        lexer = self.lexer
        if lexer.accept("?"):
            return None
        place = lexer.index
        text = lexer.expect_kind("name", "a device")
        if lexer.accept(":"):
            text += ":" + lexer.expect_kind("int", "the number of a device")
        try:
            return torch.device(text)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise lexer.error(f"there is no device {text!r}", index=place) from error

    # Attributes

    def attribute(self) -> Attribute:
        """Return an attribute value."""
        lexer = self.lexer
        kind, text = lexer.kind, lexer.text
        if kind == "int" and lexer.texts[lexer.index + 1] in (",", "]", "}"):
            return lexer.next_int()
        if text == "[":
            lexer.next()
            return tuple(self._list("]", self.attribute))
        if kind == "string":
            return lexer.expect_string("a string")
        if kind == "value":
            if self._refer is None:
                raise lexer.error("a value cannot stand here")
            return self._refer()
        if kind == "name":
            if text in _KEYWORDS:
                lexer.next()
                return _KEYWORDS[text]
            if text.startswith("torch."):
                return self._torch_constant()
            if lexer.texts[lexer.index + 1] == "(" and text in _CONSTRUCTORS:
                place = lexer.index
                lexer.index += 2
                args = self._list(")", self.attribute)
                try:
                    return _CONSTRUCTORS[text](*args)
                except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
                    raise lexer.error(f"{text} does not take these arguments: {error}", index=place) from error
        place = lexer.index
        value = self.expression()
        if not isinstance(value, int | float | sympy.Expr | Relational):
            raise lexer.error(f"{value} is not an attribute value", index=place)
        return value

    def constant(self) -> Any:
        """Return a constant of the calling convention, or an argument of an opaque call.

        It is an attribute value, `list(...)`, `{key: value}` or `slice(start, stop, step)`.
        """
        lexer = self.lexer
        if lexer.accept("["):
            return tuple(self._list("]", self.constant))
        if lexer.accept("{"):
            place = lexer.index
            items = self._list("}", self._item)
            try:
                found = dict(items)
            except TypeError as error:
                raise lexer.error(f"not a dict: {error}", index=place) from error
            if len(found) != len(items):
                raise lexer.error("a key stands twice", index=place)
            return found
        if lexer.at("list") and lexer.texts[lexer.index + 1] == "(":
            lexer.index += 2
            return self._list(")", self.constant)
        if lexer.at("slice") and lexer.texts[lexer.index + 1] == "(":
            place = lexer.index
            lexer.index += 2
            parts = self._list(")", self.constant)
            if len(parts) != 3:
                raise lexer.error("a slice has a start, a stop and a step", index=place)
            return slice(*parts)
        return self.attribute()

    def _item(self) -> tuple[Any, Any]:
        place = self.lexer.index
        key = self.constant()
        if isinstance(key, Ref):
            raise self.lexer.error("a value is not a key", index=place)
        self.lexer.expect(":")
        return key, self.constant()

    def _torch_constant(self) -> Any:
        lexer = self.lexer
        place = lexer.index
        text = lexer.next()
        value = vars(torch).get(text.removeprefix("torch."))  # `getattr` could import modules
        if not isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            raise lexer.error(f"{text} is not a dtype, layout or memory format", index=place)
        return value

    # Locations

    def location(self) -> Location:
        """Return the location after the keyword `loc`."""
        lexer = self.lexer
        lexer.expect("loc")
        lexer.expect("(")
        fields: list[Any] = []
        merged: tuple[Location, ...] = ()
        for _ in lexer.items(")"):
            if lexer.accept("merged"):
                lexer.expect("[")
                merged = tuple(self._list("]", self.location))
            elif len(fields) < 3:
                fields.append(lexer.expect_string("a string"))
            elif len(fields) == 3:
                fields.append(lexer.expect_int("a line number"))
            else:
                raise lexer.error("a location has a module path, a class, a file and a line")
        defaults: list[Any] = ["", "", "", 0]
        path, class_, file, line = fields + defaults[len(fields) :]
        return Location(path, class_, file, line, merged)


def _dtype(name: str) -> torch.dtype | None:
    found = DTYPES_BY_NAME.get(name) or vars(torch).get(name)
    return found if isinstance(found, torch.dtype) else None


def _expression_constant(value: Any) -> sympy.Expr:
    if not isinstance(value, int | float | sympy.Expr):
        raise TypeError("expected a number")  # SymPy would run text as code
    return sympy.sympify(value)


def _unknown(class_name: Any) -> UnknownObject:
    if not isinstance(class_name, str):
        raise TypeError("expected the name of a class in quotes")
    return UnknownObject(class_name)


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "complex": complex,
    "device": torch.device,
    "expr": _expression_constant,
    "opaque": _unknown,
}
