"""Messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def known_names(unknown: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(unknown.lower(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or 'none'}"
