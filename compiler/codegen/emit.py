"""The emitter: a program becomes an `fx.GraphModule` that reads like a module a person wrote."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from compiler.codegen.convention import Inputs
from compiler.codegen.program_scope import ProgramScope
from compiler.codegen.regions import Region, emit_region
from compiler.codegen.results import Results
from compiler.codegen.size_checks import SizeChecks
from compiler.codegen.tree import ModuleTree
from compiler.codegen.weights import Weights, names_of
from compiler.emitted.graphmodule import EmittedModule, SwitchedModule, with_switches
from compiler.emitted.parameter_map import Entry, ParameterMap
from ir.program import SWITCHES, Program, WeightKind


@attrs.frozen(eq=False)
class Emitted:
    """What a program was emitted as.

    Attributes:
        module: the module, an `fx.GraphModule`.
        parameter_map: new `state_dict` key -> key(s) of the original.
    """

    module: EmittedModule
    parameter_map: ParameterMap
    kept: tuple[str, ...] = ()
    """Paths of opaque modules."""


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


def _unlike_after(program: Program, module: EmittedModule) -> Iterator[str]:
    """Yield the switches after which some module, of the original or emitted, is not in its captured mode."""
    emitted = [(path, each.training) for path, each in module.named_modules() if path != "_guard"]
    for switch in SWITCHES:
        mode = switch == "train"
        after, there = program.modes_after.get(switch, {}), dict(module._modes_after.get(switch, ()))
        if any(after.get(path, mode) != flag for path, flag in program.module_modes.items()) or any(
            there.get(path, mode) != flag for path, flag in emitted
        ):
            yield switch


def _counters(program: Program) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the present counts of batches, under all their names."""
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
        self.results = Results(self.scope)

    def emit(self) -> Emitted:
        program, scope = self.program, self.scope
        inputs = Inputs(program, scope.graph)
        for value, node in zip(program.graph.inputs, inputs.build(), strict=True):
            scope.env[value] = node
        regions = {op: Region(op, scope) for op in program.graph.operations() if op.body is not None}
        sizes = SizeChecks(scope, program)
        inside = {op for region in regions.values() for op in region.quantizations}
        for op in program.graph.operations():
            if op in regions:
                emit_region(regions[op])
            elif op not in inside:
                scope.operation(op)
            if scope.sized:
                sizes.define(op)
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
        held: dict[str, Any] = {"_keys": tuple(inputs.keys)} if inputs.keys else {}
        if self.results.out_spec is not None:
            held["_out_spec"] = self.results.out_spec
        root.__dict__.update(held)
        module = EmittedModule(root, scope.graph, self._class_name())
        module.__dict__.update(held)
        self._set_modes_after(module)
        module._unlike_after = frozenset(_unlike_after(program, module))
        if program.mode_locked:
            module.lock_mode(program.mode_locked, is_unknown="" not in program.module_modes)
        names = self._parameter_map(module)
        module._order = self._order(names)
        module._kept = tuple(self.tree.opaques)
        module._weight_names = {key: weight.name for key, weight in self.tree.key_weights.items()}
        return Emitted(module, names, tuple(self.tree.opaques))

    def _order(self, names: ParameterMap) -> dict[str, int]:
        """Return key -> place of the parameter among those of the original."""
        places = {name: i for i, weight in enumerate(self.weights.by_name.values()) for name in names_of(weight)}
        return {
            key: min((places[name] for name in sources if name in places), default=len(places))
            for key, sources in names.items()
        }

    def _set_modes_after(self, root: EmittedModule) -> None:
        """Tell modules which modules below them do not take on the mode of a switch."""
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
        """Count the batches of normalizations that are not modules: modules count their own."""
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
        ordered.update(dict.fromkeys(self.tree.opaque_keys))  # extra state is not a tensor
        for weight in self.tree.quantized.parameters:
            if weight.derivation is None and weight.data is not None:
                constants[weight.name] = weight.data  # no checkpoint of the original has it
        tied = [names_of(weight) for weight in self.program.weights.values() if weight.aliases]
        return ParameterMap(
            {key: entries[key] for key in ordered if key in entries},
            originals=frozenset((*self.weights.originals, *self.tree.opaque_keys.values())),
            persistent=frozenset(persistent),
            constants=constants,
            aliases={name: names for names in tied for name in names},
            counters=dict(_counters(self.program)),
            literals=frozenset(k for k, w in self.tree.key_weights.items() if w.kind is WeightKind.CONSTANT),
            untrained=frozenset(
                key
                for key, weight in self.tree.key_weights.items()
                if weight.derivation is not None and not weight.requires_grad
            ),
        )
