"""Operations as function and method calls that a person would write."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import nn

from compiler.codegen.function_names import FUNCTIONS, GLOBAL_FLAGS
from ir.attributes import Attribute, Ref, attributes_equal, is_written_exactly, map_leaves
from ir.core import Operation
from ir.errors import CodegenError
from ir.opdef import ParamKind
from ir.types import Dim, TensorType, shapes_equal, simplify_dim

if TYPE_CHECKING:
    from compiler.codegen.scope import Scope

F = nn.functional


Emit = Callable[["Scope", Operation], Any]

_SPECIAL: dict[str, Emit] = {}


def emit_function(scope: Scope, op: Operation) -> Any:
    """Add the call for `op` and return its node; where the operator returns several results, that of their tuple."""
    special = _SPECIAL.get(op.name)
    if special is not None:
        node = special(scope, op)
        if node is not NotImplemented:
            return node
    target = FUNCTIONS.get(op.name)
    if target is None:
        target = op.opdef.target
    args, kwargs = arguments(scope, op)
    assert target is not None, op
    return scope.call(target, args, kwargs)


def arguments(scope: Scope, op: Operation) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the operator's schema, leaving out those that have their default value."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    gap = False
    grouped = iter(op.grouped_operands())
    for param in op.opdef.params:
        if param.extra or param.name == GLOBAL_FLAGS.get(op.name):
            continue
        if param.kind is ParamKind.ATTRIBUTE:
            attribute = op.attributes[param.name]
            if param.name == op.opdef.training and op.attributes.get("follows_mode", False):
                attribute = scope.training_flag(op)
            elif param.has_default and attributes_equal(attribute, param.default):
                gap = True
                continue
            value = resolve(scope, op, attribute)
            if param.name in ("device", "dtype"):
                like = scope.attribute_like(op, param.name)
                value = value if like is None else like
        else:
            entry: Any = next(grouped)
            if entry is None and (param.has_default or param.kind is ParamKind.OPTIONAL):
                gap = True
                if not param.has_default:
                    kwargs[param.name] = None
                continue
            if isinstance(entry, tuple):
                value = [None if v is None else scope.value(v) for v in entry]
            else:
                value = scope.value(entry)
        if gap or param.keyword_only:
            kwargs[param.name] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def resolve(scope: Scope, op: Operation, attribute: Attribute) -> Any:
    """Return an attribute as an argument: symbolic sizes and values become nodes, tuples become lists."""

    def leaf(item: Any) -> Any:
        if type(item) is Ref:
            operand = op.operands[item.index]
            assert operand is not None
            return scope.value(operand)
        return literal(scope, item)

    value = map_leaves(attribute, leaf)
    return list(value) if isinstance(value, tuple) else value


def literal(scope: Scope, value: Any) -> Any:
    """Return what to write for a number: the node of a size, and of a complex number whose `repr` is no code for it."""
    if isinstance(value, sympy.Basic):
        return scope.size(value)
    if type(value) is complex and not is_written_exactly(value):
        return scope.call(complex, (value.real, value.imag))
    return value


def _special(*names: str) -> Callable[[Emit], Emit]:
    def add(emit: Emit) -> Emit:
        for name in names:
            _SPECIAL[name] = emit
        return emit

    return add


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "rsub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "bitwise_not": operator.invert,
    "remainder": operator.mod,
    "floor_divide": operator.floordiv,
}


def _emit_operator(scope: Scope, op: Operation) -> Any:
    if not attributes_equal(op.attributes.get("alpha", 1), 1):
        return NotImplemented
    operands = [scope.value(v) for v in op.operands[: op.num_schema_operands] if v is not None]
    operands += [resolve(scope, op, op.attributes[key]) for key in ("other", "exponent") if key in op.attributes]
    if op.opdef.short_name == "rsub":
        operands.reverse()
    return scope.call(_OPERATORS[op.opdef.short_name], tuple(operands))


_SPECIAL["aten.pow.Tensor_Scalar"] = _emit_operator
for _name in _OPERATORS:
    for _overload in ("", ".Tensor", ".Scalar"):
        if _name != "pow":  # `pow.Scalar` has the number on the left
            _SPECIAL[f"aten.{_name}{_overload}"] = _emit_operator


def _first(scope: Scope, op: Operation) -> Any:
    return scope.value(op.operand_values[0])


@_special("aten.reshape")
def _emit_reshape(scope: Scope, op: Operation) -> Any:
    span = flattened_span(op.operand_values[0].type, op.result.type)
    if span is not None:
        return _flatten(scope, op, *span)
    shape = resolve(scope, op, op.attributes["shape"])
    # `x.reshape()` is an error
    return scope.method("reshape", (_first(scope, op), *(shape or [()])))


@_special("aten.flatten.using_ints")
def _emit_flatten(scope: Scope, op: Operation) -> Any:
    return _flatten(scope, op, op.attributes["start_dim"], op.attributes["end_dim"])


def _flatten(scope: Scope, op: Operation, start: Attribute, end: Attribute) -> Any:
    args = (_first(scope, op), start) if end == -1 else (_first(scope, op), start, end)
    return scope.call(torch.flatten, args)


def flattened_span(source: Any, target: Any) -> tuple[int, int] | None:
    """Return (start, end) where a reshape from type `source` to `target` is `torch.flatten(x, start, end)`, or None.

    `end` is -1 where the last dimensions are merged. Merging must take in at least two dimensions.
    """
    if not isinstance(source, TensorType) or not isinstance(target, TensorType):
        return None
    a, b = source.shape, target.shape
    if a is None or b is None or None in a or None in b or len(b) >= len(a) or not b:
        return None
    merged = len(a) - len(b) + 1
    for start in range(len(b)):
        size: Dim = 1
        for dim in a[start : start + merged]:
            assert dim is not None
            size = size * dim
        if shapes_equal((*a[:start], simplify_dim(size), *a[start + merged :]), b):
            end = start + merged - 1
            return start, -1 if end == len(a) - 1 else end
    return None


# Operators that read best as methods: schema name -> (method, names of the attributes in order; * unpacks a list)
_METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "aten.view": ("view", ("*size",)),
    "aten.permute": ("permute", ("*dims",)),
    "aten.transpose.int": ("transpose", ("dim0", "dim1")),
    "aten.t": ("t", ()),
    "aten.unsqueeze": ("unsqueeze", ("dim",)),
    "aten.squeeze.dim": ("squeeze", ("dim",)),
    "aten.expand": ("expand", ("*size",)),
    "aten.repeat": ("repeat", ("*repeats",)),
    "aten.type_as": ("type_as", ()),
    "aten.expand_as": ("expand_as", ()),
    "aten.detach": ("detach", ()),
}


def _emit_method(scope: Scope, op: Operation) -> Any:
    name, attributes = _METHODS[op.name]
    implied = [k for k in op.attributes if k not in attributes and f"*{k}" not in attributes]
    if any(not attributes_equal(op.attributes[k], op.opdef.defaults.get(k)) for k in implied):
        return NotImplemented
    args = [scope.value(v) for v in op.operands[: op.num_schema_operands] if v is not None]
    for attribute in attributes:
        value = resolve(scope, op, op.attributes[attribute.lstrip("*")])
        if attribute.startswith("*"):
            args.extend(value or [()])
        else:
            args.append(value)
    return scope.method(name, tuple(args))


for _name in _METHODS:
    _SPECIAL[_name] = _emit_method


@_special("aten.item")
def _item(scope: Scope, op: Operation) -> Any:
    return scope.method("item", (scope.value(op.input("self")),))


@_special("aten.copy")
def _emit_copy_into(scope: Scope, op: Operation) -> Any:
    """Write into a fresh tensor: the functional operator has no derivative."""
    target, source = (scope.value(value) for value in op.operand_values)
    return scope.method("copy_", (scope.method("clone", (target,)), source))


@_special("aten.contiguous", "aten.clone")
def _emit_copy(scope: Scope, op: Operation) -> Any:
    format_ = op.attributes["memory_format"]
    default = attributes_equal(format_, op.opdef.defaults["memory_format"])
    return scope.method(op.opdef.short_name, (_first(scope, op),), {} if default else {"memory_format": format_})


@_special("aten.to.dtype")
def _emit_cast(scope: Scope, op: Operation) -> Any:
    a = op.attributes
    options = {key: a[key] for key in ("non_blocking", "copy", "memory_format") if a[key]}
    return scope.method("to", (_first(scope, op), a["dtype"]), options)


@_special("aten.to.dtype_layout")
def _emit_conversion(scope: Scope, op: Operation) -> Any:
    a = op.attributes
    source = op.operands[0].type if op.operands[0] is not None else None
    if a["layout"] not in (None, torch.strided) or not isinstance(source, TensorType) or a["pin_memory"]:
        return NotImplemented
    # what the input has already is left out, so that the module can be converted
    kwargs = {key: a[key] for key in ("dtype", "device") if a[key] not in (None, getattr(source, key))}
    kwargs |= {key: a[key] for key in ("non_blocking", "copy", "memory_format") if a[key]}
    return scope.method("to", (_first(scope, op),), kwargs) if kwargs else NotImplemented


@_special("aten.slice.Tensor", "aten.select.int")
def _emit_index(scope: Scope, op: Operation) -> Any:
    a = op.attributes
    dim = a["dim"]
    rank = op.operands[0].type.rank if op.operands[0] and isinstance(op.operands[0].type, TensorType) else None
    if not isinstance(dim, int):
        return NotImplemented
    if dim < 0 and rank is not None:
        dim += rank
    if dim < 0:
        return NotImplemented
    if op.opdef.short_name == "select":
        item = resolve(scope, op, a["index"])
    else:
        start, end, step = (resolve(scope, op, a[key]) for key in ("start", "end", "step"))
        if isinstance(step, int) and step <= 0:
            return NotImplemented
        # the schema writes "to the end" as the greatest number
        whole = isinstance(end, int) and end >= sys.maxsize
        item = slice(start or None, None if whole else end, None if step == 1 else step)
    index = (slice(None, None, None),) * dim + (item,)
    return scope.call(operator.getitem, (_first(scope, op), index if dim else item))


@_special("aten.index.Tensor")
def _emit_advanced_index(scope: Scope, op: Operation) -> Any:
    indices = op.operand_list("indices")
    items = tuple(slice(None, None, None) if v is None else scope.value(v) for v in indices)
    return scope.call(operator.getitem, (_first(scope, op), items if len(items) != 1 else items[0]))


@_special("aten.einsum")
def _emit_einsum(scope: Scope, op: Operation) -> Any:
    if op.attributes.get("path") is not None:
        return NotImplemented
    tensors = [scope.value(v) for v in op.operand_list("tensors") if v is not None]
    return scope.call(torch.einsum, (op.attributes["equation"], *tensors))


@_special("aten.batch_norm")
def _emit_batch_norm(scope: Scope, op: Operation) -> Any:
    a = op.attributes
    names = ("input", "running_mean", "running_var", "weight", "bias")
    values = [op.operand(name) for name in names]
    args = [None if v is None else scope.value(v) for v in values]
    training = scope.training_flag(op) if a.get("follows_mode", True) and values[1] is not None else a["training"]
    momentum = a["momentum"]
    if momentum is None:  # a cumulative average, which only a module counts
        if a["training"] or a.get("follows_mode", True):
            raise CodegenError(
                "a batch norm with momentum=None is no call of a function: it has no module, or computed statistics",
                location=op.location,
                remedy="keep the module with leaf_modules=, or give it a momentum",
            )
        momentum = 0.0  # outside of training nothing is averaged
    if values[1] is not None and a.get("counts_batches", True) and (a.get("follows_mode", True) or a["training"]):
        scope.count_batches(op, values[1])
    kwargs = {"training": training, "momentum": momentum, "eps": a["eps"]}
    return scope.call(F.batch_norm, tuple(args), kwargs)


_DROPOUT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten.dropout": F.dropout,
    "aten.alpha_dropout": F.alpha_dropout,
    "aten.feature_alpha_dropout": F.feature_alpha_dropout,
    "aten.feature_dropout": torch.feature_dropout,
}


@_special(*_DROPOUT_FUNCTIONS)
def _emit_dropout(scope: Scope, op: Operation) -> Any:
    a = op.attributes
    train = scope.training_flag(op) if a.get("follows_mode", True) else a["train"]
    return scope.call(_DROPOUT_FUNCTIONS[op.name], (_first(scope, op), resolve(scope, op, a["p"]), train))


@_special("aten.split_with_sizes", "aten.split.Tensor", "aten.split.sizes")
def _emit_split(scope: Scope, op: Operation) -> Any:
    sizes = next(v for k, v in op.attributes.items() if k.startswith("split_size"))
    dim = op.attributes["dim"]
    args = (_first(scope, op), resolve(scope, op, sizes))
    return scope.call(torch.split, args, {"dim": dim} if dim != 0 else {})
