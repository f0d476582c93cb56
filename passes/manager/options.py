"""Options of passes: the fields of their classes, checked by annotation, and written in pipeline text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ir.errors import InputError, PassError, PatternError
from passes.rewrite.bounds.tolerance import Tolerance, format_tolerance
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.scope import Scope, format_keys

PATTERNS: Mapping[str, bool] = {"patterns": True}
"""Metadata of a field whose text form is a list of pattern names."""

KEYS: Mapping[str, bool] = {"keys": True}
"""Metadata of a field whose text form is a list of keys of a scope."""

TOLERANCE: Mapping[str, bool] = {"tolerance": True}
"""Metadata of a field whose text form is one of `format_tolerance`."""

OF_ALL = ("only", "skip", "label")
"""The options that every pass has, which come last in text."""
_NO_OPTIONS = ("passes", "instruments", "bound_scope")
_LABEL = re.compile(r"[A-Za-z0-9_-]*")

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


def check_own_names(cls: type[Any]) -> None:
    """Check that a class of passes gives no other meaning to the options that every pass has.

    Raises:
        PassError: when it has one of its own.
    """
    own = {*vars(cls), *vars(cls).get("__annotations__", {})}
    for name in OF_ALL:
        if name in own:
            raise PassError(
                f"the pass class {cls.__qualname__} has a `{name}` of its own, which every pass has: it says where a "
                "pass applies, or tells it from others",
                remedy=f"give the option another name than {', '.join(map(repr, OF_ALL))}",
            )


def check_label(pass_: Any, field: Any, label: Any) -> None:
    """Check the label of a pass.

    Raises:
        InputError: when it is no word that pipeline text could spell.
    """
    if not (isinstance(label, str) and _LABEL.fullmatch(label)):
        raise InputError(
            f"the label of pass `{pass_.name}` is {label!r}", remedy="use a word of letters, digits, `_` and `-`"
        )


def takes_passes(cls: type[Any]) -> bool:
    """Whether a class is given the passes that it runs, rather than making them itself."""
    return any(field.name == "passes" and field.init for field in attrs.fields(cls))


def options_of(cls: type[Any]) -> tuple[Any, ...]:
    """Return the fields of a class of passes that are options in text."""
    fields = {field.name: field for field in attrs.fields(cls) if field.init}
    last = [field for field in fields.values() if field.metadata.get("tolerance")]
    last += [fields[name] for name in OF_ALL if name in fields]
    return (*own_options_of(cls), *last)


def own_options_of(cls: type[Any]) -> tuple[Any, ...]:
    """Return the options of a class of passes that not every pass, and not every manager, has."""
    shared = (*OF_ALL, *_NO_OPTIONS)
    return tuple(
        field
        for field in attrs.fields(cls)
        if field.init and field.name not in shared and not field.metadata.get("tolerance")
    )


def format_options(pass_: Any) -> str:
    """Return the options of a pass that are not the default, as in `{max-rounds=4}`."""
    given = [
        (field, value) for field in options_of(type(pass_)) if (value := getattr(pass_, field.name)) != field.default
    ]
    options = [
        f"{field.name.replace('_', '-')}={format_keys(value) if field.metadata.get('keys') else _format(value)}"
        for field, value in given
    ]
    return f"{{{' '.join(options)}}}" if options else ""


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Tolerance):
        return format_tolerance(value)
    if isinstance(value, tuple):
        return ",".join(_format(item) for item in value)
    if isinstance(value, Pattern) or (isinstance(value, type) and issubclass(value, Pattern)):
        return _format_pattern(value)
    return value.__name__ if isinstance(value, type) else str(value)


def _format_pattern(pattern: Pattern | type[Pattern]) -> str:
    """Return the name of a pattern, with the scopes that `scoped` gave it: `ConvBNPattern(skip=head)`."""
    name, scopes = pattern.name if isinstance(pattern, Pattern) else pattern.__name__, ""
    while "scoped_from" in vars(pattern) and pattern.scoped_from is not None:
        scopes = f"({Scope(pattern.only, pattern.skip)}){scopes}"
        pattern = pattern.scoped_from
    return f"{name}{scopes}"


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
