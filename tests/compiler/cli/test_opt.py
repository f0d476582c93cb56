"""The command `graphwright opt`, and reproducers."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.__main__ import main
from graphwright import GraphwrightError, Pass, PassManager, load_program, parse_pipeline, save_program, transform
from graphwright.passes import Fixpoint, Fuse, VerifyEach
from graphwright.tensorrt import TENSORRT_PATTERNS
from ir.text.parser import parse_program
from ir.text.printer import print_program
from tests.passes.manager.test_manager import AppendNeg

_PROGRAM = """\
program "Net" {
  parameter %w : f32[4, 4] requires_grad
  graph(%x : f32[2, 4]) {
    %a = aten.linear(%x, %w, None) : f32[2, 4]
    %b = aten.sigmoid(%a) : f32[2, 4]
    %c = aten.mul.Tensor(%a, %b) : f32[2, 4]
    return %c
  }
}
"""

_RULES = """\
from graphwright import Pass, Pattern
import attrs

class Swish(Pattern):
    '''x * sigmoid(x) = silu(x)'''

    is_conversion = True

    def pattern(self, p):
        x = p.any("x")
        return p.mul(x, p.sigmoid(x))

    def rewrite(self, m, b):
        return b.silu(m.x)

@attrs.frozen
class Boom(Pass):
    '''Raises where it finds a silu.'''

    name = "boom"

    def run(self, program, context):
        for op in program.graph.operations():
            if op.name == "aten.silu":
                raise KeyError(op.name)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gw").write_text(_PROGRAM)
    (tmp_path / "rules.py").write_text(_RULES)
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    return tmp_path


SWISH = ["--load", "rules.py", "--pipeline", "convert{patterns=Swish}"]


