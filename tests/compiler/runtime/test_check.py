"""The check of files in the engines, and with it: integers there are ours."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.runtime.check import check_in_engines, sqnr
from compiler.runtime.engines import OnnxRuntime
from graphwright import GraphwrightWarning, InputError, MissingPackageError, transform
from graphwright.quant import Quantized, quantize
from graphwright.targets import find_target
from ir.evaluate import evaluate
from passes.fold.batch_norm import FoldBatchNorm
from tests.compiler.drafts import randomize

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


def data(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(2)]


def quantized(model: nn.Module, calibration: Any, target: str, **options: Any) -> Quantized:
    """Quantize with weights of seven bits and unsigned activations, whose products no processor saturates."""
    first = calibration[0] if isinstance(calibration[0], tuple) else (calibration[0],)
    if options.get("power_of_two"):
        found = find_target(target)
        pipeline = pipeline_of(found.patterns).insert_before("fixpoint", FoldBatchNorm())
        result = transform(randomize(model).eval(), first, pipeline=pipeline, check=False)
    else:
        result = transform(randomize(model).eval(), first, target=target, check=False)
    table = find_target(target).table
    assert table is not None
    settings = {"observer": "minmax", "bias_correction": None, "table": table.without_vnni(), "progress": False}
    return quantize(result, calibration, **(settings | options))


class Block(nn.Module):
    """Residual sum, pooling, concatenation, groups, a value read in integers and in float."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.c = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(self.stem(x))
        y = F.relu(self.b(self.a(x)) + x)
        z = self.c(torch.cat([x, y], 1))
        return self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))


class Attention(nn.Module):
    """Softmax and norms are in float."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x, mask):
        q, k, v = (t.reshape(2, 6, 4, 4).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(2, 6, 16)) + x


class SqueezeExcitation(nn.Module):
    """Hard-swish, and a squeeze-excitation with hard-sigmoid."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.down = nn.Conv2d(16, 8, 1)
        self.up = nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = self.stem(x)
        scale = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * scale)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.last(F.relu(self.up(F.relu(self.first(x)))))


class Norms(nn.Module):
    """Batch norms behind linear and transposed layers: they go into the scales."""

    def __init__(self):
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(3, 16, 2, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Conv2d(16, 16, 3, stride=4)
        self.head = nn.Sequential(nn.Linear(256, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16))

    def forward(self, x):
        return self.head(self.down(self.up(x))[:, :, :4, :4].flatten(1))


IMAGES = data(2, 3, 16, 16)
MASK = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(2)) > 0.3
TOKENS = [(x, MASK) for x in data(2, 6, 16)]
NETS: dict[str, tuple[type[nn.Module], Any]] = {
    "block": (Block, IMAGES),
    "attention": (Attention, TOKENS),
    "squeeze_excitation": (SqueezeExcitation, IMAGES),
    "transposed": (Transposed, IMAGES),
    "norms": (Norms, IMAGES),
}


@pytest.mark.parametrize(
    ("net", "target"),
    [*[(net, "onnxruntime") for net in NETS], *[(net, "openvino") for net in NETS if net != "attention"]],
)
def test_integers_in_engines_are_ours(net, target):
    """Each part gets our integers: at most 1 LSB, at least 99.9 % equal, and no float kernel where integers are."""
    model, calibration = NETS[net]
    # ONNX Runtime has no kernels for what only OpenVINO's table has in integers
    engines = ("onnxruntime", "openvino") if target == "onnxruntime" else ("openvino",)
    q = quantized(model(), calibration, target)
    report = check_in_engines(q.program, q.model, engines, threads=1)
    assert report.is_exact, str(report)
    for engine in engines:
        found = report[engine]
        assert found.differences and found.lsb <= 1 and found.equal >= 0.999, str(report)
        assert found.kernels and not found.in_float, str(report)
        assert min(found.sqnr.values()) > 25, str(report)


