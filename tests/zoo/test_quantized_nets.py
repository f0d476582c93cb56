"""Random quantized nets in the engines: each part gives our integers, whatever its layers are parametrized with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compiler.runtime.check import check_in_engines
from graphwright import transform
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
        channels = shape.shape[1]
        steps.append((kind, what))
    steps.append(("plain", _CONVS[rank - 1](channels, 4, 1)))
    if draw(st.booleans()):
        features = 4 * int(torch.tensor(shape.shape[2:]).prod())
        steps += [("plain", nn.Flatten()), ("plain", nn.Linear(features, 5))]
    return randomize(Net(steps)).eval(), (2, first, *size)


@st.composite
def _step(draw: st.DrawFn, rank: int, channels: int) -> tuple[str, Any]:
    ints = st.integers
    kind = draw(
        st.sampled_from(
            ("conv", "conv", "conv", "transposed", "same", "pool", "average", "adaptive", "act", "layout", "scale", "resize")
        )
    )
    after = [m() for m in draw(st.lists(st.sampled_from(_ACTIVATIONS), max_size=1))]
    norm = draw(st.booleans())
    each = st.one_of(ints(1, 3), st.tuples(*[ints(1, 3)] * rank))
    if kind in ("conv", "transposed"):
        groups = draw(st.sampled_from((1, 1, 1, 2, channels))) if channels % 2 == 0 else draw(st.sampled_from((1, channels)))
        out = groups * draw(st.sampled_from((1, 2, 4, 8))) if groups > 1 else draw(st.sampled_from((1, 3, 8, 16)))
        options: dict[str, Any] = {"kernel_size": draw(each), "stride": draw(each), "dilation": draw(ints(1, 2))}
        options |= {"groups": groups, "bias": draw(st.booleans()), "padding": draw(ints(0, 2))}
        if kind == "conv":
            options["padding_mode"] = draw(st.sampled_from(("zeros", "zeros", "zeros", "reflect", "replicate", "circular")))
        layer = (_CONVS if kind == "conv" else _TRANSPOSED)[rank - 1](channels, out, **options)
        return "plain", nn.Sequential(layer, *[_NORMS[rank - 1](out)] * norm, *after)
    if kind == "same":
        kernel = draw(st.sampled_from((1, 3)))
        layer = _CONVS[rank - 1](channels, channels, kernel, padding="same", bias=draw(st.booleans()))
        how = draw(st.sampled_from(("add", "add", "mul", "cat", "gate", "far")))
        return how, nn.Sequential(layer, *[_NORMS[rank - 1](channels)] * norm, *after)
    if kind in ("pool", "average"):
        kernel = draw(ints(2, 3))
        options = {"stride": draw(ints(1, 3)), "padding": draw(ints(0, 1)), "ceil_mode": draw(st.booleans())}
        if kind == "pool":
            options["dilation"] = draw(ints(1, 2))
        else:
            options["count_include_pad"] = draw(st.booleans())
        return "plain", (_MAX_POOLS if kind == "pool" else _AVERAGES)[rank - 1](kernel, **options)
    if kind == "adaptive":
        return "plain", _ADAPTIVE[rank - 1](draw(ints(1, 3)))
    if kind == "act":
        return "plain", draw(st.sampled_from(_ACTIVATIONS))()
    if kind == "resize":
        return "plain", nn.Upsample(scale_factor=2, mode="nearest")
    if kind == "scale":
        number = draw(st.sampled_from((0.5, -1.0, 2.0)))
        return "layout", draw(st.sampled_from((lambda x: x * number, lambda x: x + number, lambda x: x + x)))
    moves = (
        lambda x: x.transpose(1, 2),
        lambda x: x.flip(1),
        lambda x: x[:, 1:],
        lambda x: x[..., ::2],
        lambda x: F.pad(x, (1, 1), value=0.5),
        lambda x: F.pad(x, (1, 0)),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.roll(1, 2),
    )
    return "layout", draw(st.sampled_from(moves))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@settings(max_examples=150, deadline=None)
@given(net=nets(), seed=st.integers(0, 3))
def test_parts_give_our_integers(target: str, net: tuple[Net, tuple[int, ...]], seed: int) -> None:
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
    engines = ("onnxruntime", "openvino") if target == "onnxruntime" else ("openvino",)
    report = check_in_engines(q.program, q.model, engines, example=(calibration[1],), threads=1)
    for engine in engines:
        found = report[engine]
        assert found.lsb <= 1, f"{model}\n{report}"
        assert min(found.sqnr.values()) > 30, f"{model}\n{report}"
