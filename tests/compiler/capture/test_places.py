"""Which line is named as the place in the model: never one that calls the compiler."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compiler.__main__ import main

_FILE = """\
import torch
from torch import nn
from torch.fx import symbolic_trace


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Hardshrink(), nn.ReLU()), torch.randn(2, 3)


def plain_traced():
    model, x = plain()
    return symbolic_trace(model), x


def flattened():
    return nn.Sequential(nn.Flatten(0), nn.Linear(6, 2)), torch.randn(2, 3)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a file with models; the current folder is the file's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(_FILE)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    return "net.py"


@pytest.mark.parametrize("function", ["plain", "plain_traced"])
def test_whoever_calls_is_no_line_of_the_model(net: str, capsys: pytest.CaptureFixture[str], function: str) -> None:
    """All that a stack has of an `nn.Sequential` is the script that called us; here, that is this test."""
    assert main([f"{net}:{function}", "--json", "-"]) == 0
    printed = capsys.readouterr().out
    assert "aten.hardshrink" in printed
    assert Path(__file__).name not in printed
    assert "net.py:" not in printed.replace(f"net.py:{function}", "")


def test_whoever_calls_is_not_blamed_for_a_size(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:flattened", "--dynamic-batch"]) == 1
    err = capsys.readouterr().err
    assert "fixed by the model" in err
    assert Path(__file__).name not in err
