"""The module tree of what is emitted: which module stands at which path, and under which key each weight is found."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import sympy
import torch
from torch import fx, nn

from compiler.codegen.forms import ModuleForm, build, declared_names, homes
from compiler.codegen.quantizers import QuantizedValues
from compiler.codegen.sharing import share_modules
from compiler.codegen.weights import Weights, names_of, share
from compiler.emitted.graphmodule import Container, EmittedModule
from compiler.emitted.written import WrittenModule
from compiler.usercode.state import part_of
from ir.core import Operation, Value
from ir.errors import CodegenError
from ir.locations import Location
from ir.program import Program, Weight, WeightKind, weight_of
from ir.spelling import free_name

_RESERVED = frozenset(
    {*dir(EmittedModule(nn.Module(), fx.Graph())), *dir(WrittenModule()), "_guard", "_keys", "_out_spec"}
)
"""Attributes of every emitted module, also of one written as code: a submodule of such a name could not be reached."""
_RESERVED_BELOW = frozenset(dir(Container()))
"""Attributes of the modules below the root that only hold others."""

_FOLDED = "_folded"
"""Suffix of the path of a layer, or the name of a weight, whose values are not those of the original."""

_LAYER_SLOTS = ("weight", "bias", "running_mean")
"""Names of weights by which a path is one where a layer may be placed."""


def folded_path(path: str) -> str:
    """Return the path of a layer whose values differ from the original's at `path`."""
    return f"{path}{_FOLDED}"


