"""Lowering of an FX graph without running it: shapes come from its metadata, or stay unknown."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from compiler.capture.errors import at_operation
from compiler.capture.symbolic import ASKED_FOR_NONE
from compiler.lower.base import Lowering
from compiler.lower.functional.storage import Handle
from compiler.lower.fx.arguments import with_kinds
from compiler.lower.fx.calls import Calls
from compiler.lower.fx.constant_calls import draws_numbers, makes_tensors, only_computes
from compiler.lower.fx.leaf_modules import LeafModules, has_hooks
from compiler.lower.fx.nn_functional import FUNCTIONS
from compiler.lower.fx.operators import Pieces, Size
from compiler.lower.fx.overloads import UnknownCallError, is_runtime
from compiler.lower.regions import attribute_of
from compiler.lower.results import Results
from compiler.usercode.copies import structural_copy
from compiler.usercode.locations import class_path, is_inside
from ir.attributes import iter_leaves, map_leaves
from ir.core import Operation, Value
from ir.errors import CaptureError, GraphwrightError, InputError
from ir.locations import Location
from ir.opdef import get_opdef
from ir.ops.nn_ops import encode_call
from ir.parameters import parameters_of_signature
from ir.program import CallingConvention, InputLeaf, Program, WeightKind
from ir.types import CPU, UNKNOWN_TENSOR, OpaqueType, ScalarType, TensorType, Type

_WITH_INPUTS = "pass example inputs, so that it is captured through torch.export"


class FxLowering(Lowering):
    """Lowers one `fx.GraphModule`.

    Args:
        graph_module: the graph.
        leaves: modules that stay opaque calls, by path.
        is_traced: whether it is a trace of a module, whose code may have asked for the kind of its arguments.
    """

    def __init__(
        self, graph_module: fx.GraphModule, leaves: Mapping[str, nn.Module], *, is_traced: bool = False
    ) -> None:
        super().__init__(graph_module, CallingConvention(None, None))
        self.root = graph_module
        self.is_traced = is_traced
        self.calls = Calls(self.functionalizer)
        self.leaf_modules = LeafModules(self.calls, self._weight)
        self.kept = leaves
        self.sources: dict[int, Handle] = {}
        self.prefix = ""
        """Where the graph that is being lowered is: the path of the stage, and a dot."""
        self.device = next((t.device for t in (*graph_module.parameters(), *graph_module.buffers())), CPU)

    # ---- the whole ----

    def lower(self) -> Program:
        """Return the program.

        Raises:
            CaptureError: when the graph cannot be expressed.
        """
        root = self.root
        if type(root.graph._codegen) is not CodeGen:
            raise CaptureError("the graph takes or returns nested structures", remedy=_WITH_INPUTS)
        self._add_module(root)
        self.locate.aliases = self.program.module_aliases
        for node in root.graph.nodes:
            self._node(node)
        self._drop_weights_of_opaques()
        self.convention.inputs = with_kinds(self.program, is_traced=self.is_traced)
        self._lock_mode()
        self.convention.parameters = parameters_of_signature(inspect.signature(root.forward))
        return self.program

    def _drop_weights_of_opaques(self) -> None:
        """Remove weights that only opaque modules own."""
        prefixes = tuple(f"{path}." for path in self.program.opaques)
        for name, weight in list(self.program.weights.items()):
            names = (name, *weight.aliases)
            if prefixes and all(each.startswith(prefixes) for each in names) and weight.value.is_unused:
                del self.program.weights[name]

    def _node(self, node: fx.Node) -> None:
        location = self._location(node)
        self.functionalizer.location = location
        try:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                self.env[node] = self._attribute(f"{self.prefix}{node.target}")
            elif node.op == "output":
                self._output(node)
            else:
                before = self.graph.return_op.prev
                self.env[node] = self._call(node)
                self._complete(node, before)
        except GraphwrightError as error:
            if error.location is None or error.remedy is None:
                raise at_operation(error, location, _WITH_INPUTS) from error
            raise

    def _location(self, node: fx.Node) -> Location:
        location = self.locate(node)
        if node.op != "call_module":
            return location
        path = f"{self.prefix}{node.target}"
        module = self.facts.modules.get(path)
        class_name = "" if module is None else class_path(type(module))
        return Location(path, class_name, location.file, location.line)

    def _complete(self, node: fx.Node, before: Operation | None) -> None:
        """Apply what the module and the node say about the operations after `before`."""
        op = self.graph.return_op.prev
        while op is not None and op is not before:
            self._adjust(op, node)
            op = op.prev
        found = self.env[node]
        types = _recorded_types(node, self.device)
        handles = found if isinstance(found, tuple) else (found,)
        if types is not None and len(types) == len(handles):
            for handle, type_ in zip(handles, types, strict=True):
                if type(handle) is Handle and type_ is not None:
                    _refine(handle.value, type_)
        if len(handles) == 1 and type(handles[0]) is Handle and not handles[0].value.name:
            handles[0].value.name = node.name

    # ---- inputs, weights, outputs ----

    def _placeholder(self, node: fx.Node) -> None:
        name = str(node.target)
        if name.startswith("*"):
            raise CaptureError(f"the graph takes a variable number of arguments ({name})", remedy=_WITH_INPUTS)
        if (
            node.name != name
            and not self.is_traced
            and any(node.name == other.target for other in node.graph.find_nodes(op="placeholder"))
        ):
            raise CaptureError(
                f"the graph's own `forward` loses its parameter `{node.name}`: torch.fx assigns `{name}` to this name",
                remedy=f"rename the parameter `{name}` of the model, which Python has a builtin for",
            )
        fits = not node.meta.get(ASKED_FOR_NONE)
        if node.args and not node.users and fits:
            self.env[node] = None
            accepts = () if self.is_traced else ("any",)
            self.convention.inputs += (InputLeaf(name, None, node.args[0], accepts),)
            return
        types = _recorded_types(node, self.device)
        type_: Type = types[0] if types and types[0] is not None else UNKNOWN_TENSOR
        kinds = {int: "int", float: "float", bool: "bool"}
        kind = kinds.get(node.type) or (kinds.get(type(node.args[0])) if node.args else None)  # type: ignore[arg-type]
        if types is None and kind is not None:
            type_ = ScalarType(kind)
        number = len(self.graph.inputs)
        value = self.graph.add_input(type_, name)
        self.env[node] = (
            value if kind is not None and types is None else self.functionalizer.source(value, "input", number=number)
        )
        has_none = fits and bool(node.args) and node.args[0] is None
        self.convention.inputs += (InputLeaf(name, number, accepts=("none",) if has_none else ()),)

    def _weight(self, tensor: torch.Tensor) -> Handle:
        found = self.sources.get(id(tensor))
        if found is None:
            weight = self.weights.add("constant", tensor, WeightKind.CONSTANT, persistent=False, alias=False)
            found = self.functionalizer.source(weight.value, weight.kind.value, name=weight.name)
            self.sources[id(tensor)] = found
        return found

    def _attribute(self, path: str) -> Any:
        item = attribute_of(self.root, path)
        if not isinstance(item, torch.Tensor):
            return item
        if path not in self.weights.names:
            self.weights.add(path, item, WeightKind.CONSTANT, persistent=False, alias=False)
        return self._weight(item)

    def _output(self, node: fx.Node) -> None:
        tree = map_leaves(node.args[0], lambda leaf: leaf)
        leaves, self.convention.out_spec = pytree.tree_flatten(tree, is_leaf=lambda item: isinstance(item, fx.Node))
        flat = [self.env[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        if any(isinstance(item, (tuple, list, Size, Pieces)) for item in flat):
            # a node that stands for several values
            try:
                nested = self.calls.plain(map_leaves(tree, self._result))
            except UnknownCallError as error:
                raise CaptureError(f"a result of the graph is not known: {error}", remedy=_WITH_INPUTS) from None
            flat, self.convention.out_spec = pytree.tree_flatten(nested, is_leaf=is_runtime)
        self.convention.in_spec = pytree.tree_structure(((0,) * len(self.convention.inputs), {}))
        found = Results(self.functionalizer)
        for item in flat:
            if is_runtime(item):
                found.value(item)
            else:
                found.constant(item)
        found.finish(self.program, self.weights)

    def _result(self, item: Any) -> Any:
        return self.calls.plain(self.env[item]) if isinstance(item, fx.Node) else item

    # ---- calls ----

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return self.env[leaf]
        return self._weight(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = map_leaves([*node.args], self._argument), map_leaves({**node.kwargs}, self._argument)
        if node.op == "call_module":
            return self._call_module(node, args, kwargs)
        try:
            if node.op == "call_method":
                return self.calls.method(str(node.target), args, kwargs)
            assert callable(node.target)
            if node.target is torch._assert or (node.users and all(u.target is torch._assert for u in node.users)):
                return None  # an assertion on sizes, which types express where they are known
            if any(is_runtime(leaf) or type(leaf) in (Size, Pieces) for leaf in iter_leaves((args, kwargs))):
                return self.leaf_modules.function(node.target, args, kwargs)
            return self._constant_call(node.target, args, kwargs)
        except (UnknownCallError, InputError) as problem:
            return self._opaque_function(node, args, kwargs, problem)

    def _constant_call(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Evaluate a function of constants now, if it only computes. What makes a tensor in each call is an operator.

        Raises:
            UnknownCallError: for a function of the user's.
            CaptureError: for a function that may have effects, or depend on more than its arguments.
        """
        home = (getattr(function, "__module__", None) or "").partition(".")[0]
        if home not in ("", "torch", "_operator", "builtins", "math"):
            raise UnknownCallError("it may return something else each time")
        computes = only_computes(function)
        if not computes:
            if function not in FUNCTIONS and not makes_tensors(function):
                raise _not_computing(function)
            try:
                return self.leaf_modules.function(function, args, kwargs)
            except (UnknownCallError, InputError):
                if draws_numbers(function):
                    raise _not_computing(function) from None
        try:
            found = function(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"the graph calls {_name_of(function)}, which raises {type(error).__name__}: {error}",
                remedy=_WITH_INPUTS,
            ) from error
        if not isinstance(found, torch.Tensor):
            return found
        return self.calls.operator("aten.lift_fresh_copy", (self._weight(found),))

    def _call_module(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        path = f"{self.prefix}{node.target}"
        module = self.facts.modules[path]
        if isinstance(module, fx.GraphModule) and has_hooks(module):
            raise CaptureError(f"{path!r} is a graph with hooks, which copies of it lose", remedy=_WITH_INPUTS)
        if not is_inside(path, self.kept):
            if _is_stage(module):
                return self._stage(path, module, args, kwargs)
            try:
                found = self.leaf_modules.module(module, args, kwargs)
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    counter = module.num_batches_tracked
                    if counter is not None:
                        self.weights.names[f"{path}.num_batches_tracked"].is_mutated = True
                return found
            except (UnknownCallError, InputError):
                pass
        if path not in self.program.opaques:
            self.program.opaques[path] = structural_copy(module)
        return self._opaque(node, path, args, kwargs, module.training)

    def _stage(self, path: str, module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Lower the graph of a submodule in the place of its call: a stage of `split_module`."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        outer = self.env, self.prefix
        self.env, self.prefix = {}, f"{path}."
        found: Any = None
        try:
            for node in module.graph.nodes:
                if node.op == "placeholder":
                    self.env[node] = bound.arguments[str(node.target)]
                elif node.op == "output":
                    found = map_leaves(node.args[0], self._argument)
                else:
                    self._node(node)
        finally:
            self.env, self.prefix = outer
        return tuple(found) if isinstance(found, list) else found

    def _opaque_function(
        self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], problem: Exception
    ) -> Any:
        target = node.target
        function = getattr(torch.Tensor, str(target), None) if node.op == "call_method" else target
        name = getattr(function, "__name__", str(target))
        in_place = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        if (
            not callable(function)
            or in_place
            or kwargs.get("out") is not None
            or name in ("__setitem__", "setitem", "setattr")
        ):
            raise CaptureError(
                f"the graph calls {name}, which may write to its arguments and has no functional form here: {problem}",
                remedy=_WITH_INPUTS,
            )
        module = getattr(function, "__module__", None)
        callee = f"{module}.{name}" if module else name
        number = 0
        base = callee
        while self.program.opaques.setdefault(callee, function) is not function:
            number += 1
            callee = f"{base}_{number}"
        return self._opaque(node, callee, args, kwargs, False)

    def _opaque(
        self, node: fx.Node, callee: str, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
    ) -> Any:
        try:
            plain_args, plain_kwargs = self.calls.plain(list(args)), self.calls.plain(dict(kwargs))
            positional, keywords, operands = encode_call(plain_args, plain_kwargs, is_runtime)
        except (InputError, UnknownCallError) as error:
            raise CaptureError(f"{callee} cannot be kept as an opaque call: {error}", remedy=_WITH_INPUTS) from None
        if any(type(operand) is not Handle for operand in operands):
            raise CaptureError(f"{callee} takes a size that is known at run time only", remedy=_WITH_INPUTS)
        recorded = _recorded_types(node, self.device)
        count = _unpacked(node)
        if recorded is None and count == 1:
            # unpacking would name all results; this takes the first of an unknown number
            raise CaptureError(f"it is not known how many results {callee} returns", remedy=_WITH_INPUTS)
        types: list[Type] = [t or UNKNOWN_TENSOR for t in recorded or ()]
        if not count and len(types) != 1:
            # a tensor, or a structure that only callers of the graph inspect
            types = [OpaqueType() if _is_no_tensor(node) else UNKNOWN_TENSOR]
        elif not types:
            types = [UNKNOWN_TENSOR] * count
        found = self.functionalizer.call(
            get_opdef("nn.opaque"),
            (operands,),
            {
                "callee": callee,
                "positional": positional,
                "keywords": keywords,
                "training": training,
                "result_types": tuple(map(str, types)),
                "returns": "items" if count else "whole",
            },
            types,
        )
        return tuple(found) if count else found[0]


def _is_stage(module: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Return whether a module is a graph whose arguments and results are those of its nodes."""
    if not isinstance(module, fx.GraphModule) or type(module.graph._codegen) is not CodeGen:
        return False
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    return not any(name.startswith("*") for name in names)


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    home = getattr(function, "__module__", None)
    return f"{home}.{name}" if home else str(name)


def _not_computing(function: Any) -> CaptureError:
    return CaptureError(
        f"the graph calls {_name_of(function)} without a tensor: it may have an effect, or return something else each "
        "time",
        remedy=_WITH_INPUTS,
    )


def _is_no_tensor(node: fx.Node) -> bool:
    """Return whether a node reads the dtype or device of a tensor."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("dtype", "device")


def _unpacked(node: fx.Node) -> int:
    """Return how many results the users of a node unpack, or 0."""
    indices = [user.args[1] for user in node.users if user.op == "call_function" and user.target is operator.getitem]
    if not indices or len(indices) < len(node.users) or not all(type(i) is int and i >= 0 for i in indices):
        return 0
    return max(int(i) for i in indices) + 1  # type: ignore[arg-type]


def _recorded_types(node: fx.Node, device: torch.device) -> list[TensorType | None] | None:
    """Return the types that `ShapeProp` or fake tensor propagation left on a node."""
    meta = node.meta.get("val", node.meta.get("tensor_meta"))
    if meta is None:
        return None
    is_single = hasattr(meta, "dtype") and hasattr(meta, "shape")
    items = [meta] if is_single or not isinstance(meta, (tuple, list)) else list(meta)
    types: list[TensorType | None] = []
    for item in items:
        shape = getattr(item, "shape", None)
        if shape is None or not all(type(d) is int for d in shape):
            types.append(None)
        else:
            types.append(TensorType(tuple(shape), item.dtype, getattr(item, "device", device)))
    return types


def _refine(value: Value, recorded: TensorType) -> None:
    """Fill in what inference left unknown."""
    known = value.type
    if not isinstance(known, TensorType) or known.is_known:
        return
    value.type = TensorType(recorded.shape, recorded.dtype, known.device or recorded.device)
