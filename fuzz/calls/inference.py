"""Calls of one operator on which its type inference is tried, and what must hold of its answers.

Half of the calls are changed in a part, so that many of these are refused. Of others a part of the types is unknown, or
sizes are symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import attrs
import sympy
import torch
from hypothesis import strategies as st

from fuzz.calls.elementwise import NUMBERS
from fuzz.calls.generators import GENERATORS, generate_call
from fuzz.calls.source import FreshSource, Source, Unavailable
from fuzz.calls.types import DTYPES, SYMBOLS, without_parts
from ir.attributes import map_leaves
from ir.builder import bind_arguments
from ir.errors import InferenceError
from ir.fake import flat_results, infer_with_fakes, kernel_call
from ir.opdef import OpDef, Param, ParamKind, Trait, get_opdef
from ir.ops.inference import support
from ir.schemas import without_optional
from ir.types import OpaqueType, ScalarType, TensorType, Type, simplify_dim, type_of_tensor, types_equal

Types = tuple[Any, ...]
Results = tuple[Type, ...]
Attributes = dict[str, Any]

_META = torch.device("meta")
_OTHER_SIZES = (1, 2, 3, 5, 8)
_NUMBERS_OF_SYMBOLS = (dict(zip(SYMBOLS, (12, 20), strict=True)), dict(zip(SYMBOLS, (9, 7), strict=True)))


@attrs.frozen
class TypedCall:
    """A call: the operator, the types of its operands as inference takes them, all attributes."""

    name: str
    types: Types
    attributes: Attributes
    whole: Types | None = None
    """The known types, where `types` say a part of them."""

    @property
    def opdef(self) -> OpDef:
        """The operator."""
        return get_opdef(self.name)

    @property
    def is_symbolic(self) -> bool:
        """Whether a size or an attribute is an expression."""
        found: list[Any] = []
        map_types(self.types, lambda t: found.extend(t.shape or ()))
        for value in self.attributes.values():
            map_leaves(value, found.append)
        return any(isinstance(item, sympy.Expr) for item in found)

    def infer(self) -> Results | None:
        """Return what inference answers; None where it refuses."""
        rule = self.opdef.infer
        assert rule is not None
        return outcome(lambda: rule(self.types, self.attributes))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(_shown, self.types))}) {self.attributes}"


def _shown(type_: Any) -> str:
    return f"[{', '.join(map(_shown, type_))}]" if isinstance(type_, tuple) else str(type_)


def map_types(types: Types, function: Callable[[TensorType], Any]) -> Types:
    """Return the types with a function applied to each tensor's."""
    return tuple(
        [
            map_types(t, function) if isinstance(t, tuple) else function(t) if isinstance(t, TensorType) else t
            for t in types
        ]
    )


def outcome(infer: Callable[[], Results]) -> Results | None:
    """Return the result types, or None where the operands are refused."""
    try:
        return infer()
    except InferenceError:
        return None


# --- drawing ------------------------------------------------------------------------------------------------------


def inferred(operators: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return those of the operators (of all, by default) of which calls can be drawn and that have a rule."""
    return tuple([name for name in operators or GENERATORS if name in GENERATORS and get_opdef(name).infer is not None])


def typed_call(draw: st.DrawFn, name: str, *, symbolic: bool | None = None) -> TypedCall:
    """Draw a call of an operator that has a rule; with `symbolic` or without, or either one."""
    kind = draw(st.integers(0, 7))
    if symbolic is None:
        symbolic = kind == 7
    source = FreshSource(draw, symbolic=symbolic)
    source.devices = (None, _META, torch.device("cpu"))
    source.symbols = SYMBOLS if symbolic else ()
    opdef = get_opdef(name)
    try:
        args, kwargs = generate_call(source, name)
    except Unavailable:
        args, kwargs = generate_call(FreshSource(draw), name)
    _, attributes, _, types = bind_arguments(opdef, args, kwargs)
    for _ in range((0, 0, 0, 1, 2, 1, 1)[source.place(7)]):
        if opdef.attribute_params and (not types or source.flag()):
            attributes = _with_another_attribute(source, opdef, attributes)
        elif types:
            types = _with_another_operand(source, opdef, types)
    if symbolic or not kind & 1 or not types:
        return TypedCall(name, types, attributes)
    part = map_types(types, lambda t: _partly(draw, t))
    return TypedCall(name, part, attributes, None if part == types else types)


def _partly(draw: st.DrawFn, type_: TensorType) -> TensorType | OpaqueType:
    """Draw a part of a type; seldom none of it, as of what a call returns that nobody knows."""
    kind = draw(st.integers(0, 12))
    if kind < 4:
        return type_
    if kind == 4:
        return OpaqueType()
    if kind in (5, 6):
        return attrs.evolve(type_, device=None)
    return without_parts(draw, type_)


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
    kind = source.place(10)
    if kind < 2:
        return TensorType(shape, source.one_of(DTYPES))
    if kind == 2:
        return TensorType(shape, type_.dtype, _META)
    if kind == 3 or not shape:
        return TensorType((source.integer(0, 3), *shape), type_.dtype)
    if kind == 4:
        return TensorType((), type_.dtype)
    place = source.place(len(shape))
    inserted = {5: (), 6: (1,), 7: (0,)}.get(kind, (source.integer(0, 4),))
    return TensorType((*shape[:place], *inserted, *shape[place + 1 :]), type_.dtype)


def _with_another_attribute(source: Source, opdef: OpDef, attributes: Attributes) -> Attributes:
    """Draw a call with another value of one attribute, of the schema's type: out of range, say, or one too many."""
    param = opdef.attribute_params[source.place(len(opdef.attribute_params))]
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
    "Device": (torch.device("cpu"), _META, torch.device("cuda")),
}
"""The type of an attribute in the schema -> values of it."""


