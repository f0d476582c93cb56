"""The emitter: a program becomes an `fx.GraphModule` that reads like a module a person wrote."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from compiler.codegen.convention import Inputs
from compiler.codegen.forms import ModuleForm, own_location
from compiler.codegen.modules import module_form
from compiler.codegen.regions import emit_region
from compiler.codegen.results import Results, is_detached
from compiler.codegen.scope import Scope
from compiler.codegen.tree import ModuleTree, folded_path
from compiler.codegen.weights import Weights, names_of
from compiler.emitted.fused import ScaledDotProductAttention
from compiler.emitted.graphmodule import EmittedModule, SwitchedModule, with_switches
from compiler.emitted.parameter_map import Entry, ParameterMap
from ir.core import Operation, Value
from ir.errors import CodegenError
from ir.ops.nn_ops import decode_call
from ir.program import SWITCHES, Program, Weight, WeightKind, weight_of


@attrs.frozen(eq=False)
class Emitted:
    """What a program was emitted as."""

    module: EmittedModule
    parameter_map: ParameterMap
    kept: tuple[str, ...] = ()
    """Paths of the modules that are kept as they are."""


def emit(program: Program) -> Emitted:
    """Return the module of a program, and where its parameters come from.

    Operations become `nn` modules at the paths of the original where the original had a module, and functions
    elsewhere; fused regions become modules with their parts as children. Every parameter and buffer is a new object
    over the storage of the original one; tied weights stay one. In-place variants of modules (`nn.ReLU(inplace=True)`)
    are emitted out of place: the IR is functional, and what another module may still read cannot be told at a path.

    The program is not changed and may be emitted again.

    Raises:
        CodegenError: when an operation cannot be written as Python.
    """
    return _Emitter(program).emit()


class ProgramScope(Scope):
    """The graph of the whole program."""

    def __init__(self, program: Program, tree: ModuleTree) -> None:
        super().__init__(tree, program.graph.inputs)
        self.program = program
        self.targets: list[tuple[fx.Node, Weight]] = []
        """Reads of weights, whose keys are known when all modules are placed."""
        self._tensors: dict[Weight, fx.Node] = {}
        self._read_and_written = dict.fromkeys(_read_and_written(program))

    @override
    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value is, or None."""
        weight = weight_of(value)
        return None if weight is None or weight in self.tree.weights.inlined else weight

    @override
    def missing(self, value: Value) -> Any:
        """Read a weight."""
        weight = weight_of(value)
        if weight is None:
            raise CodegenError(f"{value!r} is used before it is computed", remedy="run the verifier on the program")
        if weight in self.tree.weights.inlined:
            return self._derive(weight)
        node = self.graph.create_node("get_attr", weight.name, name=weight.name.replace(".", "_"))
        self.targets.append((node, weight))
        self._tensors[weight] = node
        # a backward pass may need what the buffer was before the call wrote it
        return self.method("clone", (node,)) if weight in self._read_and_written else node

    def tensor(self, weight: Weight) -> Any:
        """Return the node of a weight's own tensor, to be written."""
        node = self.value(weight.value)
        return self._tensors.get(weight, node)

    def _derive(self, weight: Weight) -> Any:
        """Compute a derived weight in `forward`, since its source is trained as well."""
        assert weight.derivation is not None
        program: Program = weight.derivation.program
        sources = self.tree.weights.sources(weight)
        for value, source in zip(program.graph.inputs, sources, strict=True):
            self.env[value] = self.value(source.value)
        for op in program.graph.operations():
            self.operation(op)
        (output,) = program.graph.outputs
        assert output is not None
        return self.value(output)

    @override
    def module_call(self, op: Operation) -> Any:
        """Call the module of the original that computes `op`, or one that its mode demands."""
        if op.name == "nn.opaque":
            return self._opaque(op)
        form = module_form(op, self.find)
        if form is None:
            return None
        home, own = self._place_of(op, form)
        if home is None:
            return None
        key = ("operation", home, form.key)
        path = self.tree.find(key) if own else None
        if path is None:
            module, target, same = self.tree.make(form, home), home, own
            if own and self.tree.is_mistakable(self.tree.safe_path(home), form):
                target, same = folded_path(home), False
            path = self.tree.place(module, target, own=same, key=key if own else None)
            self.tree.register_form(path, form, home if own else None)
        return self.call_form(path, form)

    def _place_of(self, op: Operation, form: ModuleForm) -> tuple[str | None, bool]:
        """Return the path for a form, and whether it is the original's; (None, …) where a function is right."""
        if form.slots:
            home = self.tree.home(form, op.location.parts)
            if home is not None:
                return home, True
            # a call of a function has no mode, and F.batch_norm counts no batches
            needed = op.name == "nn.multihead_attention" or (op.name == "aten.batch_norm" and form.counter)
        else:
            location = own_location(op, form)
            if location is not None and op.name != "aten.scaled_dot_product_attention":
                return location.module_path, True
            needed = form.training is not None and op.opdef.follows_mode
            if form.cls is ScaledDotProductAttention:
                needed = bool(op.attributes["train_dropout_p"])
        if not needed:
            return None, False
        parent = op.location.module_path
        name = op.opdef.short_name
        return (f"{parent}.{name}" if parent else name), False

    @override
    def training_flag(self, op: Operation) -> Any:
        """Read the mode of the module that the operation is in."""
        path = self.tree.container(op.location.module_path)
        target = f"{path}.training" if path else "training"
        node = self._attributes.get(target)
        if node is None:
            node = self.graph.create_node("get_attr", target)
            self._attributes[target] = node
        return node

    def _opaque(self, op: Operation) -> Any:
        callee = str(op.attributes["callee"])
        function = self.program.opaques.get(callee)
        if function is None:
            raise CodegenError(f"the program has no callable {callee!r}", location=op.location)
        operands = [None if v is None else self.value(v) for v in op.operands]
        args, kwargs = decode_call(
            op.attributes, operands, lambda leaf: self.size(leaf) if hasattr(leaf, "free_symbols") else leaf
        )
        if isinstance(function, nn.Module):
            key = ("opaque", callee)
            path = self.tree.find(key)
            if path is None:
                path = self.tree.place(self.tree.adopt(function), callee, own=True, key=key)
                self.tree.register_opaque(path, callee, function)
            node = self.graph.create_node("call_module", path, args, kwargs)
        else:
            node = self.call(function, args, kwargs)
        returns = op.attributes["returns"]
        if returns == "whole":
            return (node,)
        return node if returns == "items" else self.call(pytree.tree_leaves, (node,))


