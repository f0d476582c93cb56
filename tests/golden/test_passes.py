"""What passes make of whole blocks: each file of `passes` is a program, a pipeline, and the program that must come out.

`GRAPHWRIGHT_UPDATE_GOLDEN=1 pytest ...` writes anew what comes out; the difference is then for a person to read.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.programs.properties import Finding
from fuzz.search.casefile import EXPECTED, read_case
from fuzz.search.replay import UPDATE, case_files, replay

FILES = case_files(Path(__file__).parent / "passes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pass_makes_what_is_expected(path: Path) -> None:
    assert read_case(path).expected is not None
    replay(path)


def test_another_program_is_shown_and_the_switch_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UPDATE, raising=False)
    text = FILES[0].read_text(encoding="utf-8")
    path = tmp_path / FILES[0].name
    path.write_text(text.partition(EXPECTED)[0] + f'{EXPECTED}\nprogram "test" {{ graph() {{ return }} }}\n')
    with pytest.raises(Finding, match=r"expected: another program comes out\n[\s\S]*\n\+    return %"):
        replay(path)
    monkeypatch.setenv(UPDATE, "1")
    replay(path)
    assert path.read_text(encoding="utf-8") == text
