"""Calls in an FX graph, as ATen operators: functions of `torch` and `operator`, and methods."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch

from compiler.lower.functional.storage import Handle
from compiler.lower.fx.indexing import Indexing
from compiler.lower.fx.operators import Size
from compiler.lower.fx.overloads import BINARY, UNARY, UnknownCallError, is_scalar, is_tensor
from ir.opdef import get_opdef, opdef_of_overload
from ir.types import TensorType

VARIADIC = frozenset(
    {"view", "reshape", "permute", "expand", "repeat", "tile", "flip", "broadcast_to"}
    | {"new_zeros", "new_ones", "new_empty"}
)
"""Methods that also take their list of ints as separate arguments."""

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

# Python functions whose operator has another name.
_RENAMED = {
    "true_divide": "div",
    "__matmul__": "matmul",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "absolute": "abs",
    "greater": "gt",
    "less": "lt",
    "logsigmoid": "log_sigmoid",
}
# Python-level functions in torch/functional.py that are one operator.
_PYTHON_FUNCTIONS = frozenset({torch.split, torch.einsum, torch.meshgrid, torch.norm, torch.stft})
# Functions that also take the size of a new tensor as separate arguments.
_FACTORIES = frozenset({"zeros", "ones", "empty", "rand", "randn"})


# ---- calls ----


class Calls(Indexing):
    """Appends the operators for calls."""

    # ---- methods ----

    def method(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of a tensor.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        receiver, *rest = args
        if not is_tensor(receiver):
            raise UnknownCallError(f"{name} is called on something that is not a tensor")
        if name == "size":
            axis = rest[0] if rest else kwargs.get("dim")
            return Size(receiver) if axis is None else self.dim(receiver, axis)
        if name in ("dim", "ndimension"):
            rank = self.rank(receiver)
            return rank if rank is not None else self.operator("aten.dim", (receiver,))
        if name in CASTS:
            if rest or kwargs.keys() - {"memory_format"}:
                raise UnknownCallError(f"{name} with other arguments than memory_format")
            return self.operator("aten.to.dtype", (receiver, CASTS[name]), dict(kwargs))
        if name == "to":
            return self._to(receiver, rest, kwargs)
        rest = [self.plain(arg) for arg in rest]
        if name in VARIADIC and rest and all(is_scalar("int", arg) for arg in rest):
            rest = [rest]
        if name in ("cpu", "cuda", "numpy", "tolist", "item", "backward", "requires_grad_"):
            raise UnknownCallError(f"{name} is not an operator on tensors alone")
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
        """Call the operator for the name of a Python function or method, with its Python arguments."""
        args = [self.plain(arg) for arg in args]
        named = {key: self.plain(arg) for key, arg in kwargs.items()}
        name = _RENAMED.get(name, name)
        if name == "conv_transpose2d":
            overload = get_opdef("aten.conv_transpose2d.input")
            return self.operator(overload, args, named)
        found = self.aten(name, *args, **named)
        class_ = getattr(torch.return_types, name, None)
        # callers may read `.values` of the result, where the operator returns a plain tuple
        return class_(found) if type(found) is tuple and isinstance(class_, type) else found

    # ---- functions ----

    def function(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of `torch` or `operator`, or a method taken from its class.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        if function is torch._assert:
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
        raise UnknownCallError(f"{name} is not a function of torch")

    def attribute(self, owner: Any, name: str) -> Any:
        """Return `owner.name`.

        Raises:
            UnknownCallError: when the attribute is not supported.
        """
        if isinstance(owner, tuple) and owner and type(owner[0]) is Handle:
            names = _named_results(owner[0])
            if name in names:
                return owner[names.index(name)]
        if type(owner) is not Handle:
            raise UnknownCallError(f"attribute {name} of something that is not a tensor")
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


def _named_results(handle: Handle) -> list[str]:
    """Return the names of the results (`values`, `indices`) of the operator that made a tensor."""
    op = handle.value.defining_op
    schema = getattr(op.opdef.target, "_schema", None) if op is not None else None
    return [] if schema is None else [result.name for result in schema.returns]
