"""Fused regions as modules: the class of their kind where it computes the body, else a generated `forward`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import sympy
from torch import fx, nn
from typing_extensions import override

from compiler.codegen.convention import add_placeholder, argument_name
from compiler.codegen.forms import ModuleForm, own_location
from compiler.codegen.modules import module_form
from compiler.codegen.quantizers import home_of, name_of
from compiler.codegen.scope import Scope
from compiler.codegen.tree import ModuleTree
from compiler.emitted.fused import FusedModule, fused_class
from compiler.emitted.graphmodule import FusedRegion
from ir.attributes import attribute_key, attributes_equal
from ir.caches import cached
from ir.core import Operation, Value
from ir.program import Weight
from ir.spelling import free_name
from passes.rewrite.region_names import parts_of

_RESERVED = frozenset({*dir(FusedRegion), *dir(FusedModule)})
"""Attributes of every region: a child of such a name could not be reached."""


@attrs.define(eq=False)
class Child:
    """An operation of a body that becomes a child module."""

    name: str
    form: ModuleForm
    home: str | None
    """Where the original has this module, judged by its weights."""
    is_called: bool = True
    """Whether `forward` calls it; otherwise it holds weights that are quantized before their use."""
    is_quantizer: bool = False


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
        self.names = list(parts_of(op))
        self.whole = self._whole()
        self.quantized: dict[Value, Operation] = {}
        """The inputs of the body that are quantized here, and by which operation of the program."""
        self.finished: dict[Value, Operation] = {}
        """The results of the region that are quantized here, and by which operation of the program."""
        self.held: dict[Value, str] = {}
        """The inputs of the body that are weights of a child, and their names."""
        self.children: dict[Operation, Child] = {}
        if self.whole is None:
            self._find_children()
        self.path, self.own = self._place()
        if self.whole is None:
            self._find_quantizers()
        self.arguments = self._arguments()

    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the body is, or None."""
        operand = self.operands.get(value) if value is not None else None
        return None if operand is None else self.outer.find(operand)

    def _whole(self) -> ModuleForm | None:
        """Return the module of the only operation if it has the class of the region's kind: then it is the region."""
        form = module_form(self.ops[0], self.find) if len(self.ops) == 1 else None
        if form is None or form.cls is not fused_class(self.kind) or self.body.outputs != self.ops[0].results:
            return None
        return form if all(v is None or v in self.operands for v in form.inputs) else None

    def _find_quantized(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the body is, or whose numbers on a grid it is; or None."""
        op = None if value is None else value.defining_op
        if op is not None and self.tree.quantized.is_identity(op):
            source = op.operand_values[0].defining_op
            if source is not None and self.tree.quantized.quantizes(source):
                return self.find(source.operands[0])
        return self.find(value)

    def _find_children(self) -> None:
        for op, name in zip(self.ops, self.names, strict=True):
            quantizer = self.tree.quantized.form(op)
            if quantizer is not None:
                self.children[op] = self._quantizer(quantizer, op.operand_values[0])
                continue
            form = None if op.body is not None else module_form(op, self.find)
            is_called = form is not None
            if op.body is None and form is None:
                form = module_form(op, self._find_quantized)
            if form is None or not (name or form.slots or form.training is not None):
                continue
            name = self._free(name or op.opdef.short_name)
            self.children[op] = Child(name, form, self.tree.home(form, op.location.parts), is_called)
            if not is_called:
                weights = [(weight, f"{name}.{slot}") for slot, weight in form.slots]
                for value in self.body.inputs:
                    self.held.update((value, held) for weight, held in weights if self.find(value) is weight)

    def _free(self, name: str) -> str:
        """Return a name of a child that is not taken."""
        taken = {child.name for child in self.children.values()}
        return free_name(name, lambda name: name in taken or name in _RESERVED)

    def _quantizer(self, form: ModuleForm, value: Value) -> Child:
        return Child(self._free(name_of(form, value)), form, home_of(form), is_quantizer=True)

    @property
    def quantizations(self) -> Iterator[Operation]:
        """The operations of the program that are computed here."""
        yield from self.quantized.values()
        yield from self.finished.values()

    def _find_quantizers(self) -> None:
        """Take in the quantizers of arguments that nothing else reads, and those of results, that belong here."""
        for value, operand in self.operands.items():
            op = None if operand is None else operand.defining_op
            if op is not None and operand is not None and operand.has_one_use():
                self._take_in(op, value, self.quantized, needs_home=False)
        for result in self.op.results:
            if result.has_one_use():
                (user,) = result.users
                self._take_in(user, result, self.finished, needs_home=True)
        first = {op: self.children[op] for op in self.quantized.values()}
        self.children = {**first, **self.children}

    def _take_in(self, op: Operation, value: Value, into: dict[Value, Operation], *, needs_home: bool) -> None:
        form = self.tree.quantized.form(op)
        if form is None or op.graph is not self.op.graph or op in self.outer.taken:
            return
        home = home_of(form)
        if (home is None and not needs_home) or (home is not None and home.rpartition(".")[0] == self.path):
            self.children[op] = self._quantizer(form, value)
            into[value] = op
            self.outer.taken.add(op)
            self.own = self.own or (home is not None and self.path not in self.tree.program.module_modes)

    def _arguments(self) -> list[Value]:
        """Return the inputs of the body that are not held by a child, in order."""
        needed: dict[Value, None] = {}
        for op in (*self.ops, self.body.return_op):
            child = self.children.get(op)
            values: list[Any] = list(op.operands)
            if child is not None and child.is_called:
                values = [*child.form.inputs, *(v for _, v in child.form.keywords)]
            elif self.tree.quantized.is_identity(op):
                values = [op.operands[0]]
            needed.update((v, None) for v in values if isinstance(v, Value) and v not in self.held)
        return [v for v in self.body.inputs if v in needed]

    def _place(self) -> tuple[str, bool]:
        """Return the path where the region belongs, and whether the original has a module of its own there."""
        layers = {op: child for op, child in self.children.items() if not child.is_quantizer}
        for child in layers.values():
            if child.home is not None and self._has_room(child.home):
                return child.home, True
        for op, child in layers.items():
            location = own_location(op, child.form)
            if location is not None and self._has_room(location.module_path):
                return location.module_path, True
        parent = self.ops[0].location.module_path if self.ops else ""
        return (f"{parent}.{self.kind}" if parent else self.kind), False

    def _has_room(self, path: str) -> bool:
        return not any(
            self.tree.is_original(f"{path}.{child.name}")
            for child in self.children.values()
            if not child.is_quantizer or child.home != f"{path}.{child.name}"
        )

    def key(self, path: str) -> tuple[Any, ...]:
        """Return a key that is equal for two regions which one module can serve."""
        numbers: dict[Value, tuple[Any, ...]] = {v: ("argument", i) for i, v in enumerate(self.arguments)}
        body: list[Any] = []
        for i, op in enumerate(self.ops):
            child = self.children.get(op)
            operands = tuple(None if v is None else numbers.get(v, ("held",)) for v in op.operands)
            attributes = tuple((k, attribute_key(v)) for k, v in op.attributes.items())
            held: Any = (child.name, child.form.key, child.is_called) if child is not None else None
            held = held or self.tree.quantized.is_identity(op)
            nested = id(op.body) if op.body is not None else None
            body.append((op.name, operands, op.segments, attributes, held, nested))
            numbers.update((r, ("result", i, r.index)) for r in op.results)
        outputs = tuple(None if v is None else numbers.get(v, ("held",)) for v in self.body.outputs)
        quantizers: list[tuple[Any, Child]] = [
            (numbers[value], self.children[op]) for value, op in self.quantized.items()
        ]
        quantizers += [(("result", result.index), self.children[op]) for result, op in self.finished.items()]
        quantized = tuple([(number, child.name, child.form.key) for number, child in quantizers])
        return "region", path, self.kind, quantized, tuple(body), outputs

    def emit(self) -> Any:
        """Place the module and add its call; return the node of its only result, or of the tuple of them."""
        path, own = self.path, self.own
        key = self.key(path)
        target = self.tree.find(key)
        if target is None:
            module, arguments, symbols = self._module()
            module.training = self.tree.mode(path if own else path.rpartition(".")[0])
            points = tuple(self.op.attributes.get("quantization_points") or ())
            if points and points != module.quantization_points:
                module.quantization_points = points
            target = self.tree.place(module, path, own=own, key=key)
            self.tree.calls[target] = [self.body.inputs.index(value) for value in arguments], symbols
            for child in self.children.values():
                self.tree.register_form(f"{target}.{child.name}", child.form, child.home)
        numbers, symbols = self.tree.calls[target]
        given = [self.quantized.get(value) for value in self.body.inputs]
        operands = [
            self.op.operands[number] if quantization is None else quantization.operands[0]
            for number in numbers
            for quantization in (given[number],)
        ]
        args = [None if operand is None else self.outer.value(operand) for operand in operands]
        args.extend(self.outer.size(symbol) for symbol in symbols)
        return self.outer.graph.create_node("call_module", target, tuple(args), {})

    def _original(self, op: Operation, child: Child) -> str:
        location = own_location(op, child.form)
        return child.home or (location.module_path if location is not None else op.location.module_path)

    def _module(self) -> tuple[Any, Sequence[Value], tuple[sympy.Symbol, ...]]:
        """Return the module, the inputs of the body that it takes, and the symbols whose sizes follow."""
        if self.whole is not None:
            module = self.tree.make(self.whole, self.ops[0].location.module_path)
            return module, [v for v in self.whole.inputs if v is not None], ()
        children = {
            child.name: self.tree.make(child.form, self._original(op, child)) for op, child in self.children.items()
        }
        cls = fused_class(self.kind)
        is_plain = all(child.is_called and not child.is_quantizer for child in self.children.values())
        # the layer is the first part; one whose weight is computed is no child
        if children and is_plain and issubclass(cls, FusedModule) and {*cls.parts[:1]} <= children.keys():
            passed = self._passed(_traced(cls, tuple(children)))
            if passed is not None:
                return cls(**children), passed, ()
        scope = RegionScope(self)
        for op in self.ops:
            scope.operation(op)
        outputs = [None if v is None else scope.value(v) for v in self.body.outputs]
        for result, op in self.finished.items():
            name = self.children[op].name
            outputs[result.index] = scope.graph.create_node("call_module", name, (outputs[result.index],), {})
        scope.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        root = nn.Module()
        for name, child_module in children.items():
            root.add_module(name, child_module)
        region_class = cls if issubclass(cls, FusedRegion) else FusedRegion
        region = region_class(root, scope.graph, cls.__name__)
        region.kind = self.kind
        return region, self.arguments, tuple(scope.symbols)

    def _passed(self, fused: fx.Graph) -> list[Value] | None:
        """Return the inputs of the body to pass to a fused module; None where its `forward` computes something else."""
        known: dict[fx.Node, Value] = {}

        def is_same(node: Any, value: Value | None) -> bool:
            op = None if value is None else value.defining_op
            if value is None or (node.op == "placeholder") != (op is None):
                return False
            if known.setdefault(node, value) is not value or op is None:
                return known[node] is value
            child = self.children.get(op)
            if child is not None:
                is_called = node.target == child.name and not child.form.keywords and len(op.results) == 1
                return is_called and len(child.form.inputs) == 1 and is_same(node.args[0], child.form.inputs[0])
            if _OPERATORS.get(node.target) != op.name or len(op.operands) != 2:
                return False
            plain = attributes_equal(op.attributes.get("alpha", 1), 1)
            orders = (op.operands, op.operands[::-1]) if plain else ()
            for operands in orders:
                before = dict(known)
                if all(map(is_same, node.args, operands)):
                    return True
                known.clear()
                known.update(before)
            return False

        (result,) = fused.output_node().args
        is_all = len(self.body.outputs) == 1 and is_same(result, self.body.outputs[0])
        if not is_all or any(all(value.defining_op is not op for value in known.values()) for op in self.ops):
            return None
        return [known[node] for node in fused.nodes if node.op == "placeholder"]


_OPERATORS = {operator.add: "aten.add.Tensor", operator.mul: "aten.mul.Tensor"}
"""What the code of fused modules may call beside their parts; both commute."""


class _Tracer(fx.Tracer):
    """Sees calls of children, and nothing inside of them."""

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@cached()
def _traced(cls: type[FusedModule], parts: tuple[str, ...]) -> fx.Graph:
    """Return what `forward` of a fused module does where it has these parts."""
    return _Tracer().trace(cls(**{part: nn.Identity() for part in parts}))


class RegionScope(Scope):
    """The graph of a region: arguments and sizes come from outside."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.tree, tuple(region.arguments))
        self.region = region
        self.symbols: dict[sympy.Symbol, None] = {}
        self._last: fx.Node | None = None
        names: dict[str, Value] = {}
        for i, value in enumerate(region.arguments):
            names[free_name(argument_name(value.name, i), names.__contains__)] = value
        for name, value in names.items():
            self._last = self.env[value] = add_placeholder(self.graph, name, names)
        for value, op in region.quantized.items():
            self.env[value] = self.graph.create_node("call_module", region.children[op].name, (self.env[value],), {})

    @override
    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the body is, or None."""
        return self.region.find(value)

    @override
    def missing(self, value: Value) -> Any:
        """Read a weight of a child; every other argument has a placeholder."""
        assert value in self.region.held, f"{value!r} is not an argument of the region"
        held = self.region.held[value]
        return self.graph.create_node("get_attr", held, name=held.replace(".", "_"))

    @override
    def missing_symbol(self, symbol: sympy.Symbol) -> Any:
        """Take a size from outside as one more argument."""
        self.symbols[symbol] = None
        anchor = self._last
        taken = {name for node in self.graph.nodes for name in (node.name, node.target)}
        name = free_name(symbol.name, taken.__contains__)
        if anchor is None:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first):
                node = self.graph.placeholder(name)
        else:
            with self.graph.inserting_after(anchor):
                node = self.graph.placeholder(name)
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
        return None if child is None or not child.is_called else self.call_form(child.name, child.form)

    @override
    def training_flag(self, op: Operation) -> Any:
        """Read the region's own mode."""
        return self.graph.create_node("get_attr", "training")


def emit_nested(op: Operation, scope: RegionScope) -> Any:
    """Emit a region inside a region in place: a region holds one level of modules."""
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


def emit_region(region: Region) -> None:
    """Emit a region of the program."""
    node, op, outer = region.emit(), region.op, region.outer
    for result in op.results:
        found = node
        if len(op.results) > 1:
            if result.is_unused:
                continue
            found = outer.call(operator.getitem, (node, result.index))
        quantization = region.finished.get(result)
        outer.env[result if quantization is None else quantization.result] = found
