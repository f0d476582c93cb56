"""Lowering of exported programs."""

from __future__ import annotations

import enum
import json
import linecache
import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from compiler.capture.boundary.observed import Observed
from compiler.capture.captured import Captured, Traced
from compiler.capture.errors import at_operation, is_of_functorch, no_operator
from compiler.lower.export_modes import lock_of_exported, mode_of_exported, modes_of_exported, shared_modules
from compiler.lower.functional.functionalizer import written_statistics
from compiler.lower.functional.storage import Handle
from compiler.lower.functional.views import may_need_gradient
from compiler.lower.functional.writes import check_writes
from compiler.lower.numbers import NumberLowering
from compiler.lower.regions import attribute_of, has_raised, kept_in_autocast
from compiler.lower.results import Results
from compiler.lower.small_sizes import check_small_sizes
from compiler.lower.symbols import (
    DataDependentSizeError,
    SymbolTable,
    restricted,
)
from compiler.lower.weights import is_one_tensor, tensor_type
from ir.core import Value
from ir.data_sizes import has_data_symbols, introduced, most_of
from ir.errors import CaptureError, GraphwrightError, VerificationError
from ir.expressions import format_expression
from ir.locations import Location
from ir.memory.layout import Strides
from ir.opdef import Trait, get_opdef, opdef_of_overload
from ir.ops.nn_ops import parse_call
from ir.parameters import ParameterKind, ParameterSpec
from ir.program import CallingConvention, InputLeaf, Program, Weight, WeightKind
from ir.types import OpaqueType, ScalarType, Type
from ir.verify import verify

_KIND_NAMES = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}
_OPAQUE_TARGET = "graphwright.opaque"


def _plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """Return a structure with Python's lists and dicts: torch.export gives a graph module those of its graph."""
    if spec.is_leaf():
        return spec
    kinds: dict[Any, Any] = {immutable_list: list, immutable_dict: dict}
    return pytree.TreeSpec(kinds.get(spec.type, spec.type), spec.context, list(map(_plain, spec.children())))


