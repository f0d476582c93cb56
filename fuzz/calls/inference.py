"""Calls of one operator on which its type inference is tried, and what must hold of its answers.

Half of the calls are changed in a part, so that many of these are refused. Of others a part of the types is unknown, or
sizes are symbolic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import attrs
import sympy
import torch
from hypothesis import strategies as st

from fuzz.calls.changes import META, Attributes, Types, changed_call, map_types
from fuzz.calls.generators import GENERATORS, generate_call
from fuzz.calls.source import FreshSource, Unavailable
from fuzz.calls.types import SYMBOLS, without_parts
from ir.attributes import map_leaves
from ir.builder import bind_arguments
from ir.errors import InferenceError
from ir.fake import flat_results, infer_with_fakes, kernel_call
from ir.opdef import OpDef, Trait, get_opdef
from ir.ops.inference import support
from ir.types import OpaqueType, ScalarType, TensorType, Type, simplify_dim, type_of_tensor, types_agree, types_equal

Results = tuple[Type, ...]

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
        symbolic = kind > 5
    source = FreshSource(draw, symbolic=symbolic)
    source.devices = (None, META, torch.device("cpu"))
    source.symbols = SYMBOLS if symbolic else ()
    opdef = get_opdef(name)
    try:
        args, kwargs = generate_call(source, name)
    except Unavailable:
        args, kwargs = generate_call(FreshSource(draw), name)
    _, attributes, _, types = bind_arguments(opdef, args, kwargs)
    types, attributes = changed_call(source, opdef, types, attributes)
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
    if got is not None and any(map(_has_size_of_data, got)):
        made = _of_kernel(call.opdef, call.types, call.attributes)
        return None if made is not None and all(map(types_agree, got, made)) else _described(call, made, got)
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


def _has_size_of_data(type_: Type) -> bool:
    """Whether a size is unknown of a result of known operands: it depends on their numbers, which fakes do not have."""
    return isinstance(type_, TensorType) and type_.shape is not None and None in type_.shape


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
