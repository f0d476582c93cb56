"""Arguments of managers: lists of passes, of instruments and of classes, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ir.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What pipeline text can spell."""

_T = TypeVar("_T")


def tuple_of(given: Iterable[_T], base: type[_T], what: str, example: str) -> tuple[_T, ...]:
    """Return a list of passes or instruments as a tuple.

    Raises:
        InputError: when it is none, or an entry is no instance of `base`.
    """
    # a manager is iterable, but taking it apart would lose its instruments and rounds
    if isinstance(given, (base, type, str)) or not isinstance(given, Iterable):
        raise InputError(f"the {what} of a manager are {shown(given)}, not a list", remedy=f"write `{example}`")
    entries = tuple(given)
    for entry in entries:
        if not isinstance(entry, base):
            article = "an" if base.__name__[0] in "AEIOU" else "a"
            raise InputError(
                f"{shown(entry)} is not {article} {base.__name__}",
                remedy=f"pass instances of {base.__name__}: `{example}`",
            )
    return entries


def shown(given: Any) -> str:
    """Return the text of a wrong argument: classes and passes as the user writes them."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return f"the pass `{given}`" if hasattr(given, "ensures") else repr(given)


def by_name(classes: Iterable[Any], base: type, key: Callable[[Any], str], argument: str) -> dict[str, type[Any]]:
    """Return classes by name.

    Raises:
        InputError: when they are not a list of classes derived from `base`.
    """
    if isinstance(classes, (str, type, base)) or not isinstance(classes, Iterable):
        raise InputError(f"`{argument}` is {shown(classes)}, not a list of {base.__name__} classes")
    found: dict[str, type[Any]] = {}
    for entry in classes:
        if not (isinstance(entry, type) and issubclass(entry, base)):
            remedy = (
                f"pass the class itself, `{argument}=[{type(entry).__name__}]`" if isinstance(entry, base) else None
            )
            raise InputError(f"{shown(entry)} in `{argument}` is not a subclass of {base.__name__}", remedy=remedy)
        found[key(entry)] = entry
    return found


def name_of(cls: type[Any]) -> str:
    """Return the name of a pass class.

    Raises:
        InputError: when it has none, or one that pipeline text could not spell.
    """
    if isinstance(cls.name, str) and _NAME.fullmatch(cls.name):
        return cls.name
    what = f"the name {cls.name!r}, which is not a word of letters, digits and `-`" if cls.name else "no name"
    raise InputError(
        f"the pass class {cls.__qualname__} has {what}",
        remedy='give it a kebab-case one: `name: ClassVar[str] = "my-pass"`',
    )
