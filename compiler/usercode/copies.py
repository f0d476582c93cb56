"""Structural copies of modules, which may be run, traced and mutated; they share the original's tensors."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn

from compiler.usercode.containers import CODE

_ATOMIC = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Size)
_PLAIN = frozenset({*_ATOMIC, bool})
_SHARED = (fx.Graph, torch.jit.ScriptModule)
"""Objects that runs do not mutate, and that are expensive to copy."""


def structural_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its tensors.

    Modules, containers and objects in attributes are new; so are functions that hold one of these (a hook, a `forward`
    on the instance). Objects that cannot be copied (a lock, an open file) are shared.
    """
    found = _Copier(module).copy_of(module)
    assert isinstance(found, nn.Module)
    return found


def held_modules(root: nn.Module) -> list[nn.Module]:
    """Return the modules of a tree, and those in plain attributes and containers of theirs."""
    return [value for value in held([root]) if isinstance(value, nn.Module)]


def held(values: Iterable[Any], *, modules: bool = True) -> Iterator[Any]:
    """Yield the modules, tensors and shared objects among values, in containers and in attributes of objects.

    Args:
        values: where to begin.
        modules: whether modules are yielded and looked into.
    """
    pending = list(values)
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, (*_ATOMIC, *CODE)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (torch.Tensor, *_SHARED)):
            yield value
        elif isinstance(value, nn.Module):
            if modules:
                yield value
                pending.extend(value.__dict__.values())
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            pending.extend(value)
        elif isinstance(getattr(value, "__dict__", None), dict):
            pending.extend(value.__dict__.values())


class _Copier:
    """One copy of a tree of modules."""

    def __init__(self, root: nn.Module) -> None:
        self.memo: dict[int, Any] = {}
        self.kept: list[Any] = []
        """Objects that the memo names by id, kept alive with it."""
        modules = self._shells(root)
        for module in modules:
            # bypasses setattr, which registers in nn.Module
            self.memo[id(module)].__dict__.update({name: self.copy_of(item) for name, item in module.__dict__.items()})

    def _shells(self, root: nn.Module) -> list[nn.Module]:
        """Return the modules of a tree, and those in plain attributes and containers; put empty copies into the memo.

        Tensors are in it as themselves.
        """
        found: list[nn.Module] = []
        for value in held([root]):
            if isinstance(value, nn.Module) and not isinstance(value, _SHARED):
                found.append(value)
                self.memo[id(value)] = object.__new__(value.__class__)  # GraphModule.__new__ makes a new class
            else:
                self.memo[id(value)] = value
        return found

    def copy_of(self, value: Any) -> Any:
        """Return a copy of any object that a module holds."""
        kind = type(value)
        if kind in _PLAIN or isinstance(value, torch.Tensor):
            return value
        found = self.memo.get(id(value))
        if found is not None:
            return found
        made: Any
        if kind in (dict, OrderedDict):
            made = self.memo[id(value)] = kind()
            for key, item in value.items():
                made[key] = self.copy_of(item)
        elif kind is list:
            made = self.memo[id(value)] = []
            made.extend(map(self.copy_of, value))
        elif kind is tuple:
            made = tuple(map(self.copy_of, value))
        elif kind is FunctionType:
            made = self._function(value)
        elif kind is MethodType:
            made = MethodType(value.__func__, self.copy_of(value.__self__))
        elif kind is functools.partial:
            made = functools.partial(
                self.copy_of(value.func), *map(self.copy_of, value.args), **self.copy_of(value.keywords)
            )
        else:
            try:
                made = copy.deepcopy(value, self.memo)
            except Exception:  # noqa: BLE001 - the user's objects raise anything
                made = value
        self.kept.append(value)
        self.memo[id(value)] = made
        return made

    def _function(self, function: FunctionType) -> FunctionType:
        """Return a function whose closure holds copies, or the function itself if there are none."""
        cells = function.__closure__ or ()
        contents = [_content(cell) for cell in cells]
        self.memo[id(function)] = function  # a recursive function is in its own closure
        copied = [item if isinstance(item, _ATOMIC) else self.memo.get(id(item), item) for item in contents]
        copied = [
            self.copy_of(item) if type(item) in (FunctionType, functools.partial, MethodType) else other
            for item, other in zip(contents, copied, strict=True)
        ]
        if all(a is b for a, b in zip(contents, copied, strict=True)):
            return function
        itself = CellType()
        closure = tuple(
            itself if a is function else cell if a is b else CellType(b)
            for cell, a, b in zip(cells, contents, copied, strict=True)
        )
        made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
        itself.cell_contents = made
        made.__kwdefaults__ = function.__kwdefaults__
        made.__dict__.update(function.__dict__)
        made.__qualname__ = function.__qualname__
        return made


_EMPTY = object()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY
