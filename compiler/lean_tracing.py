"""Tracing without what the lowering does not read: a fifth of torch.export's time.

The hooks are private to PyTorch. Where a release has none of them, tracing is slower, and the tracer notes no line of a
function that is not called `forward`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any

import torch
import torch.fx.proxy

from compiler.lower_locations import is_user_file

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
