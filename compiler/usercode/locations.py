"""Locations of operations, from the module stack and stack trace on traced nodes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx

from ir.caches import cached
from ir.locations import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_REPEAT = re.compile(r"@\d+")
_TORCH = os.path.dirname(torch.__file__) + os.sep
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
"""The folder of the compiler: the prefix of its files."""


@cached()
def is_user_file(path: str) -> bool:
    """Return whether a file is the user's: not PyTorch's, the compiler's, generated, or contextlib."""
    return not path.startswith((_TORCH, OURS, "<", "torch/", contextlib.__file__))


def frame_of_user(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the user's code at or above a frame."""
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def callers() -> frozenset[tuple[str, int]]:
    """Return the lines that call the compiler.

    They are not places in the model, though the stack of an `nn.Sequential` has no other lines of the user's.
    """
    found: list[tuple[str, int]] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return frozenset(found)


class Locator:
    """Locates nodes, memoised: many nodes share a module and a line."""

    def __init__(self) -> None:
        self.aliases: Mapping[str, str] = {}
        """Alias -> first path of shared modules."""
        self._callers = callers()
        self._traces: dict[str, tuple[str, int]] = {}
        self._locations: dict[tuple[str, str, str, int], Location] = {}

    def __call__(self, node: fx.Node) -> Location:
        """Return the location of a node: its innermost module, and the innermost frame of the user's code."""
        path, class_name = module_of(node.meta)
        trace = node.meta.get("stack_trace") or node.stack_trace or ""
        file, line = self._source(trace)
        key = (path, class_name, file, line)
        found = self._locations.get(key)
        if found is None:
            place = first_path(path, self.aliases) if self.aliases else path
            found = self._locations[key] = Location(place, class_name, file, line)
        return found

    def _source(self, trace: str) -> tuple[str, int]:
        found = self._traces.get(trace)
        if found is None:
            places = [(file, int(line)) for file, line in _FRAME.findall(trace) if is_user_file(file)]
            found = next((place for place in reversed(places) if place not in self._callers), ("", 0))
            self._traces[trace] = found
        return found


def first_path(path: str, aliases: Mapping[str, str]) -> str:
    """Return the first path of the module at a path, given alias -> first path."""
    parts = path.split(".")
    for number in range(1, len(parts) + 1):
        found = aliases.get(".".join(parts[:number]))
        if found is not None:
            return first_path(".".join((found, *parts[number:])), aliases)
    return path


def module_of(meta: Mapping[str, Any]) -> tuple[str, str]:
    """Return path and class of the innermost module of a node."""
    stack = meta.get("nn_module_stack")
    if not stack:
        return "", ""
    path, class_ = next(reversed(stack.values()))
    if path.startswith("_empty_nn_module_stack"):
        return "", ""
    return plain_path(path), class_path(class_)


def plain_path(path: str) -> str:
    """Return the path of a module as in `named_modules()`, given that of a trace."""
    if "@" in path:
        path = _REPEAT.sub("", path)
    return path.removeprefix("L__self__.").removeprefix("L['self'].")


def class_path(class_: type | str) -> str:
    """Return the full name of a class; saved graphs have names in place of classes."""
    return f"{class_.__module__}.{class_.__qualname__}" if isinstance(class_, type) else str(class_)


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """Return whether a path is that of one of some modules, or of something in it."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses, those in functions inside of it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def kept_with(path: str) -> str:
    """Return the remedy of making the module at a path opaque; the model itself cannot be."""
    if path:
        return f"keep `{path}` as is with leaf_modules=[{path!r}]"
    return "move what does it into a submodule and keep that one as is with leaf_modules="