class ModuleTree:
    """Places modules at paths and weights under keys, and builds the tree in the order of the original.

    Paths are those of the original where that is possible: a module whose weights the original has at `conv1` stands
    at `conv1`. A path that is taken gets a number. A key that the original has too holds the same tensor, or one of
    another shape, for which loading a checkpoint of the original fails.
    """

    def __init__(self, program: Program, weights: Weights) -> None:
        self.program = program
        self.weights = weights
        self.keys: dict[str, str] = {}
        """state_dict key -> the original's name of the weight (or the name of the derived weight)."""
        self.key_weights: dict[str, Weight] = {}
        """Key -> weight, for all that is registered."""
        self._modules: dict[str, nn.Module] = {}
        self._inside: dict[str, set[str]] = {}
        """Path -> names of the children below which, or as which, modules are placed."""
        self._numbers: dict[str, int] = {}
        """Path -> the number behind it that was given last: the ones before are taken."""
        self._at: dict[tuple[Any, ...], str] = {}
        self._covered: dict[str, str] = {}
        self._containers: dict[str, None] = {}
        self._invented: dict[str, str] = {}
        self._adopted: dict[int, torch.Tensor] = {}
        self._by_data = {id(weight.data): weight for weight in weights.live if weight.data is not None}
        self._memo: dict[int, Any] = {}
        """Memo of the copies of opaque modules: what several of them hold stays one object."""
        self.opaques: list[str] = []
        """Paths of opaque modules."""
        self.opaque_keys: dict[str, str] = {}
        """Key inside an opaque module -> the original's name."""
        self.calls: dict[str, tuple[list[int], tuple[sympy.Symbol, ...]]] = {}
        """Path of a region -> numbers of the operands that it takes, and the symbols whose sizes follow."""
        self.quantized = QuantizedValues(program, self.find_weight)
        self.counting: list[tuple[Operation, Weight]] = []
        """Normalizations that are not modules and count their batches, with their running means."""
        self._origins: dict[int, tuple[nn.Module, str]] = {}
        self._made: dict[tuple[Any, ...], nn.Module] = {}
        """The layers that were built: one that is called twice may stand in two regions."""
        self._prefixes: dict[str, None] = {}
        """Paths below which the original has weights."""
        for name in weights.originals:
            self._prefixes.update(dict.fromkeys(_above(name)))
        self._known = {*weights.originals, *program.module_modes, *self._prefixes}

    def find_weight(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of the program is, unless it is computed in `forward`; else None."""
        weight = weight_of(value)
        return None if weight is None or weight in self.weights.inlined else weight

    def safe_path(self, path: str) -> str:
        """Return the path in the emitted module of what the original has at `path`."""
        names = path.split(".")
        if names[0] not in _RESERVED and _RESERVED_BELOW.isdisjoint(names):
            return path
        prefix = ""
        for place, name in enumerate(path.split(".")):
            if name in (_RESERVED_BELOW if place else _RESERVED):
                taken = {name, *(each[len(prefix) :] for each in self._known if each.startswith(prefix))}
                names[place] = free_name(name, taken.__contains__)
            prefix += f"{name}."
        return ".".join(names)

    def home(self, form: ModuleForm, locations: tuple[Location, ...]) -> str | None:
        """Return the path at which all weights of `form` keep their names, or None.

        A derived weight has no name of its own but what a rule has given it, and takes one that is free.
        """
        if not form.slots:
            return None
        candidates = [
            weight.name.removesuffix(f".{slot}")
            for slot, weight in form.slots
            if weight.name.endswith(f".{slot}") and weight.name not in self.weights.originals
        ]
        candidates.extend(homes(form, locations))
        for _, weight in form.slots:
            if weight.derivation is not None:
                candidates.extend(name.rpartition(".")[0] for name in weight.derivation.sources)
        for path in candidates:
            fits = path and all(self._fits(f"{path}.{slot}", weight) for slot, weight in form.slots)
            if fits and not self._has_more(path, form):
                return path
        return None

    def _has_more(self, path: str, form: ModuleForm) -> bool:
        """Whether the original has a weight there that the class uses and the operation does not."""
        slots = dict(form.slots)
        return any(
            name not in slots and f"{path}.{name}" in self.weights.live_names
            for name in declared_names(form)
            if name != "num_batches_tracked"
        )

    def _fits(self, name: str, weight: Weight) -> bool:
        owner = self.weights.live_names.get(name)
        is_free = owner is None and weight.derivation is not None  # a derived weight has no name in the original
        return owner is weight or is_free

    def is_mistakable(self, path: str, form: ModuleForm) -> bool:
        """Whether the original has the keys of a module for `form` at `path`, with other tensors."""
        return any(self.weights.is_mistakable(f"{path}.{slot}", weight) for slot, weight in form.slots)

    def make(self, form: ModuleForm, path_of_original: str | None = None) -> nn.Module:
        """Return the module for `form`, holding the emitted module's tensors: one for each layer of the original."""
        key = (path_of_original, form.key, form.training)
        if path_of_original is not None and key in self._made:
            return self._made[key]
        module = build(form)
        for slot, weight in form.slots:
            prefix, _, name = slot.rpartition(".")
            self._hold(module.get_submodule(prefix), name, weight)
        if form.counter:
            counter = self.counter(form, path_of_original)
            module._buffers["num_batches_tracked"] = None
            if counter is not None:
                self._hold(module, "num_batches_tracked", counter)
        if form.training is not None:
            module.train(form.training)
        else:
            module.train(self.mode(path_of_original))
        if path_of_original is not None:
            self._origins[id(module)] = module, path_of_original
            self._made[key] = module
        return module

    def origin(self, path: str, module: nn.Module) -> str:
        """Return the path in the original of the module whose mode an emitted one follows."""
        known, modes = self._origins.get(id(module)), self.program.module_modes
        found = known[1] if known is not None else self._original(path)
        return next((each for each in (found, *_above(found)) if each in modes), "")

    def is_layer_of(self, module: nn.Module, path: str) -> bool:
        """Return whether a module is the layer that the original has at a path."""
        known = self._origins.get(id(module))
        return known is not None and known[1] == path

    def _hold(self, owner: nn.Module, name: str, weight: Weight) -> None:
        """Give `owner` the tensor as a parameter or a buffer, whatever its class declares."""
        tensor = self.weights.tensor(weight)
        if isinstance(tensor, nn.Parameter):
            owner._buffers.pop(name, None)
            owner._parameters[name] = tensor
        else:
            owner._parameters.pop(name, None)
            owner._buffers[name] = tensor
            if not self.is_persistent(weight):
                owner._non_persistent_buffers_set.add(name)

    def counter(self, form: ModuleForm, home: str | None) -> Weight | None:
        """Return the count of batches of the layer at `home`, or that beside the running statistics of `form`."""
        own = None if home is None else self.weights.live_names.get(f"{home}.num_batches_tracked")
        if own is not None:
            return own
        for slot, weight in form.slots:
            if slot == "running_mean":
                for name in names_of(weight):
                    found = self.weights.live_names.get(f"{name[: -len(slot)]}num_batches_tracked")
                    if found is not None:
                        return found
        return None

    def mode(self, path: str | None) -> bool:
        """Return the mode of the module at `path`, or of the nearest one around it."""
        modes = self.program.module_modes
        around = (path, *_above(path)) if path else ()
        return next((modes[each] for each in around if each in modes), modes.get("", False))

    def is_original(self, path: str) -> bool:
        """Whether the original has a weight, or modules with weights, at `path`."""
        return path in self._prefixes or path in self.weights.originals

    def find(self, key: tuple[Any, ...]) -> str | None:
        """Return where a module placed under an equal key stands."""
        return self._at.get(key)

    def place(self, module: nn.Module, path: str, *, own: bool, key: tuple[Any, ...] | None = None) -> str:
        """Put `module` at `path`, or at a free path like it, and return where it stands.

        Args:
            module: the module.
            path: where it should stand, in the original's names.
            own: whether the original has this very module there; otherwise the path must be new.
            key: equal keys share a module (see `find`).
        """
        path = self._outside(path, module) if own else self._beside(path)
        target = self._free(self.safe_path(path), own)
        self._modules[target] = module
        inner = target
        for outer in _above(target):
            self._inside.setdefault(outer, set()).add(inner.rpartition(".")[2])
            inner = outer
        if not own or target != path:
            self._invented[target] = path
        if key is not None:
            self._at[key] = target
        return target

    def _outside(self, path: str, module: nn.Module) -> str:
        """Return a path where a module replaces no part of a placed one, and no placed one replaces a part of it.

        A layer that is called as a whole holds its parts, which may also be called on their own, or fused.
        """
        parts = path.split(".")
        for end in range(1, len(parts)):
            outer, rest = ".".join(parts[:end]), parts[end:]
            placed = self._modules.get(outer)
            if placed is not None and rest[0] in placed._modules and part_of(placed, ".".join(rest)) is not module:
                return "_".join((outer, *rest))
        return path if self._inside.get(path, set()).isdisjoint(module._modules.keys()) else f"{path}_whole"

    def _beside(self, path: str) -> str:
        """Return a path beside a layer for what would stand below it: a fused module calls all of its children."""
        parent, _, name = path.rpartition(".")
        is_layer = any(f"{parent}.{slot}" in self.weights.live_names for slot in _LAYER_SLOTS)
        return f"{parent}_{name}" if parent and is_layer else path

    def _free(self, path: str, own: bool) -> str:
        modes, parent = self.program.module_modes, path.rpartition(".")[0]

        def taken(candidate: str) -> bool:
            if candidate in self._modules or candidate in self.weights.originals:
                return True
            if own and candidate == path:
                return False
            name = candidate[len(parent) + 1 :] if parent else candidate
            return (
                candidate in modes
                or candidate in self._containers
                or (hasattr(nn.Module, name) or (not parent and name in _RESERVED))
                or candidate in self._prefixes
            )

        return free_name(path, taken, self._numbers)

    def register(self, key: str, weight: Weight, name: str | None = None) -> None:
        """Record that a placed module holds `weight` under `key`; `name` is the original's name of that place."""
        self.key_weights[key] = weight
        if name is None or self.weights.live_names.get(name) is not weight:
            name = weight.name
        self.keys[key] = name
        self._covered.setdefault(name, key)

    def register_form(self, path: str, form: ModuleForm, home: str | None) -> None:
        """Record all weights of a module built by `make`, which is at `path` here and at `home` in the original."""
        for slot, weight in form.slots:
            self.register(f"{path}.{slot}", weight, f"{home}.{slot}" if home is not None else None)
        counter = self.counter(form, home) if form.counter else None
        if counter is not None:
            name = f"{home}.num_batches_tracked" if home is not None else None
            self.register(f"{path}.num_batches_tracked", counter, name)

    def adopt(self, module: nn.Module) -> nn.Module:
        """Return a copy of an opaque module: new parameters and buffers over the same storage."""
        memo = self._memo
        for each in module.modules():
            for tensor in each.__dict__.values():
                if isinstance(tensor, torch.Tensor):
                    memo[id(tensor)] = tensor
            for tensor in (*each._parameters.values(), *each._buffers.values()):
                if tensor is None:
                    continue
                shared = self._adopted.get(id(tensor))
                if shared is None:
                    weight = self._by_data.get(id(tensor))
                    shared = self.weights.tensor(weight) if weight is not None else share(tensor)
                    self._adopted[id(tensor)] = shared
                memo[id(tensor)] = shared
        return copy.deepcopy(module, memo)

    def register_opaque(self, path: str, original: str, module: nn.Module) -> None:
        """Record the state of an opaque module."""
        self.opaques.append(path)
        for key in module.state_dict(keep_vars=True):
            self.opaque_keys[f"{path}.{key}"] = f"{original}.{key}"

    def container(self, path: str) -> str:
        """Ensure that there is a module for `path` of the original, and return its path here."""
        target = self.safe_path(path)
        if target:
            self._containers[target] = None
        return target

    def weight_key(self, weight: Weight) -> str:
        """Return the key under which `weight` is found; call it when all modules are placed."""
        key = self._covered.get(weight.name)
        if key is None:
            key, name = self._free_key(weight)
            self.register(key, weight, name)
        return key

    def keys_of(self, weight: Weight) -> list[str]:
        """Return all keys under which a weight is found; call it when the tree is built.

        A module that is found under several paths counts once.
        """
        aliases = tuple(f"{self.safe_path(path)}." for path in self.program.module_aliases)
        return [key for key, held in self.key_weights.items() if held is weight and not key.startswith(aliases)]

    def _free_key(self, weight: Weight) -> tuple[str, str]:
        """Return a key for a weight that no module holds, and the original's name of it."""
        sources = self.weights.sources(weight)
        name = weight.name
        if len(sources) == 1 and name.startswith(f"{sources[0].name}{_FOLDED}"):
            source = sources[0]
            if source in self.weights.dropped and source.name not in self.weights.live_names:
                name = source.name  # a computed weight takes the place of its only source, which is gone
        if weight.kind is WeightKind.CONSTANT:
            name = re.sub(r"[^\w.]", "_", name)  # a name is a path, and its parts are attribute names
        base = self.safe_path(name)
        if self.weights.is_mistakable(base, weight):
            base += _FOLDED
        return free_name(base, lambda key: self._is_taken(key, weight)), name

    def _is_taken(self, key: str, weight: Weight) -> bool:
        if key in self.key_weights or self.weights.is_mistakable(key, weight):
            return True
        owner = self.weights.live_names.get(key)
        is_module = key in self._modules or key in self._containers or key in self._prefixes
        return is_module or (owner is not None and owner is not weight)

    def finish(self, root: nn.Module) -> None:
        """Build the tree below `root`, when weights have their keys and modules their places."""
        aliases = tuple(f"{path}." for path in self.program.module_aliases)
        for weight in self.weights.live:
            for name in names_of(weight):
                if name not in self._covered and not name.startswith(aliases):
                    key = self.weight_key(weight) if name == weight.name else self.safe_path(name)
                    if key not in self.key_weights:
                        self.register(key, weight, name)
        for key, weight in self.key_weights.items():
            if self.weights.is_mistakable(key, weight):
                raise CodegenError(f"the key {key!r} would hold another tensor than in the original")
        placed = {f"{path}.{key}" for path, module in self._modules.items() for key in _own_keys(module)}
        leaves = [(key, weight) for key, weight in self.key_weights.items() if key not in placed]
        paths = dict(self._modules)
        for path in (*self._containers, *(key.rpartition(".")[0] for key, _ in leaves), *paths):
            for each in (path, *_above(path)):
                if each and each not in paths:
                    paths[each] = Container()
        order = self._order(paths)
        made = {"": root}
        for path in sorted(paths, key=lambda p: (p.count("."), order[p])):
            module = paths[path]
            parent, _, name = path.rpartition(".")
            if path not in self._modules:
                module.training = self.mode(self._original(path))
            made[parent].add_module(name, module)
            made[path] = module
        positions = {name: i for i, name in enumerate(self.weights.by_name)}

        def position(item: tuple[str, Weight]) -> int:
            sources = self.weights.sources(item[1])
            return positions[sources[0].name if sources else self.keys[item[0]]]

        for key, weight in sorted(leaves, key=position):
            parent, _, name = key.rpartition(".")
            tensor = self.weights.tensor(weight)
            if isinstance(tensor, nn.Parameter):
                made[parent].register_parameter(name, tensor)
            else:
                made[parent].register_buffer(name, tensor, persistent=self.is_persistent(weight))

        share_modules(self, made)

    def is_persistent(self, weight: Weight) -> bool:
        """Whether a weight belongs in the `state_dict`."""
        return weight.persistent and weight.kind is not WeightKind.CONSTANT

    def _original(self, path: str) -> str:
        return self._invented.get(path, path)

    def _order(self, paths: dict[str, nn.Module]) -> dict[str, tuple[float, int]]:
        """Return sort keys: the place of the module in the original, else of the first weight below it."""
        modes = {self.safe_path(path): i for i, path in enumerate(self.program.module_modes)}
        positions = {name: i for i, name in enumerate(self.weights.by_name)}
        first: dict[str, tuple[float, int]] = {}
        for key, weight in self.key_weights.items():
            sources = self.weights.sources(weight)
            name = sources[0].name if sources else self.keys[key]
            owner = self.safe_path(name).rpartition(".")[0]
            place = (modes.get(owner, positions[name]), positions[name])
            for path in _above(key):
                first[path] = min(place, first.get(path, place))
        order: dict[str, tuple[float, int]] = {}
        for i, path in enumerate(paths):
            if path in modes and path not in self._invented:
                order[path] = (modes[path], -1)
            else:
                order[path] = first.get(path, (math.inf, i))
        return order


def _above(path: str) -> list[str]:
    """Return the paths of the modules around a path, the nearest first, without the root."""
    parts = path.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _own_keys(module: nn.Module) -> list[str]:
    """Return the names of all tensors of a placed module, tied ones under each of their names."""
    found = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    found.extend(name for name, _ in module.named_buffers(remove_duplicate=False))
    return found
