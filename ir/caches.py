"""Caches that can all be cleared at once, for tools that change code at run time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

_K = TypeVar("_K")
_V = TypeVar("_V")
_P = ParamSpec("_P")

_CLEAR: list[Callable[[], None]] = []


class Cache(dict[_K, _V]):
    """A dict of results, kept until `forget`."""

    def __init__(self) -> None:
        super().__init__()
        _CLEAR.append(self.clear)


class WeakCache(WeakKeyDictionary[_K, _V]):
    """Results by object, kept while the object lives or until `forget`."""

    def __init__(self) -> None:
        super().__init__()
        _CLEAR.append(self.clear)


def cached(most: int | None = None) -> Callable[[Callable[_P, _V]], Callable[_P, _V]]:
    """Return a decorator that caches a function by its arguments.

    Args:
        most: the number of results to keep, the latest used; None keeps all.
    """

    def decorate(function: Callable[_P, _V]) -> Callable[_P, _V]:
        keeping = functools.lru_cache(maxsize=most)(function)
        _CLEAR.append(keeping.cache_clear)
        return keeping  # type: ignore[return-value]

    return decorate


def forget() -> None:
    """Clear every cache."""
    for clear in _CLEAR:
        clear()
