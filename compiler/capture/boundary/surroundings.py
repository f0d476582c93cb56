"""State that the code of a model reaches outside of its modules: globals, closures, class attributes, caches.

A graph has none of it. Changes there are hidden state, and values that tracing leaves there would break the user's
model.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from compiler.usercode.containers import (
    DEPTH,
    PLAIN,
    Container,
    collect,
    is_library_file,
    is_library_object,
    of_class,
    of_dict,
    of_names,
    same_content,
)
from compiler.usercode.locations import is_user_file, names_in

_MAX_FUNCTIONS = 1000
"""The most functions to look into; those called first come first."""
_STEPS = 4
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_TRACING = (FakeTensor, FunctionalTensor, fx.Proxy, torch.SymInt, torch.SymFloat, torch.SymBool)


@attrs.frozen(eq=False)
class _Namespace:
    """Those entries of a module's globals, or of a class, that code names."""

    label: str
    owner: Any
    names: list[str]


class Surroundings:
    """A snapshot of everything outside of a model's modules that its code names."""

    def __init__(self, model: nn.Module) -> None:
        self.containers: list[Container] = []
        self.tensors: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.caches: list[tuple[str, Any]] = []
        self._seen = {id(each): DEPTH for each in model.modules()}
        """Ids of what was visited -> the steps that it was followed."""
        self._names: dict[int, _Namespace] = {}
        self._pending: deque[tuple[str, Any]] = deque()
        self._functions = 0
        self._homes = frozenset(
            _package_of(getattr(sys.modules.get(base.__module__), "__file__", None) or "")
            for module in model.modules()
            for base in type(module).__mro__
        )
        """Installed packages of the model's own classes; other packages are tools."""
        self._roots(model)
        while self._pending:
            self._visit(*self._pending.popleft())
        for space in self._names.values():
            make = of_class if isinstance(space.owner, type) else of_names
            self.containers.append(make(space.label, space.owner, space.names))

    # ---- traversal ----

    def _roots(self, model: nn.Module) -> None:
        classes: dict[type, None] = {}
        for module in model.modules():
            for base in type(module).__mro__:
                classes.setdefault(base)
            for name, value in module.__dict__.items():
                if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
                    self._pending.append((name, value))
                elif "hooks" in name and isinstance(value, dict) and value:
                    self._pending.extend((f"a hook ({_name(hook)})", hook) for hook in value.values() if callable(hook))
        self._pending.extend((base.__qualname__, base) for base in classes)

    def _visit(self, label: str, value: Any) -> None:
        if isinstance(value, PLAIN) or self._seen.get(id(value), 0) >= DEPTH:
            return
        if isinstance(value, types.FunctionType):
            self._seen[id(value)] = DEPTH
            self._function(label, value)
        elif isinstance(value, types.MethodType):
            self._visit(label, value.__func__)
            self._visit(label, value.__self__)
        elif isinstance(value, functools.partial):
            self._pending.extend((label, item) for item in (value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, type):
            self._seen[id(value)] = DEPTH
            self._class(value)
        elif isinstance(value, torch.Tensor):
            self._seen[id(value)] = DEPTH
            self._tensor(label, value)
        elif isinstance(value, functools._lru_cache_wrapper):
            self._seen[id(value)] = DEPTH
            self.caches.append((label, value))
            self._visit(label, value.__wrapped__)
        elif isinstance(value, (types.ModuleType, nn.Module, types.BuiltinFunctionType)):
            return
        elif callable(getattr(value, "__wrapped__", None)):
            self._visit(label, value.__wrapped__)
        else:
            for name, item in collect(label, value, self.containers, self._seen, is_foreign=self._is_foreign):
                if isinstance(item, (types.FunctionType, types.MethodType, functools.partial, torch.Tensor)):
                    self._pending.append((name, item))
                elif not isinstance(item, (*PLAIN, type)) and self._is_users(type(item)):
                    self._pending.append((type(item).__qualname__, type(item)))

    def _function(self, label: str, function: types.FunctionType) -> None:
        if not self._is_code_of_user(function.__code__.co_filename) or self._functions > _MAX_FUNCTIONS:
            return
        self._functions += 1
        self.containers.append(of_dict(label, function.__dict__, joint="."))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            for inner, item in collect(
                f"{label}'s {name}", cell, self.containers, self._seen, is_foreign=self._is_foreign
            ):
                if not isinstance(item, types.CellType):
                    self._pending.append((inner, item))
        for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._pending.append((f"a default of {label}", item))
        names = dict.fromkeys(names_in(function.__code__))
        space = function.__globals__
        for name in names:
            if name not in space:
                continue
            value = space[name]
            if isinstance(value, types.ModuleType):
                if self._is_code_of_user(getattr(value, "__file__", None) or "<"):
                    for attribute in names:
                        if attribute in vars(value):
                            self._name(value.__name__, vars(value), attribute)
            else:
                self._name(str(space.get("__name__", "")), space, name)

    def _name(self, home: str, space: dict[str, Any], name: str) -> None:
        found = self._names.setdefault(id(space), _Namespace(f"{home}.", space, []))
        if name not in found.names:
            found.names.append(name)
            self._pending.append((f"{home}.{name}", space[name]))

    def _class(self, cls: type) -> None:
        if not self._is_users(cls):
            return
        names = []
        for name, item in vars(cls).items():
            function = getattr(item, "__func__", getattr(item, "fget", getattr(item, "func", item)))
            if isinstance(function, (types.FunctionType, functools._lru_cache_wrapper)):
                self._pending.append((f"{cls.__qualname__}.{name}", function))
            elif not (name.startswith("__") and name.endswith("__")):
                names.append(name)
                self._pending.append((f"{cls.__qualname__}.{name}", item))
        if names:
            self._names[id(cls)] = _Namespace(f"{cls.__qualname__}.", cls, names)

    def _tensor(self, label: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, _TRACING) and tensor.layout is torch.strided and tensor.device.type != "meta":
            self.tensors.append((label, tensor, tensor.detach().clone()))

    # ---- ownership ----

    def _is_code_of_user(self, path: str) -> bool:
        return is_user_file(path) and not is_library_file(path) and _package_of(path) in (*self._homes, "")

    def _is_users(self, cls: type) -> bool:
        """Return whether a class is the user's, or of the library that the model comes from."""
        for item in vars(cls).values():
            function = getattr(item, "__func__", getattr(item, "fget", item))
            if isinstance(function, types.FunctionType):
                return self._is_code_of_user(function.__code__.co_filename)
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        return cls.__module__ == "__main__" or (file is not None and self._is_code_of_user(file))

    def _is_foreign(self, value: Any) -> bool:
        if is_library_object(value):
            return True
        file = getattr(sys.modules.get(type(value).__module__), "__file__", None)
        return file is not None and _package_of(file) not in (*self._homes, "")

    # ---- changes ----

    def changes(self) -> list[str]:
        """Return the names of everything that has changed."""
        found = [f"{each.label}{name}" for each in self.containers for name in each.differences()]
        found += [label for label, tensor, copy in self.tensors if not same_content(tensor.detach(), copy)]
        return list(dict.fromkeys(found))

    def restore(self) -> None:
        """Restore everything."""
        for each in self.containers:
            if each.differences():
                each.restore()
        for _, tensor, copy in self.tensors:
            if not same_content(tensor.detach(), copy):
                tensor.detach().copy_(copy)

    def remove_traces(self) -> list[str]:
        """Remove values that tracing left, and return where they were."""
        found: list[str] = []
        clean: dict[int, tuple[Any, int]] = {}
        for each in self.containers:
            current = each.current()
            items = current.items() if isinstance(current, dict) else enumerate(current)
            traces = [key for key, item in items if holds_trace(item, clean)]
            if traces:
                each.restore()
                found.extend(f"{each.label}{key}" if isinstance(current, dict) else each.label for key in traces)
        for label, cache in self.caches:
            if any(holds_trace(item, clean) for item in gc.get_referents(cache)):
                cache.cache_clear()
                found.append(f"the cache of {label}")
        return list(dict.fromkeys(found))


def holds_trace(value: Any, clean: dict[int, tuple[Any, int]] | None = None) -> bool:
    """Return whether a value comes from tracing, or holds such a value within a few steps.

    `clean` are objects known to hold none within some steps, by id, with these steps; what is found is added.
    """
    clean = {} if clean is None else clean
    # the nearest first, so that each object is followed as far as it can be
    pending = deque([(value, _STEPS)])
    seen: dict[int, tuple[Any, int]] = {}
    while pending:
        item, steps = pending.popleft()
        if isinstance(item, PLAIN) or id(item) in seen or clean.get(id(item), (item, -1))[1] >= steps:
            continue
        if isinstance(item, torch.Tensor) and item.is_leaf and item.grad is not None:
            item = item.grad
        if isinstance(item, _TRACING):
            return True
        seen[id(item)] = item, steps
        if steps:
            pending.extend((part, steps - 1) for part in _parts(item))
    clean.update(seen)
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, (type, types.ModuleType, types.FunctionType, nn.Module)):
        return ()
    return () if is_library_object(value) else list(attributes.values())


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _package_of(path: str) -> str:
    """Return the installed package of a file; empty if the file is not installed."""
    for folder in _INSTALLED:
        _, found, rest = path.partition(folder)
        if found:
            return rest.partition(os.sep)[0]
    return ""
