"""Tensor objects of the user's program, and the memory they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from ir.caches import Cache
from ir.core import Operation, Value
from ir.errors import CaptureError, InputError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import OpDef, ParamKind, get_opdef


@attrs.define(eq=False)
class Storage:
    """Memory that handles share."""

    owner: Handle | None = None
    """The tensor that covers it all."""
    kind: str = "local"
    """`local`, `input`, `buffer`, `constant` or `parameter`."""
    number: int = 0
    """Which input."""
    name: str = ""
    """Which weight."""
    version: int = 0
    linked: list[Storage] = attrs.field(factory=list)
    """Storages that may be this one: opaque calls may return their arguments."""
    tainted: Location | None = None
    """Where a linked storage was written: what is in this one is then unknown."""
    written_at: Location = UNKNOWN_LOCATION
    kernel_writes: Location | None = None
    """Where a kernel in training mode writes it (running statistics)."""

    def __str__(self) -> str:
        if self.kind == "local":
            return "a tensor"
        return f"{self.kind} {self.number if self.kind == 'input' else repr(self.name)}"


class ViewCall:
    """An operation that made views, and can make them anew from a later version."""

    __slots__ = ("certain", "op", "position", "results", "version")

    def __init__(self, op: Operation, position: int, version: int, certain: bool) -> None:
        self.op = op
        self.position = position
        self.results = op.results
        self.version = version
        self.certain = certain
        """False where, shapes being unknown, the results may as well be fresh tensors."""


class Handle:
    """One tensor object of the program: its current value, and how it lies in its storage."""

    __slots__ = ("call", "has_views", "index", "key", "parent", "storage", "value", "version")

    def __init__(
        self,
        value: Value,
        storage: Storage,
        parent: Handle | None = None,
        call: ViewCall | None = None,
        index: int = 0,
        key: int | None = None,
    ) -> None:
        self.value = value
        self.storage = storage
        self.version = storage.version
        self.parent = parent
        self.call = call
        self.index = index
        self.has_views = False
        self.key = key
        """Identity of the storage in the tracer's fake tensors, None where it is not known."""


def copy_of_view(op: Operation, operands: Sequence[Value | None]) -> Operation:
    """Return the operation on other operands; a `view` as `reshape`, since strides are no longer what they were."""
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


_SCALAR_OVERLOADS: Cache[tuple[str, int], OpDef] = Cache()


def scalar_overload(opdef: OpDef, args: Sequence[Any]) -> OpDef:
    """Return the overload for a Python number where `opdef` wants a tensor: `aten.add.Tensor` -> `aten.add.Scalar`.

    Raises:
        CaptureError: when there is none.
    """
    params = opdef.params
    for i, arg in enumerate(args):
        if i < len(params) and params[i].kind is ParamKind.TENSOR and type(arg) is not Value:
            return _find_scalar_overload(opdef, i)
    return opdef


def _find_scalar_overload(opdef: OpDef, position: int) -> OpDef:
    found = _SCALAR_OVERLOADS.get((opdef.name, position))
    if found is not None:
        return found
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
            _SCALAR_OVERLOADS[opdef.name, position] = found
            return found
    raise CaptureError(f"{opdef.name} got a Python number as argument {opdef.params[position].name!r}")


def functional_of_out(opdef: OpDef) -> OpDef | None:
    """Return the overload without `out=` of an operator that has it: `aten.add.out` -> `aten.add.Tensor`."""
    wanted = [(p.name, p.kind, p.type) for p in opdef.params if p.name != "out"]
    dialect, packet = opdef.name.split(".")[:2]
    for overload in getattr(getattr(torch.ops, dialect), packet).overloads():
        candidate = get_opdef(f"{dialect}.{packet}" + ("" if overload == "default" else f".{overload}"))
        schema = getattr(candidate.target, "_schema", None)
        if schema is None or schema.is_mutable:
            continue
        if [(p.name, p.kind, p.type) for p in candidate.params if not p.extra] == wanted:
            return candidate
    return None


def with_defaults(
    opdef: OpDef, functional: OpDef, values: Sequence[Any], named: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the keyword arguments with defaults of the in-place operator that its functional form does not have."""
    required = {p.name for p in functional.params if p.kind is ParamKind.ATTRIBUTE and not p.has_default}
    missing = {
        p.name: p.default
        for p in opdef.params[len(values) :]
        if p.name in required and p.name not in named and p.has_default
    }
    return {**named, **missing} if missing else named


def makes_views(opdef: OpDef) -> bool:
    """Return whether the schema says that results are views."""
    schema = getattr(opdef.target, "_schema", None)
    return schema is not None and any(ret.alias_info is not None for ret in schema.returns)
