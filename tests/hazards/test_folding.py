"""Hazards of folding and fusing: shared modules, read values, batch norms, axes, scales, additions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models import randomize_batch_norm
from graphwright import TransformResult, pipeline_of, transform
from graphwright.passes import FoldBatchNorm
from graphwright.tensorrt import TENSORRT_PATTERNS
from tests.hazards.compare import assert_same


class Net(nn.Module):
    """Layers by name, and a forward over them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class NetOfTwo(Net):
    def forward(self, x: torch.Tensor, r: torch.Tensor) -> Any:  # type: ignore[override]
        return self.function(self, x, r)


def conv(out: int = 4, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, out, kernel, **options)


def bn(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4, **options)


X = (2, 4, 6, 6)


def held(model: nn.Module, *args: Any, **options: Any) -> dict[str, TransformResult]:
    randomize_batch_norm(model, torch.Generator().manual_seed(3))
    return assert_same(model, *args, **options)


# ---- one module at several places


def tied() -> nn.Module:
    model = Net(lambda m, x: m.d(F.relu(m.b(m.c(x)))), c=conv(), d=conv(), b=bn())
    model.d.weight = model.c.weight
    return model


SHARED: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: Net(lambda m, x: m.b(m.c(F.relu(m.a(m.c(x))))), c=conv(), a=bn(), b=bn()),
    "batch norm": lambda: Net(lambda m, x: m.b(m.d(F.relu(m.b(m.c(x))))), c=conv(), d=conv(), b=bn()),
    "both": lambda: Net(lambda m, x: F.relu(m.b(m.c(F.relu(m.b(m.c(x)))))), c=conv(), b=bn()),
    "tied weight": tied,
    "updates in order": lambda: Net(lambda m, x: F.relu(m.b(m.c(x)) + m.b(m.d(x))), c=conv(), d=conv(), b=bn()),
    "a weight that is read": lambda: Net(lambda m, x: (m.c(x), m.c.weight.sum(), m.c.weight), c=conv()),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_shared_modules(name: str, training: bool) -> None:
    held(SHARED[name]().train(training), torch.randn(X), ways=("export", "fx"))


def test_linear_layers_that_share_a_weight_with_what_becomes_a_convolution() -> None:
    model = Net(lambda m, x: m.k(m.l(m.l(x.flatten(1)))), l=nn.Linear(4, 4), k=nn.Linear(4, 4))
    model.k.weight = model.l.weight
    held(model, torch.randn(2, 4, 1, 1), ways=("export", "fx"))


# ---- values that somebody else reads


def two_readers(m: Any, x: torch.Tensor) -> Any:
    y = m.c(x)
    z = m.b(y)
    return F.relu(z), y, z


def in_place(m: Any, x: torch.Tensor) -> Any:
    z = m.b(m.c(x))
    return F.relu(z, inplace=True), z


def over_both(m: Any, x: torch.Tensor) -> Any:
    y = m.c(x)
    return F.relu(y + F.relu(y)), m.d(y) + y, F.gelu(m.d(x) + m.d(x))


@pytest.mark.parametrize("forward", [two_readers, in_place, over_both])
def test_values_that_somebody_else_reads(forward: Any) -> None:
    held(Net(forward, c=conv(), d=conv(), b=bn()).eval(), torch.randn(X))


# ---- batch norms


def mixed(mode: bool) -> nn.Module:
    model = Net(lambda m, x: m.drop(F.relu(m.b(m.c(x)))), c=conv(), b=bn(), drop=nn.Dropout(0.5)).train(mode)
    model.b.train(not mode)
    return model


def test_a_batch_norm_in_the_other_mode() -> None:
    for mode in (False, True):
        held(mixed(mode), torch.randn(X), ways=("export", "fx"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.3, "momentum": None},
        {"momentum": 0.0},
        {"affine": False, "momentum": 0.5},
        {"track_running_stats": False},
        {"track_running_stats": False, "affine": False},
    ],
    ids=str,
)
def test_options_of_batch_norm(options: dict[str, Any], training: bool) -> None:
    model = Net(lambda m, x: F.relu(m.b(m.c(x))), c=conv(bias=False), b=bn(**options))
    held(model.train(training), torch.randn(X), ways=("export", "fx"))


def test_functional_batch_norm_in_training_whatever_the_mode() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = F.batch_norm(m.c(x), m.b.running_mean, m.b.running_var, training=True, momentum=0.3)
        return F.relu(y), F.relu(F.batch_norm(m.d(x), None, None, m.b.weight, m.b.bias, True))

    held(Net(forward, c=conv(), d=conv(), b=bn()).eval(), torch.randn(X))


