"""What breaks other tools, in the engines: the module, the program and the file compute one thing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.pipeline import pipeline_of
from compiler.runtime.check import EngineCheck, check_in_engines
from graphwright import InputError, transform
from graphwright.quant import Quantized, quantize
from graphwright.targets import find_target
from ir.evaluate import evaluate
from passes.fold.batch_norm import FoldBatchNorm
from tests.compiler.quant.test_hard_cases import (
    BothReaders,
    MaskedAttention,
    SharedLayer,
    SqueezeExcitation,
    TiedWeights,
    Transposed,
)

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

ENGINES = ("onnxruntime", "openvino")


class Outlier(nn.Module):
    """One number of the input is 10^4; the others are all at the zero point, or next to it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = x.clone()
        x[:1, :1, :1, :1] = 1e4
        return self.second(torch.relu(self.first(x)))


class ZerosAndConstants(nn.Module):
    """A channel of a weight is zero, and a value is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.first, self.flat, self.last = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        with torch.no_grad():
            self.first.weight[3] = 0
            self.flat.weight.zero_()
            self.flat.bias.fill_(0.7)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(self.flat(x)) + x


class LargeBias(nn.Module):
    """32 bits do not hold the biases on the grid of the products."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        with torch.no_grad():
            self.first.weight.mul_(1e-7)
            self.first.bias.fill_(3.0)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def images(batch: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 16, 8, 8, generator=generator) for _ in range(2)]


def quantized(cls: type[nn.Module], target: str = "onnxruntime", **options: Any) -> Quantized:
    """Quantize a net for processors of every kind."""
    torch.manual_seed(0)
    table = find_target(target).table
    assert table is not None
    dynamic = options.pop("dynamic_shapes", None)
    result = transform(cls().eval(), (images()[0],), target=target, dynamic_shapes=dynamic, check=False)
    settings = {"table": table.without_vnni(), "observer": "minmax", "bias_correction": None, "progress": False}
    return quantize(result, images(), **(settings | options))


def in_engines(q: Quantized, x: torch.Tensor, *engines: str) -> list[EngineCheck]:
    """Compare the module with the program, bit for bit, and the file in the engines with both."""
    expected = evaluate(q.program, (x,))
    found = q.model(x)
    assert all(map(torch.equal, found if isinstance(found, tuple) else (found,), expected))
    report = check_in_engines(q.program, q.model, engines or ENGINES, example=(x,), threads=1)
    assert report.is_exact, str(report)
    for each in report.engines.values():
        assert each.kernels and not each.in_float and each.equal >= 0.999, str(report)
    return list(report.engines.values())


@pytest.mark.parametrize(
    "cls",
    [MaskedAttention, SharedLayer, TiedWeights, BothReaders, Transposed, Outlier, ZerosAndConstants, LargeBias],
)
def test_the_module_the_program_and_the_engines_compute_one_thing(cls):
    in_engines(quantized(cls), images()[1])


def test_a_bias_that_does_not_fit_widens_the_scale_of_its_weights():
    """So the layer stays in integers, and its products are lost instead of its bias."""
    q = quantized(LargeBias)
    assert any("overflowed int32" in str(remark) for remark in q.remarks)
    x = images()[1]
    with torch.no_grad():
        torch.testing.assert_close(q.model(x), q.source.model(x), rtol=0.02, atol=0.02)


def test_layers_that_rules_leave_in_float_and_batches_of_any_size():
    batch = ({0: torch.export.Dim("batch")},)
    q = quantized(BothReaders, dynamic_shapes=batch, rules={"first": None})
    for size in (1, 5):
        for check in in_engines(q, images(size)[1]):
            assert [kernel.node for kernel in check.kernels] == ["second/Conv"]


def test_a_product_of_varying_size_is_in_float_in_openvino():
    for batch, products in (({0: torch.export.Dim("batch")},), 0), (None, 1):
        q = quantized(SqueezeExcitation, "openvino", dynamic_shapes=batch)
        (check,) = in_engines(q, images()[1], "openvino")
        assert [kernel.operator for kernel in check.kernels].count("Mul") == products


