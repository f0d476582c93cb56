"""Schemas of PyTorch's operators: names of overloads, defaults, functional counterparts."""

from __future__ import annotations

from typing import Any

import torch

from ir.errors import InputError
from ir.spelling import nearest

_SCHEMA_CODES: dict[str, tuple[str, ...]] = {
    # c10/core/MemoryFormat.h, c10/core/Layout.h, c10/core/ScalarType.h; older versions of PyTorch lack the last ones
    "MemoryFormat": ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"),
    "Layout": ("strided", "sparse_coo", "sparse_csr", "_mkldnn", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged"),
    "ScalarType": (
        *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
        *("complex32", "complex64", "complex128", "bool", "qint8", "quint8", "qint32", "bfloat16"),
        *("quint4x2", "quint2x4", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"),
        *("float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "uint16", "uint32", "uint64"),
        *("uint1", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7"),
        *("int1", "int2", "int3", "int4", "int5", "int6", "int7", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    ),
}


def name_of_overload(overload: torch._ops.OpOverload) -> str:
    """Return our name of a `torch.ops` overload: `aten.relu`, `aten.add.Tensor`."""
    namespace, _, packet = overload._schema.name.partition("::")
    suffix = "" if overload._overloadname == "default" else f".{overload._overloadname}"
    return f"{namespace}.{packet}{suffix}"


def overload_named(name: str) -> torch._ops.OpOverload:
    """Return the `torch.ops` overload of one of our names.

    Raises:
        InputError: when there is none.
    """
    parts = name.split(".")
    if len(parts) in (2, 3) and all(parts):
        try:
            packet = getattr(getattr(torch.ops, parts[0]), parts[1])
            overload = getattr(packet, parts[2] if len(parts) == 3 else "default")
            if isinstance(overload, torch._ops.OpOverload):
                return overload
        except AttributeError:
            pass
    raise InputError(
        f"there is no operator named {name!r}",
        remedy="name it as in torch.ops (`aten.relu`, `aten.add.Tensor`), and import the library that registers it",
    )


def nearest_operator(name: str) -> str:
    """Return the end of a message about an unknown operator: `; did you mean 'aten.clamp'?`, or the empty string."""
    namespace, _, rest = name.partition(".")
    known = {op.partition("::")[2] for op in torch._C._dispatch_get_all_op_names() if op.startswith(f"{namespace}::")}
    if "." not in rest:
        known = {op.partition(".")[0] for op in known}
    return "".join(f"; did you mean '{namespace}.{near}'?" for near in nearest(rest, known, 1))


def without_optional(type_: str) -> str:
    """Return a schema's type without the `Optional` around it."""
    return type_.removeprefix("Optional[").removesuffix("]") if type_.startswith("Optional[") else type_


def schema_constant(value: Any, text: str) -> Any:
    """Return a default of a schema, with dtypes, layouts and memory formats for the numbers that stand for them.

    Raises:
        InputError: when PyTorch has nothing of this number.
    """
    type_ = without_optional(text)
    codes = _SCHEMA_CODES.get(type_)
    if codes is None or not isinstance(value, int):
        return value
    found = getattr(torch, codes[value], None) if 0 <= value < len(codes) else None
    if found is None:
        raise InputError(f"{value} as the default of an operator's argument is not the number of a {type_}")
    return found


def functional_name(overload: torch._ops.OpOverload) -> str | None:
    """Return the functional counterpart of an in-place operator: relu_ -> relu, pow_.Tensor -> pow.Tensor_Tensor."""
    namespace, _, packet = overload._schema.name.partition("::")
    if packet.startswith("__i") and packet.endswith("__"):
        name = f"__{packet[3:]}"  # `a |= b` is __ior__
    elif packet.endswith("_") and not packet.startswith("__"):
        name = packet[:-1]
    else:
        return None
    functional = getattr(getattr(torch.ops, namespace), name, None)
    if functional is None:
        return None
    own_name = overload._overloadname
    arguments = _arguments(overload)
    for name in sorted(functional.overloads(), key=lambda name: name != own_name):
        candidate = getattr(functional, name)
        found = _arguments(candidate)
        # the counterpart may name its tensor `input`, or take it second; `aten.ldexp` is on Python numbers
        is_alike = name == own_name and any(_tensors(found, by) == _tensors(arguments, by) for by in (0, 1))
        if not candidate._schema.is_mutable and (is_alike or found == arguments):
            return name_of_overload(candidate)
    return None


def _arguments(overload: torch._ops.OpOverload) -> list[tuple[str, int, str]]:
    """Return name, position and type of each argument."""
    return [(a.name, i, str(a.real_type)) for i, a in enumerate(overload._schema.arguments)]


def _tensors(arguments: list[tuple[str, int, str]], by: int) -> dict[str | int, str]:
    """Return the types of the tensor arguments, by name (0) or position (1)."""
    return {argument[by]: argument[2] for argument in arguments if "Tensor" in argument[2]}
