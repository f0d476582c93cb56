"""Searches that draw the same numbers in every process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ir.caches import cached

_MOST = 1024
"""What is kept for so many ranges of numbers."""


@contextmanager
def only_common_constants() -> Iterator[None]:
    """Keep hypothesis from drawing constants of the local modules that its process has imported so far.

    With them, one seed would mean different programs in a worker process, after another search, or under pytest. The
    constants of a rule's own code are drawn by `fuzz.rules.dictionary`.
    """
    providers: Any = None
    with suppress(ImportError):
        providers = importlib.import_module("hypothesis.internal.conjecture.providers")
    found = getattr(providers, "_get_local_constants", None)
    if found is None:  # versions before 6.131
        yield
        return
    none = providers.Constants()
    # the cache also holds the permitted local constants
    others, providers.CONSTANTS_CACHE = providers.CONSTANTS_CACHE, _permitted()
    providers._get_local_constants = lambda: none
    try:
        yield
    finally:
        providers._get_local_constants = found
        providers.CONSTANTS_CACHE = others


@cached()
def _permitted() -> Any:
    """The cache of what is permitted of the common constants, for all searches."""
    providers: Any = importlib.import_module("hypothesis.internal.conjecture.providers")
    return type(providers.CONSTANTS_CACHE)(_MOST)
