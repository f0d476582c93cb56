"""Tracing without work that the lowering does not need, which saves a fifth of torch.export's time.

The hooks are private to PyTorch. In a release without them, tracing is slower, and the tracer records lines only of
functions that are called `forward`.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.fx.proxy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.capture.boundary.fast_path import ordinary_call
from compiler.capture.patches import patched
from compiler.usercode.locations import is_user_file

try:
    from torch.fx._lazy_graph_module import _use_lazy_graph_module
except ImportError:  # pragma: no cover - this PyTorch writes the code of a graph module each time it changes
    _use_lazy_graph_module = None  # type: ignore[assignment]


class _InnermostUserFrame:
    """A substitute for `CapturedTraceback`, which reads the source line of every frame for each node."""

    def __init__(self, frame: FrameType | None) -> None:
        self._frame = frame

    @classmethod
    def extract(cls, **_: Any) -> _InnermostUserFrame:
        """Return the innermost frame of the user's code."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not is_user_file(frame.f_code.co_filename):
            frame = frame.f_back
        return cls(frame)

    def summary(self) -> StackSummary:
        """Return a stack summary of that frame."""
        if self._frame is None:
            return StackSummary()
        # the tracer drops the frames of functions that are not called forward
        frame = FrameSummary(self._frame.f_code.co_filename, self._frame.f_lineno, "forward", line="")
        return StackSummary.from_list([frame])


@contextmanager
def lean_tracing() -> Iterator[None]:
    """Record only the innermost line of the user's code per node, and generate no code of intermediate graphs."""
    proxy: Any = torch.fx.proxy
    lazy = nullcontext() if _use_lazy_graph_module is None else _use_lazy_graph_module(True)
    hook = {"CapturedTraceback": _InnermostUserFrame} if hasattr(proxy, "CapturedTraceback") else {}
    with lazy, patched(proxy, **hook):
        yield


def _user_frame(shape_env: Any) -> types.FrameType | None:
    """Return the innermost frame of the user's code, for the guards of a shape environment.

    Also records whether the next guard is about strides of fake tensors.
    """
    frame = inspect.currentframe()
    number, numbers = len(shape_env.guards), _ABOUT_STRIDES.setdefault(shape_env, set())
    numbers.discard(number)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _PRIMS and "contiguous" in frame.f_code.co_name:
            numbers.add(number)
        if is_user_file(file):
            return frame
        frame = frame.f_back
    return _ORIGINAL_USER_FRAME(shape_env) if _ORIGINAL_USER_FRAME is not None else None


_PRIMS = torch._prims_common.__file__
_ABOUT_STRIDES: WeakKeyDictionary[ShapeEnv, set[int]] = WeakKeyDictionary()
"""Numbers of the guards on whether fake tensors are contiguous."""


def is_about_strides(shape_env: ShapeEnv, number: int) -> bool:
    """Return whether a guard of a shape environment is on whether a fake tensor is contiguous.

    Nothing depends on such a guard, since operators read strides themselves when they run.
    """
    place = getattr(shape_env.guards[number].sloc, "framework_loc", None)
    return number in _ABOUT_STRIDES.get(shape_env, ()) or getattr(place, "filename", "") == _PRIMS


_ORIGINAL_USER_FRAME = getattr(ShapeEnv, "_get_user_frame", None)


@contextmanager
def tracing_mode() -> Iterator[None]:
    """Trace as an ordinary call; nodes and guards on sizes record the user's line in any function."""
    hook = {} if _ORIGINAL_USER_FRAME is None else {"_get_user_frame": _user_frame}
    with patched(ShapeEnv, **hook), lean_tracing(), ordinary_call():
        yield
