"""Objects that a user's module reaches outside of its state: lists, dicts, caches, closures, globals."""

from __future__ import annotations

import collections
import functools
import gc
import itertools
import random
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
_TRACING = (FakeTensor, FunctionalTensor, fx.Proxy, torch.SymInt, torch.SymFloat, torch.SymBool)
_ITSELF = ("__builtins__", "__loader__", "__spec__")


def globals_of(module: nn.Module) -> Mapping[str, Any]:
    """Return the globals of the Python module of a module's class; empty for PyTorch's own."""
    for member in vars(type(module)).values():
        if isinstance(member, types.FunctionType):
            found = member.__globals__
            return {} if found.get("__name__", "").partition(".")[0] == "torch" else found
    return {}


def reachable(*roots: Any) -> Iterator[Any]:
    """Yield the objects reachable from roots through containers, closures, caches and attributes of the user's classes.

    The user's classes are those of the Python modules of the roots. Tensors are not entered.
    """
    names = {type(root).__module__ for root in roots} | {
        root.get("__name__") for root in roots if isinstance(root, dict)
    }
    mine = {name for name in names if isinstance(name, str) and name.partition(".")[0] not in ("torch", "builtins")}
    stack, seen = list(reversed(roots)), set[int]()
    while stack:
        item = stack.pop()
        if id(item) in seen or item is None:
            continue
        seen.add(id(item))
        yield item
        stack.extend(_inside(item, mine))


def _inside(item: Any, mine: set[str]) -> Iterable[Any]:
    if isinstance(item, dict):
        return [value for key, value in reversed(item.items()) if key not in _ITSELF] + list(item)
    if isinstance(item, _CONTAINERS):
        return list(item)
    if isinstance(item, types.FunctionType):
        if item.__module__ not in mine:
            return ()
        cells = [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        return [*cells, item.__defaults__, item.__kwdefaults__, item.__dict__]
    if isinstance(item, types.MethodType):
        return (item.__self__,)
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, functools._lru_cache_wrapper):
        return gc.get_referents(item)
    if isinstance(item, type):
        return [*vars(item).values()] if item.__module__ in mine else ()
    if isinstance(item, nn.Module) or type(item).__module__ in mine:
        slots = [getattr(item, name, None) for cls in type(item).__mro__ for name in _slots(cls)]
        return [*slots, getattr(item, "__dict__", None), type(item)]
    return ()


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    owner = cls.__name__.lstrip("_")
    # a name with two underscores in front is private to its class
    return tuple(
        f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name
        for name in ((slots,) if isinstance(slots, str) else slots)
    )


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def left_by_tracing(*roots: Any) -> list[str]:
    """Return the kinds of values from tracing that are reachable from roots: fake tensors, proxies, symbols."""
    return sorted({type(item).__name__ for item in reachable(*roots) if isinstance(item, _TRACING)})


def plain_state(*roots: Any) -> tuple[Any, ...]:
    """Return the reachable state that a call may change: numbers, sizes of containers, states of generators."""
    notes: list[Any] = []
    for item in reachable(*roots):
        if isinstance(item, (bool, int, float, str)) and not isinstance(item, type):
            continue  # noted where they are held
        if isinstance(item, dict):
            notes.append([(key, _plain(value)) for key, value in item.items() if isinstance(key, str)] + [len(item)])
        elif isinstance(item, _CONTAINERS):
            notes.append([_plain(value) for value in item])
        elif isinstance(item, np.ndarray):
            notes.append(item.tobytes())
        elif isinstance(item, itertools.count):
            notes.append(repr(item))
        elif isinstance(item, random.Random):
            notes.append(item.getstate())
        elif isinstance(item, (np.random.RandomState, np.random.Generator)):
            notes.append(repr(_state_of(item)))
        elif isinstance(item, types.FunctionType):
            cells = [cell for cell in item.__closure__ or () if _is_filled(cell)]
            notes.append([_plain(cell.cell_contents) for cell in cells])
        elif hasattr(type(item), "__slots__") and not isinstance(item, torch.Tensor):
            notes.append([_plain(getattr(item, name, None)) for name in _slots(type(item))])
    return tuple(notes)


def _state_of(generator: np.random.RandomState | np.random.Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else type(value).__name__
