"""The literals in the code of a rule: drawn more often than others, they meet its conditions."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from passes.pattern import Pattern


def dictionary_of(rule: Pattern) -> list[Any]:
    """Return the literals in the code of a rule (and of the functions of its module that it names), in order."""
    class_ = type(rule)
    found: dict[Any, Any] = {}
    pending: list[Any] = []
    for base in class_.__mro__:
        if base is not object and base is not Pattern:
            pending += [vars(base).get(name) for name in ("pattern", "check", "rewrite")]
    seen: set[types.CodeType] = set()
    while pending:
        item = pending.pop(0)
        code, names = (item.__code__, item.__globals__) if isinstance(item, types.FunctionType) else (None, {})
        if code is None or code in seen:
            continue
        seen.add(code)
        for literal in _literals(code):
            found.setdefault((type(literal), repr(literal)), literal)
            if literal == 0:
                found.setdefault((float, "-0.0"), -0.0)  # a zero in the code may mean one sign only
        home = names.get("__name__")
        pending += [
            function
            for name in code.co_names
            if isinstance(function := names.get(name), types.FunctionType) and function.__module__ == home
        ]
    return list(found.values())


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