def test_scales_of_powers_of_two_give_the_same_bits_everywhere(tmp_path):
    q = quantized(Block(), IMAGES, "onnxruntime", power_of_two=True)
    (expected,) = evaluate(q.program, (IMAGES[1],))
    assert torch.equal(q.model(IMAGES[1]), expected)
    q.save_onnx(tmp_path / "net.onnx")
    found = check_in_engines(q.program, q.model, ("openvino",), inputs=(IMAGES[1],), threads=1)["openvino"]
    assert found.differences and found.equal == 1, str(found)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options)
        (found,) = session.run(None, {"x": IMAGES[1].numpy()})
        assert torch.equal(torch.from_numpy(found), expected), level


def test_the_report_of_a_float_result_has_no_integers_and_is_json():
    result = transform(randomize(Block()).eval(), (IMAGES[0],), check=False)
    report = result.check("onnxruntime", "openvino", inputs=(IMAGES[1],), threads=1)
    for engine in ("onnxruntime", "openvino"):
        assert not report[engine].differences and report[engine].sqnr["output"] > 100
        assert report[engine].speedup is None and engine in str(report)
    assert json.loads(json.dumps(report.to_json())).keys() == {"onnxruntime", "openvino"}


def test_an_engine_that_computes_something_else_is_named(monkeypatch):
    """Integers some steps off in a part, and an output that is far from the same integers."""
    q = quantized(Block(), IMAGES, "onnxruntime")
    run = OnnxRuntime.run

    def off(self: OnnxRuntime, inputs: Any, outputs: Any) -> list[torch.Tensor]:
        found = run(self, inputs, outputs)
        return [t // 2 if number == 3 else t * 1.1 if t.dtype == torch.float32 else t for number, t in enumerate(found)]

    assert check_in_engines(q.program, q.model, ("onnxruntime",), threads=1).is_exact
    monkeypatch.setattr(OnnxRuntime, "run", off)
    report = check_in_engines(q.program, q.model, ("onnxruntime",), threads=1)
    assert not report.is_exact and report["onnxruntime"].apart == ("a.0", "output")
    assert "apart from the file's meaning: a.0, output" in str(report["onnxruntime"])
    assert report.to_json()["onnxruntime"]["apart"] == ["a.0", "output"]


def test_numbers_that_are_not_finite_are_near_in_the_same_places_only():
    x = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    assert sqnr(x, x.clone()) == float("inf")
    assert sqnr(x + 1e-4, x) > 60
    assert sqnr(x, torch.tensor([1.0, 0.0, float("inf"), 2.0])) == sqnr(torch.ones(4), x) == float("-inf")


def test_wrong_calls_and_missing_engines_are_named(monkeypatch):
    result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),), check=False)
    with pytest.raises(InputError, match="no engine is named"):
        result.check()
    with pytest.raises(InputError, match="no engine is called \\['onnxruntime'\\]"):
        result.check(["onnxruntime"])
    with pytest.raises(InputError, match="not passed as in the call"):
        result.check("onnxruntime", inputs=(torch.randn(1, 2), 3))
    with pytest.raises(InputError, match=r"of torch.float64[\s\S]*as_tensor\(input, dtype=torch.float32\)"):
        result.check("onnxruntime", inputs=torch.randn(1, 2).double())
    with pytest.raises(InputError, match=r"is a ndarray"):
        result.check("onnxruntime", inputs=torch.randn(1, 2).numpy())
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"graphwright\[openvino\]"):
        result.check("openvino")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_weights_of_eight_bits_are_warned_about_without_vnni(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    images = data(2, 3, 6, 6)
    exact = quantized(model, images, engine)
    inexact = quantized(model, images, engine, table=find_target(engine).table)
    monkeypatch.setattr("compiler.runtime.module.has_vnni", lambda: False)
    exact.to_runtime(engine, threads=1)
    with pytest.warns(GraphwrightWarning, match=r"saturates, .*`table=result.target.table.without_vnni\(\)`"):
        module = inexact.to_runtime(engine, threads=1)
    moved = pickle.loads(pickle.dumps(module))  # to another host, as it were
    with pytest.warns(GraphwrightWarning, match="no VNNI"):
        moved(images[0])
    moved(images[0])  # once
    monkeypatch.setattr("compiler.runtime.module.has_vnni", lambda: True)
    inexact.to_runtime(engine, threads=1)