# ---- attributes and axes


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padding(mode: Any, padding: Any) -> None:
    layer = nn.Conv2d(4, 4, (3, 2), padding=padding, padding_mode=mode, groups=2, dilation=(1, 2))
    held(Net(lambda m, x: F.relu(m.b(m.c(x))), c=layer, b=bn()).eval(), torch.randn(X))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 4, 3, 2, 1, groups=2), nn.BatchNorm1d(4), (4, 4, 4)),
        (nn.Conv3d(4, 4, 2, dilation=(1, 2, 1)), nn.BatchNorm3d(4), (2, 4, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 6)),
        (nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1, groups=4), nn.BatchNorm2d(4), (4, 4, 4, 4)),
        (nn.Linear(4, 4), nn.BatchNorm1d(4), (4, 4)),
        (nn.Linear(4, 4), nn.BatchNorm1d(4), (4, 4, 4)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_channel_axis(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], training: bool) -> None:
    held(nn.Sequential(layer, norm, nn.ReLU()).train(training), torch.randn(shape), ways=("export", "fx"))


def test_scales_along_other_axes() -> None:
    model = Net(lambda m, x: m.c(x * m.s) * m.s + m.c(x * m.s[:, None, None]) * m.s[:, None, None], c=conv())
    model.s = nn.Parameter(torch.randn(4))
    held(model, torch.randn(2, 4, 4, 4))


ACTIVATIONS = [
    nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(-0.3), nn.ELU(0.7), nn.GELU(approximate="tanh"), nn.Hardswish(),
    nn.PReLU(), nn.PReLU(4), nn.Softplus(2, 1), nn.CELU(0.5), nn.Hardtanh(-2, 3), nn.Threshold(0.1, 20),
    nn.Softmax(1), nn.Softmax2d(), nn.GLU(1), nn.Hardshrink(0.2), nn.LogSigmoid(), nn.Tanhshrink(),
]  # fmt: skip


def test_attributes_of_activations() -> None:
    layers = {f"a{i}": layer for i, layer in enumerate(ACTIVATIONS)}

    def forward(m: Any, x: torch.Tensor) -> Any:
        return [getattr(m, name)(m.b(m.c(x))) for name in layers] + [getattr(m, name)(m.d(x)) for name in layers]

    held(Net(forward, c=conv(), d=conv(), b=bn(), **layers).eval(), torch.randn(2, 4, 2, 2))


def test_attributes_of_pools() -> None:
    pools = (
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, 1, dilation=2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, divisor_override=5),
        nn.AdaptiveAvgPool2d((None, 3)),
        nn.AdaptiveAvgPool2d((12, None)),
        nn.AdaptiveMaxPool2d((3, None)),
    )
    held(Net(lambda m, x: [p(x) for p in m.pools], pools=nn.ModuleList(pools)), torch.randn(2, 3, 12, 12))


# ---- clamps and additions


def clamps(m: Any, x: torch.Tensor) -> Any:
    return (
        x.clamp(max=-1).clamp(min=1),
        x.clamp(min=1).clamp(max=-1),
        F.relu(-x) * -1,
        F.relu6(F.relu(x)),
        F.hardtanh(x, -0.5, 0.25),
        x.clamp(min=x.mean()),
    )


def additions(m: Any, x: torch.Tensor, r: torch.Tensor) -> Any:
    return (
        F.relu(torch.add(m.b(m.c(x)), r, alpha=2)),
        F.relu(torch.add(r, m.c(x), alpha=-0.5)),
        F.relu(r - m.c(x)),
        torch.rsub(m.c(x), 1.0, alpha=3),
        1 - m.c(x),
        F.relu(m.c(x) + 0.5),
        F.relu(m.c(x) + m.c(x)),
        F.relu(m.c(x) + r[:1]),
        F.relu(r[0, 0, 0] + m.c(x)),
        m.c(x) + torch.ones(4, dtype=torch.int64),
        m.c(x) + m.c(x).float(),
    )


def test_clamps_compose_in_order() -> None:
    held(Net(clamps), torch.randn(2, 4, 4, 4))


def test_additions() -> None:
    held(NetOfTwo(additions, c=conv(), b=bn()).eval(), torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4))


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def test_batch_norm_behind_a_convolution_without_a_batch_has_another_channel_axis() -> None:
    pipeline = pipeline_of(TENSORRT_PATTERNS).insert_before("fuse", FoldBatchNorm())
    model = Unbatched().eval()
    nn.init.normal_(model.norm.weight)
    model.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 4, 4)
    torch.testing.assert_close(transform(model, (x,), pipeline=pipeline).model(x), model(x))


class RecurrentBlock(nn.Module):
    """A convolution and its norm, whose result is kept for the next call."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.register_buffer("state", torch.zeros(2, 3, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = torch.relu(self.norm(self.conv(x + self.state)))
        return self.state + 0


def test_folding_for_inference_beside_a_state_with_a_gradient() -> None:
    model, x = RecurrentBlock().eval(), torch.randn(2, 3, 6, 6)
    pipeline = pipeline_of(TENSORRT_PATTERNS).insert_before("fuse", FoldBatchNorm())
    emitted = transform(copy.deepcopy(model), (x,), pipeline=pipeline).model
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(emitted(x), model(x), rtol=1e-4, atol=1e-5)
