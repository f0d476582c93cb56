"""What breaks other tools: each a small net, quantized for each target, equal to its program and near the net."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import transform
from graphwright.quant import quantize
from ir.evaluate import evaluate


class SharedLayer(nn.Module):
    """One layer at two call sites, whose values differ by a factor of fifty."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)) * 50)


class Twice(nn.Module):
    """One layer that reads its own result: the quantizer between belongs to both calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


class TiedWeights(nn.Module):
    """Two linear layers with one weight and biases of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x.mean((2, 3)).repeat(1, 2))))


class Transposed(nn.Module):
    """A transposed convolution of groups behind one of groups."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(16, 32, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2, groups=4)

    def forward(self, x):
        return self.up(torch.relu(self.down(x)))


class WithoutBias(nn.Module):
    """Layers that have nothing to correct."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, bias=False)
        self.head = nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    """MobileNetV3's hard-swish, and a factor for each channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.reduce, self.expand = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.last = nn.Conv2d(32, 16, 1)

    def forward(self, x):
        x = F.hardswish(self.conv(x))
        scale = F.hardsigmoid(self.expand(torch.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * scale)


class MaskedAttention(nn.Module):
    """Attention whose mask holds negative infinity, behind a layer norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2).repeat(1, 1, 2)
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class BothReaders(nn.Module):
    """A value that is read in integers, in float, and is a result."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.second(y), torch.softmax(y, 1), y


NETS = (
    *(SharedLayer, Twice, TiedWeights, Transposed),
    *(WithoutBias, SqueezeExcitation, MaskedAttention, BothReaders),
)


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
@pytest.mark.parametrize("cls", NETS)
def test_it_is_quantized_and_near_the_net(cls, target):
    torch.manual_seed(0)
    model = cls().eval()
    data = [torch.randn(4, 16, 8, 8) for _ in range(6)]
    result = transform(model, (data[0],), target=target, check=False)
    q = quantize(result, data, bias_correction="sequential", progress=False)
    x = torch.randn(4, 16, 8, 8)
    with torch.no_grad():
        expected, got = first(model(x)), q.model(x)
        assert torch.equal(first(got), evaluate(q.program, [x])[0])
    noise = (first(got) - expected).square().sum()
    assert 10 * torch.log10(expected.square().sum() / noise) > 25
    assert str(q) and q.placement.placed


def test_biases_of_a_transposed_convolution_of_groups_are_on_its_grid():
    torch.manual_seed(0)
    model = Transposed().eval()
    data = [torch.randn(4, 16, 8, 8) for _ in range(4)]
    q = quantize(transform(model, (data[0],), target="tensorrt", check=False), data, power_of_two=True, progress=False)
    scales = {name: weight.data for name, weight in q.program.weights.items() if name.endswith("scale")}
    (inner,) = (scale for name, scale in scales.items() if name.startswith(("up.input", "down.output")))
    steps = q.program.weights["up.bias"].data / (inner * scales["up.weight_quantizer.scale"].repeat(4))
    assert torch.equal(steps, steps.round())
