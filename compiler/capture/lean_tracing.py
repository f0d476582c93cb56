"""Tracing without what the lowering does not read: a fifth of torch.export's time.

The hooks are private to PyTorch. Where a release has none of them, tracing is slower, and the tracer notes no line of a
function that is not called `forward`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any

import torch
import torch.fx.proxy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.usercode.locations import is_user_file

try:
    from torch.fx._lazy_graph_module import _use_lazy_graph_module
except ImportError:  # pragma: no cover - this PyTorch writes the code of a graph module each time it changes
    _use_lazy_graph_module = None  # type: ignore[assignment]


class _InnermostUserFrame:
    """Stands in for `CapturedTraceback`, which reads the source line of every frame of the process for each node."""

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
        """Return it as what a stack trace of one frame is written from."""
        if self._frame is None:
            return StackSummary()
        # the tracer drops the frames of functions that are not called forward
        frame = FrameSummary(self._frame.f_code.co_filename, self._frame.f_lineno, "forward", line="")
        return StackSummary.from_list([frame])


@contextmanager
def lean_tracing() -> Iterator[None]:
    """Note of each node the innermost line of the user's code only, and write no Python code of graphs on the way."""
    proxy: Any = torch.fx.proxy
    known = getattr(proxy, "CapturedTraceback", None)
    with ExitStack() as stack:
        if _use_lazy_graph_module is not None:
            stack.enter_context(_use_lazy_graph_module(True))
        if known is not None:
            stack.callback(setattr, proxy, "CapturedTraceback", known)
            proxy.CapturedTraceback = _InnermostUserFrame
        yield


_ORIGINAL_USER_FRAME = getattr(ShapeEnv, "_get_user_frame", None)
PRIMS = torch._prims_common.__file__
"""The file in which fake tensors are asked for their strides."""


@contextmanager
def tracing_mode() -> Iterator[Mapping[ShapeEnv, Collection[int]]]:
    """Gradients on, no inference mode, attention without its fused fast path: all restored at the end.

    Nodes and guards on sizes know the user's line, in whatever function it is. Yields, for each shape environment, the
    numbers of the guards that say whether a fake tensor is contiguous.
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

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if _ORIGINAL_USER_FRAME is not None:
            ShapeEnv._get_user_frame = user_frame  # type: ignore[assignment, method-assign]
        with lean_tracing(), torch.inference_mode(False), torch.enable_grad():
            yield stride_guards
    finally:
        if _ORIGINAL_USER_FRAME is not None:
            ShapeEnv._get_user_frame = _ORIGINAL_USER_FRAME  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fast_path)
