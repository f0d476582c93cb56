"""The literals in the code of a rule: drawn more often than others, they meet its conditions."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from passes.pattern import Pattern


def dictionary_of(rule: Pattern) -> list[Any]:
    """Return the numbers in the code of a rule (and of the functions of its module that it names), in order."""
    found: dict[Any, Any] = {}
    for code in _codes(rule):
        for literal in _literals(code):
            found.setdefault((type(literal), repr(literal)), literal)
            if literal == 0:
                found.setdefault((float, "-0.0"), -0.0)  # a zero in the code may mean one sign only
    return list(found.values())


def operators_named_by(rule: Pattern) -> frozenset[str]:
    """Return the texts in the code of a rule that may name an operator, such as `aten.stack`: it treats these apart."""
    return frozenset(
        text
        for code in _codes(rule)
        for constant in code.co_consts
        for text in (constant if isinstance(constant, (tuple, frozenset)) else (constant,))
        if isinstance(text, str) and text.startswith("aten.")
    )


def _codes(rule: Pattern) -> Iterator[types.CodeType]:
    """Yield the code of a rule, and of the functions of its module that it names."""
    pending: list[Any] = []
    for base in type(rule).__mro__:
        if base is not object and base is not Pattern:
            pending += [vars(base).get(name) for name in ("pattern", "check", "rewrite")]
    seen: set[types.CodeType] = set()
    while pending:
        item = pending.pop(0)
        code, names = (item.__code__, item.__globals__) if isinstance(item, types.FunctionType) else (None, {})
        if code is None or code in seen:
            continue
        seen.add(code)
        yield code
        home = names.get("__name__")
        pending += [
            function
            for name in code.co_names
            if isinstance(function := names.get(name), types.FunctionType) and function.__module__ == home
        ]


def _literals(code: types.CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _literals(constant)
        elif isinstance(constant, (int, float)):
            yield constant
        elif isinstance(constant, (tuple, frozenset)):
            items = sorted(constant, key=repr) if isinstance(constant, frozenset) else list(constant)
            numbers = [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]
            yield from numbers
            if numbers and len(numbers) == len(items):
                yield tuple(numbers)


def neutral_like(value: Any, name: str = "") -> tuple[Any, ...]:
    """Return what often changes nothing, in the form of `value`, an attribute of this name."""
    if isinstance(value, tuple):
        if name == "dims":
            return (tuple(range(len(value))),)
        return ((0,) * len(value), (1,) * len(value))
    return (0, 1) if isinstance(value, int) else (1.0, 0.0, -0.0)


def is_alike(a: Any, b: Any) -> bool:
    """Return whether a literal may stand where another value stands: it is of the same kind."""
    if isinstance(b, bool) or isinstance(a, bool):
        return isinstance(a, bool) and isinstance(b, bool)
    if isinstance(b, tuple):
        return isinstance(a, tuple)
    if isinstance(b, int):
        return isinstance(a, int)
    return isinstance(b, float) and isinstance(a, (int, float))


def holds(predicate: Callable[[Any], bool], value: Any) -> bool:
    """Return whether a predicate holds of a value; it need not take values of every type."""
    try:
        return bool(predicate(value))
    except Exception:  # noqa: BLE001 - it may raise anything
        return False
