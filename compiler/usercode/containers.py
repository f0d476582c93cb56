"""Snapshots of mutable objects, to be compared and restored."""

from __future__ import annotations

import collections
import itertools
import random
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, torch.memory_format)
_OPERATORS = (torch._ops.OpOverloadPacket, torch._ops.OpOverload)  # they cache dispatch
CODE = (type, types.FunctionType, types.MethodType, types.ModuleType, types.BuiltinFunctionType, *_OPERATORS)
OPAQUE = (*CODE, nn.Module, torch.Tensor)
DEPTH = 5
"""The number of steps that are followed from a value."""
_PYTHON = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_STANDARD = tuple(f"{path}/" for path in (*_PYTHON, *np.__path__, *torch.__path__))
_HELD_BY_LIBRARIES = frozenset(
    {"collections", "itertools", "builtins", "types", "random", "array", "dataclasses", "enum", "contextvars"}
)
"""Standard modules whose instances are the user's state; those of other modules are not (a logger)."""


@attrs.define(eq=False)
class Container:
    """A snapshot of a mutable object."""

    label: str
    target: Any
    current: Callable[[], Any]
    """Reads the content."""
    write: Callable[[Any], None]
    saved: Any = attrs.field(init=False, default=attrs.Factory(lambda self: self.current(), takes_self=True))
    """The content at the time of the snapshot."""

    def restore(self) -> None:
        """Restore the content."""
        self.write(self.saved)

    def differences(self) -> list[str]:
        """Return the entries that changed, as suffixes of the label."""
        found = differences(self.saved, self.current())
        return found if self.label.endswith(".") else [f"[{name!r}]" if name else "" for name in found]


def same(old: Any, new: Any) -> bool:
    """Return whether a value is unchanged; equal containers count as the same (`torch.export` copies them)."""
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, (list, tuple, collections.deque)):
        return len(old) == len(new) and all(map(same, old, new))
    if isinstance(old, dict):
        return list(old) == list(new) and all(map(same, old.values(), new.values()))
    if isinstance(old, np.ndarray):
        return bool(old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes())
    if isinstance(old, torch.Tensor):
        return old.dtype == new.dtype and old.shape == new.shape and same_content(old, new)
    if isinstance(old, (types.MethodType, types.BuiltinMethodType)):
        return bool(old == new)
    return isinstance(old, PLAIN) and bool(old == new or old != old)


