"""The command `graphwright bisect`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compiler.__main__ import main

_FILE = """\
import torch
from torch import nn
from graphwright import Pattern


class Wrong(Pattern):
    '''relu(x) = sigmoid(x)'''

    is_conversion = True

    def pattern(self, p):
        return p.relu(p.any("x"))

    def check(self, m):
        return None if m.root.location.module_path == "3" else "not there"

    def rewrite(self, m, b):
        return b.sigmoid(m.x)


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)


def is_right(module):
    return "sigmoid" not in module.code
"""

_CHECK = """\
import sys
text = open(sys.argv[1]).read()
print("a line")
print("sigmoid" if "aten.sigmoid" in text else "fine")
sys.exit({code} if "aten.sigmoid" in text else 0)
"""

_PROGRAM = """\
program "Net" { graph(%x : f32[4]) {
  %a = aten.relu(%x) loc("3", "torch.nn.ReLU")
  return %a } }
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(_FILE)
    (tmp_path / "net.gw").write_text(_PROGRAM)
    (tmp_path / "check.py").write_text(_CHECK.format(code=3))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    return tmp_path


def test_a_model_is_compared_with_its_original(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "net.py:make", "--patterns", "Wrong,fusions"]) == 0
    out, err = capsys.readouterr()
    assert "makes it wrong: Wrong, applied by the pass `convert`, at `3` (ReLU)" in out
    assert "without this step alone the result is right" in out and "+    %relu_1 = aten.sigmoid(%linear_1)" in out
    assert err.startswith("with all steps: wrong\nwith none: right\n")
    assert main(["bisect", "net.py:make", "--check", "net.py:is_right", "--patterns", "Wrong", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "the check returned False" in out and err == ""
    assert main(["bisect", "net.py:make", "--patterns", "none", "--quiet"]) == 1
    assert capsys.readouterr().out.startswith("never wrong")


COMMAND = f"{sys.executable} check.py {{program}}"


def test_a_command_decides_and_the_programs_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--load", "net.py", "--patterns", "Wrong", "--command", COMMAND]
    assert main(["bisect", "net.gw", *options, "-o", "found"]) == 0
    out = capsys.readouterr().out
    assert "wrong then: the command exits with 3: sigmoid" in out and "saved found/before.gw" in out
    assert "aten.relu" in Path("found/before.gw").read_text() and "aten.sigmoid" in Path("found/after.gw").read_text()
    Path("check.py").write_text("raise SystemExit(1)")
    assert main(["bisect", "net.gw", *options, "--quiet"]) == 1
    assert "without any the result is wrong as well" in capsys.readouterr().out
    Path("check.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert main(["bisect", "net.gw", *options, "--quiet"]) == 1
    assert "the command is ended by signal 9" in capsys.readouterr().out


def test_a_command_gets_the_weights_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")
    Path("check.py").write_text(
        "import sys, pathlib\nfile = pathlib.Path(sys.argv[1])\n"
        "assert file.with_suffix('.safetensors').stat().st_size\n"
        "sys.exit('aten.sigmoid' in file.read_text())"
    )
    assert main(["bisect", "net.py:make", "--patterns", "Wrong", "--command", COMMAND, "--quiet"]) == 0
    assert "makes it wrong: Wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.gw"], 2, "tell what is wrong by `--command`"),
        (["net.gw", "--command", "check.py"], 2, "the command names no program: write {program}"),
        (["no.gw", "--command", "x {program}"], 2, "there is no file no.gw"),
        (["net.gw", "--command", "no-such-command {program}"], 1, "the command cannot be run"),
        (["net.gw", "--command", "sh -c 'exit 127' {program}"], 1, "the command cannot be run: it exits with 127"),
        (["net.py:make", "--check", "net.py:nothing"], 1, "has no function 'nothing'"),
        (["net.gw", "--command", "x {program}", "-o", "net.py"], 2, "net.py is a file, and a folder is needed there"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str) -> None:
    assert main(["bisect", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("graphwright: ") and message in err