def test_text_in_text_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["opt", "a.gw"]) == 0
    same = capsys.readouterr().out
    assert same == print_program(parse_program(_PROGRAM))
    assert main(["opt", "a.gw", *SWISH, "-o", "b.gw"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stdin", io.StringIO(_PROGRAM))
    assert main(["opt", *SWISH]) == 0
    out = capsys.readouterr().out
    assert out == Path("b.gw").read_text() and "aten.silu(%a)" in out and "sigmoid" not in out
    assert sorted(path.name for path in Path().glob("*.safetensors")) == []


def test_diffs_and_dumps_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = "convert{patterns=Swish},canonicalize,fuse{patterns=tensorrt.fusions}"
    options = ["--load", "rules.py", "--pipeline", pipeline, "--diff", "--dump-after-change", "--timing"]
    assert main(["opt", "a.gw", *options, "--trace", "t.json"]) == 0
    out, err = capsys.readouterr()
    assert "\n-    %b = aten.sigmoid(%a)" in err and "--- before fuse\n" in err and "before canonicalize" not in err
    assert err.count("# ---- after ") == 4
    last = err.rpartition("# ---- after 001-fuse ----\n")[2]
    assert last.startswith(out)
    assert "FusedLinearAct" not in out and "fused.linear_act" in out
    assert "LinearActPattern" in last and json.loads(Path("t.json").read_text())["traceEvents"]


def test_weights_beside_the_program_are_seen_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 5, 5)
    save_program(transform(model, (x,), patterns=()).program, "net.gw")
    assert main(["opt", "net.gw", "--pipeline", "fold-batch-norm", "-o", "out.gw"]) == 0
    folded = load_program("out.gw")
    assert [op.name for op in folded.graph.operations()] == ["aten.conv2d"]
    torch.testing.assert_close(transform(folded, (x,)).model(x), model(x))
    Path("net.safetensors").rename("other.safetensors")
    assert main(["opt", "net.gw", "--pipeline", "fold-batch-norm", "--weights", "other.safetensors", "-o", "c.gw"]) == 0
    assert Path("c.gw").read_text() == Path("out.gw").read_text() and Path("c.safetensors").exists()


def test_several_programs_in_one_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.gw").write_text(f"{_PROGRAM}# -----\n{_PROGRAM.replace('Net', 'Other')}")
    assert main(["opt", "two.gw", "--split-input", *SWISH]) == 0
    first, second = capsys.readouterr().out.split("# -----\n")
    assert second == first.replace("Net", "Other") and "silu" in first
    Path("two.gw").write_text(f"{_PROGRAM}# -----\n{_PROGRAM.replace('aten.sigmoid', 'aten.sigmod')}")
    assert main(["opt", "two.gw", "--split-input"]) == 1
    assert "two.gw, line 15, column 10: there is no operator named 'aten.sigmod'" in capsys.readouterr().err


def test_a_program_that_is_no_valid_one_is_named_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = _PROGRAM.replace("f32[2, 4]", "f32[2, 5]", 1)
    Path("two.gw").write_text(f"{_PROGRAM}# -----\n{wrong}")
    assert main(["opt", "two.gw", "--split-input"]) == 1
    assert f"two.gw:{len(_PROGRAM.splitlines()) + 2}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        (_PROGRAM.replace("%a, %b", "%a, %d"), [], 1, "a.gw, line 6, column 30: no value named 'd' is defined above"),
        (_PROGRAM, ["--pipeline", "canonicalise"], 1, "pipeline text, column 1: no pass is named 'canonicalise'"),
        (_PROGRAM, ["--pipeline", "convert{patterns=Swish}"], 1, "column 18: no pattern is named 'Swish'"),
        (_PROGRAM, ["--pipeline", "dce"], 1, "no pass is named 'dce'"),
        (_PROGRAM, ["--load", "no.py"], 2, "there is no file no.py"),
        (_PROGRAM, ["-o", "no/a.gw"], 2, "there is no folder"),
        (_PROGRAM, ["--reproducers", "a.gw"], 2, "a.gw is a file, and a folder is needed there"),
        (_PROGRAM, ["--weights", "no.safetensors"], 2, "there is no file no.safetensors"),
        (_PROGRAM, ["--weights", "a.gw", "--split-input"], 2, "--weights and --split-input are both given"),
        (_PROGRAM, ["--run-reproducer", "rep"], 2, "--run-reproducer has a program and a pipeline"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], text: str, options: list[str], code: int, message: str) -> None:
    Path("a.gw").write_text(text)
    assert main(["opt", "a.gw", *options]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("graphwright: ") and message in err


def test_the_program_is_verified_after_each_pass_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rules.py").write_text(
        """\
import attrs
from graphwright import Pass

@attrs.frozen
class Breaks(Pass):
    name = "breaks"

    def run(self, program, context):
        next(program.graph.operations()).result.name = "renamed"
"""
    )
    assert main(["opt", "a.gw", "--load", "rules.py", "--pipeline", "breaks"]) == 1
    assert "behind the revision counter's back" in capsys.readouterr().err
    assert main(["opt", "a.gw", "--load", "rules.py", "--pipeline", "breaks", "--no-verify-each"]) == 0


# Reproducers


def _command(err: str) -> list[str]:
    """The words that the error says run the reproducer."""
    return shlex.split(err.partition("run it: graphwright ")[2].partition("\n")[0])


def test_what_a_pass_raised_runs_again_with_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = "canonicalize,fixpoint(convert{patterns=Swish},sequence(boom){label=inner}){skip=head}"
    Path("a.gw").write_text(_PROGRAM.replace("return %c", '%d = aten.relu(%x) loc("head")\n return %c'))
    arguments = ["opt", "a.gw", "--load", "rules.py", "--pipeline", pipeline]
    assert main(arguments) == 1
    assert "reproducer" not in capsys.readouterr().err
    assert main([*arguments, "--reproducers", "rep"]) == 1
    err = capsys.readouterr().err
    assert "reproducer: rep/boom\n" in err
    held = json.loads(Path("rep/boom/reproducer.json").read_text())
    assert held["pipeline"] == "sequence(boom){skip=head}"
    assert held["error"][0] == "PassError" and set(held["versions"]) == {"python", "torch", "graphwright"}
    # as it was before that pass, and not at the start
    assert "aten.silu" in Path("rep/boom/program.gw").read_text()
    assert main(_command(err)) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'aten.silu'" in err and "this is the recorded error" in err
    # a second one takes nothing away, and no draft is left
    assert main([*arguments, "--reproducers", "rep"]) == 1
    assert sorted(path.name for path in Path("rep").iterdir()) == ["boom", "boom-1"]


