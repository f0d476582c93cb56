"""Targets by name: what `transform`, pipeline text and the command line make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.__main__ import main
from compiler.targets import TARGETS, find_target
from compiler.targets.target import Target
from fuzz.campaign.targets import resolve
from graphwright import parse_pipeline, pipeline_of, transform
from ir.errors import InputError, ParseError, PatternError
from passes.fuse.conv import ConvBNActPattern
from passes.fuse.dense import AddReluPattern, LinearPattern
from tests.compiler.drafts import randomize


class Block(nn.Module):
    """A residual sum with an activation, another activation behind a convolution, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish())
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.relu(self.second(self.first(x)) + x))


def block() -> nn.Module:
    return randomize(Block()).eval()


X = torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    ("target", "regions"),
    [
        ("tensorrt", ["conv_bn_act", "conv_bn_add_act", "layer_norm"]),
        ("openvino", ["conv_bn_act", "conv_bn", "add_act", "layer_norm"]),
        ("onnxruntime", ["conv_bn", "conv_bn", "add_act", "layer_norm"]),
    ],
)
def test_a_target_names_the_fusions(target: str, regions: list[str]) -> None:
    result = transform(block(), (X,), target=target)
    assert [op.attributes["kind"] for op in result.program.graph.operations() if op.body is not None] == regions
    assert result.target is TARGETS[target]


def test_tensorrt_is_the_default() -> None:
    assert transform(block(), (X,)).target is TARGETS["tensorrt"]


def test_patterns_take_the_place_of_those_of_the_target() -> None:
    result = transform(block(), (X,), target="onnxruntime", patterns=(ConvBNActPattern,))
    assert result.counts() == {"ConvBNActPattern": 1}
    assert result.target is TARGETS["onnxruntime"]
    assert transform(block(), (X,), target="onnxruntime", patterns=()).counts() == {}


def test_a_pipeline_takes_the_place_of_that_of_the_target() -> None:
    result = transform(block(), (X,), target="openvino", pipeline=pipeline_of((AddReluPattern,)))
    assert result.counts() == {"AddReluPattern": 1}
    assert result.target is TARGETS["openvino"]


def test_a_target_of_ones_own() -> None:
    own = Target("mine", fusions=(ConvBNActPattern,))
    result = transform(block(), (X,), target=own)
    assert result.counts() == {"ConvBNActPattern": 1}
    assert result.target is own


def test_a_wrong_target_is_refused() -> None:
    with pytest.raises(InputError, match=r"target='openvin' is no target\n.*did you mean openvino\?"):
        find_target("openvin")
    with pytest.raises(InputError, match="use one of 'tensorrt', 'onnxruntime', 'openvino', or a `Target` of your own"):
        transform(block(), (X,), target=7)
    with pytest.raises(PatternError, match="not a subclass of"):
        Target("mine", fusions=(nn.ReLU,))


def test_pipeline_text_names_the_lists_of_targets() -> None:
    pipeline = parse_pipeline("fuse{patterns=openvino.fusions,AddReluPattern}")
    assert pipeline == parse_pipeline(str(pipeline))
    (fuse,) = pipeline
    assert fuse.patterns == (*TARGETS["openvino"].fusions, AddReluPattern)  # type: ignore[attr-defined]
    with pytest.raises(ParseError, match=r"no pattern is named 'openvino.fusion'; did you mean 'openvino.fusions'\?"):
        parse_pipeline("fuse{patterns=openvino.fusion}")


def test_the_fuzzer_knows_the_targets() -> None:
    assert resolve("openvino").pass_ == pipeline_of(TARGETS["openvino"].patterns)
    assert resolve("standard").pass_ == pipeline_of(TARGETS["tensorrt"].patterns)


def test_the_command_line_takes_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(4, 4)), (torch.ones(2, 4),)\n"
    (tmp_path / "net.py").write_text(source)
    call = [f"{tmp_path}/net.py:make", "--quiet", "--no-measure", "--save-ir", f"{tmp_path}/ir.txt", "--target"]
    assert main([*call, "openvino"]) == 0
    assert "fused.linear" in (tmp_path / "ir.txt").read_text()
    with pytest.raises(SystemExit):
        main([*call, "openvin"])
    assert "openvin" in capsys.readouterr().err


def test_layer_norm_stays_in_float() -> None:
    result = transform(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (torch.randn(2, 4),))
    points = {op.name: op.attributes["quantization_points"] for op in result.program.graph.operations()}
    assert points == {"fused.layer_norm": (), "fused.linear": ("input",)}
    assert result.model.get_submodule("0").quantization_points == ()


def test_every_list_of_a_target_is_one_of_patterns_of_its_sort() -> None:
    for target in TARGETS.values():
        assert target.patterns == target.conversions + target.fusions
        assert all(pattern().is_conversion for pattern in target.conversions)
        assert all(pattern().is_fusion for pattern in target.fusions)
    assert LinearPattern in TARGETS["tensorrt"].fusions
