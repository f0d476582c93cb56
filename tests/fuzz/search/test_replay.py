"""What went wrong once does not go wrong again: the corpus is replayed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fuzz.__main__ import main
from fuzz.programs.check import Finding
from fuzz.search.replay import CORPUS, case_files, replay
from ir.errors import InputError, ParseError

WRONG = """# A copy of an input that is an output.
#
# rules: tests.fuzz.search.test_sound:ViewForCopy
# properties: exact

program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4]) {
    %y = aten.clone(%x) : f32[4]
    return %y
  }
}
"""


@pytest.mark.parametrize("path", case_files(), ids=lambda path: path.stem)
def test_the_corpus_holds(path: Path) -> None:
    replay(path)


def test_the_table_names_every_file() -> None:
    named = re.findall(r"`((?:bug|hazard)_\w+\.(?:py|gw))`", (CORPUS / "README.md").read_text(encoding="utf-8"))
    assert sorted(set(named)) == [path.name for path in case_files()]


def test_a_case_that_goes_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.gw"
    path.write_text(WRONG)
    with pytest.raises(Finding, match="sharing"):
        replay(path)
    assert main(["replay", str(path)]) == 1
    assert "sharing: result 0" in capsys.readouterr().out


def test_a_case_that_does_not_fire_any_more_is_told(tmp_path: Path) -> None:
    path = tmp_path / "silent.gw"
    path.write_text(WRONG.replace("ViewForCopy", "CannotFire\n# fires: yes"))
    with pytest.raises(Finding, match="it fires"):
        replay(path)


def test_files_that_are_no_cases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("SUBJECT = ()\n")
    with pytest.raises(InputError, match="has no CASE"):
        replay(path)
    path = tmp_path / "empty.gw"
    path.write_text("")
    with pytest.raises(ParseError, match=r"empty\.gw, line 1: "):
        replay(path)
    path = tmp_path / "case.txt"
    path.write_text(WRONG)
    with pytest.raises(InputError, match="neither a Python file nor a case"):
        replay(path)