# --- what must hold -----------------------------------------------------------------------------------------------


def inference_fault(call: TypedCall) -> str | None:
    """Return what is wrong with the answer of inference to a call; None if nothing.

    - For known types it refuses what fake tensors refuse, and answers as they do. What the kernel refuses, it may, too.
    - For a part of known types that are not refused, it says what is true for these.
    - With symbols, what it says is true for all numbers in their place that fit the operator.
    """
    if _takes_numbers(call.name, call.whole or call.types) and 0 in ((call.whole or call.types)[0].shape or ()):
        return None  # whether such an index is out of range depends on its value
    got = call.infer()
    if call.whole is not None:
        return _fault_of_part(call, got)
    if call.is_symbolic:
        return None if got is None else _fault_of_symbols(call, got)
    want = _reference(call.opdef, call.types, call.attributes)
    if got is None:
        return None if want is None or _is_refused(call) else _described(call, want, got)
    same = want is not None and len(want) == len(got) and all(map(types_equal, want, got))
    return None if same else _described(call, want, got)


def _fault_of_part(call: TypedCall, got: Results | None) -> str | None:
    assert call.whole is not None
    want = _reference(call.opdef, call.whole, call.attributes)
    if want is None:
        return None
    if got is not None and len(want) == len(got) and all(map(says_no_more, got, want)):
        return None
    if got is None and "list" in call.opdef.results and _count_depends(call, len(want)):
        return None
    return None if _is_refused(attrs.evolve(call, types=call.whole)) else _described(call, want, got)


def _count_depends(call: TypedCall, count: int) -> bool:
    """Return whether how many results there are depends on what is unknown: with other sizes, there are not `count`."""
    for size in _OTHER_SIZES:
        results = _reference(call.opdef, _completed(call.types, call.whole, size), call.attributes)
        if results is not None and len(results) != count:
            return True
    return False


def _completed(part: Any, whole: Any, size: int) -> Any:
    """Return types with one size in all places where it is not known, and everything else as it is."""
    if isinstance(whole, tuple):
        return tuple([_completed(*pair, size) for pair in zip(part, whole, strict=True)])
    if whole is None:
        return None
    known = part.shape if isinstance(part, TensorType) else None
    return attrs.evolve(whole, shape=tuple([size if n is None else n for n in known or (None,) * len(whole.shape)]))


def _fault_of_symbols(call: TypedCall, got: Results) -> str | None:
    for type_ in got:
        for size in (type_.shape or ()) if isinstance(type_, TensorType) else ():
            if isinstance(size, sympy.Expr) and size.has(sympy.floor, sympy.ceiling):
                return f"{call}: inference gives the size {size}, which PyTorch writes in another way"
    for values in _NUMBERS_OF_SYMBOLS:

        def substitute(leaf: Any, values: dict[Any, int] = values) -> Any:
            return simplify_dim(leaf.xreplace(values)) if isinstance(leaf, sympy.Expr) else leaf

        def at(type_: Any, substitute: Callable[[Any], Any] = substitute) -> Any:
            if not isinstance(type_, TensorType) or type_.shape is None:
                return type_
            return attrs.evolve(type_, shape=tuple(map(substitute, type_.shape)))

        fixed = {key: map_leaves(value, substitute) for key, value in call.attributes.items()}
        if call.name == "aten.slice.Tensor" and not _is_within(call, map_types(call.types, at), fixed):
            continue
        want = _reference(call.opdef, map_types(call.types, at), fixed)
        substituted = tuple(map(at, got))
        # refused: too small for the kernel
        if want is not None and not (len(want) == len(got) and all(map(types_equal, want, substituted))):
            return f"{_described(call, want, got)} at {values}"
    return None


