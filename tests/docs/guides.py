"""Runs the Python blocks of a guide, and holds the output it shows to what the blocks print.

The blocks of one file are one script. A ```text block right behind a Python block is what that block prints; in
it, `...` stands for anything, as in doctests. `python -m tests.docs.guides README.md docs/*.md` writes the real outputs
into the files.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import linecache
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@attrs.frozen
class Block:
    """One Python block of a guide."""

    line: int
    """The line of the file at which its code begins, from 1."""
    code: str
    shown: str | None = None
    """The output that the guide shows for it."""
    span: tuple[int, int] = (0, 0)
    """Where that output is in the text."""


PAGES = ("architecture", "stability", "zoo")
"""Files of `docs` without Python blocks: for those who work on graphwright, or decide whether to use it."""


def guides() -> list[Path]:
    """Return the files whose blocks are run, the README first."""
    return [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.stem not in PAGES)]


def blocks_of(text: str) -> list[Block]:
    """Return the Python blocks of a guide, in order."""
    blocks: list[Block] = []
    end_of_python = -1
    for fence in _FENCE.finditer(text):
        language, body = fence.groups()
        if language == "python":
            blocks.append(Block(text.count("\n", 0, fence.start(2)) + 1, body))
            end_of_python = fence.end()
        elif language == "text" and end_of_python >= 0 and not text[end_of_python : fence.start()].strip():
            blocks[-1] = attrs.evolve(blocks[-1], shown=body, span=fence.span(2))
            end_of_python = -1
    return blocks


def run_blocks(path: Path, blocks: list[Block]) -> Iterator[str]:
    """Run the blocks of a guide as one script in a temporary folder; yield what each prints.

    Line numbers in tracebacks, and in what graphwright says of the code, are those of the guide. Its name there is
    relative to the repository, so that no output, and no break of a line in it, depends on where that lies.
    """
    name = os.path.relpath(path, ROOT)
    if path.exists():
        # it is not found from the temporary folder
        linecache.cache[name] = (path.stat().st_size, None, linecache.getlines(str(path)), name)
    module = ModuleType(f"guide_{path.stem.replace('-', '_').lower()}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    home = os.getcwd()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for block in blocks:
                printed = io.StringIO()
                code = compile("\n" * (block.line - 1) + block.code, name, "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, vars(module))
                yield printed.getvalue()
    finally:
        os.chdir(home)
        del sys.modules[module.__name__]


def agrees(shown: str, printed: str) -> bool:
    """Return whether an output is the one that a guide shows, in which `...` stands for anything."""
    return doctest.OutputChecker().check_output(_without_trailing(shown), _without_trailing(printed), doctest.ELLIPSIS)


def _without_trailing(text: str) -> str:
    """Return the text without spaces at the ends of lines, which editors take away, and without blank last lines."""
    return "\n".join(map(str.rstrip, text.rstrip().split("\n"))) + "\n"


def update(path: Path) -> int:
    """Write the real outputs into a guide where those it shows differ; return how many did."""
    text = path.read_text(encoding="utf-8")
    blocks = blocks_of(text)
    edits = []
    for block, printed in zip(blocks, run_blocks(path, blocks), strict=True):
        if block.shown is not None and not agrees(block.shown, printed):
            edits.append((block.span, _without_trailing(printed)))
    for (start, end), printed in reversed(edits):
        text = text[:start] + printed + text[end:]
    path.write_text(text, encoding="utf-8")
    return len(edits)


def main() -> None:
    """Update the guides named on the command line."""
    for name in sys.argv[1:]:
        try:
            count = update(Path(name).resolve())
        except Exception:  # noqa: BLE001 - the next guide is updated all the same
            traceback.print_exc()
        else:
            sys.stderr.write(f"{name}: {count} outputs updated\n")


if __name__ == "__main__":
    main()
