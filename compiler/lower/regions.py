"""Regions in an exported graph: those of `torch.no_grad()` and `torch.autocast` are inlined, others refused by name."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.lower.autocast import AutocastRegion
from compiler.lower.base import Lowering
from compiler.lower.functional.storage import Handle
from compiler.lower.functional.views import may_need_gradient
from compiler.lower.symbols import DataDependentSizeError, SymbolTable, Unexpressed
from compiler.usercode.locations import class_path, module_of
from ir.core import Value
from ir.errors import CaptureError
from ir.locations import Location
from ir.opdef import get_opdef
from ir.program import Surrounding
from ir.schemas import name_of_overload


class RegionLowering(Lowering):
    """Lowers regions; a subclass lowers single calls."""

    symbols: SymbolTable
    _inside_no_grad = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._autocast: dict[str, AutocastRegion] = {}
        """Device -> the innermost region of autocast for it."""
        self._cast_weights: dict[tuple[Value, torch.dtype], Handle] = {}
        """Casts of weights, which autocast makes once for each of its outermost regions."""

    def _call(self, node: fx.Node) -> None:
        raise NotImplementedError

    def _argument(self, arg: Any) -> Any:
        kind = type(arg)
        if kind is fx.Node:
            found = self.env[arg]
            if type(found) is Unexpressed:
                raise DataDependentSizeError(found.text)
            return found
        if kind is list or kind is tuple or isinstance(arg, (list, tuple)):
            return [self._argument(item) for item in arg]
        if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self.symbols.dim(arg)
        return arg

    def _higher_order(self, node: fx.Node, target: Any, location: Location) -> None:
        if target.name() == "wrap_with_autocast":
            self._enter_autocast(node, location)
            return
        if target.name() != "wrap_with_set_grad_enabled":
            location = self._first_inside(node, location)
            raise CaptureError(
                f"the model uses {target.name()}, which is not supported",
                location=location,
                remedy="keep the module as is with leaf_modules=",
            )
        enabled, region, *args = node.args
        if enabled and self._inside_no_grad:
            raise CaptureError(
                "gradients are enabled again inside torch.no_grad()",
                location=location,
                remedy="end the no_grad block first, or keep the module as is with leaf_modules=",
            )
        body = self.env[region]  # type: ignore[index]
        inputs = [self._argument(arg) for arg in args]
        self.functionalizer.location = location
        if not enabled:
            inputs = [self._without_gradient(arg) for arg in inputs]
        outer = self._inside_no_grad
        self._inside_no_grad = outer or not enabled
        try:
            self.env[node] = self._inline(body, inputs)
        finally:
            self._inside_no_grad = outer

    def _enter_autocast(self, node: fx.Node, location: Location) -> None:
        device, dtype, is_enabled, _, region, *args = node.args
        body = self.env[region]  # type: ignore[index]
        outer = self._autocast
        if not outer:
            self._cast_weights.clear()
        dtype = torch.get_autocast_dtype(str(device)) if dtype is None else dtype
        assert isinstance(dtype, torch.dtype)
        self._autocast = outer | {str(device): AutocastRegion(str(device), dtype, bool(is_enabled))}
        if not self.program.surroundings.get("autocast"):
            place = str(self._first_inside(node, location).source)
            self.program.surroundings = {**self.program.surroundings, "autocast": Surrounding((), place)}
        try:
            self.env[node] = self._inline(body, [self._argument(arg) for arg in args])
        finally:
            self._autocast = outer

    def _as_autocast(
        self, node: fx.Node, target: OpOverload, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call as the region of autocast casts them."""
        for region in self._autocast.values():
            dtype = region.casts(node, target)
            if dtype is not None and target._schema.is_mutable:
                raise CaptureError(
                    f"{name_of_overload(target)} writes to a tensor, and torch.autocast casts its operands",
                    remedy="use the out-of-place operator, or leave the region before it",
                )
            if dtype is not None:
                args = [self._cast(arg, dtype, region) for arg in args]
                kwargs = {key: self._cast(arg, dtype, region) for key, arg in kwargs.items()}
        return args, kwargs

    def _cast(self, arg: Any, dtype: torch.dtype, region: AutocastRegion) -> Any:
        """Return an argument as autocast casts it."""
        if isinstance(arg, list):
            return [self._cast(item, dtype, region) for item in arg]
        if type(arg) is not Handle or not region.is_cast(arg.value.type) or arg.value.tensor_type.dtype == dtype:
            return arg
        key = arg.value, dtype
        if key not in self._cast_weights:
            cast: Handle = self.functionalizer.call(get_opdef("aten.to.dtype"), (arg, dtype), {})[0]
            if not arg.value.is_weight:
                return cast
            self._cast_weights[key] = cast
        return self._cast_weights[key]

    def _first_inside(self, node: fx.Node, location: Location) -> Location:
        """Return the location of the first operation in a region, which has none itself."""
        for arg in node.args:
            body = self.env.get(arg) if isinstance(arg, fx.Node) else None
            if isinstance(body, fx.GraphModule) and not location.file:
                for inner in body.graph.nodes:
                    if inner.op == "call_function" and (found := self.locate(inner)).file:
                        return _entry(found, inner)
        return location

    def _inline(self, body: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """Inline the graph of a region on these inputs; return its outputs."""
        rest = iter(inputs)
        for node in body.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = next(rest)
            elif node.op == "get_attr":
                self.env[node] = attribute_of(body, str(node.target))
            elif node.op == "call_function" and not has_raised(node):
                self._call(node)
            elif node.op == "output":
                return self._argument(node.args[0])
        return []

    def _without_gradient(self, arg: Any) -> Any:
        """Return a tensor as torch.no_grad() shows it: detached, if it may need a gradient."""
        if isinstance(arg, list):
            return [self._without_gradient(item) for item in arg]
        if type(arg) is not Handle or not may_need_gradient(arg.value):
            return arg
        return self.functionalizer.call(get_opdef("aten.detach"), (arg,), {})[0]

    def _with_gradient(self, arg: Any) -> Any:
        """Undo `_without_gradient` for a parameter."""
        if type(arg) is not Handle or arg.parent is None or arg.parent.storage.kind != "parameter":
            return arg
        op = arg.value.defining_op
        return arg.parent if op is not None and op.name == "aten.detach" else arg


def kept_in_autocast() -> CaptureError:
    """Return the error for an opaque call in a region of autocast."""
    return CaptureError(
        "a module that is kept as is would be called outside of the region of torch.autocast that forward enters",
        remedy="keep the module that enters the region as is, too, with leaf_modules=",
    )


def _entry(inside: Location, node: fx.Node) -> Location:
    """Return the location of the `with` or decorator that enters the autocast region of a node.

    Where it does not enclose the line of the node, return the location of the node.
    """
    found: ast.AST | None = None
    try:
        tree = ast.parse("".join(linecache.getlines(inside.file)))
    except SyntaxError:
        return inside
    for each in ast.walk(tree):  # outer ones first
        if isinstance(each, ast.With | ast.AsyncWith):
            places: list[ast.expr] = [item.context_expr for item in each.items]
        elif isinstance(each, ast.FunctionDef):
            places = each.decorator_list
        else:
            continue
        entering = [place for place in places if "autocast" in ast.unparse(place)]
        if entering and each.lineno <= inside.line <= (each.end_lineno or 0):
            found = entering[0]
    if found is None:
        return inside
    stack = node.meta.get("nn_module_stack") or {}
    own = {key: entry for key, entry in stack.items() if not class_path(entry[1]).startswith("torch.nn.")}
    path, class_name = module_of({"nn_module_stack": own})
    return Location(path, class_name, inside.file, found.lineno)  # type: ignore[attr-defined]


def has_raised(node: fx.Node) -> bool:
    """Return whether an operator raised during tracing and the model caught it (`try:`)."""
    made = node.meta.get("val", node)
    return made is None and not node.users and isinstance(node.target, OpOverload) and bool(node.target._schema.returns)


def attribute_of(root: Any, path: str) -> Any:
    """Return the attribute at a dotted path."""
    for name in path.split("."):
        root = getattr(root, name)
    return root
