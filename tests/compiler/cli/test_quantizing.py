from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from compiler.__main__ import main
from compiler.cli.quantizing import calibration_of
from compiler.cli.userfile import UserCodeError, load_file
from compiler.runtime.check import CheckReport

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return model, (torch.randn(2, 3, 6, 6),)

def loader():
    torch.manual_seed(1)
    return [torch.randn(2, 3, 6, 6) for _ in range(4)]

def calls(model):
    for x in loader():
        model(x)

DATA = loader()

def broken():
    raise OSError("no images")

def nothing():
    return []

def breaks(model):
    for x in loader():
        model(x.view(-1, 5))

def yields():
    yield loader()[0]
    raise KeyError("no more")
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    path = tmp_path / "net_of_test.py"
    path.write_text(NET)
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("net_of_test", None)


def run(*arguments: str) -> int:
    return main(["quantize", "net_of_test.py:make", *arguments])


def test_it_reports_and_saves(net, capsys):
    arguments = ["--calibration", "net_of_test.py:loader", "--target", "openvino", "--sensitivity", "--quiet"]
    assert run(*arguments, "--json", "report.json", "--save-module", "net.pt") == 0
    report = json.loads(Path("report.json").read_text())
    assert report["target"] == "openvino" and report["calls"] == 4 and report["sqnr"] > 25
    assert all(place["output_sqnr"] is not None for place in report["places"] if place["scale"])
    module = torch.load("net.pt", weights_only=False)
    assert module(torch.randn(2, 3, 6, 6)).shape == (2, 4, 4, 4)
    assert capsys.readouterr().out == ""


def test_it_prints(net, capsys):
    assert (
        run("--calibration", "net_of_test.py:calls", "--float", "2", "--weight-bits", "4", "--observer", "minmax") == 0
    )
    out = capsys.readouterr().out
    assert "Sequential for onnxruntime" in out and "the rule '2' excludes it" in out and "s4" in out


def test_a_file_for_an_engine(net, capsys):
    pytest.importorskip("onnx_ir", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    arguments = ["--calibration", "net_of_test.py:loader", "--bias-correction", "none"]
    assert run(*arguments, "--save", "net.onnx", "--dynamic-batch", "--without-vnni", "--check") == 0
    assert Path("net.onnx").stat().st_size > 500
    assert "onnxruntime" in capsys.readouterr().out.partition("saved net.onnx")[2]
    assert run(*arguments, "--without-vnni", "--check", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["places"] and report["check"]["onnxruntime"]["apart"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--calibration", "net_of_test.py:loader", "--check", "tvm"],
            2,
            "no engine 'tvm'; known: onnxruntime, openvino",
        ),
        (["--calibration", "net_of_test.py:loader", "--weight-bits", "9"], 2, "weight_bits=9"),
        (["--calibration", "net_of_test.py"], 2, "is not of the form"),
        (["--calibration", "other.py:loader"], 2, "there is no file other.py"),
        (["--calibration", "net_of_test.py:loader", "--save", "no/net.onnx"], 2, "there is no folder"),
        (["--calibration", "net_of_test.py:lader"], 1, "has no 'lader'"),
        (["--calibration", "net_of_test.py:broken"], 1, "net_of_test.py:broken raised OSError: no images"),
        (["--calibration", "net_of_test.py:breaks"], 1, "RuntimeError: shape '[-1, 5]' is invalid"),
        (["--calibration", "net_of_test.py:breaks"], 1, "net_of_test.py:28"),
        (["--calibration", "net_of_test.py:yields"], 1, "KeyError: 'no more' at"),
        (["--calibration", "net_of_test.py:nothing"], 1, "the calibration data is empty"),
        (["--calibration", "net_of_test.py:loader", "--float", "haed"], 1, "haed"),
    ],
)
def test_what_is_wrong_is_said(net, capsys, arguments, code, message):
    assert run(*arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_scales_of_powers_of_two_fold_batch_norms(net, capsys):
    text = NET.replace("nn.ReLU()", "nn.BatchNorm2d(8), nn.ReLU()").replace("return model,", "return model.eval(),")
    net.write_text(text)
    assert run("--calibration", "net_of_test.py:loader", "--power-of-two", "--quiet", "--json", "report.json") == 0
    scales = [place["scale_value"] for place in json.loads(Path("report.json").read_text())["places"] if place["scale"]]
    assert scales and all(math.log2(scale).is_integer() for scale in scales)


def test_a_check_that_fails_says_why_even_if_quiet(net, capsys, monkeypatch):
    pytest.importorskip("onnx_ir", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    monkeypatch.setattr(CheckReport, "is_exact", False)
    assert run("--calibration", "net_of_test.py:loader", "--check", "--quiet", "--bias-correction", "none") == 1
    captured = capsys.readouterr()
    assert "integer kernels" in captured.err and captured.out == ""


def test_calibration_is_data_or_a_function(net):
    file = load_file(net)
    assert len(calibration_of(file, "loader")) == 4 and calibration_of(file, "DATA") is file.DATA
    assert calibration_of(file, "calls") is file.calls
    with pytest.raises(UserCodeError, match="has no 'x'"):
        calibration_of(file, "x")