def same_content(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have equal elements, NaN equal to NaN; True for tensors of other shapes or dtypes.

    Such a tensor was replaced as a whole, which the attribute that holds it shows.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    if torch.equal(a, b):
        return True
    equal = (a == b) | ((a != a) & (b != b))
    return bool(equal.all())


def differences(saved: Any, current: Any) -> list[str]:
    """Return the keys under which two dicts differ; `[""]` for other objects that differ."""
    if isinstance(saved, dict):
        keys = list(saved) + [key for key in current if key not in saved]
        return [str(k) for k in keys if k not in saved or k not in current or not same(saved[k], current[k])]
    if isinstance(saved, set):
        return [] if saved == current else [""]
    return [] if same(saved, current) else [""]


def is_library_object(value: Any) -> bool:
    """Return whether an object belongs to Python's library, numpy or PyTorch, and is not the user's state."""
    home = getattr(type(value), "__module__", "") or ""
    root = home.partition(".")[0]
    if root in _HELD_BY_LIBRARIES or isinstance(value, (np.ndarray, torch.Generator)) or root == "numpy":
        return False
    if root == "torch":
        return True
    if home == "__main__":  # of a notebook, where it has no file
        return False
    file = getattr(sys.modules.get(home), "__file__", None)
    return file is None or is_library_file(file)


def is_library_file(path: str) -> bool:
    """Return whether a file belongs to Python's library, numpy or PyTorch."""
    return path.startswith(_STANDARD) and ("site-packages" not in path or path.startswith(_STANDARD[2:]))


def collect(
    label: str,
    value: Any,
    found: list[Container],
    seen: dict[int, int],
    depth: int = DEPTH,
    is_foreign: Callable[[Any], bool] = is_library_object,
) -> Iterator[tuple[str, Any]]:
    """Add snapshots of mutable objects below a value to `found`; yield all objects on the way, with labels.

    Args:
        label: the name of the value.
        value: where to begin.
        found: receives the containers.
        seen: ids of objects visited before -> the steps that they were followed.
        depth: the number of steps.
        is_foreign: tells whether the attributes of an object are not the user's state.
    """
    yield label, value
    followed = seen.get(id(value), 0)
    if depth <= followed or isinstance(value, (*PLAIN, *OPAQUE)):
        return
    seen[id(value)] = depth
    # met before at the end of a longer path: it has its snapshot, and only what is below it is new
    own = [] if followed else found
    children: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        own.append(of_dict(label, value))
        children = [(f"{label}[{key!r}]", item) for key, item in dict.items(value)]
    elif isinstance(value, (list, collections.deque)):
        own.append(_of_collection(label, value, list, value.extend))
        children = [(f"{label}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, set):
        own.append(_of_collection(label, value, set, value.update))
    elif isinstance(value, tuple):
        children = [(f"{label}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, types.CellType):
        if value != types.CellType():  # an empty one
            own.append(_of_cell(label, value))
            children = [(label, value.cell_contents)]
    elif (state := _of_state(label, value)) is not None:
        own.append(state)
    elif not is_foreign(value):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            own.append(of_dict(label, attributes, joint="."))
            children = [(f"{label}.{key}", item) for key, item in attributes.items()]
        slots = _slots(value)
        if slots:
            own.append(_of_slots(label, value, slots))
            children += [(f"{label}.{key}", item) for key, item in own[-1].saved.items()]
    for name, item in children:
        yield from collect(name, item, found, seen, depth - 1, is_foreign)


def of_dict(label: str, target: dict[Any, Any], joint: str = "") -> Container:
    """Return a snapshot of a dict."""
    # bypasses a user's class (`__getitem__`); an OrderedDict keeps its order outside the dict
    base = collections.OrderedDict if isinstance(target, collections.OrderedDict) else dict

    def items() -> dict[Any, Any]:
        return dict(dict.items(target))

    def write(saved: dict[Any, Any]) -> None:
        for key in items():
            base.pop(target, key)
        base.update(target, saved)

    return Container(f"{label}{joint}", target, items, write)


def of_names(label: str, target: dict[str, Any], names: list[str]) -> Container:
    """Return a snapshot of some entries of a namespace."""

    def write(saved: dict[str, Any]) -> None:
        for name in names:
            target.pop(name, None)
        target.update(saved)

    return Container(label, target, lambda: {name: target[name] for name in names if name in target}, write)


def of_class(label: str, target: type, names: list[str]) -> Container:
    """Return a snapshot of some attributes of a class."""

    def write(saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            if vars(target).get(name) is not value:
                setattr(target, name, value)

    return Container(label, target, lambda: {name: vars(target)[name] for name in names if name in vars(target)}, write)


def _of_collection(label: str, target: Any, read: Callable[[Any], Any], fill: Callable[[Any], None]) -> Container:
    def write(saved: Any) -> None:
        target.clear()
        fill(saved)

    return Container(label, target, lambda: read(target), write)


def _of_cell(label: str, cell: types.CellType) -> Container:
    def write(saved: list[Any]) -> None:
        cell.cell_contents = saved[0]

    return Container(label, cell, lambda: [cell.cell_contents], write)


def _slots(value: Any) -> list[str]:
    found: list[str] = []
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found.extend(_mangled(base, name) for name in names if name not in ("__dict__", "__weakref__"))
    return found


def _mangled(cls: type, name: str) -> str:
    """Return the name of an attribute that a class writes in its body: `__count` is private to it."""
    owner = cls.__name__.lstrip("_")
    return f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name


def _of_slots(label: str, target: Any, names: list[str]) -> Container:
    def write(saved: dict[str, Any]) -> None:
        for name in names:
            if name in saved:
                object.__setattr__(target, name, saved[name])
            elif hasattr(target, name):
                object.__delattr__(target, name)

    return Container(
        f"{label}.", target, lambda: {name: getattr(target, name) for name in names if hasattr(target, name)}, write
    )


# ---- objects with a state of their own ----


def _of_state(label: str, value: Any) -> Container | None:
    read, write = _state_of(value)

    def put_back(saved: list[Any]) -> None:
        if write is not None:
            write(value, *saved)

    return None if read is None else Container(label, value, lambda: [read(value)], put_back)


def _state_of(value: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any, Any], None] | None]:
    """Return how to read and restore the state of an object; None restores nothing, since only copies run."""
    if isinstance(value, np.ndarray):
        return np.ndarray.copy, _fill
    if isinstance(value, random.Random):
        return random.Random.getstate, random.Random.setstate
    if isinstance(value, np.random.RandomState):
        return lambda v: v.get_state(legacy=True), lambda v, s: v.set_state(s)
    if isinstance(value, np.random.Generator):
        return lambda v: repr(v.bit_generator.state), None
    if isinstance(value, torch.Generator):
        return torch.Generator.get_state, lambda v, s: v.set_state(s)
    if isinstance(value, types.GeneratorType):
        return _frame_of, None
    if hasattr(value, "__next__") and type(value).__module__ in ("itertools", "builtins"):
        return _position, None
    if type(value).__module__ == "_contextvars" or type(value).__name__ == "ContextVar":
        return lambda v: v.get(None), None
    return None, None


def _fill(array: Any, saved: Any) -> None:
    if not same(saved, array):
        array[...] = saved


def _frame_of(generator: Any) -> Any:
    frame = generator.gi_frame
    return None if frame is None else (frame.f_lasti, {k: v for k, v in frame.f_locals.items() if isinstance(v, PLAIN)})


def _position(iterator: Any) -> Any:
    """Return the position of an iterator, as far as it shows."""
    if isinstance(iterator, itertools.count):
        return repr(iterator)
    hint = getattr(iterator, "__length_hint__", None)
    if hint is not None:
        return hint()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return repr(iterator.__reduce__())
        except Exception:  # noqa: BLE001 - not every iterator can say
            return None
