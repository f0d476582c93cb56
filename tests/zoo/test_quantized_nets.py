"""Random quantized nets in the engines: each part gives our integers, whatever its layers are parametrized with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from compiler.runtime.check import check_in_engines
from graphwright import InputError, transform
from graphwright.quant import quantize
from graphwright.targets import find_target
from tests.compiler.drafts import randomize

pytestmark = pytest.mark.zoo
pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Mish),
    *(nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Identity),
)


class Net(nn.Module):
    """Steps on a map, some of which read the map before them as well."""

    def __init__(self, steps: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.kinds = [kind for kind, _ in steps]
        self.steps = nn.ModuleList([what if isinstance(what, nn.Module) else nn.Identity() for _, what in steps])
        self.constants = [what for _, what in steps]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x
        for kind, step, what in zip(self.kinds, self.steps, self.constants, strict=True):
            y = step(x)
            if kind == "add":
                y = y + x
            elif kind == "mul":
                y = y * x
            elif kind == "gate":
                y = x * torch.sigmoid(y.flatten(2).mean(2).reshape(*y.shape[:2], *[1] * (y.dim() - 2)))
            elif kind == "cat":
                y = torch.cat([x, y], 1)
            elif kind == "far" and before.shape == x.shape:
                y = y + before
            elif kind == "layout":
                y = what(x)
            before, x = x, y
        return x


@st.composite
def nets(draw: st.DrawFn) -> tuple[Net, tuple[int, ...]]:
    """Draw a net in eval mode, and the shape of its input."""
    rank = draw(st.sampled_from((2, 2, 2, 1, 3)))
    channels = first = draw(st.sampled_from((3, 4, 8, 16)))
    size = tuple(draw(st.integers(7, 9)) for _ in range(rank))
    shape = torch.zeros(2, channels, *size)
    steps: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(2, 6))):
        kind, what = draw(_step(rank, channels))
        try:
            with torch.no_grad():
                shape = Net([(kind, what)]).eval()(shape)
        except RuntimeError:
            continue  # the map is too small for it
        if not shape.numel():
            assume(False)  # nothing is left of it
        channels = shape.shape[1]
        steps.append((kind, what))
    steps.append(("plain", _CONVS[rank - 1](channels, 4, 1)))
    if draw(st.booleans()):
        features = 4 * int(torch.tensor(shape.shape[2:]).prod())
        steps += [("plain", nn.Flatten()), ("plain", nn.Linear(features, 5))]
    net = Net(steps)
    randomize(net).eval()
    return net, (2, first, *size)


class Tokens(nn.Module):
    """Steps on [batch, tokens, features], some of which read what is before them as well."""

    def __init__(self, steps: list[tuple[str, nn.Module, Any]]) -> None:
        super().__init__()
        self.kinds = [(kind, what) for kind, _, what in steps]
        self.steps = nn.ModuleList([step for _, step, _ in steps])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for (kind, what), step in zip(self.kinds, self.steps, strict=True):
            y = step(x)
            if kind == "add":
                y = x + y
            elif kind == "gated":
                gate, y = y.chunk(2, -1)
                y = what(gate) * y
            elif kind in ("attention", "written"):
                q, k, v = (each.unflatten(-1, (what, -1)).transpose(1, 2) for each in y.chunk(3, -1))
                if kind == "attention":
                    y = F.scaled_dot_product_attention(q, k, v)
                else:
                    y = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
                y = y.transpose(1, 2).flatten(2)
            elif kind == "layout":
                y = what(x)
            x = y
        return x


_TOKEN_MOVES = (
    lambda x: x.transpose(0, 1),
    lambda x: x[:, :1],
    lambda x: x[:, 0][:, None],
    lambda x: x.mean(1, keepdim=True),
    lambda x: torch.cat([x, x.flip(1)], 1),
    lambda x: torch.cat([x[:, :1] * 0.1, x], 1),
    lambda x: torch.cat(x.split(x.shape[-1] // 2, -1)[::-1], -1),
    lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
    lambda x: F.pad(x, (0, 0, 1, 1)),
)


@st.composite
def token_nets(draw: st.DrawFn) -> tuple[Tokens, tuple[int, ...]]:
    """Draw a net in eval mode on tokens, and the shape of its input."""
    width = first = draw(st.sampled_from((8, 16, 24)))
    tokens = draw(st.integers(1, 7))
    steps: list[tuple[str, nn.Module, Any]] = []
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(
            st.sampled_from(("linear", "linear", "add", "gated", "attention", "written", "norm", "act", "layout"))
        )
        activations = draw(st.lists(st.sampled_from(_ACTIVATIONS[:-1]), max_size=1))
        norm = [nn.LayerNorm(width)] if draw(st.booleans()) else []
        bias = draw(st.booleans())
        if kind == "linear":
            new = draw(st.sampled_from((8, 16, 24)))
            ends = [each() for each in activations]
            steps.append(("plain", nn.Sequential(*norm, nn.Linear(width, new, bias=bias), *ends), None))
            width = new
        elif kind == "add":
            ends = [each() for each in activations]
            inner = [nn.Linear(width, 2 * width, bias=bias), *ends, nn.Linear(2 * width, width)]
            steps.append((kind, nn.Sequential(*norm, *inner), None))
        elif kind == "gated":
            steps.append(
                (
                    kind,
                    nn.Sequential(*norm, nn.Linear(width, 2 * width, bias=bias)),
                    draw(st.sampled_from((F.silu, F.gelu, torch.sigmoid, F.relu))),
                )
            )
        elif kind in ("attention", "written"):
            steps.append(
                (kind, nn.Sequential(*norm, nn.Linear(width, 3 * width, bias=bias)), draw(st.sampled_from((1, 2, 4))))
            )
        elif kind == "norm":
            steps.append(("plain", nn.LayerNorm(width), None))
        elif kind == "act":
            steps.append(("plain", draw(st.sampled_from(_ACTIVATIONS))(), None))
        else:
            steps.append((kind, nn.Identity(), draw(st.sampled_from(_TOKEN_MOVES))))
    steps.append(("plain", nn.Linear(width, 5), None))
    net = Tokens(steps)
    randomize(net).eval()
    return net, (2, tokens, first)


_KINDS = (
    *("conv", "conv", "conv", "transposed", "same", "pool", "average"),
    *("adaptive", "act", "layout", "scale", "resize"),
)
_MOVES = (
    lambda x: x.transpose(1, 2),
    lambda x: x.flip(1),
    lambda x: x[:, 1:],
    lambda x: x[..., ::2],
    lambda x: F.pad(x, (1, 1), value=0.5),
    lambda x: F.pad(x, (1, 0)),
    lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: x.roll(1, 2),
)
_SCALINGS = (lambda x: x * 0.5, lambda x: -x, lambda x: x + 2.0, lambda x: x + x)


@st.composite
def _step(draw: st.DrawFn, rank: int, channels: int) -> tuple[str, Any]:
    """Draw how a step is joined with the map before it, and what it is."""
    kind = draw(st.sampled_from(_KINDS))
    place = rank - 1
    if kind in ("conv", "transposed"):
        layer = draw(_layers(rank, channels, is_transposed=kind == "transposed"))
        return "plain", nn.Sequential(layer, *draw(_ends(rank, layer.out_channels)))
    if kind == "same":
        kernel, bias = draw(st.sampled_from((1, 3))), draw(st.booleans())
        layer = _CONVS[place](channels, channels, kernel, padding="same", bias=bias)
        how = draw(st.sampled_from(("add", "add", "mul", "cat", "gate", "far")))
        return how, nn.Sequential(layer, *draw(_ends(rank, channels)))
    if kind in ("pool", "average"):
        options = {
            "kernel_size": draw(st.integers(2, 3)),
            "stride": draw(st.integers(1, 3)),
            "padding": draw(st.integers(0, 1)),
            "ceil_mode": draw(st.booleans()),
        }
        if kind == "pool":
            return "plain", _MAX_POOLS[place](**options, dilation=draw(st.integers(1, 2)))
        return "plain", _AVERAGES[place](**options, count_include_pad=draw(st.booleans()))
    if kind == "adaptive":
        return "plain", _ADAPTIVE[place](draw(st.integers(1, 3)))
    if kind == "act":
        return "plain", draw(st.sampled_from(_ACTIVATIONS))()
    if kind == "resize":
        return "plain", nn.Upsample(scale_factor=2, mode="nearest")
    return "layout", draw(st.sampled_from(_SCALINGS if kind == "scale" else _MOVES))


@st.composite
def _layers(draw: st.DrawFn, rank: int, channels: int, *, is_transposed: bool) -> Any:
    each = st.one_of(st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * rank))
    groups = draw(st.sampled_from((1, 1, 1, channels, 2 if channels % 2 == 0 else 1)))
    options: dict[str, Any] = {
        "out_channels": groups * draw(st.sampled_from((1, 2, 4, 8) if groups > 1 else (1, 3, 8, 16))),
        "groups": groups,
        "kernel_size": draw(each),
        "stride": draw(each),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "bias": draw(st.booleans()),
    }
    if is_transposed:
        return _TRANSPOSED[rank - 1](channels, **options)
    modes = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    return _CONVS[rank - 1](channels, padding_mode=draw(st.sampled_from(modes)), **options)


@st.composite
def _ends(draw: st.DrawFn, rank: int, channels: int) -> list[nn.Module]:
    norms = [_NORMS[rank - 1](channels)] if draw(st.booleans()) else []
    return [*norms, *(activation() for activation in draw(st.lists(st.sampled_from(_ACTIVATIONS), max_size=1)))]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@settings(max_examples=150, deadline=None)
@given(net=st.one_of(nets(), token_nets()), seed=st.integers(0, 3))
def test_parts_give_our_integers(target: str, net: tuple[nn.Module, tuple[int, ...]], seed: int) -> None:
    """Weights of 7 bits and unsigned activations are exact on every processor: at most 1 LSB apart."""
    model, shape = net
    generator = torch.Generator().manual_seed(seed)
    calibration = [torch.randn(*shape, generator=generator) for _ in range(2)]
    table = find_target(target).table
    assert table is not None
    result = transform(model, (calibration[0],), target=target, check=False)
    q = quantize(
        result, calibration, table=table.without_vnni(), observer="minmax", bias_correction=None, progress=False
    )
    # a file for ONNX Runtime may have integers that OpenVINO pads with other numbers, and refuses
    engines = ("onnxruntime", "openvino") if target == "onnxruntime" else ("openvino",)
    for engine in engines:
        try:
            found = check_in_engines(q.program, q.model, (engine,), example=(calibration[1],), threads=1)[engine]
        except InputError:
            assert engine != target
            continue
        assert found.lsb <= 1, f"{model}\n{found}"
        assert min(found.sqnr.values()) > 30, f"{model}\n{found}"
