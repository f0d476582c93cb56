"""Changes of a call, after which many operators refuse it: another operand or attribute, one missing or too many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import torch

from fuzz.calls.elementwise import NUMBERS
from fuzz.calls.source import Source
from fuzz.calls.types import DTYPES
from ir.opdef import OpDef, Param, ParamKind
from ir.schemas import without_optional
from ir.types import TensorType

Types = tuple[Any, ...]
Attributes = dict[str, Any]

META = torch.device("meta")


def map_types(types: Types, function: Callable[[TensorType], Any]) -> Types:
    """Return the types with a function applied to each tensor's."""
    return tuple(
        [
            map_types(t, function) if isinstance(t, tuple) else function(t) if isinstance(t, TensorType) else t
            for t in types
        ]
    )


def changed_call(source: Source, opdef: OpDef, types: Types, attributes: Attributes) -> tuple[Types, Attributes]:
    """Draw changes of a call: of no part, one or two, and seldom of all dtypes or of all sizes of a number."""
    for _ in range((0, 0, 0, 1, 2, 1, 1)[source.place(7)]):
        if opdef.attribute_params and (not types or source.flag()):
            attributes = _with_another_attribute(source, opdef, attributes)
        elif types:
            types = _with_another_operand(source, opdef, types)
    if source.integer(0, 7) == 7:
        dtype = source.one_of(DTYPES)
        types = map_types(types, lambda t: attrs.evolve(t, dtype=dtype))
        if source.integer(0, 3):  # where there is nothing to compute, kernels take other dtypes as well
            types = _with_another_size(source, types, (0, 0, 1))
    if source.integer(0, 7) == 7:
        types = _with_another_size(source, types, (0, 1))
    return types, attributes


def _with_another_size(source: Source, types: Types, others: tuple[int, ...]) -> Types:
    """Draw a call with 0 or 1 wherever there was some number: it fits as before, mostly."""
    sizes: list[Any] = []
    map_types(types, lambda t: sizes.extend(t.shape or ()))
    if not sizes:
        return types
    old, new = source.one_of(sizes), source.one_of(others)
    return map_types(types, lambda t: attrs.evolve(t, shape=tuple([new if n == old else n for n in t.shape or ()])))


def _with_another_operand(source: Source, opdef: OpDef, types: Types) -> Types:
    """Draw a call with a change in one operand: it is missing, or one more; or its size, rank, dtype or device."""
    place = source.place(len(types))
    old, param = types[place], opdef.operand_params[place]
    new: Any
    if isinstance(old, tuple):
        kind = source.integer(0, 3)
        if kind == 0 or not old:
            new = (*old, old[-1] if old else TensorType((2,), torch.float32))
        elif kind == 1:
            new = old[:-1]
        else:
            inner = source.place(len(old))
            new = (*old[:inner], _another_type(source, old[inner]), *old[inner + 1 :])
    elif param.kind is ParamKind.OPTIONAL and old is not None and not source.integer(0, 3):
        new = None
    elif old is None and source.flag():
        new = source.tensor(0, 3).type
    else:
        new = _another_type(source, old)
    return (*types[:place], new, *types[place + 1 :])


def _another_type(source: Source, type_: TensorType | None) -> TensorType | None:
    if type_ is None:
        return None
    shape = type_.shape or ()
    kind = source.place(12)
    if kind < 2:
        return TensorType(shape, source.one_of(DTYPES))
    if kind == 2:
        return TensorType(shape, type_.dtype, META)
    if kind == 3 or not shape:
        return TensorType((source.integer(0, 3), *shape), type_.dtype)
    if kind == 4:
        return TensorType((), type_.dtype)
    place = source.place(len(shape))
    inserted = {5: (), 6: (1,), 7: (0,)}.get(kind, (source.integer(0, 4),))
    return TensorType((*shape[:place], *inserted, *shape[place + 1 :]), type_.dtype)


def _with_another_attribute(source: Source, opdef: OpDef, attributes: Attributes) -> Attributes:
    """Draw a call with another value of one attribute, of the schema's type: out of range, say, or one too many."""
    params = opdef.attribute_params
    if source.symbols and source.flag():
        params = tuple([param for param in params if "int" in param.type]) or params
    param = params[source.place(len(params))]
    old = attributes[param.name]
    if param.type.startswith("Optional[") and old is not None and not source.integer(0, 3):
        return {**attributes, param.name: None}
    return {**attributes, param.name: _another_value(source, param, without_optional(param.type), old)}


def _another_value(source: Source, param: Param, type_: str, old: Any) -> Any:
    if type_.startswith("List["):
        items = old if isinstance(old, tuple) else (1,) * max(1, param.list_size)
        return _another_list(source, param, type_[5:-1], items)
    if type_ == "str":
        return _another_text(source, old)
    choices = _CHOICES.get(type_)
    if type_ == "int":
        if source.symbols and source.flag():
            return source.one_of((*source.symbols, *[symbol - 3 for symbol in source.symbols]))
        near = (old + 1, old - 1, -old) if type(old) is int else ()
        return source.one_of((0, -1, 1, 2, *near, *near, 5, -2, -7))
    return old if choices is None else source.one_of(choices)


def _another_list(source: Source, param: Param, type_: str, items: tuple[Any, ...]) -> tuple[Any, ...]:
    kind = source.integer(0, 6)
    if kind == 6 and len(items) > 1 and all(type(item) is int for item in items):
        # one more and another less, perhaps negative: the sum stays
        moved = source.integer(1, 4)
        return (items[0] - moved, *items[1:-1], items[-1] + moved)
    if kind == 0 or not items:
        return (*items, items[-1] if items and source.flag() else _another_value(source, param, type_, None))
    if kind == 1:
        return items[:-1]
    place = source.place(len(items))
    if kind == 2:
        return (*items[:place], items[0], *items[place + 1 :])
    if kind == 3:
        return (_another_value(source, param, type_, items[place]),) * len(items)
    return (*items[:place], _another_value(source, param, type_, items[place]), *items[place + 1 :])


def _another_text(source: Source, old: Any) -> Any:
    """Draw another word, or an equation with another letter."""
    if not isinstance(old, str) or "->" not in old:
        return source.one_of(_WORDS)
    place = source.integer(0, len(old) - 1)
    return old[:place] + source.one_of(("", "a", "b", " ", "A", ".", "...", ",", "1", "é", "->")) + old[place + 1 :]


_WORDS = ("constant", "reflect", "replicate", "circular", "same", "valid", "none", "tanh", "floor", "trunc")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "number": (*NUMBERS, True, 1j, math.inf, math.nan, -2),
    "float": (0.5, -0.5, 0.0, 1.0, 2.0, 1.5, 0.1, math.nan, 1e-3),
    "bool": (False, True),
    "ScalarType": DTYPES,
    "MemoryFormat": (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d),
    "Layout": (torch.strided, torch.sparse_coo),
    "Device": (torch.device("cpu"), META, torch.device("cuda")),
}
"""The type of an attribute in the schema -> values of it."""
