"""Whole networks, quantized, in the engines: integers there are ours, in integer kernels."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.models import example_input, import_torchvision, real_model
from compiler.pipeline import pipeline_of
from compiler.runtime.check import check_in_engines
from graphwright import transform
from graphwright.quant import quantize
from graphwright.targets import find_target
from ir.evaluate import evaluate
from passes.fold.batch_norm import FoldBatchNorm

pytestmark = pytest.mark.zoo
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

SIZE = 64


def model_of(name: str) -> nn.Module:
    """Return a network with random weights and statistics, for images of 64 squared."""
    if name.startswith("vit"):
        torch.manual_seed(0)
        return import_torchvision().models.vision_transformer.VisionTransformer(SIZE, 16, 4, 4, 192, 768).eval()
    return real_model(name)


CALIBRATION = [example_input(batch=2, size=SIZE, seed=seed) for seed in range(2)]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("resnet18", {"Conv": 20, "Add": 8, "Gemm": 1, "GlobalAveragePool": 1, "MaxPool": 1}),
        ("mobilenet_v2", {"Conv": 52, "Add": 10, "Gemm": 1, "GlobalAveragePool": 1}),
        ("vit", {"Conv": 1, "MatMul": 16, "Gemm": 1}),
    ],
)
def test_parts_give_our_integers_in_integer_kernels(name, promised, target):
    """At most 1 LSB, at least 99.9 % equal in both engines; weights of 7 bits are exact on every processor."""
    table = find_target(target).table
    assert table is not None
    result = transform(model_of(name), (CALIBRATION[0],), target=target, check=False)
    q = quantize(
        result, CALIBRATION, table=table.without_vnni(), observer="minmax", bias_correction=None, progress=False
    )
    # ONNX Runtime has no kernels for what only OpenVINO's table has in integers
    engines = ("onnxruntime", "openvino") if target == "onnxruntime" else ("openvino",)
    report = check_in_engines(q.program, q.model, engines, example=(CALIBRATION[1],), threads=1)
    assert report.is_exact, str(report)
    for found in report.engines.values():
        assert found.lsb <= 1 and found.equal >= 0.999 and not found.in_float, str(report)
        assert Counter(kernel.operator for kernel in found.kernels) == promised


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_scales_of_powers_of_two_give_the_same_bits_in_whole_networks(name, tmp_path):
    """0 different bits: the module, the program, ONNX Runtime optimized and not."""
    target = find_target("onnxruntime")
    assert target.table is not None
    pipeline = pipeline_of(target.patterns).insert_before("fixpoint", FoldBatchNorm())
    result = transform(model_of(name), (CALIBRATION[0],), pipeline=pipeline, check=False)
    q = quantize(result, CALIBRATION, table=target.table.without_vnni(), power_of_two=True, progress=False)
    (expected,) = evaluate(q.program, (CALIBRATION[1],))
    assert torch.equal(q.model(CALIBRATION[1]), expected)
    q.save_onnx(tmp_path / "net.onnx")
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options)
        (found,) = session.run(None, {session.get_inputs()[0].name: CALIBRATION[1].numpy()})
        assert torch.equal(torch.from_numpy(found), expected), level
    check = check_in_engines(q.program, q.model, ("openvino",), example=(CALIBRATION[1],), threads=1)["openvino"]
    assert check.differences and all(each.different == 0 for each in check.differences), str(check)
