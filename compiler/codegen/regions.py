"""Fused regions as modules: a hand-written class where the body has exactly its shape, else a generated `forward`."""

from __future__ import annotations

import operator
from typing import Any

import attrs
import sympy
from torch import fx, nn
from typing_extensions import override

from compiler.codegen.convention import argument_name
from compiler.codegen.forms import ModuleForm, depends_on_mode, own_location
from compiler.codegen.modules import module_form
from compiler.codegen.scope import Scope
from compiler.codegen.tree import ModuleTree
from compiler.emitted.fused import CHAIN_CLASSES, REGION_CLASSES, FusedModule, ScaledDotProductAttention
from compiler.emitted.graphmodule import FusedRegion
from ir.attributes import attribute_key, attributes_equal
from ir.core import Operation, Value
from ir.program import Weight


@attrs.define(eq=False)
class Child:
    """An operation of a body that becomes a child module."""

    name: str
    form: ModuleForm
    home: str | None
    """Where the original has this module, judged by its weights."""


class Region:
    """A region to emit: which operations are children, which operands stay arguments."""

    def __init__(self, op: Operation, outer: Scope) -> None:
        assert op.body is not None
        self.op = op
        self.body = op.body
        self.outer = outer
        self.tree: ModuleTree = outer.tree
        self.kind = str(op.attributes.get("kind") or op.name.partition(".")[2])
        self.operands = dict(zip(self.body.inputs, op.operands, strict=True))
        self.ops = list(self.body.operations())
        names = tuple(op.attributes.get("parts") or ())
        self.names = [str(names[i]) if i < len(names) else "" for i in range(len(self.ops))]
        self.children: dict[Operation, Child] = {}
        self._find_children()
        self.arguments = self._arguments()

    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the body is, or None."""
        operand = self.operands.get(value) if value is not None else None
        return None if operand is None else self.outer.find(operand)

    def _find_children(self) -> None:
        taken: dict[str, None] = {}
        for op, name in zip(self.ops, self.names, strict=True):
            form = None if op.body is not None else module_form(op, self.find)
            if form is None or not (name or form.slots or depends_on_mode(form)):
                continue
            base = name or op.opdef.short_name
            name, number = base, 0
            while name in taken or hasattr(fx.GraphModule, name):
                number += 1
                name = f"{base}_{number}"
            taken[name] = None
            self.children[op] = Child(name, form, self.tree.home(form, op.location.parts))

    def _arguments(self) -> list[Value]:
        """Return the inputs of the body that are not held by a child, in order."""
        needed: dict[Value, None] = {}
        for op in (*self.ops, self.body.return_op):
            child = self.children.get(op)
            values: list[Any] = list(op.operands)
            if child is not None:
                values = [*child.form.inputs, *(v for _, v in child.form.keywords)]
            needed.update((v, None) for v in values if isinstance(v, Value))
        return [v for v in self.body.inputs if v in needed]

    def place(self) -> tuple[str, bool]:
        """Return the path where the region belongs, and whether the original has a module of its own there."""
        for child in self.children.values():
            if child.home is not None and self._has_room(child.home):
                return child.home, True
        for op, child in self.children.items():
            location = own_location(op, child.form)
            if location is not None and self._has_room(location.module_path):
                return location.module_path, True
        parent = self.ops[0].location.module_path if self.ops else ""
        return (f"{parent}.{self.kind}" if parent else self.kind), False

    def _has_room(self, path: str) -> bool:
        return not any(self.tree.is_original(f"{path}.{child.name}") for child in self.children.values())

    def key(self, path: str) -> tuple[Any, ...]:
        """Return a key that is equal for two regions which one module can serve."""
        numbers: dict[Value, tuple[Any, ...]] = {v: ("argument", i) for i, v in enumerate(self.arguments)}
        body: list[Any] = []
        for i, op in enumerate(self.ops):
            child = self.children.get(op)
            operands = tuple(None if v is None else numbers.get(v, ("held",)) for v in op.operands)
            attributes = tuple((k, attribute_key(v)) for k, v in op.attributes.items())
            held = (child.name, child.form.key) if child is not None else None
            nested = id(op.body) if op.body is not None else None
            body.append((op.name, operands, op.segments, attributes, held, nested))
            numbers.update((r, ("result", i, r.index)) for r in op.results)
        outputs = tuple(None if v is None else numbers.get(v, ("held",)) for v in self.body.outputs)
        return "region", path, self.kind, tuple(body), outputs

    def emit(self) -> Any:
        """Place the module and add its call; return the node of its only result, or of the tuple of them."""
        path, own = self.place()
        key = self.key(path)
        target = self.tree.find(key)
        order = self._chain_arguments()
        arguments = self.arguments if order is None else order
        extra: tuple[sympy.Symbol, ...] = ()
        if target is None:
            modules = {
                child.name: self.tree.make(child.form, self._original(op, child)) for op, child in self.children.items()
            }
            module = self._hand_written(modules)
            if module is None:
                module, extra = self._generated(modules)
            module.training = self.tree.mode(path if own else path.rpartition(".")[0])
            points = tuple(self.op.attributes.get("quantization_points") or ())
            if points and points != module.quantization_points:
                module.quantization_points = points
            target = self.tree.place(module, path, own=own, key=key)
            self.tree.extras[target] = extra
            for child in self.children.values():
                self.tree.register_form(f"{target}.{child.name}", child.form, child.home)
        else:
            extra = self.tree.extras[target]
        args: list[Any] = []
        for value in arguments:
            operand = self.operands[value]
            args.append(None if operand is None else self.outer.value(operand))
        args.extend(self.outer.size(symbol) for symbol in extra)
        return self.outer.graph.create_node("call_module", target, tuple(args), {})

    def _original(self, op: Operation, child: Child) -> str:
        location = own_location(op, child.form)
        return child.home or (location.module_path if location is not None else op.location.module_path)

    # ---- hand-written classes ----

    def _chain_arguments(self) -> list[Value] | None:
        """Return the arguments of the hand-written class in its order, or None where the body has another shape."""
        if self.kind == ScaledDotProductAttention.kind:
            return self._attention_arguments()
        cls = CHAIN_CLASSES.get(self.kind)
        if cls is None or len(self.op.results) != 1:
            return None
        expected = [part for part in cls.parts if part not in cls.optional]
        present = [child.name for child in self.children.values()]
        if [p for p in present if p not in cls.optional] != expected or any(p not in cls.parts for p in present):
            return None
        if present != [part for part in cls.parts if part in present]:
            return None
        has_residual = cls.kind == "conv_bn_add_act"
        arguments: list[Value] = []
        previous: Value | None = None
        for op in self.ops:
            child = self.children.get(op)
            if child is not None:
                if len(child.form.inputs) != 1 or child.form.keywords:
                    return None
                value = child.form.inputs[0]
                if previous is None and value in self.operands:
                    arguments.append(value)
                elif value is not previous:
                    return None
                after_add = len(arguments) == 2
                if has_residual and after_add != (child.name == "act"):
                    return None
            elif has_residual and len(arguments) == 1 and previous is not None:
                residual = _residual_of(op, previous)
                if residual is None or residual not in self.operands:
                    return None
                arguments.append(residual)
            else:
                return None
            if len(op.results) != 1:
                return None
            previous = op.result
        if self.body.outputs != (previous,) or len(arguments) != 1 + has_residual:
            return None
        return arguments

    def _attention_arguments(self) -> list[Value] | None:
        if len(self.ops) != 1 or self.body.outputs != self.ops[0].results:
            return None
        form = module_form(self.ops[0], self.find)
        if form is None or form.cls is not ScaledDotProductAttention:
            return None
        values = [v for v in form.inputs if v is not None]
        return values if all(v in self.operands for v in values) else None

    def _hand_written(self, modules: dict[str, nn.Module]) -> Any:
        if self._chain_arguments() is None:
            return None
        if self.kind == ScaledDotProductAttention.kind:
            form = module_form(self.ops[0], self.find)
            assert form is not None
            module = self.tree.make(form, self.ops[0].location.module_path)
            self.children.clear()  # the module is the operation itself, not a child
            return module
        cls: type[FusedModule] = CHAIN_CLASSES[self.kind]
        return cls(**modules)

    # ---- generated ----

    def _generated(self, modules: dict[str, nn.Module]) -> tuple[FusedRegion, tuple[sympy.Symbol, ...]]:
        scope = RegionScope(self)
        for op in self.ops:
            scope.operation(op)
        outputs = [None if v is None else scope.value(v) for v in self.body.outputs]
        scope.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        root = nn.Module()
        for name, module in (modules | scope.nested).items():
            root.add_module(name, module)
        region = REGION_CLASSES.get(self.kind, FusedRegion)(root, scope.graph, class_name_of(self.kind))
        region.kind = self.kind
        return region, tuple(scope.symbols)


class RegionScope(Scope):
    """The graph of a region: arguments and sizes come from outside."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.tree, tuple(region.arguments))
        self.region = region
        self.symbols: dict[sympy.Symbol, None] = {}
        self.nested: dict[str, nn.Module] = {}
        self._last: fx.Node | None = None
        for i, value in enumerate(region.arguments):
            self._last = self.env[value] = self.graph.placeholder(argument_name(value.name, i))

    @override
    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the body is, or None."""
        return self.region.find(value)

    @override
    def missing(self, value: Value) -> Any:
        """Refuse: every argument has a placeholder."""
        raise AssertionError(f"{value!r} is no argument of the region")

    @override
    def missing_symbol(self, symbol: sympy.Symbol) -> Any:
        """Take a size from outside as one more argument."""
        self.symbols[symbol] = None
        anchor = self._last
        if anchor is None:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first):
                node = self.graph.placeholder(symbol.name)
        else:
            with self.graph.inserting_after(anchor):
                node = self.graph.placeholder(symbol.name)
        self._last = node
        codegen: Any = self.graph._codegen
        codegen.positional += 1
        return node

    @override
    def module_call(self, op: Operation) -> Any:
        """Call the child that computes `op`."""
        if op.body is not None:
            return emit_nested(op, self)
        child = self.region.children.get(op)
        return None if child is None else self.call_form(child.name, child.form)

    @override
    def training_flag(self, op: Operation) -> Any:
        """Read the region's own mode."""
        return self.graph.create_node("get_attr", "training")


