"""The command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compiler.__main__ import main
from compiler.targets import STANDARD_PATTERNS
from ir.text.parser import parse_program
from ir.text.printer import print_program

ROOT = Path(__file__).resolve().parents[3]

_FILE = """\
import torch
from torch import nn
from torch.fx import symbolic_trace
from graphwright import Pattern, Pass


class Swish(Pattern):
    '''x * sigmoid(x) = silu(x)'''

    is_conversion = True

    def pattern(self, p):
        x = p.any("x")
        return p.mul(x, p.sigmoid(x))

    def rewrite(self, m, b):
        return b.silu(m.x)


class Nothing(Pass):
    '''Does nothing.'''

    name = "nothing"

    def run(self, program, context):
        pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x, scale=None):
        y = self.conv(x)
        y = (y * torch.sigmoid(y)).mean([2, 3])
        y = self.head(y)
        return y if scale is None else y * scale


class Loop(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def make():
    torch.manual_seed(0)
    return Net().eval(), torch.randn(2, 3, 8, 8)


def keywords():
    return Net().eval(), (torch.randn(2, 3, 8, 8),), {"scale": torch.randn(2, 2)}


def traced():
    return symbolic_trace(nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.ReLU()))


def loop():
    return nn.Sequential(nn.ReLU(), Loop()), torch.randn(3)


def misfit():
    return Net().eval(), torch.randn(2, 4, 8, 8)


def nonsense():
    return "a model"


def too_much():
    return Net(), (), {}, 1


def dict_of_inputs():
    return Net(), {"x": torch.randn(2, 3, 8, 8)}


def broken():
    return Net(depth=3)
"""


_LOCAL = """

def local():
    class Local(nn.Linear):
        pass
    return Local
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a file with models; the current folder is the file's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "net.py").write_text(_FILE)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    return "net.py"


