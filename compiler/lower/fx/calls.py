"""Calls in an FX graph: functions of `torch`, `torch.nn.functional` and `operator`, and methods, as ATen operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from typing_extensions import override

from compiler.lower.functional.functionalizer import Functionalizer
from compiler.lower.functional.storage import Handle
from compiler.lower.fx.indexing import PIECES, Indexing, Pieces, Size
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
from ir.errors import InferenceError
from ir.opdef import OpDef, get_opdef, opdef_of_overload
from ir.types import ScalarType, TensorType, Type

VARIADIC = frozenset(
    {
        "view",
        "reshape",
        "permute",
        "expand",
        "repeat",
        "tile",
        "flip",
        "broadcast_to",
        "new_zeros",
        "new_ones",
        "new_empty",
    }
)
"""Methods that take their list of ints as separate arguments, too."""

CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "int": torch.int32,
    "long": torch.int64,
    "short": torch.int16,
    "char": torch.int8,
    "byte": torch.uint8,
    "bool": torch.bool,
}

# Names of Python functions whose operator is named otherwise.
_RENAMED = {
    "true_divide": "div",
    "__matmul__": "matmul",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "sigmoid_": "sigmoid_",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "absolute": "abs",
    "greater": "gt",
    "less": "lt",
    "logsigmoid": "log_sigmoid",
}
# Python-level functions in torch/functional.py that are one operator.
_PYTHON_FUNCTIONS = frozenset({torch.split, torch.einsum, torch.meshgrid, torch.norm, torch.stft})
# Functions that take the size of a new tensor as separate arguments, too.
_FACTORIES = frozenset({"zeros", "ones", "empty", "rand", "randn"})
_RETURN_NOTHING = frozenset({torch._assert})


# ---- calls ----


class Calls(Indexing):
    """Appends the operators that calls stand for."""

    def __init__(self, functionalizer: Functionalizer) -> None:
        self.functionalizer = functionalizer

    def aten(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the overload of `aten.<name>` that takes these arguments.

        Raises:
            UnknownCallError: when there is none.
        """
        opdef, named = find_overload(name, args, kwargs)
        return self.operator(opdef, args, named)

    @override
    def operator(
        self,
        opdef: OpDef | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        types: Sequence[Type] | None = None,
    ) -> Any:
        """Call an operator; return its result, a tuple where it has several, or a value where it is a number."""
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

    @override
    def plain(self, arg: Any) -> Any:
        """Return an argument with sizes as tuples of dimensions, as Python sees them, and FX's own lists as lists."""
        if type(arg) is Size:
            return tuple(self.dims(arg))
        if type(arg) is Pieces:
            raise UnknownCallError("the number of pieces is not known")
        if isinstance(arg, slice):
            return slice(self.plain(arg.start), self.plain(arg.stop), self.plain(arg.step))
        if isinstance(arg, tuple):
            return rebuilt(arg, [self.plain(item) for item in arg])
        if isinstance(arg, list):
            return [self.plain(item) for item in arg]
        if isinstance(arg, dict):
            return {key: self.plain(item) for key, item in arg.items()}
        return arg

    # ---- methods ----

    def method(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of a tensor.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        receiver, *rest = args
        if not is_tensor(receiver):
            raise UnknownCallError(f"{name} is called on something that is no tensor")
        if name == "size":
            axis = rest[0] if rest else kwargs.get("dim")
            return Size(receiver) if axis is None else self.dim(receiver, axis)
        if name in ("dim", "ndimension"):
            rank = self.rank(receiver)
            return rank if rank is not None else self.operator("aten.dim", (receiver,))
        if name in CASTS:
            return self.operator("aten.to.dtype", (receiver, CASTS[name]), {})
        if name == "to":
            return self._to(receiver, rest, kwargs)
        rest = [self.plain(arg) for arg in rest]
        if name in VARIADIC and rest and all(is_scalar("int", arg) for arg in rest):
            rest = [rest]
        if name in ("cpu", "cuda", "numpy", "tolist", "item", "backward", "requires_grad_"):
            raise UnknownCallError(f"{name} is no operator on tensors alone")
        return self.named(name, [receiver, *rest], kwargs)

    def _to(self, receiver: Handle, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        named = dict(kwargs)
        first, *others = rest or (None,)
        if is_tensor(first):
            return self.operator("aten.to.other", (receiver, first, *others), named)
        options: dict[str, Any] = {}
        for arg in (arg for arg in (first, *others) if arg is not None):
            if isinstance(arg, torch.dtype):
                options["dtype"] = arg
            elif isinstance(arg, (torch.device, str)):
                options["device"] = torch.device(arg)
            elif isinstance(arg, bool):
                options["non_blocking" if "non_blocking" not in options else "copy"] = arg
            else:
                raise UnknownCallError(f"to({arg!r})")
        options |= named
        if isinstance(options.get("device"), str):
            options["device"] = torch.device(options["device"])
        if "device" not in options and "dtype" in options:
            return self.operator("aten.to.dtype", (receiver, options.pop("dtype")), options)
        return self.operator("aten.to.dtype_layout", (receiver,), options)

    def named(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the operator of a Python function's or method's name, its arguments written as in Python."""
        args = [self.plain(arg) for arg in args]
        named = {key: self.plain(arg) for key, arg in kwargs.items()}
        name = _RENAMED.get(name, name)
        if name == "conv_transpose2d":
            overload = get_opdef("aten.conv_transpose2d.input")
            return self.operator(overload, args, named)
        found = self.aten(name, *args, **named)
        class_ = getattr(torch.return_types, name, None)
        # a caller may ask for `.values` of what Python returns, where the operator returns a plain tuple
        return class_(found) if type(found) is tuple and isinstance(class_, type) else found

    # ---- functions ----

    def function(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of `torch` or `operator`, or a method taken from its class.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        if function in _RETURN_NOTHING:
            return None
        if function is operator.getitem:
            return self.item(args[0], self.plain(args[1]))
        if function is operator.setitem:
            return self.set_item(args[0], self.plain(args[1]), args[2])
        if function is getattr:
            return self.attribute(args[0], args[1])
        if function in BINARY or function in UNARY:
            return self.python_operator(function, [self.plain(arg) for arg in args])
        if function is len and type(args[0]) is Handle:
            return self.dim(args[0], 0)
        name = getattr(function, "__name__", "")
        if getattr(function, "__objclass__", None) is torch._C.TensorBase or (
            getattr(torch.Tensor, name, None) is function
        ):
            return self.method(name, args, kwargs)
        if isinstance(function, BuiltinFunctionType) or function in _PYTHON_FUNCTIONS:
            if getattr(function, "__module__", None) == "math":
                raise UnknownCallError(f"math.{name}")
            if name in _FACTORIES and args and all(is_scalar("int", arg) for arg in args):
                args = [args]
            return self.named(name, args, kwargs)
        if isinstance(function, torch._ops.OpOverload):
            return self.operator(opdef_of_overload(function), [self.plain(a) for a in args], self.plain(dict(kwargs)))
        raise UnknownCallError(f"{name} is no function of torch")

    def attribute(self, owner: Any, name: str) -> Any:
        """Return `owner.name`.

        Raises:
            UnknownCallError: when it is not known.
        """
        if isinstance(owner, tuple) and owner and type(owner[0]) is Handle:
            names = _named_results(owner[0])
            if name in names:
                return owner[names.index(name)]
        if type(owner) is not Handle:
            raise UnknownCallError(f"attribute {name} of something that is no tensor")
        type_ = owner.value.type
        if name == "shape":
            return Size(owner)
        if name == "ndim":
            return self.method("dim", (owner,), {})
        if name in ("dtype", "device") and isinstance(type_, TensorType) and getattr(type_, name) is not None:
            return getattr(type_, name)
        if name in ("T", "mT", "H", "mH"):
            return self.aten({"T": "numpy_T", "H": "matrix_H"}.get(name, name), owner)
        if name in ("real", "imag"):
            return self.aten(name, owner)
        if name == "data":
            return self.operator("aten.detach", (owner,))
        raise UnknownCallError(f"attribute {name} of a tensor")

    @override
    def python_operator(self, function: Callable[..., Any], args: list[Any]) -> Any:
        """An operator of Python on tensors, or on numbers of which some are read from tensors."""
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
        # a number on the left: what the reflected method of torch.Tensor does
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


def rebuilt(original: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    """Return a tuple of other parts, of the class of one with names."""
    if hasattr(original, "_fields"):
        return type(original)(*parts)
    named = type(original).__module__ == "torch.return_types"
    return type(original)(parts) if named else tuple(parts)


def _named_results(handle: Handle) -> list[str]:
    """Return the names of the results (`values`, `indices`) of the operator that a tensor is a result of."""
    op = handle.value.defining_op
    schema = getattr(op.opdef.target, "_schema", None) if op is not None else None
    return [] if schema is None else [result.name for result in schema.returns]
