"""Which passes of a manager a text means, and edits of those: by name, by label, by position among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ir.errors import InputError
from passes.manager.options import takes_passes

_SELECTOR = re.compile(r"([A-Za-z0-9_-]+)(?:\[(-?\d+)\])?")

Edit = Callable[[Any], Sequence[Any]]
"""What a pass is replaced by."""


def edited(manager: Any, selector: str, edit: Edit) -> Any:
    """Return a manager in which the passes that a text means are replaced by what `edit` returns of each.

    A text means passes by name or label, in nested managers too; `fuse[1]` the second of them, `fuse[-1]` the last.

    Raises:
        InputError: when it means none.
    """
    found = _SELECTOR.fullmatch(selector) if isinstance(selector, str) else None
    if found is None:
        raise InputError(
            f"{selector!r} names no passes",
            remedy="write the name of a pass, or its label, and the position if several have it: 'fuse', 'fuse[1]'",
        )
    name, position = found[1], None if found[2] is None else int(found[2])
    count = _count(manager, name)
    if not count:
        raise InputError(f"there is no pass named {name!r} in `{manager}`", remedy="`print(manager)` shows the names")
    if position is not None and not -count <= position < count:
        several = f"are {count} passes" if count > 1 else "is one pass"
        raise InputError(
            f"there {several} named {name!r} in `{manager}`, and none is {selector}",
            remedy=f"the first is {name}[0], the last is {name}[-1]",
        )
    return _edited(manager, name, position if position is None else position % count, edit)[0]


def _is_called(pass_: Any, name: str) -> bool:
    return name in (pass_.name, pass_.label)


def _is_open(pass_: Any) -> bool:
    """Whether a pass is a manager whose passes may be edited."""
    return hasattr(pass_, "passes") and takes_passes(type(pass_))


def _count(manager: Any, name: str) -> int:
    return sum(
        1 if _is_called(pass_, name) else _count(pass_, name) if _is_open(pass_) else 0 for pass_ in manager.passes
    )


def _edited(manager: Any, name: str, position: int | None, edit: Edit) -> tuple[Any, int]:
    """Return the edited manager, and how many passes of the name it holds."""
    passes: list[Any] = []
    count = 0
    for pass_ in manager.passes:
        if _is_called(pass_, name):
            passes.extend(edit(pass_) if position in (None, count) else (pass_,))
            count += 1
        elif _is_open(pass_):
            inner, found = _edited(pass_, name, None if position is None else position - count, edit)
            passes.append(inner)
            count += found
        else:
            passes.append(pass_)
    return manager.with_passes(passes), count
