"""The weights of a program: parameters and buffers under their names, tied ones once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compiler.usercode.locations import is_inside
from compiler.usercode.overlap import memory_of
from ir.caches import cached
from ir.errors import CaptureError
from ir.program import Program, Weight, WeightKind
from ir.types import Dim, TensorType


@cached()
def tensor_type(shape: tuple[Dim, ...], dtype: torch.dtype, device: torch.device) -> TensorType:
    """Return a type; equal ones are one object."""
    return TensorType(shape, dtype, device)


class WeightTable:
    """Adds weights to a program; a tensor that has a second name becomes an alias."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[str, Weight] = {}
        """Name or alias -> weight."""
        self._seen: dict[int, Weight] = {}
        self._places: dict[Any, list[Weight]] = {}
        """Piece of memory -> the weights that lie in it."""

    def add(
        self, name: str, tensor: torch.Tensor, kind: WeightKind, *, persistent: bool = True, alias: bool = True
    ) -> Weight:
        """Add a weight, or an alias of one that is there."""
        weight = self._seen.get(id(tensor))
        if weight is not None:
            if alias:
                weight.aliases = (*weight.aliases, name)
            self.names[name] = weight
            return weight
        weight = Weight(
            name if name not in self.names else self.program.unique_weight_name(name),
            kind,
            tensor_type(tuple(tensor.shape), tensor.dtype, tensor.device),
            tensor,
            requires_grad=tensor.requires_grad and (tensor.is_leaf or kind is not WeightKind.BUFFER),
            persistent=persistent,
        )
        self.program.add_weight(weight)
        self._seen[id(tensor)] = weight
        self.names[name] = weight
        memory = memory_of(tensor)
        if memory is not None:
            self._places.setdefault(memory, []).append(weight)
        return weight

    def note_written(self, weight: Weight) -> None:
        """Record that a call mutates a weight.

        Raises:
            CaptureError: when other weights share its memory.
        """
        weight.is_mutated = True
        memory = None if weight.data is None else memory_of(weight.data)
        together = self._places.get(memory, ())
        others = [w.name for w in together if w is not weight and self.program.weights.get(w.name) is w]
        if others:
            raise CaptureError(
                f"buffer {weight.name!r} is mutated in forward and shares its memory with {', '.join(others)}",
                remedy="give the buffer memory of its own, or register one tensor under both names",
            )

    def add_module(self, module: nn.Module, without: Iterable[str] = ()) -> None:
        """Add the parameters and buffers of a module in `state_dict` order, except below the paths `without`."""
        skipped = tuple(without)
        for name, tensor, kind, persistent in _state_of(module):
            if not is_inside(name, skipped):
                self.add(name, tensor, kind, persistent=persistent)

    def add_exported(self, exported: ExportedProgram) -> None:
        """Add the parameters and buffers of an exported program."""
        signature = exported.graph_signature
        parameters = set(signature.parameters)
        places: dict[int, list[torch.Tensor]] = {}
        for name, tensor in exported.state_dict.items():
            # a loaded program has several objects for tied tensors
            same = places.setdefault(0 if tensor.is_meta else tensor.data_ptr(), [])
            tensor = next((other for other in same if is_one_tensor(other, tensor)), tensor)
            same.append(tensor)
            self.add(name, tensor, WeightKind.PARAMETER if name in parameters else WeightKind.BUFFER)
        for spec in signature.input_specs:
            if spec.kind is InputKind.BUFFER and spec.target is not None and spec.target not in self.names:
                tensor = exported.constants[spec.target]
                assert isinstance(tensor, torch.Tensor)
                self.add(spec.target, tensor, WeightKind.BUFFER, persistent=False)


def _state_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, WeightKind, bool]]:
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, WeightKind.PARAMETER, True
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                persistent = name not in owner._non_persistent_buffers_set
                yield prefix + name, buffer, WeightKind.BUFFER, persistent


def is_one_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensor objects show the same elements of the same memory."""
    if a.dtype != b.dtype or a.shape != b.shape or a.layout is not torch.strided or b.layout is not torch.strided:
        return False
    return not a.is_meta and a.numel() > 0 and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
