"""Tensor objects of the user's program, and their storages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ir.caches import cached
from ir.core import Operation, Value
from ir.errors import CaptureError, InputError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import OpDef, ParamKind, get_opdef, opdef_of_overload
from ir.types import ScalarType


@attrs.define(eq=False)
class Storage:
    """Memory that handles share."""

    owner: Handle | None = None
    """The tensor that owns it."""
    kind: str = "local"
    """`local`, `input`, `buffer`, `constant` or `parameter`."""
    number: int = 0
    """Which input."""
    name: str = ""
    """Which weight."""
    version: int = 0
    linked: list[Storage] = attrs.field(factory=list)
    """Storages that may alias this one: opaque calls may return their arguments."""
    tainted: Location | None = None
    """Where a linked storage was mutated; the content of this one is then unknown."""
    written_at: Location = UNKNOWN_LOCATION
    kernel_writes: Location | None = None
    """Where a kernel in training mode mutates it (running statistics)."""

    def __str__(self) -> str:
        if self.kind == "local":
            return "a tensor"
        return f"{self.kind} {self.number if self.kind == 'input' else repr(self.name)}"


@attrs.define(eq=False, repr=False)
class ViewCall:
    """An operation that made views, and can make them again from a later version."""

    op: Operation
    position: int
    """Which operand the views are of."""
    version: int
    certain: bool
    """False where shapes are unknown, and the results may be fresh tensors."""
    results: tuple[Value, ...] = attrs.field(init=False, default=attrs.Factory(lambda self: self.op.results, True))


@attrs.define(eq=False, repr=False)
class Handle:
    """A tensor object of the program: its current value, and its place in a storage."""

    value: Value
    storage: Storage
    parent: Handle | None = None
    call: ViewCall | None = None
    index: int = 0
    """Which result of the call."""
    key: int | None = None
    """Identity of the storage in the tracer's fake tensors; None if unknown."""
    has_views: bool = False
    version: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.storage.version, True))


def copy_of_view(op: Operation, operands: Sequence[Value | None]) -> Operation:
    """Return the operation on other operands; a `view` becomes `reshape`, since strides may differ."""
    opdef, attributes = op.opdef, dict(op.attributes)
    if opdef.name == "aten.view":
        opdef, attributes = get_opdef("aten.reshape"), {"shape": attributes["size"]}
    return Operation(
        opdef,
        operands,
        attributes,
        [result.type for result in op.results],
        location=op.location,
        segments=op.segments,
        names=[result.name for result in op.results],
    )


def scalar_overload(opdef: OpDef, args: Sequence[Any]) -> OpDef:
    """Return the overload for a Python number where `opdef` wants a tensor: `aten.add.Tensor` -> `aten.add.Scalar`.

    Raises:
        CaptureError: when there is none.
    """
    params = opdef.params
    for i, arg in enumerate(args):
        is_number = type(arg) is not Value or isinstance(arg.type, ScalarType)
        if i < len(params) and params[i].kind is ParamKind.TENSOR and is_number:
            return _find_scalar_overload(opdef, i)
    return opdef


@cached()
def _find_scalar_overload(opdef: OpDef, position: int) -> OpDef:
    dialect, _, rest = opdef.name.partition(".")
    packet, _, overload = rest.partition(".")
    candidates = [overload.replace("Tensor", "Scalar"), "Scalar"]
    if overload == "Tensor_Tensor":
        candidates = ["Tensor_Scalar" if position else "Scalar"]
    if position == 0 and packet == "pow":
        candidates = ["Scalar"]
    for candidate in candidates:
        try:
            found = get_opdef(f"{dialect}.{packet}.{candidate}")
        except InputError:
            continue
        if found.params[position].kind is ParamKind.ATTRIBUTE:
            return found
    raise CaptureError(f"{opdef.name} got a Python number as argument {opdef.params[position].name!r}")


def functional_of_out(opdef: OpDef) -> OpDef | None:
    """Return the overload without `out=` of an operator that has it: `aten.add.out` -> `aten.add.Tensor`."""
    wanted = [(p.name, p.kind, p.type) for p in opdef.params if p.name != "out"]
    packet = opdef.target._overloadpacket  # type: ignore[union-attr]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        if not overload._schema.is_mutable:
            candidate = opdef_of_overload(overload)
            if [(p.name, p.kind, p.type) for p in candidate.params if not p.extra] == wanted:
                return candidate
    return None


def with_defaults(
    opdef: OpDef, functional: OpDef, values: Sequence[Any], named: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return keyword arguments, with defaults that only the in-place operator has."""
    required = {p.name for p in functional.params if p.kind is ParamKind.ATTRIBUTE and not p.has_default}
    missing = {
        p.name: p.default
        for p in opdef.params[len(values) :]
        if p.name in required and p.name not in named and p.has_default
    }
    return {**named, **missing} if missing else named


def makes_views(opdef: OpDef) -> bool:
    """Return whether results are views according to the schema."""
    schema = getattr(opdef.target, "_schema", None)
    return schema is not None and any(ret.alias_info is not None for ret in schema.returns)
