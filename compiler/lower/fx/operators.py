"""Operators of ATen and of Python on the tensors of an FX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compiler.lower.functional.functionalizer import Functionalizer
from compiler.lower.functional.storage import Handle
from compiler.lower.fx.overloads import (
    BINARY,
    SCALAR_OPERATORS,
    UNARY,
    UnknownCallError,
    find_overload,
    is_runtime,
    is_scalar,
    is_tensor,
    shapes_known,
)
from ir.attributes import map_leaves
from ir.errors import InferenceError
from ir.opdef import OpDef, get_opdef
from ir.types import ScalarType, TensorType, Type


class Size:
    """The size of a tensor (`x.shape`), whose dimensions are read later."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle


class Pieces:
    """The pieces of `x.chunk(n)`, `x.split(n)` or `x.unbind()`, where their number is unknown."""

    def __init__(self, name: str, handle: Handle, number: Any, axis: int) -> None:
        self.name = name
        self.handle = handle
        self.number = number
        """How many chunks, or the size of a split."""
        self.axis = axis


PIECES = {"aten.chunk": "chunks", "aten.split.Tensor": "split_size", "aten.unbind.int": None}
"""Operators with an unknown number of views -> the parameter that decides it."""


class Operators:
    """Appends operators to a program."""

    def __init__(self, functionalizer: Functionalizer) -> None:
        self.functionalizer = functionalizer

    def aten(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the overload of `aten.<name>` that takes these arguments.

        Raises:
            UnknownCallError: when there is none.
        """
        opdef, named = find_overload(name, args, kwargs)
        return self.operator(opdef, args, named)

    def operator(
        self,
        opdef: OpDef | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        types: Sequence[Type] | None = None,
    ) -> Any:
        """Call an operator; return its result: a handle, a value for a number, or a tuple of several."""
        if isinstance(opdef, str):
            opdef = get_opdef(opdef)
        if any(type(arg) is Handle and not is_tensor(arg) for arg in (*args, *(kwargs or {}).values())):
            raise UnknownCallError(f"{opdef.name} with an argument that is known at run time only")
        try:
            results = self.functionalizer.call(opdef, list(args), kwargs or {}, types)
        except InferenceError as error:
            if "list" in opdef.results and not shapes_known(args):
                if opdef.name in PIECES:
                    return self._pieces(opdef, args, kwargs or {})
                raise UnknownCallError("the number of results is not known") from error
            raise
        found = [h.value if isinstance(h.value.type, ScalarType) else h for h in results]
        if "list" in opdef.results or len(opdef.results) > 1:
            return tuple(opdef.nest(found))
        return found[0] if found else None

    def _pieces(self, opdef: OpDef, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pieces:
        bound = {p.name: p.default for p in opdef.params}
        bound |= dict(zip(bound, args, strict=False)) | dict(kwargs)
        number = PIECES[opdef.name]
        return Pieces(opdef.name, bound["self"], None if number is None else bound[number], bound["dim"])

    def plain(self, arg: Any) -> Any:
        """Return an argument with sizes as tuples of dimensions, and FX's containers as plain ones."""
        return map_leaves(arg, self._plain)

    def _plain(self, leaf: Any) -> Any:
        if type(leaf) is Size:
            return tuple(self.dims(leaf))
        if type(leaf) is Pieces:
            raise UnknownCallError("the number of pieces is not known")
        return leaf

    def python_operator(self, function: Callable[..., Any], args: list[Any]) -> Any:
        """Apply an operator of Python to tensors, or to numbers of which some are read from tensors."""
        if not any(map(is_runtime, args)):
            return function(*args)
        if not any(map(is_tensor, args)):
            return self._scalar_operator(function, args)
        if function in UNARY:
            return self.aten(UNARY[function], *args)
        name = BINARY[function]
        a, b = args
        if is_tensor(a):
            return self.aten(name, a, b)
        # a number on the left: as the reflected method of torch.Tensor
        if name == "sub":
            return self.operator("aten.rsub.Scalar", (b, a))
        if name == "div":
            return self.aten("mul", self.aten("reciprocal", b), a)
        if name in ("add", "mul", "bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne"):
            return self.aten(name, b, a)
        if name in ("lt", "le", "gt", "ge"):
            return self.aten({"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}[name], b, a)
        if name == "pow":
            return self.operator("aten.pow.Scalar", (a, b))
        if name == "remainder":
            return self.operator("aten.remainder.Scalar_Tensor", (a, b))
        raise UnknownCallError(f"{name} of a number and a tensor")

    def _scalar_operator(self, function: Callable[..., Any], args: list[Any]) -> Any:
        name = SCALAR_OPERATORS.get(function)
        ints = all(is_scalar("int", arg) for arg in args)
        if name is None or not ints:
            raise UnknownCallError("an operator on numbers read from tensors")
        return self.operator(f"aten.{name}.int", args)

    # ---- sizes ----

    def dim(self, handle: Handle, axis: Any) -> Any:
        """Return one dimension of a tensor: an int if known, else a value."""
        type_ = handle.value.type
        if isinstance(type_, TensorType) and type_.shape is not None and isinstance(axis, int):
            known = type_.shape[axis]
            if known is not None:
                return known
        return self.operator("aten.sym_size.int", (handle, axis))

    def dims(self, size: Size) -> list[Any]:
        """Return all dimensions of a tensor of known rank.

        Raises:
            UnknownCallError: when the rank is not known.
        """
        rank = self.rank(size.handle)
        if rank is None:
            raise UnknownCallError("the rank is not known")
        return [self.dim(size.handle, axis) for axis in range(rank)]

    def rank(self, handle: Handle) -> int | None:
        """Return the number of dimensions, or None if unknown."""
        type_ = handle.value.type
        return type_.rank if isinstance(type_, TensorType) else None