def _read_and_written(program: Program) -> Iterator[Weight]:
    """Yield the buffers that are written at the end of a call, and read by more than what makes their new value."""
    for mutation in program.convention.mutations:
        weight = program.weights.get(mutation.buffer or "")
        new = program.graph.outputs[mutation.output]
        if weight is None or mutation.is_assigned or is_detached(new, weight.value):
            continue
        if new is not None:
            makers = {new.defining_op, program.graph.return_op}
            if any(user not in makers for user in weight.value.users):
                yield weight


def _unlike_after(program: Program, module: EmittedModule) -> Iterator[str]:
    """Yield the switches after which a module is in another mode than in the capture, of the original or emitted."""
    emitted = [(path, each.training) for path, each in module.named_modules() if path != "_guard"]
    for switch in SWITCHES:
        mode = switch == "train"
        after, there = program.modes_after.get(switch, {}), dict(module._modes_after.get(switch, ()))
        if any(after.get(path, mode) != flag for path, flag in program.module_modes.items()) or any(
            there.get(path, mode) != flag for path, flag in emitted
        ):
            yield switch


def _counters(program: Program) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the counts of batches as they are now, by all their names."""
    for weight in program.weights.values():
        if weight.name.rpartition(".")[2] == "num_batches_tracked" and weight.data is not None:
            count = torch.zeros_like(weight.data, device="cpu") if weight.data.is_meta else weight.data.detach().clone()
            yield from ((name, count) for name in names_of(weight))


class _Emitter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.weights = Weights(program)
        self.tree = ModuleTree(program, self.weights)
        self.scope = ProgramScope(program, self.tree)
        self.results = Results(program, self.scope, self.weights, self.scope.tensor)

    def emit(self) -> Emitted:
        program, scope = self.program, self.scope
        inputs = Inputs(program, scope.graph)
        for value, node in zip(program.graph.inputs, inputs.build(), strict=True):
            scope.env[value] = node
        for op in program.graph.operations():
            if op.body is not None:
                emit_region(op, scope)
            else:
                scope.operation(op)
        result = self.results.emit()
        self._count_batches()
        output = scope.graph.output(result)
        for node, weight in scope.targets:
            node.target = self.tree.weight_key(weight)
        root = nn.Module()
        self.tree.finish(root)
        self.results.assign(output)
        guard = inputs.guard()
        guard.surroundings = dict(program.surroundings)
        root.add_module("_guard", guard)
        root.training = program.module_modes.get("", False)
        root._guard.training = root.training  # type: ignore[union-attr]
        if self.results.out_spec is not None:
            root.__dict__["_out_spec"] = self.results.out_spec
        module = EmittedModule(root, scope.graph, self._class_name())
        if self.results.out_spec is not None:
            module.__dict__["_out_spec"] = self.results.out_spec
        self._set_modes_after(module)
        module._unlike_after = frozenset(_unlike_after(program, module))
        if program.mode_locked:
            module.lock_mode(program.mode_locked, is_unknown="" not in program.module_modes)
        names = self._parameter_map(module)
        module._order = self._order(names)
        return Emitted(module, names, tuple(self.tree.opaques))

    def _order(self, names: ParameterMap) -> dict[str, int]:
        """Return key -> place of the parameter among those of the original."""
        places = {name: i for i, weight in enumerate(self.weights.by_name.values()) for name in names_of(weight)}
        return {
            key: min((places[name] for name in sources if name in places), default=len(places))
            for key, sources in names.items()
        }

    def _set_modes_after(self, root: EmittedModule) -> None:
        """Tell root and scopes of the emitted modules whose mode is another one than their own after a switch."""
        switched: dict[str, dict[str, Mapping[str, bool]]] = {}
        for key, modes in self.program.modes_after.items():
            owner, _, switch = key.rpartition(".")
            switched.setdefault(owner, {})[switch] = modes
        for owner, switches in switched.items():
            for place, module in list(root.named_modules()):
                if self.tree.is_layer_of(module, owner):
                    with_switches(module)
                elif place != self.tree.safe_path(owner) or not isinstance(module, SwitchedModule):
                    continue
                prefix = f"{place}." if place else ""
                origins = [
                    (path, self.tree.origin(f"{prefix}{path}".rstrip("."), each))
                    for path, each in module.named_modules()
                ]
                module._modes_after = {
                    switch: tuple((path, modes[origin]) for path, origin in origins if origin in modes)
                    for switch, modes in switches.items()
                }

    def _class_name(self) -> str:
        name = self.program.location.class_name
        return name if name.isidentifier() else "GraphModule"

    def _count_batches(self) -> None:
        """Count the batches of normalizations that are no modules, which do it themselves."""
        for op, mean in self.tree.counting:
            counter = self.weights.by_name.get(f"{mean.name.removesuffix('running_mean')}num_batches_tracked")
            if counter is None or counter is mean:
                continue
            node = self.scope.tensor(counter)
            training = self.scope.training_flag(op) if op.attributes.get("follows_mode", True) else True
            counted = self.scope.call(operator.add, (node, training))
            self.scope.call(torch.ops.aten.copy_.default, (node, counted))

    # ---- the map ----

    def _parameter_map(self, module: nn.Module) -> ParameterMap:
        entries: dict[str, Entry] = {}
        persistent: dict[str, None] = {}
        constants: dict[str, torch.Tensor] = {}
        for key, weight in self.tree.key_weights.items():
            if weight.derivation is not None:
                entries[key] = Entry(weight.derivation.sources, weight.derivation)
                for source in self.weights.sources(weight):
                    if source.data is not None and not self.tree.is_persistent(source):
                        constants[source.name] = source.data
            else:
                entries[key] = Entry((self.tree.keys[key],))
            if self.tree.is_persistent(weight):
                persistent[key] = None
        for key, name in self.tree.opaque_keys.items():
            entries[key] = Entry((name,))
            persistent[key] = None
        ordered = dict.fromkeys(name for name, _ in module.named_parameters(remove_duplicate=False))
        ordered.update(dict.fromkeys(name for name, _ in module.named_buffers(remove_duplicate=False)))
        ordered.update(dict.fromkeys(self.tree.opaque_keys))  # extra state is no tensor
        tied = [names_of(weight) for weight in self.program.weights.values() if weight.aliases]
        return ParameterMap(
            {key: entries[key] for key in ordered if key in entries},
            originals=(*self.weights.originals, *self.tree.opaque_keys.values()),
            persistent=frozenset(persistent),
            constants=constants,
            aliases={name: names for names in tied for name in names},
            counters=dict(_counters(self.program)),
            literals=frozenset(k for k, w in self.tree.key_weights.items() if w.kind is WeightKind.CONSTANT),
        )
