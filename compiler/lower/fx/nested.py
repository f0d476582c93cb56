"""Arguments and results in tuples, lists, dicts and slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def map_nested(item: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each leaf; named tuples keep their class, FX's immutable containers become plain ones."""
    if isinstance(item, tuple):
        parts = [map_nested(part, function) for part in item]
        if hasattr(item, "_fields"):
            return type(item)(*parts)
        return type(item)(parts) if type(item).__module__ == "torch.return_types" else tuple(parts)
    if isinstance(item, list):
        return [map_nested(part, function) for part in item]
    if isinstance(item, dict):
        return {key: map_nested(part, function) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(map_nested(part, function) for part in (item.start, item.stop, item.step)))
    return function(item)


def leaves_of(item: Any) -> list[Any]:
    """Return all leaves, in order."""
    found: list[Any] = []
    map_nested(item, found.append)
    return found