def _is_within(call: TypedCall, types: Types, attributes: Attributes) -> bool:
    """Return whether symbolic bounds of a slice are in order and within the dimension: inference takes them to be."""
    bounds = call.attributes["start"], call.attributes["end"]
    shape, dim = types[0].shape, attributes["dim"]
    if not any(isinstance(bound, sympy.Expr) for bound in bounds) or not -len(shape) <= dim < len(shape):
        return True
    size, start, end = shape[dim], attributes["start"], attributes["end"]
    return bool(0 <= (start or 0) <= (size if end in (None, 2**63 - 1) else end) <= size)


def _described(call: TypedCall, want: Results | None, got: Results | None) -> str:
    def shown(results: Results | None) -> str:
        return "is refused" if results is None else f"gives {', '.join(map(str, results))}"

    of = "" if call.whole is None else f" of ({', '.join(map(_shown, call.whole))})"
    return f"{call}{of} {shown(want)}, and inference {shown(got)}"


def says_no_more(partial: Type, known: Type) -> bool:
    """Return whether what a type says is true of another one, of which more may be known."""
    if isinstance(partial, OpaqueType):
        return True
    if not isinstance(known, TensorType) or not isinstance(partial, TensorType):
        return types_equal(known, partial)
    if partial.dtype is not None and partial.dtype is not known.dtype:
        return False
    if partial.device is not None and partial.device != known.device:
        return False
    if partial.shape is None or known.shape is None:
        return partial.shape is None
    if len(partial.shape) != len(known.shape):
        return False
    return all(b is None or a == b for a, b in zip(known.shape, partial.shape, strict=True))


def _reference(opdef: OpDef, types: Types, attributes: Attributes) -> Results | None:
    """Return the result types on fake tensors; None where they refuse."""
    if _takes_numbers(opdef.name, types):
        # fake tensors take an index without dimensions for a number, and the kernels do not
        return _of_kernel(opdef, types, attributes)
    return outcome(lambda: infer_with_fakes(opdef, types, attributes))


def _takes_numbers(name: str, types: Types) -> bool:
    return name == "aten.index.Tensor" and any(i is not None and not i.shape for i in types[1])


def _of_kernel(opdef: OpDef, types: Types, attributes: Attributes) -> Results | None:
    def made(type_: TensorType) -> torch.Tensor:
        return torch.zeros(type_.shape or (), dtype=type_.dtype, device=type_.device)  # type: ignore[arg-type]

    kernel, args, kwargs = kernel_call(opdef, map_types(types, made), attributes, lambda leaf: leaf)
    assert kernel is not None
    try:
        returned = kernel(*args, **kwargs)
    except Exception:  # noqa: BLE001 - kernels refuse with any error
        return None
    return tuple([type_of_tensor(r) if isinstance(r, torch.Tensor) else ScalarType("") for r in flat_results(returned)])


def _devices(call: TypedCall) -> set[Any]:
    """Return the devices of a call's operands; a scalar on the CPU goes with operands of an elementwise operator."""
    found: set[Any] = set()
    is_elementwise = call.opdef.has(Trait.ELEMENTWISE)
    map_types(call.types, lambda t: found.add(t.device) if t.shape or not is_elementwise else None)
    return found


def _is_refused(call: TypedCall) -> bool:
    """Return whether kernels refuse a call that fake tensors accept: those of devices other than `meta` do not mix."""
    if len(_devices(call)) > 1:
        return True
    return _of_kernel(call.opdef, call.types, call.attributes) is None


# --- what a rule says itself --------------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """What a rule says of a call."""

    kind: str
    """`types`, `falls back`, `refused`, or the name of an error."""
    types: Results = ()

    def is_less(self, other: Answer) -> bool:
        """Return whether the other one says this, too: to fall back is the least, to refuse the most."""
        if self.kind == "falls back" or (self.kind in ("types", "refused") and other.kind == "refused"):
            return True
        if self.kind != "types" or other.kind != "types" or len(self.types) != len(other.types):
            return False
        return all(map(says_no_more, self.types, other.types))


class _FellBack(Exception):  # noqa: N818 - control flow inside this module, no error
    """The rule asked for fake tensors."""


def answer_of_rule(call: TypedCall) -> Answer:
    """Return what the rule of the operator says itself, without its fallback."""

    def fall_back(*_: Any) -> Results:
        raise _FellBack

    rule = call.opdef.infer
    assert rule is not None
    try:
        with patch.object(support, "infer_with_fakes", fall_back):
            return Answer("types", rule(call.types, call.attributes))
    except _FellBack:
        return Answer("falls back")
    except InferenceError:
        return Answer("refused")
    except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
        return Answer(type(error).__name__)
