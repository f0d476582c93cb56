"""Two processes with different hash seeds write the same bytes."""

from __future__ import annotations

import pytest

from fuzz.__main__ import main
from fuzz.programs.determinism import STAGES, Unlike, compare, transcript


def test_two_processes_write_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["determinism", "--examples", "25", "--seed", "4"]) == 0
    assert "two processes write the same of 25 programs" in capsys.readouterr().out


def test_what_is_written_is_programs_reports_and_code() -> None:
    written = transcript(8, 1)
    assert len(written) == 8
    stages = [dict(zip(STAGES, texts, strict=True)) for texts in written]
    assert all(texts["drawn"].startswith("program") and texts["compiled"].startswith("program") for texts in stages)
    assert any("def forward(self, " in texts["emitted"] for texts in stages)
    assert any(texts["report"] for texts in stages)
    assert transcript(8, 1) == written


def test_the_first_difference_is_shown() -> None:
    first = [("a\nb", *STAGES[1:]), STAGES]
    assert compare(first, first) is None
    assert str(compare(first, [("a\nc", *STAGES[1:]), STAGES])) == ("program 0, drawn: two processes write 'b' and 'c'")
    assert compare(first, first[:1]) == Unlike(1, "drawn", "2 programs", "1 programs")
