"""Overload resolution: which ATen operator a call in Python means."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from compiler.lower.functional.storage import Handle
from ir.core import Value
from ir.errors import InputError
from ir.opdef import OpDef, ParamKind, get_opdef
from ir.types import OpaqueType, ScalarType, TensorType

_KEYWORDS = {"input": "self", "axis": "dim", "keepdims": "keepdim", "x": "self", "shape": "size"}


class UnknownCallError(Exception):
    """No operator stands for a call: it stays opaque."""


def is_tensor(arg: Any) -> bool:
    """Return whether an argument is a tensor of the program."""
    return type(arg) is Handle and type(arg.value.type) is not OpaqueType


def is_runtime(arg: Any) -> bool:
    """Return whether an argument is known only at run time: a tensor, or a number read from one."""
    return type(arg) is Handle or type(arg) is Value


# ---- operators of ATen by name and arguments ----


def find_overload(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[OpDef, dict[str, Any]]:
    """Return the overload of `aten.<name>` that takes these arguments, and the keyword arguments by its names.

    Raises:
        UnknownCallError: when there is none.
    """
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or not isinstance(packet, torch._ops.OpOverloadPacket):
        raise UnknownCallError(f"there is no operator {name}")
    fitting: list[tuple[tuple[int, bool], OpDef]] = []
    for overload in packet.overloads():
        opdef = _opdef(name, overload)
        conversions = None if opdef is None else _fits(opdef, args, kwargs)
        if opdef is not None and conversions is not None:
            # JIT's overloads on plain numbers come last
            fitting.append(((conversions, not opdef.operand_params), opdef))
    if not fitting:
        raise UnknownCallError(f"no overload of {name} takes these arguments")
    best = min(fitting, key=operator.itemgetter(0))[1]
    return best, _renamed(best, kwargs)


def _opdef(name: str, overload: str) -> OpDef | None:
    try:
        return get_opdef(f"aten.{name}" if overload == "default" else f"aten.{name}.{overload}")
    except InputError:
        return None


def _renamed(opdef: OpDef, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = {p.name for p in opdef.params}
    return {key if key in names else _KEYWORDS.get(key, key): value for key, value in kwargs.items()}


def _fits(opdef: OpDef, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return how many arguments need a conversion to fit the schema, or None where they do not fit."""
    params = [p for p in opdef.params if not p.extra]
    positional = [p for p in params if not p.keyword_only]
    if len(args) > len(positional):
        return None
    named = _renamed(opdef, kwargs)
    conversions = 0
    used = 0
    for i, param in enumerate(params):
        if i < len(args):
            arg = args[i]
            if param.name in named:
                return None
        elif param.name in named:
            arg = named[param.name]
            used += 1
        elif param.has_default or param.kind is ParamKind.OPTIONAL:
            continue
        else:
            return None
        cost = _conversion(param.kind, param.type, param.list_size, arg)
        if cost is None:
            return None
        conversions += cost
    return conversions if used == len(named) else None


def _conversion(kind: ParamKind, type_: str, list_size: int, arg: Any) -> int | None:
    if kind is ParamKind.TENSOR:
        if is_tensor(arg):
            return 0
        return 1 if is_scalar("number", arg) else None
    if kind is ParamKind.OPTIONAL:
        return 0 if arg is None or is_tensor(arg) else None
    if kind is ParamKind.LIST:
        if not isinstance(arg, (list, tuple)):
            return None
        return 0 if all(is_tensor(item) or (item is None and "Optional" in type_) for item in arg) else None
    if type_.startswith("Optional["):
        if arg is None:
            return 0
        type_ = type_[len("Optional[") : -1]
    if type_.startswith("List["):
        inner = type_[len("List[") : -1]
        if isinstance(arg, (list, tuple)):
            return 0 if all(is_scalar(inner, item) for item in arg) else None
        return 1 if list_size and is_scalar(inner, arg) else None
    return 0 if is_scalar(type_, arg) else None


_SCALARS: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "number": (int, float, complex),
    "str": str,
    "ScalarType": torch.dtype,
    "Device": torch.device,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
}
"""Scalar types of the schema -> classes."""


def is_scalar(type_: str, arg: Any) -> bool:
    """Return whether an argument is of a scalar type of the schema."""
    if type(arg) is Value:
        kind = arg.type.kind if isinstance(arg.type, ScalarType) else "int"
        return type_ in ("number", kind) or (type_ == "float" and kind == "int")
    if isinstance(arg, bool):
        return type_ in ("bool", "number")
    return isinstance(arg, _SCALARS.get(type_, ()))


def shapes_known(args: Sequence[Any]) -> bool:
    """Return whether the types of all tensors are known."""
    types = [arg.value.type for arg in args if type(arg) is Handle]
    return all(isinstance(type_, TensorType) and type_.is_known for type_ in types)


_COMPARISONS = {getattr(operator, name): name for name in ("eq", "ne", "lt", "le", "gt", "ge")}
BINARY: dict[Callable[..., Any], str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.floordiv: "floor_divide",
    operator.mod: "remainder",
    operator.pow: "pow",
    operator.matmul: "matmul",
    operator.and_: "bitwise_and",
    operator.or_: "bitwise_or",
    operator.xor: "bitwise_xor",
    **_COMPARISONS,
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
    operator.iand: "bitwise_and_",
    operator.ior: "bitwise_or_",
}
UNARY: dict[Callable[..., Any], str] = {
    operator.neg: "neg",
    operator.invert: "bitwise_not",
    operator.abs: "abs",
    operator.pos: "positive",
}
SCALAR_OPERATORS: dict[Callable[..., Any], str] = {
    operator.add: "add",
    operator.iadd: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.floordiv: "floordiv",
    operator.mod: "remainder",
    operator.neg: "neg",
    **_COMPARISONS,
}
