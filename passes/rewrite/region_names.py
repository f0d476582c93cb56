"""Checks of the names of fused regions, which become classes, submodules and arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ir.attributes import Attribute
from ir.core import Operation
from ir.errors import PatternError

# What the emitted modules have besides what `nn.Module` has.
_OF_REGIONS = frozenset({"kind", "parts", "optional", "quantization_points"})
_MODULE = nn.Module()


def parts_of(region: Operation) -> tuple[str, ...]:
    """Return the names of the parts of a region, one for each operation of its body; empty where it has no name."""
    assert region.body is not None
    given: Any = region.attributes.get("parts")
    return tuple(given) if given else ("",) * region.body.num_operations


def parts_attribute(names: Sequence[str]) -> dict[str, Attribute]:
    """Return the attribute that names the parts of a region; none where no part has a name."""
    return {"parts": tuple(names)} if any(names) else {}


def check_kind(kind: object) -> None:
    """Check the kind of a region: the operation is `fused.<kind>`, and the emitted class is named after it.

    Raises:
        PatternError: when it is not an identifier.
    """
    if not (isinstance(kind, str) and kind.isidentifier()):
        raise PatternError(f"the kind {kind!r} of a region is not an identifier", remedy='name it like "conv_bn_act"')


def check_parts(names: Iterable[object]) -> None:
    """Check the names of parts: each becomes the name of a submodule.

    Raises:
        PatternError: when one is not an identifier, or an attribute that every module has.
    """
    for name in _each(names, "parts"):
        if not (isinstance(name, str) and name.isidentifier()):
            raise PatternError(
                f"the part {name!r} of a region cannot name a submodule: it is not an identifier",
                remedy='name it like "conv", without dots',
            )
        if name in _OF_REGIONS or hasattr(_MODULE, name):
            raise PatternError(
                f"the part {name!r} of a region cannot name a submodule: modules have an attribute of this name",
                remedy=f'choose another name, such as "{name}_part"',
            )


def check_inputs(names: Iterable[object], what: str = "inputs") -> None:
    """Check the names of a region's operands.

    Raises:
        PatternError: when one is not an identifier.
    """
    for name in _each(names, what):
        if not (isinstance(name, str) and name.isidentifier()):
            raise PatternError(
                f"the name {name!r} in the {what} of a region is not an identifier", remedy='name it like "input"'
            )


def _each(names: Iterable[object], what: str) -> tuple[object, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise PatternError(f"the {what} of a region are {names!r}, not a list of names", remedy=f'write `("{names}",)`')
    return tuple(names)
