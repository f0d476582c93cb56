"""What is kept from one call to the next: whoever changes code at run time can have all of it forgotten at once."""

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
    """A dict of what was computed, for the life of the process or until it is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        _CLEAR.append(self.clear)


class WeakCache(WeakKeyDictionary[_K, _V]):
    """What was computed for objects, as long as these live or until it is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        _CLEAR.append(self.clear)


def cached(most: int | None = None) -> Callable[[Callable[_P, _V]], Callable[_P, _V]]:
    """Return a decorator that keeps the results of a function, by its arguments.

    Args:
        most: how many results are kept, those that were asked for last; None keeps all.
    """

    def decorate(function: Callable[_P, _V]) -> Callable[_P, _V]:
        keeping = functools.lru_cache(maxsize=most)(function)
        _CLEAR.append(keeping.cache_clear)
        return keeping  # type: ignore[return-value]

    return decorate


def forget() -> None:
    """Drop all that is kept: it is computed again when it is asked for."""
    for clear in _CLEAR:
        clear()
