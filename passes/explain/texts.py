"""Texts about operations, operands and values, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from ir.core import RETURN, Operation, Value
from ir.locations import Location
from ir.opdef import OpDef, Trait
from ir.program import weight_of

MOST_NAMED = 3
"""How many of several things a text names."""


def operator_names(ops: Any) -> tuple[str, ...]:
    """Return the operators that a part stands for, as texts."""
    given = (ops,) if isinstance(ops, Trait) else ops
    return tuple([f"an operator with {each}" if isinstance(each, Trait) else each.name for each in given])


def one_of(names: Sequence[str]) -> str:
    """Return names with "or" between them, the first few of many."""
    if not names:
        return "what the pattern wants"
    shown = names if len(names) <= MOST_NAMED + 1 else names[:MOST_NAMED]
    more = f" or one of {len(names) - len(shown)} others" if len(shown) < len(names) else ""
    return " or ".join(shown) + more


def place_of(op: Operation) -> str:
    """Return the name and the place of an operation."""
    return "an output of the model" if op.opdef is RETURN else f"{op.name} at `{short_place(op.location)}`"


def short_place(location: Location) -> str:
    """Return the module path, or else the line without the folder of its file."""
    if location.module_path or not location.file:
        return location.where
    return short_line(location)


def short_line(location: Location) -> str:
    """Return the user's line without the folder of its file: `net.py:12`."""
    return f"{PurePath(location.file).name}:{location.line}" if location.file else ""


def operand_name(opdef: OpDef, index: int) -> str:
    """Return the name of an operand: `operand `other``."""
    params = opdef.operand_params
    return f"operand `{params[index].name}`" if index < len(params) else f"operand {index}"


def source_of(value: Value | None) -> str:
    """Say where a value comes from."""
    if value is None:
        return "absent"
    op, weight = value.defining_op, weight_of(value)
    if op is not None:
        return place_of(op)
    if weight is not None:
        return f"the weight `{weight.name}`"
    return f"the input `{value.name}`" if value.name else "an input"
