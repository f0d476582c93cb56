"""The one way to compare with printed text: files beside this one, each a program as it must be printed.

`GRAPHWRIGHT_UPDATE_GOLDEN=1 pytest ...` writes the files anew; the difference is then for a person to read.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from fuzz.search.replay import UPDATE
from ir.compare import programs_equal
from ir.program import Program
from ir.text.parser import parse_program
from ir.text.printer import print_program

FOLDER = Path(__file__).resolve().parent


def check_golden(program: Program, name: str, *, locations: bool = False) -> None:
    """Checks that a program prints as `tests/golden/NAME.txt` says, and that the text parses back to it.

    Locations are left out unless asked for: most name files and lines of the installation.
    """
    text = print_program(program, locations=locations)
    difference = programs_equal(parse_program(text), program, locations=locations)
    assert difference is None, f"the text of {name} parses to another program: {difference}"
    path = FOLDER / f"{name}.txt"
    if os.environ.get(UPDATE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    expected = path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""
    shown = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "printed", lineterm="")
    assert text == expected, "\n".join(shown)
