"""The scripts of `examples` run, and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.docs.guides import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHOWN = {
    "model_through_a_pipeline": "ConvBNAddActPattern at blocks.0.conv",
    "pass_with_options": "aten.linear is called 3 times, more than 2",
    "rule_and_fuzz_test": "sound, and fires",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert SHOWN[path.stem] in capsys.readouterr().out
