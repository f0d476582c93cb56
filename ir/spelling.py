"""Messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(unknown: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that look most like an unknown one, whatever their case."""
    folded = {name.lower(): name for name in sorted(known)}
    return [folded[near] for near in difflib.get_close_matches(unknown.lower(), folded, n=most)]


def did_you_mean(unknown: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy for an unknown name: the nearest known ones, or another remedy where none is near."""
    near = nearest(unknown, known)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def known_names(unknown: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    hint = "".join(f"did you mean {near!r}? " for near in nearest(unknown, names, 1))
    return f"{hint}known: {', '.join(names) or 'none'}"