def emit_nested(op: Operation, scope: RegionScope) -> Any:
    """Emit a region inside a region: its operations in place, since a region holds one level of modules."""
    assert op.body is not None
    for inner, outer in zip(op.body.inputs, op.operands, strict=True):
        if outer is not None:
            scope.env[inner] = scope.value(outer)
    for nested in op.body.operations():
        scope.operation(nested)
    outputs = tuple(None if v is None else scope.value(v) for v in op.body.outputs)
    for result, output in zip(op.results, outputs, strict=True):
        scope.env[result] = output
    return outputs[0] if len(outputs) == 1 else outputs


def _residual_of(op: Operation, previous: Value) -> Value | None:
    """Return what `op` adds to `previous`, or None where it is no plain addition of another value."""
    if op.name != "aten.add.Tensor" or not attributes_equal(op.attributes["alpha"], 1):
        return None
    left, right = op.operands[:2]
    if (left is previous) == (right is previous) or len(op.operands) != 2:
        return None
    return right if left is previous else left


def class_name_of(kind: str) -> str:
    """Return the class name shown for a kind: that of its class, or `FusedConvBnPool` for `conv_bn_pool`."""
    known = CHAIN_CLASSES.get(kind) or REGION_CLASSES.get(kind)
    if known is not None or kind == ScaledDotProductAttention.kind:
        return (known or ScaledDotProductAttention).__name__
    return "Fused" + "".join(part.capitalize() for part in _identifier(kind).split("_"))


def _identifier(name: str) -> str:
    text = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return f"_{text}" if text[:1].isdigit() else text


def emit_region(op: Operation, outer: Scope) -> None:
    """Emit a region of the program."""
    node = Region(op, outer).emit()
    if len(op.results) == 1:
        outer.env[op.result] = node
        return
    for result in op.results:
        if not result.is_unused:
            outer.env[result] = outer.call(operator.getitem, (node, result.index))
