"""The numbers in the code of a rule, which are drawn more often than others to meet its conditions."""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs

from compiler.usercode.locations import names_in
from passes.rewrite.pattern import Pattern

_MOST = 64
"""The most numbers that are taken from one table, and the most around which others are drawn."""
_METHODS = ("pattern", "check", "rewrite")
_LARGEST = 1024
"""The largest number in the code that may become a size."""


@attrs.frozen(eq=False)
class Numbers:
    """The numbers that a rule's code names, and their neighbors."""

    named: Sequence[Any]
    around: Sequence[Any] = attrs.field(init=False)
    """The neighbors of the numbers."""
    sizes: Sequence[int] = attrs.field(init=False)
    """The numbers that may become sizes, in order."""
    near_sizes: Sequence[int] = attrs.field(init=False)
    """The neighbors that may become sizes, in order."""

    @around.default
    def _beside(self) -> Sequence[Any]:
        return around(self.named)

    @sizes.default
    def _own_sizes(self) -> Sequence[int]:
        return _sizes(self.named)

    @near_sizes.default
    def _sizes_beside(self) -> Sequence[int]:
        return _sizes(self.around)


def _sizes(numbers: Sequence[Any]) -> list[int]:
    return sorted({n for n in numbers if type(n) is int and 0 < n <= _LARGEST})


def dictionary_of(rule: Pattern) -> list[Any]:
    """Return the numbers that a rule's code (and that of the functions it calls) names, in order.

    These are literals first, then what it takes from globals, closures, defaults, and attributes.
    """
    found: dict[Any, Any] = {}
    functions = list(_functions(rule))
    literals = (number for function in functions for number in _literals(function.__code__))
    named = (number for function in functions for item in _named(function, rule) for number in _numbers(item))
    for literal in itertools.chain(literals, named):
        found.setdefault((type(literal), repr(literal)), literal)
        if literal == 0:
            found.setdefault((float, "-0.0"), -0.0)  # the rule may mean one sign of zero only
    return list(found.values())


def around(dictionary: Sequence[Any]) -> list[Any]:
    """Return the neighbors of the numbers of a dictionary, on both sides: code may ask for more, or less."""
    found: dict[Any, Any] = {}
    for number in dictionary[:_MOST]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        beside = (number - 1, number + 1) if isinstance(number, int) else (number * 0.75, number * 1.5)
        for near in beside:
            found.setdefault((type(near), repr(near)), near)
    known = {(type(number), repr(number)) for number in dictionary}
    return [number for key, number in found.items() if key not in known]


def operators_named_by(rule: Pattern) -> frozenset[str]:
    """Return the texts in the code of a rule that may name an operator, such as `aten.stack`, as a special case."""
    return frozenset(
        text
        for function in _functions(rule)
        for constant in function.__code__.co_consts
        for text in (constant if isinstance(constant, (tuple, frozenset)) else (constant,))
        if isinstance(text, str) and text.startswith("aten.")
    )


def _functions(rule: Pattern) -> Iterator[types.FunctionType]:
    """Yield a rule's methods, and the functions that they reach by name in its module, its class and closures."""
    pending: list[Any] = []
    for base in type(rule).__mro__:
        if base is not object and base is not Pattern:
            pending += [vars(base).get(name) for name in _METHODS]
    seen: set[types.CodeType] = set()
    while pending:
        function = function_of(pending.pop(0))
        if function is None or function.__code__ in seen:
            continue
        seen.add(function.__code__)
        yield function
        homes = {function.__globals__.get("__name__"), type(rule).__module__}
        pending += [
            item
            for item in _named(function, rule)
            if (inner := function_of(item)) is not None and inner.__module__ in homes
        ]


def function_of(item: Any) -> types.FunctionType | None:
    """Return the Python function behind an object that is one: a method, a property, or one that is wrapped."""
    if isinstance(item, (staticmethod, classmethod)):
        item = item.__func__
    elif isinstance(item, property):
        item = item.fget
    elif isinstance(item, functools.cached_property):
        item = item.func
    while hasattr(item, "__wrapped__") and not isinstance(item, types.FunctionType):
        item = item.__wrapped__
    return item if isinstance(item, types.FunctionType) else None


def _named(function: types.FunctionType, rule: Pattern) -> Iterator[Any]:
    """Yield what a function refers to, without running it: globals, its closure, defaults, attributes."""
    names = list(dict.fromkeys(names_in(function.__code__)))
    found: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            found.append(cell.cell_contents)
    found += [function.__globals__[name] for name in names if name in function.__globals__]
    pending, seen = [rule, *found], set()
    while pending:
        holder = pending.pop(0)
        if id(holder) in seen or not (holder is rule or _holds_constants(holder)):
            continue
        seen.add(id(holder))
        items = [item for name in names if (item := _attribute(holder, name)) is not None]
        found += items
        pending += items
    yield from found


def _attribute(holder: Any, name: str) -> Any:
    item = inspect.getattr_static(holder, name, None)
    return getattr(holder, name, None) if isinstance(item, types.MemberDescriptorType) else item


def _holds_constants(item: Any) -> bool:
    """Return whether an object may hold constants: a module, a class, an object of a user's class."""
    if isinstance(item, types.ModuleType):
        return True
    kind = item if isinstance(item, type) else type(item)
    return kind.__module__ not in ("builtins", "typing", "functools", "torch") and not isinstance(item, Pattern)


def _literals(code: types.CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _literals(constant)
        else:
            yield from _numbers(constant, booleans=True)


def _numbers(item: Any, *, booleans: bool = False) -> Iterator[Any]:
    """Yield a number, or the numbers of a table; a row of numbers also as a whole."""
    if isinstance(item, enum.Enum):
        item = None if isinstance(item, enum.Flag) else item.value  # the number of a flag means nothing
    if isinstance(item, bool):
        if booleans:
            yield item
    elif isinstance(item, (int, float)):
        yield item
    elif isinstance(item, Mapping):
        yield from itertools.islice(_numbers([*item, *item.values()]), _MOST)
    elif isinstance(item, (tuple, list, set, frozenset, range)):
        items = sorted(item, key=repr) if isinstance(item, (set, frozenset)) else list(item[:_MOST])
        numbers = [each for each in items if isinstance(each, (int, float)) and not isinstance(each, bool)]
        yield from numbers[:_MOST]
        if numbers and len(numbers) == len(items):
            yield tuple(numbers)
        yield from itertools.islice(
            (n for row in items if isinstance(row, (tuple, list)) for n in _numbers(row)), _MOST
        )


def neutral_like(value: Any, name: str = "") -> tuple[Any, ...]:
    """Return values of the form of `value`, an attribute of this name, that often change nothing."""
    if isinstance(value, tuple):
        if name == "dims":
            return (tuple(range(len(value))),)
        return ((0,) * len(value), (1,) * len(value))
    return (0, 1) if isinstance(value, int) else (1.0, 0.0, -0.0)


def is_alike(a: Any, b: Any) -> bool:
    """Return whether a literal may replace another value: it is of the same kind."""
    if isinstance(b, bool) or isinstance(a, bool):
        return isinstance(a, bool) and isinstance(b, bool)
    if isinstance(b, tuple):
        return isinstance(a, tuple)
    if isinstance(b, int):
        return isinstance(a, int)
    return isinstance(b, float) and isinstance(a, (int, float))


def holds(predicate: Callable[[Any], bool], value: Any) -> bool:
    """Return whether a predicate holds of a value; where it raises, it does not."""
    try:
        return bool(predicate(value))
    except Exception:  # noqa: BLE001 - it may raise anything
        return False
