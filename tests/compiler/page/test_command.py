"""`--report-html` and `--report-dot`."""

from __future__ import annotations

import sys

import pytest

from compiler.__main__ import main
from ir.caches import forget
from tests.compiler.page.conftest import data_of

pytestmark = pytest.mark.xdist_group("page")

NET = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
"""


def test_reports_are_written(tmp_path, capsys) -> None:
    pytest.importorskip("netron")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    page, dot = tmp_path / "r.html", tmp_path / "r.dot"
    names = [f"{tmp_path / 'net.py'}:make", "--no-measure", "--report-html", str(page), "--report-dot", str(dot)]
    assert main(names) == 0
    assert f"saved {page}" in capsys.readouterr().out
    assert data_of(page)["title"] == names[0]
    assert dot.read_text(encoding="utf-8").startswith("digraph ")


def test_missing_extra_is_told_before_the_work(tmp_path, capsys, monkeypatch) -> None:
    forget()
    monkeypatch.setitem(sys.modules, "netron", None)
    (tmp_path / "net.py").write_text("raise SystemExit('it was loaded')", encoding="utf-8")
    assert main([f"{tmp_path / 'net.py'}:make", "--report-html", str(tmp_path / "r.html")]) == 1
    assert "pip install 'graphwright[report]'" in capsys.readouterr().err
