"""What a rule may ask for: the integers of a place."""

from __future__ import annotations

import attrs

from compiler.quant.observers import OBSERVERS
from ir.errors import InputError


def _check_bits(instance: Int8, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or not 2 <= value <= 8:
        raise InputError(f"Int8({attribute.name}={value!r})", remedy="give a number of bits from 2 to 8")


def _check_observer(instance: Int8, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and value not in OBSERVERS:
        raise InputError(f"Int8({attribute.name}={value!r})", remedy=f"use one of {', '.join(OBSERVERS)}")


@attrs.frozen
class Int8:
    """Integers of eight bits, or of fewer that are stored in eight.

    Attributes:
        weight_bits: bits of weights, 2 to 8; of fewer than 8, only the range of the integers is smaller.
        activation_bits: the same of values that a call computes.
        observer: how the ranges of these values are chosen; None leaves it to `quantize`.
    """

    weight_bits: int = attrs.field(default=8, validator=_check_bits)
    activation_bits: int = attrs.field(default=8, validator=_check_bits)
    observer: str | None = attrs.field(default=None, validator=_check_observer)
