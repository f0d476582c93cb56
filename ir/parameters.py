"""Parameters of the original `forward`, with defaults."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Sequence
from typing import Any

import attrs

from ir.attributes import literal_of


class ParameterKind(enum.Enum):
    """The kinds of `inspect.Parameter`."""

    POSITIONAL_ONLY = enum.auto()
    POSITIONAL_OR_KEYWORD = enum.auto()
    VAR_POSITIONAL = enum.auto()
    KEYWORD_ONLY = enum.auto()
    VAR_KEYWORD = enum.auto()


class NoDefault(enum.Enum):
    """The type of `NO_DEFAULT`."""

    NO_DEFAULT = enum.auto()


NO_DEFAULT = NoDefault.NO_DEFAULT
"""The default of a parameter that has none; None is a default."""


@attrs.frozen
class ParameterSpec:
    """A parameter of the original `forward`.

    `default` is a literal, a plain tuple, list or dict of literals, `NO_DEFAULT`, or an `UnknownObject` for anything
    else.
    """

    name: str
    kind: ParameterKind = ParameterKind.POSITIONAL_OR_KEYWORD
    default: Any = NO_DEFAULT


def parameters_of_signature(signature: inspect.Signature) -> tuple[ParameterSpec, ...]:
    """Return the parameters of a signature; of a default that is not a literal, only the class is kept."""
    return tuple(
        ParameterSpec(
            name,
            ParameterKind[parameter.kind.name],
            NO_DEFAULT if parameter.default is parameter.empty else literal_of(parameter.default),
        )
        for name, parameter in signature.parameters.items()
    )


def are_in_order(parameters: Sequence[ParameterSpec]) -> bool:
    """Return whether Python allows parameters of these kinds in this order."""
    kinds = [parameter.kind for parameter in parameters]
    once = all(kinds.count(kind) <= 1 for kind in (ParameterKind.VAR_POSITIONAL, ParameterKind.VAR_KEYWORD))
    return once and kinds == sorted(kinds, key=lambda kind: kind.value)
