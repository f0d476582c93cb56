"""What went wrong once does not go wrong again: the corpus is replayed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fuzz.__main__ import main
from fuzz.programs.properties import Finding
from fuzz.search.replay import CORPUS, UPDATE, case_files, replay
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


PROGRAM = """program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4, 3]) {
    %c = aten.relu(%x) : f32[4, 3]
    %d = aten.relu(%c) : f32[4, 3]
    return %d
  }
}
"""
CANONICAL = PROGRAM.replace("    %d = aten.relu(%c) : f32[4, 3]\n", "").replace("return %d", "return %c")
GOLDEN = f"# The line ==== expected.\n#\n# pipeline: canonicalize\n\n{PROGRAM}"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "text",
    [
        f"{GOLDEN}==== expected\nEXPECTED",
        f"{GOLDEN}==== expected\nEXPECTED==== original\n{CANONICAL}",
        f"{GOLDEN}==== original\n{CANONICAL}==== expected\nEXPECTED",
    ],
)
def test_the_expected_program_alone_is_updated(
    text: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "golden.gw"
    path.write_text(text.replace("EXPECTED", PROGRAM), encoding="utf-8", newline=ends)
    with pytest.raises(Finding, match="expected: another program comes out"):
        replay(path)
    monkeypatch.setenv(UPDATE, "1")
    replay(path)
    assert path.read_bytes().decode() == text.replace("EXPECTED", CANONICAL).replace("\n", ends)
    monkeypatch.delenv(UPDATE)
    replay(path)


def test_one_text_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "one.gw"
    other = CANONICAL.replace("    return %c", "    %e = aten.abs(%c) : f32[4, 3]\n    return %e")
    facts = GOLDEN.replace("canonicalize", "canonicalize\n# one text: yes")
    path.write_text(f"{facts}==== original\n{other}")
    with pytest.raises(Finding, match="one text"):
        replay(path)


@pytest.mark.parametrize("applied", ["rules: NoCopy", "pipeline: canonicalize"])
def test_a_program_that_does_not_run_is_refused(applied: str, tmp_path: Path) -> None:
    path = tmp_path / "failing.gw"
    program = PROGRAM.replace("%c = aten.relu(%x)", "%c = aten.index_select(%x, %i) {dim=0}").replace(
        "(%x : f32[4, 3])", "(%x : f32[4, 3], %i : i64[4])"
    )
    program = program.replace('"x" = input 0', '"x" = input 0\n  argument "i" = input 1')
    path.write_text(f"# Wrong.\n#\n# {applied}\n# %i = i64[4] [1, 2, 3, 4]\n\n{program}")
    with pytest.raises(InputError, match=r"failing\.gw: the program does not run on its inputs"):
        replay(path)
