"""Programs built by hand over real modules, for the tests of the emitter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import ir.ops.table  # noqa: F401 - the facts about operators
from compiler.codegen import Emitted, emit
from ir.builder import Builder
from ir.core import Graph, Value
from ir.locations import Location
from ir.parameters import ParameterSpec
from ir.program import (
    CallingConvention,
    InputLeaf,
    OutputLeaf,
    Program,
    Weight,
    WeightKind,
)
from ir.types import TensorType, type_of_tensor


class Draft:
    """A program in the making, over the weights and modes of a real module."""

    def __init__(self, model: nn.Module | None = None, **inputs: TensorType) -> None:
        self.model = model or nn.Module()
        self.graph = Graph(list(inputs.items()))
        self.program = Program("main", self.graph, CallingConvention(None, None))
        seen: dict[int, Weight] = {}
        for path, owner in self.model.named_modules(remove_duplicate=False):
            self.program.module_modes[path] = owner.training
            for kind, table in ((WeightKind.PARAMETER, owner._parameters), (WeightKind.BUFFER, owner._buffers)):
                for key, tensor in table.items():
                    if tensor is not None:
                        name = f"{path}.{key}" if path else key
                        if id(tensor) in seen:
                            weight = seen[id(tensor)]
                            weight.aliases = (*weight.aliases, name)
                            continue
                        persistent = key not in owner._non_persistent_buffers_set
                        seen[id(tensor)] = weight = Weight(
                            name, kind, type_of_tensor(tensor), tensor, tensor.requires_grad, persistent
                        )
                        self.program.add_weight(weight)
        self.b = Builder(self.graph)

    def at(self, path: str) -> Builder:
        """The builder, at the location of a module."""
        cls = type(self.model.get_submodule(path))
        self.b.location = Location(path, f"{cls.__module__}.{cls.__qualname__}", "model.py", 7)
        return self.b

    def __getitem__(self, name: str) -> Value:
        for value in self.graph.inputs:
            if value.name == name:
                return value
        for weight in self.program.weights.values():
            if name in (weight.name, *weight.aliases):
                return weight.value
        raise KeyError(name)

    def emit(self, *outputs: Value | None) -> Emitted:
        self.graph.set_outputs(outputs)
        return emit(self.program)


def f32(*shape: Any) -> TensorType:
    return TensorType(tuple(shape), torch.float32)


def randomize(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
    return model


def flat_convention(
    args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, names: tuple[str, ...] = ()
) -> CallingConvention:
    """Tensors in the arguments are inputs in order; in the result, ints are output numbers wrapped in a list."""
    leaves, in_spec = pytree.tree_flatten((args, kwargs))
    inputs, number = [], 0
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            inputs.append(InputLeaf(f"arg{i}", number))
            number += 1
        else:
            inputs.append(InputLeaf(f"arg{i}", None, leaf))
    out_leaves, out_spec = pytree.tree_flatten(result)
    outputs = tuple(OutputLeaf(x.number) if isinstance(x, Out) else OutputLeaf(None, x) for x in out_leaves)
    return CallingConvention(in_spec, out_spec, tuple(inputs), outputs, parameters=tuple(map(ParameterSpec, names)))


class Out:
    def __init__(self, number: int) -> None:
        self.number = number
