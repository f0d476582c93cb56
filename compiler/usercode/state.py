"""Snapshots of modules, compared and restored after runs."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from compiler.usercode.containers import OPAQUE, PLAIN, Container, collect, differences, same, same_content
from compiler.usercode.copies import held
from compiler.usercode.locations import class_path
from compiler.usercode.tensors import storage_of
from ir.locations import Location

_HIDDEN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")

Change = tuple[str, nn.Module, str]
"""(module path, module, attribute)"""


def plain_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield tensors in attributes and containers of modules that alias no parameter or buffer."""
    seen = {storage_of(t) for t in (*model.parameters(), *model.buffers())}
    for value in held((value for module in model.modules() for value in module.__dict__.values()), modules=False):
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.device.type == "meta":
            continue
        if storage_of(value) not in seen:
            seen.add(storage_of(value))
            yield value


class ModuleState:
    """A snapshot of the attributes of a module and its submodules."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = [(path, module, dict(module.__dict__)) for path, module in root.named_modules()]
        self.requires_grad = [(p, p.requires_grad) for p in root.parameters()]
        # tracing mutates tensors that are not buffers; few models have such tensors, so copies are cheap
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in plain_tensors(root)]
        self.containers: list[tuple[str, nn.Module, Container]] = []
        self.tables: list[tuple[str, nn.Module, str, Any]] = []
        seen: dict[int, int] = {}
        for path, module, attributes in self.modules:
            for name, value in attributes.items():
                if name in _HIDDEN or name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                    self.tables.append((path, module, name, _plain(value)))
                elif not isinstance(value, (*PLAIN, *OPAQUE)):
                    found: list[Container] = []
                    for _ in collect(name, value, found, seen):
                        pass
                    self.containers.extend((path, module, each) for each in found)

    def changes(self) -> list[Change]:
        """Return the attributes that changed, except tensors and registered ones."""
        changed: list[Change] = []
        for path, module, attributes in self.modules:
            now = module.__dict__
            for name in differences(attributes, now):
                values = attributes.get(name), now.get(name)
                if name != "forward" and not any(isinstance(value, torch.Tensor) for value in values):
                    changed.append((path, module, name))
        for path, module, container in self.containers:
            changed.extend((path, module, f"{container.label}{name}") for name in container.differences())
        return changed

    def assigned_tensors(self) -> list[Change]:
        """Return the attributes that hold another tensor object now."""
        return [
            (path, module, name)
            for path, module, attributes in self.modules
            for name, value in module.__dict__.items()
            if isinstance(value, torch.Tensor) and attributes.get(name) is not value
        ]

    def unlike_tensors(self) -> list[Change]:
        """Return the attributes that hold another tensor now, of another type or with other elements."""
        before = {path: attributes for path, _, attributes in self.modules}
        changed = self.assigned_tensors()
        return [(p, m, name) for p, m, name in changed if not same(before[p].get(name), m.__dict__[name])]

    def forget(self, names: Collection[tuple[str, str]]) -> None:
        """Restore some attributes and their contents, given as (module path, name)."""
        for path, module, attributes in self.modules:
            for name in [name for where, name in names if where == path]:
                if name in attributes:
                    module.__dict__[name] = attributes[name]
                else:
                    module.__dict__.pop(name, None)
        for path, _, container in self.containers:
            if (path, attribute_of(container.label)) in names:
                container.restore()

    def tensors_written(self) -> bool:
        """Return whether tensors other than parameters and buffers were mutated."""
        return any(not same_content(tensor, copy) for tensor, copy in self.tensors)

    def restore(self) -> list[Change]:
        """Restore everything; return what had changed."""
        changed = self.restore_attributes()
        self.restore_tensors()
        for parameter, flag in self.requires_grad:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)
        return changed

    def restore_tensors(self) -> None:
        """Restore the elements of tensors other than parameters and buffers."""
        for tensor, copy in self.tensors:
            if not same_content(tensor, copy):
                tensor.detach().copy_(copy)

    def restore_attributes(self) -> list[Change]:
        """Restore attributes and their contents, with tables of buffers and modes; return what had changed."""
        changed: list[Change] = []
        for path, module, attributes in self.modules:
            changed.extend((path, module, name) for name in differences(attributes, module.__dict__))
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for path, module, name, saved in self.tables:
            table = module.__dict__[name]
            names = [each or name for each in differences(saved, _plain(table))]
            if names:
                changed.extend((path, module, each) for each in names)
                table.clear()
                table.update(saved)
        for path, module, container in self.containers:
            names = container.differences()
            if names:
                container.restore()
                changed.extend((path, module, f"{container.label}{name}") for name in names)
        return changed


class KeptState:
    """A snapshot of opaque modules, which mutate themselves over calls."""

    def __init__(self, root: nn.Module, paths: Collection[str]) -> None:
        """Take the snapshot.

        Args:
            root: the module that contains them.
            paths: their paths in it.
        """
        self._root = root
        self._states = [ModuleState(root.get_submodule(path)) for path in paths]

    def restore(self) -> None:
        """Restore everything but the modes; tables of buffers get the same buffer objects back."""
        modes = [(module, module.training) for module in self._root.modules()] if self._states else []
        for state in self._states:
            state.restore()
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode

    def restore_tensors(self) -> None:
        """Restore the elements of tensors other than parameters and buffers."""
        for state in self._states:
            state.restore_tensors()


def attribute_of(label: str) -> str:
    """Return the attribute that a label begins with: `cache` of `cache['cos'].x`."""
    return re.split(r"[.\[]", label, maxsplit=1)[0]


def _plain(table: Any) -> Any:
    """Return a copy of a table of a module, whose class may be TorchScript's."""
    return set(table) if isinstance(table, set) else dict(table)


def run_with_copied_buffers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a model, and discard what it writes to its buffers."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(model, buffers, args, kwargs)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random number generators of Python, numpy and PyTorch at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def is_list_of_parameters(change: Change) -> bool:
    """Return whether a change is in the list of parameters that torch's recurrent modules keep."""
    _, module, name = change
    return isinstance(module, nn.RNNBase) and name.startswith("_flat_weight")


def part_of(module: nn.Module, path: str) -> nn.Module | None:
    """Return a module in another one, or None where it has none there."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def location_of_module(path: str, module: nn.Module) -> Location:
    """Return the location of a module: its class, and the first line of its forward method."""
    class_ = type(module)
    name = class_path(class_)
    # not `class_.forward`, which needs an instance for TorchScript modules
    code = getattr(inspect.unwrap(inspect.getattr_static(class_, "forward")), "__code__", None)
    if code is None:
        return Location(path, name)
    return Location(path, name, code.co_filename, code.co_firstlineno)
