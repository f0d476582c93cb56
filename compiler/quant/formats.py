"""What a rule may ask for: the integers of a place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from compiler.quant.observe.observers import OBSERVERS
from compiler.quant.quantizers import Quantizer
from ir.errors import InputError
from passes.quant.place import Placement
from passes.quant.rules import Rules


def _check_bits(instance: Int8, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or not 2 <= value <= 8:
        raise InputError(f"there are no integers of {attribute.name}={value!r}", remedy="give a number from 2 to 8")


def _check_observer(instance: Int8, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and value not in OBSERVERS:
        raise InputError(f"there is no {attribute.name} {value!r}", remedy=f"use one of {', '.join(OBSERVERS)}")


@attrs.frozen
class Int8:
    """Integers of eight bits.

    Attributes:
        weight_bits: the bits of weights, 2 to 8; fewer than 8 are stored in 8.
        observer: how ranges are chosen; None leaves it to `quantize`.
    """

    weight_bits: int = attrs.field(default=8, validator=_check_bits)
    observer: str | None = attrs.field(default=None, validator=_check_observer)


def checked_rules(rules: Any) -> Rules:
    """Return the user's rules.

    Raises:
        InputError: when a key matches no places, or a value is neither None nor an `Int8`.
    """
    made = Rules.of(rules)
    for rule in made.rules:
        if not (rule.value is None or isinstance(rule.value, Int8)):
            raise InputError(f"the rule {rule} has the value {rule.value!r}", remedy="use None for float, or Int8(...)")
    return made


def check_formats(placement: Placement, rules: Rules) -> None:
    """Demand that each rule that gives a format decides on a place in integers, if it decides on any.

    Raises:
        InputError: when all places that it decides on stay in float.
    """
    for rule in rules.rules:
        decided = [place for place in placement.places if rule.value is not None and rules.find(place.site) is rule]
        if decided and not any(place.is_placed for place in decided):
            place = decided[0]
            raise InputError(
                f"the rule {rule} gives a format to what stays in float in the table of {placement.table}: "
                f"{place.site.kind} at `{place.module}`, since {place.reason}",
                location=place.location,
                remedy=f"leave the rule out; a table with a row for {place.site.kind} puts it in integers "
                "(docs/targets.md)",
            )


def apply_formats(placement: Placement, rules: Rules, default: Int8, found: Mapping[str, Quantizer]) -> dict[str, str]:
    """Give weights the bits that rules ask for; return name of a scale -> its observer, where a rule names one.

    Where places that share a scale have different rules, the fewest bits count, and the observer of the last.
    """
    observers: dict[str, str] = {}
    for place in placement.placed:
        format_ = rules.choose(place.site, default)
        entry = found.get(place.scale)
        if entry is None:
            continue
        if format_.observer is not None:
            observers[place.scale] = format_.observer
        if entry.weight is not None and format_.weight_bits < 8:
            highest = min(2 ** (format_.weight_bits - 1) - 1, entry.ends[1])
            for op in entry.operations:
                op.set_attribute("quant_min", -highest)
                op.set_attribute("quant_max", highest)
    return observers
