"""Tracing without work that the lowering does not need, which saves a fifth of torch.export's time.

The hooks are private to PyTorch. In a release without them, tracing is slower, and the tracer records lines only of
functions that are called `forward`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any

import torch
import torch.fx.proxy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.capture.boundary.fast_path import ordinary_call
from compiler.capture.patches import patched
from compiler.usercode.locations import frame_of_user, is_user_file

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
        return cls(frame_of_user(sys._getframe(1)))

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


_ORIGINAL_USER_FRAME = getattr(ShapeEnv, "_get_user_frame", None)
PRIMS = torch._prims_common.__file__
"""The file in which fake tensors are asked for their strides."""


@contextmanager
def tracing_mode() -> Iterator[Mapping[ShapeEnv, Collection[int]]]:
    """Trace as an ordinary call; nodes and guards on sizes record the user's line in any function.

    Yields, for each shape environment, the numbers of the guards on whether a fake tensor is contiguous.
    """
    stride_guards: dict[ShapeEnv, set[int]] = {}

    def user_frame(shape_env: ShapeEnv) -> FrameType | None:
        """Return the innermost frame of the user's code, and note whether the next guard is about strides."""
        frame = inspect.currentframe()
        number, numbers = len(shape_env.guards), stride_guards.setdefault(shape_env, set())
        numbers.discard(number)
        while frame is not None:
            file = frame.f_code.co_filename
            if file == PRIMS and "contiguous" in frame.f_code.co_name:
                numbers.add(number)
            if is_user_file(file):
                return frame
            frame = frame.f_back
        return _ORIGINAL_USER_FRAME(shape_env) if _ORIGINAL_USER_FRAME is not None else None

    hook = {} if _ORIGINAL_USER_FRAME is None else {"_get_user_frame": user_frame}
    with patched(ShapeEnv, **hook), lean_tracing(), ordinary_call():
        yield stride_guards
