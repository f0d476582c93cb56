"""What modules are made of that were written as code: the classes of `graphwright.emitted`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.emitted.graphmodule import EmittedParts
from ir.errors import InputError
from ir.text.lexer import Lexer
from ir.text.literals import Literals
from ir.text.specs import read_spec


class WrittenModule(EmittedParts):
    """The base class of a module that was written as code: its `train()`, `parameters()` and copies are the original's.

    `forward` of a subclass is the code that the emitted module runs.
    """

    _out_spec_text: str = ""
    """The structure of the result, where `forward` builds it by that."""

    def __init__(self) -> None:
        super().__init__()
        if self._out_spec_text:
            self._out_spec = read_spec(Literals(Lexer(self._out_spec_text)))

    def __deepcopy__(self, memo: dict[int, Any]) -> WrittenModule:
        for value in self.__dict__.values():
            if isinstance(value, pytree.TreeSpec):
                memo[id(value)] = value  # immutable, and PyTorch warns when one is copied
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


# Functions and not methods: a submodule may have their names.


def start(module: WrittenModule, *, training: bool, others: Sequence[str] = ()) -> None:
    """Put all modules into a mode, and those at `others` into the other one: the modes of the capture."""
    for path, each in module.named_modules():
        each.training = training != (path in others)


def list_in_order(module: WrittenModule, names: Sequence[str]) -> None:
    """Let parameters be listed in an order, which is that of the original."""
    module._order = {name: place for place, name in enumerate(names)}


class WrittenRegion(nn.Module):
    """The base class of a fused region that was written as code."""

    kind: str = ""
    """The region's kind: `mha_in_projection`."""
    quantization_points: tuple[str, ...] = ()
    """Names of the operands that a quantizer puts quantize/dequantize pairs on."""


def hold(
    module: nn.Module,
    *,
    parameters: Sequence[str] = (),
    buffers: Sequence[str] = (),
    absent: Sequence[str] = (),
    not_persistent: Sequence[str] = (),
) -> None:
    """Let a module hold tensors otherwise than its class does: a weight as a buffer, or no count of batches.

    Args:
        module: the module.
        parameters: names of its parameters.
        buffers: names of its buffers.
        absent: which of these are None.
        not_persistent: which of the buffers are in no `state_dict`.
    """
    known = {**module._parameters, **module._buffers}
    tensors = {name: None if name in absent else known.get(name, torch.empty(0)) for name in (*parameters, *buffers)}
    module._parameters = {
        name: tensor if tensor is None or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
        for name, tensor in tensors.items()
        if name in parameters
    }
    module._buffers = {
        name: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
        for name, tensor in tensors.items()
        if name not in parameters
    }
    module._non_persistent_buffers_set = set(not_persistent)


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor] | str | os.PathLike[str],
    *,
    map_location: Any = None,
    kept: Sequence[str] = (),
) -> None:
    """Give a written module its parameters and buffers, those that are in no `state_dict` too.

    Args:
        module: the module; its own tensors are dropped.
        tensors: tensors by name, or the file that has them. It is read with `weights_only=True`: no code runs.
        map_location: as in `torch.load`.
        kept: paths of modules that bring their own.

    Raises:
        InputError: when one is missing, or is not one of the module's.
    """
    given: Any = tensors
    if not isinstance(tensors, Mapping):
        given = torch.load(tensors, map_location=map_location, weights_only=True)
    wanted = dict(_places(module, kept))
    if wanted.keys() != given.keys():
        missing, more = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        what = f"`{missing[0]}` is missing" if missing else f"`{more[0]}` is not one of the module's"
        raise InputError(f"the weights are others than those of the code: {what}", remedy="write both anew")
    for name, (holder, own) in wanted.items():
        holder[own] = given[name]


def tensors_of(module: nn.Module, kept: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module under all their names, as `load_tensors` wants them."""
    found: dict[str, torch.Tensor] = {}
    plain: dict[int, torch.Tensor] = {}
    for name, (holder, own) in _places(module, kept):
        tensor = holder[own]
        assert tensor is not None
        if not isinstance(tensor, nn.Parameter) and tensor.grad_fn is not None:
            tensor = plain.setdefault(id(tensor), tensor.detach())
        found[name] = tensor
    return found


def _places(module: nn.Module, kept: Sequence[str]) -> Iterator[tuple[str, tuple[dict[str, torch.Tensor | None], str]]]:
    inside = tuple(f"{path}." for path in kept)
    for path, each in module.named_modules(remove_duplicate=False):
        if path in kept or path.startswith(inside):
            continue
        for holder in (each._parameters, each._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, (holder, name)
