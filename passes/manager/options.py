"""Options of passes: the fields of their classes, checked by annotation, and written in pipeline text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ir.errors import InputError, PatternError
from passes.rewrite.pattern import Pattern, instantiate

PATTERNS: Mapping[str, bool] = {"patterns": True}
"""Metadata of a field whose text form is a list of pattern names."""

_PLAIN_OPTIONS: dict[Any, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "int": ((int,), "an int"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
}
"""Annotation of a field -> the types of its values, and their name in messages; other fields check themselves."""


def check_option(pass_: Any, field: Any) -> None:
    """Check an option by its annotation, which is text or a class.

    Raises:
        InputError: when the value is of another type.
    """
    wanted = _PLAIN_OPTIONS.get(getattr(field.type, "__name__", field.type))
    value = getattr(pass_, field.name)
    if wanted is None or (isinstance(value, wanted[0]) and (type(value) is not bool or bool in wanted[0])):
        return
    raise InputError(
        f"the option `{field.name}` of pass `{pass_.name}` is {value!r}, not {wanted[1]}",
        remedy=f"write `{type(pass_).__name__}({field.name}=...)` with {wanted[1]}, or leave it out",
    )


def takes_passes(cls: type[Any]) -> bool:
    """Whether a class is given the passes that it runs, rather than making them itself."""
    return any(field.name == "passes" and field.init for field in attrs.fields(cls))


def options_of(cls: type[Any]) -> tuple[Any, ...]:
    """Return the fields of a class of passes that are options in text."""
    return tuple(field for field in attrs.fields(cls) if field.init and field.name not in ("passes", "instruments"))


def format_options(pass_: Any) -> str:
    """Return the options of a pass that are not the default, as in `{max-rounds=4}`."""
    given = {f.name: getattr(pass_, f.name) for f in options_of(type(pass_)) if getattr(pass_, f.name) != f.default}
    options = [f"{name.replace('_', '-')}={_format(value)}" for name, value in given.items()]
    return f"{{{' '.join(options)}}}" if options else ""


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_format(item) for item in value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Pattern):
        return value.name
    return str(value)


def as_patterns(patterns: Sequence[type[Pattern] | Pattern]) -> tuple[type[Pattern] | Pattern, ...]:
    """Convert the value of an option that takes patterns: use `converter=as_patterns, metadata=PATTERNS`.

    Raises:
        PatternError: when an entry is not a pattern, or there is none.
    """
    if not instantiate(patterns):
        raise PatternError(
            "the pass has no patterns, so it would do nothing",
            remedy="name them, `Fuse([MyPattern])` or in text `fuse{patterns=MyPattern}`, or leave the pass out",
        )
    return tuple(patterns)