class ExportLowering(NumberLowering):
    """Lowers one exported program."""

    def __init__(self, captured: Captured, traced: Traced) -> None:
        self.captured = captured
        self.module = captured.module
        self.exported = traced.exported
        self.assigned = traced.assigned
        """Buffers that are replaced by new tensors: the last results."""
        spec, out_spec = self.exported.call_spec
        convention = CallingConvention(spec, _plain(out_spec.child(0) if self.assigned else out_spec))
        super().__init__(self.module, convention, captured.irregular)
        self.program.opaques = dict(captured.opaques)
        self.symbols = SymbolTable(captured.symbol_names, traced)
        self._reliable_keys = True

    # ---- the whole ----

    def lower(self) -> Program:
        """Return the program.

        Raises:
            CaptureError: when the program cannot be expressed; it names the place in the user's code.
        """
        if self.module is not None:
            self._add_module(self.module, without=self.program.opaques)
            for name in _attached(self.captured.observed):
                if name in self.weights.names:
                    self.weights.names[name].carries_gradient = True
        else:
            self.weights.add_exported(self.exported)
            self.program.module_aliases = shared_modules(self.program, self.exported)
        self.locate.aliases = self.program.module_aliases
        nodes = [node for node in self.exported.graph.nodes if not has_raised(node)]
        self._check_functions(nodes)
        for node in nodes:
            self._note_assertion(node)
        self._reliable_keys = _keys_are_reliable(nodes)
        self._placeholders([node for node in nodes if node.op == "placeholder"])
        for node in nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                self.env[node] = attribute_of(self.exported.graph_module, str(node.target))
            elif node.op == "output":
                self._outputs(node)
        self.program.symbols = self.symbols.ranges()
        self.program.constraints = self.symbols.constraints()
        self._check_types()
        if has_data_symbols(self.program):
            check_small_sizes(self.program)
        check_writes(self.graph)
        self._lock_mode()
        if self.module is None:
            mode = mode_of_exported(self.program, self.captured.training)
            self.program.mode_locked = self.program.mode_locked or lock_of_exported(self.program, self.exported)
            known = mode if self.program.mode_locked else bool(mode)
            self.program.module_modes = modes_of_exported(self.program, known)
        return self.program

    def _check_types(self) -> None:
        """Refuse a program whose types hold only under its constraints.

        Raises:
            CaptureError: naming the operation whose type depends on an assumption of the capture.
        """
        if not any(isinstance(constraint, sympy.Eq) for constraint in self.program.constraints):
            return
        try:
            verify(self.program)
        except VerificationError as error:
            texts = ", ".join(map(format_expression, self.program.constraints))
            line = linecache.getline(error.location.file, error.location.line).strip() if error.location else ""
            raise restricted(texts, line, error.location) from error

    # ---- inputs and outputs ----

    def _placeholders(self, nodes: Sequence[fx.Node]) -> None:
        signature = self.exported.graph_signature
        leaves: list[InputLeaf] = []
        for node, spec in zip(nodes, signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                leaves.append(self._user_input(node, spec.arg))
            elif spec.kind in _KIND_NAMES:
                self.env[node] = self._weight(node, spec.kind, str(spec.target))
            else:
                raise CaptureError(
                    f"the model takes {spec.kind.name.lower()} {spec.target!r}, which is not a tensor",
                    remedy="keep the module that owns it as is with leaf_modules=",
                )
        self.convention.inputs = tuple(leaves)
        forward = self.exported.module_call_graph[0].signature
        if forward is not None and forward.forward_arg_names:
            names = forward.forward_arg_names
            assert self.convention.in_spec is not None
            positional = len(self.convention.in_spec.children()[0].children())
            self.convention.parameters = (
                *(ParameterSpec(name) for name in names[:positional]),
                *(ParameterSpec(name, ParameterKind.KEYWORD_ONLY) for name in names[positional:]),
            )

    def _user_input(self, node: fx.Node, arg: Any) -> InputLeaf:
        if isinstance(arg, ConstantArgument):
            return InputLeaf(node.name, None, arg.value)
        if isinstance(node.meta["val"], enum.Enum) and not node.users:
            return InputLeaf(node.name, None, node.meta["val"])
        number = len(self.graph.inputs)
        value = self.graph.add_input(self._type(node.meta["val"]), node.name)
        if isinstance(arg, TensorArgument):
            self.env[node] = self.functionalizer.source(value, "input", number=number, key=_key(node.meta["val"]))
        else:
            self.env[node] = self.symbols.dim(node.meta["val"])
        return InputLeaf(node.name, number)

    def _weight(self, node: fx.Node, kind: InputKind, name: str) -> Handle | None:
        weight = self.weights.names.get(name)
        if weight is None:
            if not node.users:
                return None
            weight = self._constant(name)
        if node.users and node.meta["val"].layout is not torch.strided:
            raise CaptureError(
                f"{_KIND_NAMES[kind]} {name!r} is of layout {node.meta['val'].layout}, which is not supported",
                remedy="make it dense with to_dense()",
            )
        return self.functionalizer.source(weight.value, _KIND_NAMES[kind], name=weight.name, key=_key(node.meta["val"]))

    def _constant(self, name: str) -> Weight:
        constant = self.exported.constants.get(name)
        if constant is None:
            constant = self.exported.state_dict.get(name)
        if not isinstance(constant, torch.Tensor):
            raise CaptureError(f"constant {name!r} is not a tensor but a {type(constant).__qualname__}")
        for weight in self.program.weights.values():
            if weight.data is not None and is_one_tensor(weight.data, constant):
                return weight  # a parameter that code reaches other than as an attribute of its module
        return self.weights.add(name, constant, WeightKind.CONSTANT, persistent=False, alias=False)

    def _outputs(self, node: fx.Node) -> None:
        results = node.args[0]
        assert isinstance(results, (tuple, list))
        found = Results(self.functionalizer)
        written: list[tuple[Any, Value]] = []
        for result, spec in zip(results, self.exported.graph_signature.output_specs, strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION or spec.kind is OutputKind.USER_INPUT_MUTATION:
                assert isinstance(result, fx.Node)
                written.append((spec, self.functionalizer.read(self.env[result])))
            elif spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT):
                self._user_output(found, result, spec.arg)
            else:
                raise CaptureError(f"the model has an output of kind {spec.kind.name.lower()}")
        for spec, value in written:
            if spec.kind is OutputKind.BUFFER_MUTATION:
                found.write(value, buffer=self.weights.names[spec.target].name)
            else:
                names = [leaf.name for leaf in self.convention.inputs if leaf.value is not None]
                found.write(value, input=names.index(spec.target))
        found.finish(self.program, self.weights, [self.weights.names[name] for name in self.assigned])

    def _user_output(self, found: Results, result: Any, arg: Any) -> None:
        if isinstance(arg, TensorArgument):
            found.value(self.env[result])
        elif isinstance(arg, SymIntArgument | SymFloatArgument | SymBoolArgument):
            item = self._argument(result)
            if isinstance(item, Value):
                found.value(item)
            else:
                found.constant(item)
        else:
            found.constant(arg.value if isinstance(arg, ConstantArgument) else result)

    # ---- types ----

    def _type(self, val: Any) -> Type:
        if isinstance(val, torch.Tensor):
            if val.layout is not torch.strided:
                raise CaptureError(f"a tensor of layout {val.layout} is not supported")
            dim = self.symbols.type_dim
            return tensor_type(tuple([d if type(d) is int else dim(d) for d in val.shape]), val.dtype, val.device)
        if isinstance(val, bool | torch.SymBool):
            return ScalarType("bool")
        if isinstance(val, int | torch.SymInt):
            return ScalarType("int", self.symbols.dim(val))
        if isinstance(val, float | torch.SymFloat):
            return ScalarType("float")
        return OpaqueType()

    # ---- operations ----

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            source = self.env[node.args[0]]  # type: ignore[index]
            self.env[node] = source[node.args[1]]
            return
        val = node.meta.get("val")
        location = self.locate(node)
        try:
            if isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool | int | float):
                self.env[node] = self._number(node, val, location)
                return
            if isinstance(target, torch._ops.HigherOrderOperator):
                self._higher_order(node, target, location)
                return
            if not isinstance(target, torch._ops.OpOverload):
                raise no_operator(target, location, self.module)
            self._call_operator(node, target, val, location)
        except DataDependentSizeError as error:
            raise CaptureError(
                f"{_name(target)} makes a number that depends on data and may be negative or no int, in `{error}`",
                location=location,
                remedy="say that it is a size with `torch._check(n >= 0)`, compute with tensors, or keep the module as "
                "is with leaf_modules=",
            ) from None
        except GraphwrightError as error:
            if error.location is None or error.remedy is None:
                raise at_operation(error, location) from error
            raise

    def _check_functions(self, nodes: Sequence[fx.Node]) -> None:
        """Refuse what functorch (torch.func.grad) leaves in a graph, before its tensors are inspected."""
        for node in nodes:
            if node.op == "call_function" and is_of_functorch(node.target):
                raise no_operator(node.target, self.locate(node), self.module)

    def _call_operator(self, node: fx.Node, target: torch._ops.OpOverload, val: Any, location: Location) -> None:
        opdef = self._opdef(target)
        name = opdef.name
        if opdef.has(Trait.ASSERTION):
            self._note_assertion(node)
            return
        if name == _OPAQUE_TARGET:
            if any(region.is_enabled for region in self._autocast.values()):
                raise kept_in_autocast()
            self._opaque(node, val, location)
            return
        functionalizer = self.functionalizer
        functionalizer.location = location
        args = [self._argument(arg) for arg in node.args]
        kwargs = {key: self._argument(arg) for key, arg in node.kwargs.items()} if node.kwargs else {}
        if self._autocast:
            args, kwargs = self._as_autocast(node, target, args, kwargs)
        if name == "aten.lift_fresh_copy":
            # its fake tensors share storage, the real ones do not
            self.env[node] = functionalizer.call(get_opdef("aten.clone"), args, kwargs, (self._type(val),))[0]
            return
        if name == "aten.detach_" and not may_need_gradient(args[0].value):
            self.env[node] = args[0]
            return
        if name == "aten.add_.Tensor" and self.facts.is_batch_counter(args[0], location):
            if args[0].storage.version:
                raise written_statistics("a normalization counts its batches in a number", args[0])
            self.weights.note_written(self.program.weights[args[0].storage.name])
            self.env[node] = args[0]
            return
        if name == "aten._native_batch_norm_legit_no_training" and _is_first_alone(node):
            # what decomposed the program made of a layer's operator; the mode is locked
            name, opdef, val = "aten.batch_norm", get_opdef("aten.batch_norm"), [val[0], None, None]
            args = [*args[:5], False, *args[5:], True]
        if name == "aten.batch_norm" and self._inside_no_grad:
            # the layer keeps its own parameters; its result loses the gradient instead
            args = [self._with_gradient(arg) for arg in args]
        types: Sequence[Type] | None = None
        keys: Sequence[int | None] = ()
        is_list = isinstance(val, (list, tuple))
        if is_list:
            items = [part for item in val for part in (item if isinstance(item, list) else (item,)) if part is not None]
            types = [self._type(item) for item in items]
            keys = [_key(item) for item in items]
        elif val is not None:
            types = (self._type(val),)
            keys = (_key(val),)
        if not self._reliable_keys:
            keys = ()
        before = self.graph.return_op.prev
        functionalizer.layouts = self._layouts(node) if target._schema.is_mutable else {}
        results = functionalizer.call(opdef, args, kwargs, types, keys, (node.name,))
        last = self.graph.return_op.prev
        if name == "aten.masked_select" and last is not None:
            for symbol in introduced(last):
                self.symbols.widen(symbol, most_of(last))
        if name == "aten.batch_norm" and self._inside_no_grad:
            results = [self._without_gradient(result) for result in results]
        if is_list:
            slots = iter(opdef.nest(results))
            self.env[node] = [None if item is None else next(slots) for item in val]
        else:
            self.env[node] = results[0] if results else None
        if last is not None and last is not before:
            self._adjust(last, node)

    def _layouts(self, node: fx.Node) -> dict[Handle, Strides]:
        """Return the strides of the tensors among the arguments of a call."""
        tensors = [(self.env.get(arg), arg.meta.get("val")) for arg in node.all_input_nodes]
        return {
            handle: tuple(self.symbols.dim(step) for step in val.stride())
            for handle, val in tensors
            if type(handle) is Handle and isinstance(val, torch.Tensor)
        }

    def _opaque(self, node: fx.Node, val: Any, location: Location) -> None:
        tensors, callee, spec, results = (self._argument(arg) for arg in node.args)
        items = iter(val)
        absent = [item is None for item in json.loads(results)]
        types = [OpaqueType() if none else self._type(next(items)) for none in absent]
        module = self.program.opaques[callee]
        positional, keywords = parse_call(spec)
        self.functionalizer.location = location
        made = self.functionalizer.call(
            get_opdef("nn.opaque"),
            (tensors,),
            {
                "callee": callee,
                "positional": positional,
                "keywords": keywords,
                "training": bool(getattr(module, "training", False)),
                "result_types": tuple(map(str, types)),
                "writes": callee in self.captured.writers,
            },
            types,
            names=(node.name,),
        )
        self.env[node] = [handle for handle, none in zip(made, absent, strict=True) if not none]


def _attached(seen: Observed | None) -> list[str]:
    """Names of the buffers in which a run leaves a value that requires a gradient."""
    runs = () if seen is None else (seen.first, seen.other, seen.back)
    return [name for run in runs if run is not None for name in run.attached]


def _name(target: Any) -> str:
    return opdef_of_overload(target).name if isinstance(target, torch._ops.OpOverload) else str(target)


def _is_first_alone(node: fx.Node) -> bool:
    """Return whether only the first result of a call is used."""
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _key(val: Any) -> int | None:
    return val.untyped_storage()._cdata if isinstance(val, torch.Tensor) and val.layout is torch.strided else None


def _keys_are_reliable(nodes: Sequence[fx.Node]) -> bool:
    """Return whether fake tensors share storage as the real ones do; those of a loaded program do not."""
    for node in nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable and node.args:
            first, key = node.args[0], _key(node.meta.get("val"))
            if isinstance(first, fx.Node) and key is not None and _key(first.meta.get("val")) != key:
                return False
    return True
