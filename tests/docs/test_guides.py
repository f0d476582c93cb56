"""Every Python block of README.md and docs/*.md runs, and prints what the guide shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.guides import PAGES, ROOT, Block, agrees, blocks_of, guides, run_blocks


@pytest.mark.filterwarnings("ignore:results are inexact")  # on processors without VNNI
@pytest.mark.parametrize("path", guides(), ids=lambda path: path.name)
def test_guide_runs_and_shows_what_it_prints(path: Path) -> None:
    blocks = blocks_of(path.read_text(encoding="utf-8"))
    assert blocks, "a guide without a Python block"
    for block, printed in zip(blocks, run_blocks(path, blocks), strict=True):
        if block.shown is not None:
            assert agrees(block.shown, printed), (
                f"line {block.line} prints\n{printed}\nand the guide shows\n{block.shown}"
            )
        elif printed:
            pytest.fail(f"line {block.line} prints, and the guide shows nothing:\n{printed}")


def test_there_is_a_guide_for_each_subject() -> None:
    subjects = [
        "README",
        "fuzzing",
        "getting-started",
        "guarantees",
        "ir",
        "pass-manager",
        "quantization",
        "report",
        "runtimes",
        "targets",
        "tools",
        "weights",
        "writing-a-pattern",
    ]
    assert [path.stem for path in guides()] == subjects
    for page in PAGES:
        assert blocks_of((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")) == []


_PATH = re.compile(r"`((?:ir|passes|compiler|fuzz|tests|benchmarks|docs|graphwright)/[\w/.]*)`")


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [path for path in _PATH.findall(text) if not (ROOT / path).exists()] == []


# The runner itself.

_GUIDE = """\
```python
x = 1
print(x)
```

```text
1
```

```console
$ false
```

```python
print(x + 1)
```
Some text.
```text
no output
```
"""


def test_blocks_and_their_outputs_are_found() -> None:
    assert blocks_of(_GUIDE) == [
        Block(2, "x = 1\nprint(x)\n", "1\n", blocks_of(_GUIDE)[0].span),
        Block(15, "print(x + 1)\n"),
    ]
    start, end = blocks_of(_GUIDE)[0].span
    assert _GUIDE[start:end] == "1\n"


def test_blocks_of_a_file_share_their_names(tmp_path: Path) -> None:
    assert list(run_blocks(tmp_path / "guide.md", blocks_of(_GUIDE))) == ["1\n", "2\n"]


def test_an_error_in_a_block_names_the_line_of_the_guide(tmp_path: Path) -> None:
    blocks = blocks_of("Text.\n\n```python\nx = 1\nraise ValueError(x)\n```\n")
    with pytest.raises(ValueError, match="1") as caught:
        list(run_blocks(tmp_path / "guide.md", blocks))
    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("1\n", "1\n", True),
        ("1\n", "2\n", False),
        ("a ... c\n", "a b c\n", True),
        ("a ...\n", "b\n", False),
        ("", "x\n", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, agree: bool) -> None:
    assert agrees(shown, printed) is agree
