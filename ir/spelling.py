"""Names: messages about unknown ones, and new ones beside those that are taken."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable


def nearest(unknown: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names most similar to an unknown one, ignoring case."""
    folded = {name.lower(): name for name in sorted(known)}
    return [folded[near] for near in difflib.get_close_matches(unknown.lower(), folded, n=most)]


def did_you_mean(unknown: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy for an unknown name: the nearest known ones, or `otherwise` if none is near."""
    near = nearest(unknown, known)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def known_names(unknown: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, and all known ones."""
    names = sorted(known)
    hint = "".join(f"did you mean {near!r}? " for near in nearest(unknown, names, 1))
    return f"{hint}known: {', '.join(names) or 'none'}"


def free_name(base: str, is_taken: Callable[[str], bool], numbers: dict[str, int] | None = None) -> str:
    """Return `base`, or the first of `base_1`, `base_2`, … that is not taken.

    Args:
        base: the name.
        is_taken: whether a name is.
        numbers: base -> the number that was found last. Where names that are taken stay so, it makes a series of calls
            linear; kept by the caller and written here.
    """
    if not is_taken(base):
        return base
    known = {} if numbers is None else numbers
    known[base] = next(n for n in itertools.count(known.get(base, 0) + 1) if not is_taken(f"{base}_{n}"))
    return f"{base}_{known[base]}"
