"""Placement tables as data: which operands of which kind of region a target wants in integers, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ir.errors import InputError
from ir.spelling import did_you_mean, known_names
from passes.quant.tables.conditions import CONDITIONS, Condition

ANY = "*"
"""In `inputs`: every operand that is a floating-point value and no weight."""

LAYOUT = "layout"
"""The kind of all operations that move elements and compute none."""


@attrs.frozen
class IntegerType:
    """A type of integers that values are quantized to.

    Attributes:
        name: as rows name it: `u8`.
        dtype: torch.uint8, with a zero point, or torch.int8, symmetric about 0.
        quant_min: the smallest integer, where it is not the dtype's.
        quant_max: the largest.
    """

    name: str
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None

    @property
    def greatest(self) -> int:
        """The largest integer."""
        return torch.iinfo(self.dtype).max if self.quant_max is None else self.quant_max


TYPES: Mapping[str, IntegerType] = {
    each.name: each
    for each in (
        IntegerType("u8", torch.uint8),
        IntegerType("s8", torch.int8),
        IntegerType("s7", torch.int8, -64, 63),
    )
}
"""The types by name; `s7` is for processors without VNNI (`Table.without_vnni`)."""

UNSIGNED_IF_POSITIVE = "u8 or s8"
"""In rows: `u8` for values that are never negative, as behind a ReLU, else `s8`."""


def integer_type(name: str, *, never_negative: bool) -> IntegerType:
    """Return the type that a name of a row means for one value."""
    if name == UNSIGNED_IF_POSITIVE:
        name = "u8" if never_negative else "s8"
    return TYPES[name]


def _check_type(row: Row, attribute: Any, value: Any) -> None:
    names = value.values() if isinstance(value, Mapping) else (value,)
    for name in names:
        if name not in (*TYPES, UNSIGNED_IF_POSITIVE, ""):
            raise InputError(
                f"the row {row.kind!r} has the type {name!r} in `{attribute.name}`",
                remedy=f"use one of {', '.join(map(repr, (*TYPES, UNSIGNED_IF_POSITIVE)))}",
            )


def _check_inputs(row: Row, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise InputError(
            f"the row {row.kind!r} has inputs={value!r}",
            remedy='name operands, `{"input": "u8"}`, or mean every value: `{"*": "u8"}`',
        )
    _check_type(row, attribute, value)


def _check_weights(row: Row, attribute: Any, value: Any) -> None:
    _check_type(row, attribute, value)
    if value and (value not in TYPES or not TYPES[value].dtype.is_signed):
        signed = [name for name, type_ in TYPES.items() if type_.dtype.is_signed]
        raise InputError(
            f"the row {row.kind!r} has weights of type {value!r}, and weights are symmetric",
            remedy=f"use one of {', '.join(map(repr, signed))}",
        )


def _check_conditions(row: Row, attribute: Any, value: Any) -> None:
    for each in value:
        if not (callable(each) or (isinstance(each, str) and each in CONDITIONS)):
            raise InputError(
                f"the row {row.kind!r} has the condition {each!r}; {known_names(str(each), CONDITIONS)}",
                remedy="name one of these, or give a function of the operation and the decisions",
            )


def _names(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) or callable(value) else tuple(value)


@attrs.frozen
class Row:
    """What a target wants of one kind of region or operator.

    Without `inputs`, `outputs`, `weights` and `carries` the kind stays in float, and the row says why.

    Attributes:
        kind: the kind of a region, `conv_bn_act`; an operator, `aten.cat`; or `layout`.
        inputs: operand -> type of its integers; `"*"` stands for every value.
        outputs: the type of the integers that it writes, where the target wants a quantizer behind it as well.
        weights: the type of the weights of convolutions and linear layers, with a scale for each output channel.
        carries: whether integers pass through it as they are, with the parameters they have.
        shares: whether all its inputs, and its output, must have the same parameters.
        together: whether its inputs are quantized all or none.
        when: conditions, by name (`CONDITIONS`) or as functions; each must hold.
        reason: why, in words for the user.
        source: where that is written.
    """

    kind: str
    inputs: Mapping[str, str] = attrs.field(factory=dict, validator=_check_inputs)
    outputs: str = attrs.field(default="", validator=_check_type)
    weights: str = attrs.field(default="", validator=_check_weights)
    carries: bool = False
    shares: bool = False
    together: bool = False
    when: tuple[str | Condition, ...] = attrs.field(default=(), converter=_names, validator=_check_conditions)
    reason: str = attrs.field(default="", kw_only=True)
    source: str = attrs.field(default="", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not (self.reason and self.source):
            raise InputError(
                f"the row {self.kind!r} has no {'source' if self.reason else 'reason'}",
                remedy="say why the target wants this, and where that is written",
            )

    @property
    def is_float(self) -> bool:
        """Whether the kind stays in float."""
        return not (self.inputs or self.outputs or self.weights or self.carries)

    def describe(self) -> str:
        """Return what the row says, without its kind."""
        inputs = [f"{'each input' if name == ANY else name}: {type_}" for name, type_ in self.inputs.items()]
        wanted = [*inputs, *[f"{what}: {t}" for what, t in (("weights", self.weights), ("output", self.outputs)) if t]]
        wanted += ["all of these or none"] * self.together + ["with one scale"] * self.shares
        when = [each if isinstance(each, str) else each.__name__ for each in self.when]
        text = ", ".join(wanted) or ("passes integers on" if self.carries else "float")
        condition = f"; if {' and '.join(when)}" if when else ""
        return f"    {text}{condition}\n    {self.reason} ({self.source})"

    def input_type(self, operand: str) -> str:
        """Return the type for an operand of this name; empty where it stays in float."""
        return self.inputs.get(operand, self.inputs.get(ANY, ""))


_FIELDS = tuple(field.name for field in attrs.fields(Row) if field.name != "kind")


@attrs.frozen
class Table:
    """The rows of one target.

    Attributes:
        name: the target's name.
        rows: by kind.
    """

    name: str
    rows: Mapping[str, Row]

    @classmethod
    def of(cls, name: str, rows: Mapping[str, Mapping[str, Any] | Row]) -> Table:
        """Return the table of a dictionary of rows: kind -> the fields of a `Row` by name, or a row of another table.

        Raises:
            InputError: when a row names an unknown field, type or condition, or gives no reason or source.
        """
        made: dict[str, Row] = {}
        for kind, fields in rows.items():
            if isinstance(fields, Row):
                made[kind] = attrs.evolve(fields, kind=kind)
                continue
            if not isinstance(fields, Mapping):
                raise InputError(
                    f"the row {kind!r} is {fields!r}",
                    remedy='write its fields: `{"inputs": {"input": "u8"}, "reason": …, "source": …}`',
                )
            for field in fields:
                if field not in _FIELDS:
                    known = f"fields of a row are {', '.join(_FIELDS)}"
                    raise InputError(f"the row {kind!r} has {field!r}", remedy=did_you_mean(field, _FIELDS, known))
            made[kind] = Row(kind, **fields)
        return cls(name, made)

    def __str__(self) -> str:
        return self.name

    def find(self, kind: str) -> Row | None:
        """Return the row of a kind of region or an operator, also of the region that a lone operator became."""
        if kind in self.rows:
            return self.rows[kind]
        return next((row for name, row in self.rows.items() if name.split(".")[1:2] == [kind]), None)

    def describe(self) -> str:
        """Return the table as text: rows of one content together, each with its reason and source."""
        groups: dict[str, list[str]] = {}
        for kind, row in self.rows.items():
            groups.setdefault(row.describe(), []).append(kind)
        return "\n".join(f"{', '.join(kinds)}\n{text}" for text, kinds in groups.items())

    def without_vnni(self) -> Table:
        """Return the table for processors without VNNI instructions: weights of 7 bits, no activations of either sign.

        There engines add two products of 8-bit integers in 16 bits, which saturates but for weights of 7 bits, and
        OpenVINO halves the weights that meet signed activations: `u8 or s8` becomes `u8`. What is `s8` stays symmetric.
        """
        return attrs.evolve(self, rows={kind: _without_vnni(row) for kind, row in self.rows.items()})


def _without_vnni(row: Row) -> Row:
    def unsigned(type_: str) -> str:
        return "u8" if type_ == UNSIGNED_IF_POSITIVE else type_

    return attrs.evolve(
        row,
        inputs={name: unsigned(type_) for name, type_ in row.inputs.items()},
        outputs=unsigned(row.outputs),
        weights="s7" if row.weights == "s8" else row.weights,
    )


_TABLES: dict[str, Table] = {}


def register_table(table: Table) -> Table:
    """Make a table known by its name, for pipeline text; return it.

    Raises:
        InputError: when another one has this name.
    """
    if _TABLES.setdefault(table.name, table) != table:
        raise InputError(f"there is another table named {table.name!r}", remedy="choose another name")
    return table


def table_names() -> tuple[str, ...]:
    """Return the names of the known tables."""
    return tuple(_TABLES)


def find_table(table: str | Table) -> Table:
    """Return the table of a name, or the table that is given.

    Raises:
        InputError: when there is none of this name.
    """
    if isinstance(table, Table):
        return table
    if not isinstance(table, str) or table not in _TABLES:
        known = f"use one of {', '.join(_TABLES)}, or `register_table` your own"
        remedy = did_you_mean(table, _TABLES, known) if isinstance(table, str) else known
        raise InputError(f"there is no placement table {table!r}", remedy=remedy)
    return _TABLES[table]


def known_table(pass_: Any, attribute: Any, value: Any) -> None:
    """Check the option of a pass that is a table, or the name of one.

    Raises:
        InputError: when there is none of this name.
    """
    find_table(value)
