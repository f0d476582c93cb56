"""Paths that users give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ir.errors import InputError


def checked_path(path: Any, what: str = "the file", example: str = "net.gw") -> Path:
    """Return a path that was given as text or as an object.

    Args:
        path: what was given.
        what: what it is the path of.
        example: a path that would do.

    Raises:
        InputError: when it is no path, or holds a NUL character, which no system allows.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise InputError(f"{what} is given as {path!r}, which is no path", remedy=f"give a path: `{example!r}`")
    name = os.fsdecode(path)
    if "\0" in name:
        raise InputError(f"{what} is given as {name!r}, and a path holds no NUL", remedy="leave that character out")
    return Path(name)
