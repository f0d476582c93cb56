"""Exceptions: their frames, and their text without PyTorch's advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType, TracebackType

_ADVICE = re.compile(
    r"For more information, run with TORCH_LOGS=\S+ ?|The error above occurred when calling .*|"
    r"If you're using mark_dynamic, .*?Dim\.AUTO\. ?|For more information about this error, see: \S+ ?"
)


def first_lines(error: BaseException, count: int = 3) -> str:
    """Return the first lines of an exception's text in one line, without PyTorch's advice."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return _ADVICE.sub("", " ".join(lines[:count])).strip()


def frames_of(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of an error and its causes, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for each in reversed(chain):
        traceback: TracebackType | None = each.__traceback__
        while traceback is not None:
            yield traceback.tb_frame, traceback.tb_lineno
            traceback = traceback.tb_next