def example() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_prints_the_report(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = list(sys.path)
    assert main([f"{net}:make"]) == 0
    out, err = capsys.readouterr()
    assert "net.py:make" in out
    assert re.search(r"1\s+FlattenLinearToConv1x1Pattern", out)
    assert re.search(r"1\s+ConvBNActPattern\s+conv2d", out)
    assert "as exact as the original" in out
    assert err == ""
    assert sys.path == path


def test_keyword_arguments(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:keywords"]) == 0
    assert "as exact as the original" in capsys.readouterr().out


def test_saves_module_code_and_ir(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--save-module", "a.pt", "--save-code", "a_code", "--save-ir", "a.gw"]
    assert main([f"{net}:make", *options]) == 0
    assert "torch.load" in capsys.readouterr().out
    module = torch.load("a.pt", weights_only=False)
    original, _ = sys.modules["net"].make()
    torch.testing.assert_close(module(example()), original(example()))
    code = Path("a_code/module.py").read_text()
    assert "emitted by graphwright from net.py:make" in code
    assert "FusedConvBN" in code and "def forward(self, x" in code
    ir = Path("a.gw").read_text()
    assert print_program(parse_program(ir)) == ir
    assert "fused.conv_bn" in ir


def test_json_goes_to_a_file_or_alone_to_standard_output(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:make", "--json", "a.json"]) == 0
    assert "ConvBNPattern" in capsys.readouterr().out
    saved = json.loads(Path("a.json").read_text())
    assert main([f"{net}:make", "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [match["pattern"] for match in printed["matches"]] == [match["pattern"] for match in saved["matches"]]
    assert printed["accuracy"]["is_within_bound"]


def test_what_the_user_prints_is_no_part_of_the_json(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("loud.py").write_text(
        "from net import *\nprint('loaded')\ndef loud():\n    print('made')\n    return make()\n"
    )
    assert main(["loud.py:loud", "--json", "-", "--no-measure", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["matches"] and err.splitlines() == ["loaded", "made"]


def test_quiet_prints_nothing(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:make", "--quiet", "--save-ir", "a.gw"]) == 0
    assert capsys.readouterr() == ("", "")
    assert Path("a.gw").exists()


def _applied(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [match["pattern"] for match in json.loads(capsys.readouterr().out)["matches"]]


@pytest.mark.parametrize(
    ("patterns", "applied"),
    [
        ("conversions", ["FlattenLinearToConv1x1Pattern", "WrittenOutSiluPattern"]),
        ("none", []),
        ("LinearPattern", ["LinearPattern"]),
        ("LinearPattern, ConvBNPattern", ["LinearPattern", "ConvBNPattern"]),
        ("all", ["WrittenOutSiluPattern", "FlattenLinearToConv1x1Pattern", "ConvBNActPattern", "ConvBNPattern"]),
        ("ConvBNActPattern,ConvBNPattern,Swish", ["Swish", "ConvBNActPattern"]),
    ],
)
def test_patterns_are_chosen_by_name(
    net: str, capsys: pytest.CaptureFixture[str], patterns: str, applied: list[str]
) -> None:
    assert main([f"{net}:make", "--patterns", patterns, "--json", "-"]) == 0
    found = _applied(capsys)
    # pooled maps are fused as well, wherever canonicalization leaves one
    assert sorted(name for name in found if name != "AdaptiveAvgPoolPattern") == sorted(applied)


def test_a_pipeline_in_text_form_with_the_users_pass(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "canonicalize,nothing,fuse{patterns=ConvBNPattern}"
    assert main([f"{net}:make", "--pipeline", text, "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [match["pattern"] for match in data["matches"]] == ["ConvBNPattern"]
    assert "nothing" in [stage["name"] for stage in data["stages"]]


def test_patterns_of_another_file(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    rules = _FILE[: _FILE.index("class Nothing")].replace("Swish", "Swash")
    Path("rules.py").write_text(rules)
    assert main([f"{net}:make", "--load", "rules.py", "--patterns", "Swash", "--json", "-"]) == 0
    assert _applied(capsys) == ["Swash"]


@pytest.mark.parametrize("options", [["--dynamic-batch"], ["--dynamic", "x.0=n:1..64"], ["--dynamic", "0.0=n"]])
def test_dynamic_sizes(net: str, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main([f"{net}:make", *options, "--save-module", "a.pt", "--save-ir", "a.gw"]) == 0
    name = "batch" if options == ["--dynamic-batch"] else "n"
    assert f"f32[{name}, 3, 8, 8]" in Path("a.gw").read_text()
    module = torch.load("a.pt", weights_only=False)
    assert module(torch.randn(5, 3, 8, 8)).shape == (5, 2)


def test_two_dynamic_dimensions_beside_keyword_arguments(net: str) -> None:
    options = [
        "--dynamic",
        "x.0=n:1..8",
        "--dynamic",
        "scale.0=n",
        "--dynamic",
        "x.2=height:4..64",
        "--save-ir",
        "a.gw",
    ]
    assert main([f"{net}:keywords", *options]) == 0
    text = Path("a.gw").read_text()
    assert "f32[n, 3, height, 8]" in text and "f32[n, 2]" in text
    assert re.search(r"symbol n in \[[01], 8\]", text) and "symbol height in [4, 64]" in text


@pytest.mark.parametrize("mode", ["final", "each"])
def test_validation(net: str, mode: str) -> None:
    assert main([f"{net}:make", "--validate", mode, "--patterns", "all,Swish", "--quiet"]) == 0


def test_a_leaf_is_kept(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:loop"]) == 1
    capsys.readouterr()
    assert main([f"{net}:loop", "--leaf", "1"]) == 0
    assert "an opaque call is never moved" in capsys.readouterr().out


def test_ir_dumps(net: str) -> None:
    assert main([f"{net}:make", "--dump-ir", "dumps"]) == 0
    names = [path.name for path in sorted(Path("dumps").iterdir())]
    assert names[0] == "000-apply-canonical-rules.gw" and names[-1].endswith("-fuse.gw")
    assert "fused." in Path("dumps", names[-1]).read_text()


def test_remarks(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:make", "--remarks"]) == 0
    assert "[applied] FlattenLinearToConv1x1Pattern" in capsys.readouterr().out


def test_explains_a_place_and_a_rule(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:make", "--no-measure", "--quiet", "--explain", "aten.conv2d", "--rule", "LinearPattern"]) == 0
    assert "LinearPattern could be nothing here\n    its pattern is about aten.linear" in capsys.readouterr().out
    assert main([f"{net}:make", "--no-measure", "--quiet", "--explain"]) == 0
    assert ": became fused." in capsys.readouterr().out


@pytest.mark.filterwarnings("default::passes.rewrite.remarks.GraphwrightWarning")
def test_warnings_are_one_line_on_standard_error(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:traced", "--patterns", "conversions"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"warning: RemoveIdentityAdaptiveAvgPoolPattern skipped: [^\n]+\n", err)
    assert "not measured (no example inputs)" in out


@pytest.mark.filterwarnings("default::passes.rewrite.remarks.GraphwrightWarning")
def test_a_rule_that_raises_is_reported_and_with_strict_an_error(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(_FILE.replace("return b.silu(m.x)", "return b.silu(m.y)"))
    assert main([f"{net}:make", "--patterns", "Swish", "--quiet"]) == 0
    assert re.search(r"warning: Swish skipped: the rewrite of Swish \(.*net.py:\d+\) raised", capsys.readouterr().err)
    assert main([f"{net}:make", "--patterns", "Swish", "--quiet", "--strict"]) == 1
    assert "error: the rewrite of Swish" in capsys.readouterr().err


def test_list_names_every_pattern_and_pass(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for pattern in STANDARD_PATTERNS:
        assert pattern.__name__ in out
    assert "canonicalize{" in out and "fixpoint(PASSES){max-rounds=16}" in out
    assert "Swish" not in out
    assert main([f"{net}:make", "--list"]) == 0
    out = capsys.readouterr().out
    assert "Swish" in out and "x * sigmoid(x) = silu(x)" in out and "nothing" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL.py:FUNCTION is missing"),
        (["net.py"], "not of the form FILE.py:FUNCTION"),
        (["net.py:1"], "not of the form"),
        (["other.py:make"], "there is no file other.py"),
        (["net.py:make", "--patterns", "ConvBN"], "there is no pattern 'ConvBN'; known: all, conversions, fusions"),
        (["net.py:make", "--save-ir", "nowhere/a.gw"], "there is no folder"),
        (["net.py:make", "--json", "nowhere/a.json"], "there is no folder"),
        (["net.py:make", "--load", "rules.py"], "there is no file rules.py"),
        (["net.py:make", "--dynamic", "x=batch"], "INPUT.DIM=NAME"),
        (["net.py:make", "--dynamic", "x.0=for"], "INPUT.DIM=NAME"),
        (["net.py:make", "--dynamic", "x.0=b:1..²"], "INPUT.DIM=NAME"),
        (["net.py:make", "--dynamic", "x.0=batch:1"], "'1' in 'x.0=batch:1' is not a range of sizes"),
        (["net.py:make", "--dynamic", "x.0=batch:.."], "not a range of sizes"),
        (["net.py:make", "--dynamic", "x.0=b:9..2"], "the range 9..2 in 'x.0=b:9..2' has no size"),
        (["net.py:make", "--dynamic", "x.0=b:2..2"], "has one size only"),
        (["net.py:make", "--save-ir", "."], ". is a folder, and a file is to be written there"),
        (["net.py:make", "--save-module", "."], "is a folder"),
        (["net.py:make", "--json", "."], "is a folder"),
        (["net.py:make", "--dump-ir", "net.py"], "net.py is a file, and a folder is needed there"),
        (["net.py:make", "--dump-ir", "net.py/dumps"], "net.py is a file"),
        (["net.py:make", "--save-code", "a.py"], "Python cannot import a package called 'a.py'"),
        (["net.py:make", "--save-code", "no/a"], "to write the package a to"),
        (["net.py:make", "--save-ir", "a", "--save-module", "./a"], "two results are to be written to a"),
        (["net.py:make", "--dump-ir", "a", "--save-ir", "a"], "two results are to be written to a"),
        (["net.py:make", "--dump-ir", "a", "--save-code", "./a"], "two results are to be written to a"),
        (["net.py:make", "--save-ir", "net.py"], "net.py is read, and a result is to be written to it"),
        (["net.py:make", "--load", "net.py", "--json", "./net.py"], "net.py is read"),
        ([":make"], "not of the form FILE.py:FUNCTION"),
        (["net.py:make", "--rule", "LinearPattern"], "--rule needs --explain"),
        (["net.py:make", "--explain", "--json", "-"], "--explain and --json both write to standard output"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    net: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("graphwright: ") and message in err
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize(
    "arguments", [["--patterns", "all", "--pipeline", "verify"], ["--validate", "yes"], ["--pat", "all"]]
)
def test_argparse_refuses_with_exit_code_2(net: str, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"{net}:make", *arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["net.py:nothing"], ["has no function 'nothing'", "it has make, keywords"]),
        (
            ["net.py:broken"],
            ["broken raised TypeError", f"net.py:{_FILE[: _FILE.index('Net(depth')].count(chr(10)) + 1}"],
        ),
        (["net.py:nonsense"], ["returned (str)", "return (module, example inputs)"]),
        (["net.py:too_much"], ["returned (Net, tuple, dict, int)"]),
        (["net.py:dict_of_inputs"], ["a dict as inputs", "a tensor or a tuple"]),
        (["net.py:misfit"], ["4 channels"]),
        (["net.py:loop"], [f"net.py:{_FILE[: _FILE.index('if x.sum()')].count(chr(10)) + 1}"]),
        (["net.py:make", "--pipeline", "canonicalize,fus"], ["no pass is named 'fus'", "^"]),
        (["net.py:make", "--dynamic", "y.0=batch"], ["no dimension 0 of an input 'y'", "x (2, 3, 8, 8)"]),
        (["net.py:make", "--dynamic", "x.4=batch"], ["no dimension 4"]),
        (["net.py:traced", "--dynamic-batch"], ["example inputs"]),
        (
            ["net.py:make", "--dynamic", "x.0=b:3..9"],
            ["dimension 0 of the example input 'x' is 2", "range 3..9 of 'b'"],
        ),
        (["net.py:make", "--dynamic", "x.0=b:1..9", "--dynamic", "x.2=b:1..8"], ["'b' is given two ranges"]),
        (["net.py:make", "--dynamic", "x.0=b", "--dynamic", "0.0=c"], ["dimension 0 of input 'x' is given twice"]),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    net: str, capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str]
) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("graphwright: error: ")
    assert "Traceback" not in err
    for message in messages:
        assert message in err


def test_where_one_result_cannot_be_written_none_is(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(_FILE.replace("self.head = nn.Linear", "self.head = local()") + _LOCAL)
    Path("a.gw").write_text("old")
    before = sorted(Path().iterdir())
    options = ["--save-ir", "a.gw", "--save-code", "a", "--save-module", "a.pt", "--json", "a.json"]
    assert main([f"{net}:make", "--leaf", "head", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("graphwright: error: cannot write a.pt: ") and "must be picklable" in err
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before
    assert Path("a.gw").read_text() == "old"


def test_the_traceback_is_shown_on_request(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{net}:broken", "--traceback"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_file_that_does_not_load(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.py").write_text("import torch\nthis is no Python\n")
    assert main(["bad.py:make"]) == 1
    err = capsys.readouterr().err
    assert "SyntaxError" in err and "bad.py:2" in err
    assert "bad" not in sys.modules


def test_a_file_called_like_an_imported_module_does_not_take_its_place(net: str) -> None:
    Path("json.py").write_text(_FILE)
    assert main(["json.py:make", "--quiet"]) == 0
    assert sys.modules["json"] is json


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--help", "exit codes:"), ("--version", f"torch {torch.__version__}")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_runs_as_a_module(net: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "other.py:make"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graphwright: there is no file other.py")