def test_a_transposed_convolution_of_groups_is_in_float_in_openvino():
    q = quantized(Transposed, "openvino")
    assert "the convolution has 4 groups" in str(q)
    (check,) = in_engines(q, images()[1], "openvino")
    assert [kernel.node for kernel in check.kernels] == ["down/Conv"]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.ReLU(), nn.ConvTranspose2d(16, 16, 1, 2)), r"the kernel has the size \[1, 1\], less than the stride"),
        ((nn.ConvTranspose2d(16, 16, 2, 2),), "its zero point is not 0"),
        ((nn.AvgPool2d(3, 2, 1),), "windows average zeros of the padding"),
        ((nn.Conv2d(16, 4, 1), nn.ReLU(), nn.AvgPool2d(7)), "a result of fewer than 16 numbers"),
        ((nn.Unflatten(2, (2, 4)), nn.Conv3d(16, 32, 2, padding=1, groups=2), nn.Flatten(2, 3)), "of groups in three"),
    ],
)
def test_what_openvino_computes_from_other_integers_is_in_float(layers, reason):
    """It gave up to 211 steps, and -13 dB at the output."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 1), *layers)
    net.append(nn.Conv2d(net(images()[0]).shape[1], 16, 1))
    q = quantized(lambda: net, "openvino")
    assert re.search(reason, str(q).replace("\n", " ")), str(q)
    (check,) = in_engines(q, images()[1], "openvino")
    assert min(check.sqnr.values()) > 60


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((nn.ConstantPad2d(1, 0.5),), "pads integers whose zero point is not 0"),
        ((nn.AvgPool2d(3, 2, 1),), "pads integers whose zero point is not 0"),
    ],
)
def test_files_for_others_that_openvino_misreads_are_refused(layers, words):
    q = quantized(lambda: nn.Sequential(nn.Conv2d(16, 16, 1), *layers, nn.Conv2d(16, 16, 1)))
    in_engines(q, images()[1], "onnxruntime")
    for call in (lambda: q.to_runtime("openvino"), lambda: q.check("openvino")):
        with pytest.raises(InputError, match=rf'{words}[\s\S]*at `1`[\s\S]*target="openvino"'):
            call()


class Extremes(nn.Module):
    """A part between two layers."""

    def __init__(self, part):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(16, 16), part, nn.Linear(16, 16)

    def forward(self, x):
        return self.last(self.part(self.first(x)))


class Part(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _quantized_rows(part, target):
    torch.manual_seed(0)
    rows = [torch.randn(2, 6, 16) for _ in range(3)]
    table = find_target(target).table
    assert table is not None
    result = transform(Extremes(Part(part)).eval(), (rows[0],), target=target, check=False)
    return quantize(result, rows[:2], table=table.without_vnni(), progress=False), rows[2]


def _apart(q, x, engine):
    """Return the signal to noise ratio of a whole run, in dB."""
    with torch.no_grad():
        found, wanted = q.to_runtime(engine, threads=1)(x), q.model(x)
    return float(10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum().clamp_min(1e-30)))


@pytest.mark.parametrize(
    "part", [lambda x: x.amax(1), lambda x: x.min(1).values, lambda x: x.relu().amax((0, 1), True)]
)
def test_extremes_carry_integers_in_openvino(part):
    """With a quantization behind them, the plugin computed something else: 1 to 11 dB."""
    q, x = _quantized_rows(part, "openvino")
    assert _apart(q, x, "openvino") > 100
    q, x = _quantized_rows(part, "onnxruntime")
    assert _apart(q, x, "onnxruntime") > 100
    with pytest.raises(InputError, match=r'merged with the quantization of its result[\s\S]*target="openvino"'):
        q.to_runtime("openvino")


def test_extremes_whose_places_are_read_carry_none():
    def part(x):
        values, places = x.max(1)
        return values + places * 0.01

    q, x = _quantized_rows(part, "openvino")
    assert _apart(q, x, "openvino") > 100


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.5), (0.1, 0.4)])
def test_a_clip_between_two_quantizations_stays_in_the_file(bounds):
    """Without it ONNX Runtime makes one quantization of the two; OpenVINO does so with it."""
    net = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Hardtanh(*bounds), nn.Conv2d(16, 16, 1))
    q = quantized(lambda: net)
    assert _apart(q, images()[1], "onnxruntime") > 100
    with pytest.raises(InputError, match="merged with the quantizations before and behind it"):
        q.to_runtime("openvino")
    assert _apart(quantized(lambda: net, "openvino"), images()[1], "openvino") > 100


class Autoencoder(nn.Module):
    """One weight for both directions."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)

    def forward(self, x):
        return F.conv_transpose2d(F.relu(F.conv2d(x, self.weight, padding=1)), self.weight, padding=1)


def test_a_weight_of_both_directions_is_packed_for_each_in_openvino():
    """The plugin packs a constant once, for the first of its readers."""
    torch.manual_seed(0)
    model, x = Autoencoder().eval(), torch.randn(2, 16, 8, 8)
    fast = transform(model, (x,), target="openvino").to_runtime("openvino", threads=1)
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [MaskedAttention, TiedWeights])
def test_powers_of_two_give_the_same_integers_region_by_region(net):
    """Softmax and norms are in float: with the same integers before them, the integers behind are the same."""
    torch.manual_seed(0)
    target = find_target("onnxruntime")
    assert target.table is not None
    pipeline = pipeline_of(target.patterns).insert_before("fixpoint", FoldBatchNorm())
    result = transform(net().eval(), (images()[0],), pipeline=pipeline, check=False)
    q = quantize(result, images(), table=target.table.without_vnni(), power_of_two=True, progress=False)
    for check in in_engines(q, images()[1]):
        assert check.differences and all(each.different == 0 for each in check.differences), str(check)


class Photograph(nn.Module):
    """Takes an image of 8 bits, as networks of photographs do."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 1)

    def forward(self, image):
        return self.last(F.relu(self.stem(image)))


def test_images_of_8_bits_with_powers_of_two_in_openvino():
    """The inputs are on the grid themselves, at its ends and ties included."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(0, 256, (2, 3, 32, 32), generator=generator) / 128 for _ in range(2)]
    table = find_target("openvino").table
    assert table is not None
    result = transform(Photograph().eval(), (data[0],), target="openvino", check=False)
    q = quantize(result, data, table=table.without_vnni(), observer="minmax", power_of_two=True, progress=False)
    for check in in_engines(q, data[1], "openvino"):
        assert all(each.different == 0 for each in check.differences), str(check)
