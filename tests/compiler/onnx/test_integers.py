"""Files of quantized results: integers are stored as integers, and nothing is quantized that was not placed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from compiler.onnx.files import onnx_model, serialized
from compiler.onnx.writer import OnnxModel
from compiler.quant.quantizers import operations
from compiler.runtime.check import sqnr
from compiler.savefiles import SaveError
from graphwright import CodegenError, InputError, transform
from graphwright.quant import Int8, Quantized, quantize
from ir.evaluate import evaluate
from tests.compiler.drafts import randomize

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")


def quantized(model: nn.Module, *shape: int, target: str = "onnxruntime", **options: Any) -> Quantized:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(*shape, generator=generator) for _ in range(2)]
    result = transform(randomize(model).eval(), (data[0],), target=target, check=False)
    options = {"observer": "minmax", "bias_correction": None, "progress": False} | options
    return quantize(result, data, **options)


def written(q: Quantized) -> OnnxModel:
    made = onnx_model(q.program, q.model)
    onnx.checker.check_model(onnx.load_from_string(serialized(made)), full_check=True)
    return made


def weights(made: OnnxModel) -> dict[str, Any]:
    return {name: value.const_value.numpy() for name, value in made.model.graph.initializers.items()}


def kinds(made: OnnxModel) -> Counter[str]:
    return Counter(node.op_type for node in made.model.graph)


def test_weights_are_int8_biases_int32_and_batch_norms_in_the_scales():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    q = quantized(model, 2, 3, 8, 8)
    made = written(q)
    held = weights(made)
    assert {held[f"{name}_int8"].dtype.name for name in ("0.weight", "3.weight")} == {"int8"}
    assert {held[f"{name}_int32"].dtype.name for name in ("0.bias", "3.bias")} == {"int32"}
    assert not {"0.weight", "3.weight", "0.bias", "1.weight"} & held.keys()
    assert kinds(made) == {"QuantizeLinear": 3, "DequantizeLinear": 7, "Conv": 2}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (expected,), (found,) = evaluate(q.program, [x]), evaluate(made.program, [x])
    step = held["3.output_quantizer.scale"].item()
    assert float((expected - found).abs().max()) <= step * 1.01  # a bias is rounded to 32 bits
    assert float((expected != found).double().mean()) < 0.01


def test_a_weight_that_is_clipped_keeps_its_sign_free_for_the_batch_norm():
    """-8 of four bits has no counterpart: with one, a channel of negative scale could not be folded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(512, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(2, 512, 4, 4)
    result = transform(randomize(model).eval(), (x,), target="onnxruntime", check=False)
    with torch.no_grad():
        model[0].weight.normal_(std=0.02)  # of many numbers, the least error cuts off the largest
        model[1].weight.copy_(-model[1].weight.abs() - 0.1)
    q = quantize(result, [x], default=Int8(weight_bits=4), bias_correction=None, progress=False)
    assert any(op.attributes.get("quant_min") == -7 for op, _ in operations(q.program.graph))
    weight, scale = model[0].weight.detach(), q.program.weights["0.weight_quantizer.scale"].data
    assert scale is not None and float((weight.amin((1, 2, 3)) / scale).min()) < -8
    assert kinds(written(q))["BatchNormalization"] == 0


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_batch_norms_behind_linear_and_transposed_layers_go_into_the_scales(target: str):
    linear = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for model, shape in ((linear, (8, 6)), (transposed, (2, 3, 4, 4))):
        q = quantized(model, *shape, target=target)
        made = written(q)
        assert kinds(made)["BatchNormalization"] == 0
        assert any(op.name == "aten.batch_norm" for op, _ in operations(q.program.graph))
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            (expected,), (found,) = evaluate(q.program, [x]), evaluate(made.program, [x])
        assert sqnr(found, expected) > 40


def test_a_clip_that_the_range_cuts_off_is_left_out():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    q = quantized(model, 2, 3, 8, 8)
    scale = q.program.weights["0.output_quantizer.scale"].data
    assert scale is not None
    scale.fill_(6 / 255)
    assert "Clip" not in kinds(written(q))
    scale.fill_(7 / 255)  # 6 is the integer 219: what lies above it is cut off by the clip alone
    assert kinds(written(q))["Clip"] == 1


def test_a_relu_is_left_out_where_the_zero_point_is_the_least_integer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    q = quantized(model, 2, 3, 8, 8)
    zero_point = q.program.weights["0.output_quantizer.zero_point"].data
    assert zero_point is not None and int(zero_point) == 0
    assert "Relu" not in kinds(written(q))
    zero_point.fill_(3)  # the integers 0 to 2 stand for negative numbers
    assert kinds(written(q))["Relu"] == 1


def test_a_bias_that_32_bits_do_not_hold_is_added_in_float():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    q = quantized(model, 2, 3, 4, 4)
    scale = q.program.weights["0.weight_quantizer.scale"].data
    assert scale is not None
    scale.fill_(1e-12)
    made = written(q)
    assert kinds(made)["Add"] == 1 and "0.bias_int32" not in weights(made)


def test_a_linear_layer_on_more_than_rows_stores_the_transposed_integers():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    q = quantized(model, 2, 5, 6, power_of_two=True)
    made = written(q)
    assert kinds(made)["MatMul"] == 2 and not kinds(made)["Transpose"]
    assert weights(made)["0.weight_int8"].shape == (6, 10)
    x = torch.randn(2, 5, 6)
    assert torch.equal(evaluate(made.program, [x])[0], evaluate(q.program, [x])[0])  # biases are on their grid


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, bias=False)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.first(self.second(self.first(x)))


def test_a_weight_of_several_calls_and_layers_is_stored_once():
    held = weights(written(quantized(Shared(), 2, 4, 4, 4)))
    assert [name for name, array in held.items() if array.dtype.name == "int8" and array.ndim == 4] == [
        "first.weight_int8"
    ]


@pytest.mark.parametrize(("name", "number"), [("0.weight", float("nan")), ("0.weight_quantizer.scale", 0.0)])
def test_what_integers_would_hide_is_refused(tmp_path, name, number):
    q = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 2, 3, 8, 8)
    (key,) = (key for key, weight in q.model._weight_names.items() if weight == name)
    q.model.state_dict()[key].view(-1)[0] = number
    for call in (lambda: q.save_onnx(tmp_path / "net.onnx"), lambda: q.to_runtime("onnxruntime")):
        with pytest.raises(InputError, match=rf"`{name}` holds [\s\S]*diverged"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    q = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 2, 3, 8, 8)
    for path in (tmp_path, tmp_path / "none" / "net.onnx"):
        with pytest.raises(InputError, match=r"is a folder|there is no folder"):
            q.save_onnx(path)
    with pytest.raises(SaveError, match="cannot write"):
        q.save_onnx(tmp_path / ("x" * 300))
    q.save_onnx(bytes(tmp_path / "net.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_quantizers_of_other_dtypes(dtype):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).to(dtype).eval()
    data = [torch.randn(2, 3, 6, 6).to(dtype) for _ in range(2)]
    q = quantize(transform(model, (data[0],), target="onnxruntime"), data, bias_correction=None, progress=False)
    if dtype == torch.float64:
        with pytest.raises(CodegenError, match=r"QuantizeLinear takes no double as `x`[\s\S]*model\.float\(\)"):
            onnx_model(q.program, q.model)
        return
    written(q)
    pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
    with torch.no_grad():
        expected, found = q.model(data[1]), q.to_runtime("onnxruntime", threads=1)(data[1])
    assert found.dtype == dtype and float((found - expected).abs().max()) < 0.1