def test_no_code_is_loaded_that_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = ["--load", "rules.py", "--pipeline", "convert{patterns=Swish},boom", "--reproducers", "rep"]
    assert main(["opt", "a.gw", *pipeline]) == 1
    del sys.modules["rules"]
    Path("rules.py").write_text(_RULES.replace("raise KeyError(op.name)", "pass"))
    capsys.readouterr()
    assert main(["opt", "--run-reproducer", "rep/boom"]) == 1
    err = capsys.readouterr().err
    assert "needs boom of " in err and "rules" not in sys.modules
    load = shlex.split(err.partition("add `")[2].partition("`")[0])
    assert main(["opt", "--run-reproducer", "rep/boom", *load]) == 0
    out, err = capsys.readouterr()
    assert "nothing was raised; recorded was PassError" in err and "aten.silu" in out
    assert main(["opt", "--run-reproducer", "rep"]) == 1
    assert "rep is no reproducer: it has no reproducer.json" in capsys.readouterr().err


class Raises(Pass):
    """Raises."""

    name = "raises"

    def run(self, program: object, context: object) -> None:
        raise ValueError("no")


def _raised(model: nn.Module, x: torch.Tensor, pipeline: PassManager) -> str:
    with pytest.raises(GraphwrightError) as caught:
        transform(model, (x,), pipeline=pipeline, reproducer_dir="rep")
    return "\n".join(caught.value.__notes__)


def test_transform_writes_a_reproducer_with_the_weights() -> None:
    pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
    pipeline = parse_pipeline("canonicalize").append(Fuse(TENSORRT_PATTERNS[-6:]), Raises())
    notes = _raised(model, x, pipeline)
    assert "reproducer: rep/raises" in notes
    assert _command(notes) == ["opt", "--run-reproducer", "rep/raises", "--load", __file__]
    saved = load_program("rep/raises/program.gw").weights["0.weight"].data
    assert saved is not None and torch.equal(saved, model[0].get_parameter("weight"))


def test_a_pass_that_cannot_be_imported_again_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Local(Raises):
        """Raises, too."""

        name = "local"

    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
    notes = _raised(model, x, PassManager([Fixpoint([Local()])]))
    assert f"it cannot import local again, which is defined inside of a function of {__file__}" in notes
    assert main(_command(notes)) == 1
    assert "define local at the top of a file" in capsys.readouterr().err


def test_a_pass_of_canonicalization_runs_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("passes.cleanup.dce.eliminate_dead_code", fails)
    notes = _raised(nn.ReLU(), torch.randn(2), parse_pipeline("canonicalize{inference=true}"))
    assert (
        json.loads(Path("rep/canonicalize/reproducer.json").read_text())["pipeline"] == "canonicalize{inference=true}"
    )
    assert _command(notes) == ["opt", "--run-reproducer", "rep/canonicalize"]


def test_what_an_instrument_finds_is_reproduced_too() -> None:
    class Unhappy(VerifyEach):
        def after(self, *_: object) -> None:
            raise GraphwrightError("not verified")

    notes = _raised(nn.ReLU(), torch.randn(2), PassManager([AppendNeg()], instruments=[Unhappy()]))
    assert "reproducer: rep/append-neg" in notes
    assert "neg" not in Path("rep/append-neg/program.gw").read_text()


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compiler.reproducer.save_program", full)
    notes = _raised(nn.ReLU(), torch.randn(2), PassManager([Raises()]))
    assert "no reproducer could be written to rep: [Errno 28] No space left on device" in notes
    assert list(Path("rep").iterdir()) == []
