"""FX graphs lowered without being run: every leaf module and function against eager PyTorch, shapes known or not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from ir.errors import CaptureError
from ir.program import Program
from ir.types import TensorType
from ir.verify import verify
from tests.compiler.lower.lowering import assert_same, names

IMAGE = (2, 4, 8, 8)
SERIES = (2, 4, 9)
VOLUME = (2, 4, 4, 6, 5)

MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), SERIES),
    (nn.Conv2d(4, 6, 3, stride=2, padding="valid"), IMAGE),
    (nn.Conv2d(4, 4, 3, padding="same", dilation=2, bias=False), IMAGE),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    (nn.Conv3d(4, 2, 2), VOLUME),
    (nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1), SERIES),
    (nn.ConvTranspose2d(4, 2, 3, stride=2), IMAGE),
    (nn.ConvTranspose3d(4, 2, 2), VOLUME),
    (nn.BatchNorm1d(4), SERIES),
    (nn.BatchNorm2d(4, affine=False), IMAGE),
    (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    (nn.BatchNorm3d(4, eps=0.1, momentum=None), VOLUME),
    (nn.LayerNorm([8, 8], eps=0.1), IMAGE),
    (nn.LayerNorm(9, bias=False), SERIES),
    (nn.RMSNorm(9), SERIES),
    (nn.GroupNorm(2, 4, affine=False), IMAGE),
    (nn.InstanceNorm2d(4, affine=True), IMAGE),
    (nn.InstanceNorm1d(4, track_running_stats=True), SERIES),
    (nn.Linear(9, 3), SERIES),
    (nn.Identity(), IMAGE),
    (nn.Dropout(0.5), IMAGE),
    (nn.Dropout2d(0.5), IMAGE),
    (nn.AlphaDropout(0.5), IMAGE),
    (nn.ReLU(), IMAGE),
    (nn.ReLU6(), IMAGE),
    (nn.LeakyReLU(0.3), IMAGE),
    (nn.ELU(0.5), IMAGE),
    (nn.SELU(), IMAGE),
    (nn.CELU(0.7), IMAGE),
    (nn.GELU(approximate="tanh"), IMAGE),
    (nn.SiLU(), IMAGE),
    (nn.Mish(), IMAGE),
    (nn.Hardswish(), IMAGE),
    (nn.Hardsigmoid(), IMAGE),
    (nn.Hardtanh(-0.5, 0.25), IMAGE),
    (nn.Sigmoid(), IMAGE),
    (nn.Tanh(), IMAGE),
    (nn.PReLU(4), IMAGE),
    (nn.RReLU(), IMAGE),
    (nn.Softplus(2.0), IMAGE),
    (nn.Threshold(0.1, 20.0), IMAGE),
    (nn.LogSigmoid(), IMAGE),
    (nn.GLU(1), IMAGE),
    (nn.Softmax(1), IMAGE),
    (nn.LogSoftmax(-1), IMAGE),
    (nn.Softmax2d(), IMAGE),
    (nn.MaxPool1d(2), SERIES),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    (nn.MaxPool3d(2), VOLUME),
    (nn.AvgPool1d(3, padding=1), SERIES),
    (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), IMAGE),
    (nn.AvgPool3d(2, divisor_override=3), VOLUME),
    (nn.AdaptiveAvgPool1d(3), SERIES),
    (nn.AdaptiveAvgPool2d(1), IMAGE),
    (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    (nn.AdaptiveAvgPool3d((2, 3, None)), VOLUME),
    (nn.AdaptiveMaxPool2d((2, 3)), IMAGE),
    (nn.LPPool2d(2, 2), IMAGE),
    (nn.Flatten(), IMAGE),
    (nn.Flatten(0, 1), IMAGE),
    (nn.Unflatten(1, (2, 2)), IMAGE),
    (nn.Upsample(scale_factor=2), IMAGE),
    (nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True), IMAGE),
    (nn.Upsample(scale_factor=1.5, mode="bicubic"), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.PixelUnshuffle(2), IMAGE),
    (nn.ChannelShuffle(2), IMAGE),
    (nn.ZeroPad2d((1, 2, 0, 1)), IMAGE),
    (nn.ReflectionPad2d(2), IMAGE),
    (nn.ReplicationPad1d(1), SERIES),
    (nn.ConstantPad2d(1, 2.5), IMAGE),
    (nn.LocalResponseNorm(2), IMAGE),
    (nn.Unfold(2), IMAGE),
    (nn.CosineSimilarity(), IMAGE),
]


def graph_of(model: nn.Module, *inputs: torch.Tensor, shapes: bool) -> Program:
    graph_module = fx.symbolic_trace(model)
    if shapes:
        with torch.no_grad():
            ShapeProp(graph_module).propagate(*inputs)
    program = lower(capture(graph_module))
    verify(program)
    return program


class Unary(nn.Module):
    """One module, and something after it that reads its result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        args = (x, x + 1) if isinstance(self.inner, nn.CosineSimilarity) else (x,)
        return self.inner(*args) * 2


@pytest.mark.parametrize("shapes", [False, True], ids=["unknown", "shapes"])
@pytest.mark.parametrize(("inner", "shape"), MODULES, ids=lambda item: str(item) if isinstance(item, nn.Module) else "")
def test_leaf_modules(inner: nn.Module, shape: tuple[int, ...], shapes: bool) -> None:
    model = Unary(inner).eval()
    x = torch.randn(shape)
    program = graph_of(model, x, shapes=shapes)
    assert_same(program, model, x)
    if shapes:
        assert program.graph.outputs[0] is not None
        assert program.graph.outputs[0].type == TensorType(tuple(model(x).shape), torch.float32)


OPAQUE_MODULES = {"LPPool2d", "LocalResponseNorm", "Unfold"}


@pytest.mark.parametrize("shapes", [False, True], ids=["unknown", "shapes"])
def test_modules_of_cnns_and_transformers_are_no_opaque_calls(shapes: bool) -> None:
    for inner, shape in MODULES:
        needs_rank = isinstance(inner, (nn.Upsample, _InstanceNorm)) and not shapes
        if type(inner).__name__ not in OPAQUE_MODULES and not needs_rank:
            program = graph_of(Unary(inner).eval(), torch.randn(shape), shapes=shapes)
            assert not program.opaques, inner


def test_pieces_of_an_unknown_number() -> None:
    def forward(x: torch.Tensor) -> Any:
        a, b, c = x.chunk(3, dim=1)
        d = x.split(2, 1)[1]
        e, f = x.unbind(0)
        return a, b, c, d, e, f

    model = Applied(forward)
    program = graph_of(model, torch.randn(2, 5), shapes=False)
    assert not program.opaques
    for size in (5, 6, 7):
        assert_same(program, model, torch.randn(2, size))


def test_an_unknown_number_of_results_is_refused() -> None:
    with pytest.raises(CaptureError, match="how many results"):
        graph_of(Applied(lambda x: own_function(x, 2.0)[0]), torch.randn(2, 2), shapes=False)


FUNCTIONS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: F.relu(x) + F.gelu(x) - F.silu(x) * F.hardswish(x),
    lambda x: 2 - x,
    lambda x: 2 / x,
    lambda x: x.abs() ** 0.5 + 2**x,
    lambda x: (x // 2, x % 3, -x, abs(x), x > 0, x == x, ~(x > 0), (x > 0) & (x < 1)),
    lambda x: (x @ x.transpose(2, 3), torch.matmul(x, x.mT)),
    lambda x: x[:, 0],
    lambda x: (x[..., 0], x[0, ..., 1:], x[:, None, 1:3, ::2], x[-1], x[:, :, -2:]),
    lambda x: x.mean([2, 3]) + x.mean(dim=(2, 3), keepdim=True).flatten(1),
    lambda x: x.permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, x.shape[1]),
    lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] // 2, -1),
    lambda x: torch.flatten(x, 1).sum(1, keepdim=True),
    lambda x: torch.cat([x, x * 2], dim=1),
    lambda x: torch.stack((x, x)).sum(0),
    lambda x: x.chunk(2, dim=1)[0] + x.chunk(2, 1)[1],
    lambda x: x.split([1, 3], dim=1)[0].unbind(1)[0] + x.tensor_split(2, 1)[1].split(1, 1)[1],
    lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (4, 4)),
    lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest") + F.interpolate(x, size=[16, 16], mode="bilinear"),
    lambda x: F.pad(x, (1, 1), value=3.0),
    lambda x: F.layer_norm(x, (8,)) + F.normalize(x, dim=1),
    lambda x: F.softmax(x, dim=1) + F.log_softmax(x, -1) + x.softmax(1),
    lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    lambda x: F.dropout(x, 0.5, training=False),
    lambda x: x.to(torch.float64) + x.double() + x.to(dtype=torch.float64),
    lambda x: x.type_as(x).clamp(-1, 1).clamp(min=0),
    lambda x: x.expand(2, -1, -1, -1) + x.repeat(1, 1, 1, 1) + x.unsqueeze(0).squeeze(0),
    lambda x: torch.einsum("bchw,bcwh->bhc", x, x),
    lambda x: (x.max(1)[0], x.argmax(1), torch.topk(x, 2, dim=-1)[1], x.std(1), torch.var(x, 1)),
    lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    lambda x: (x.size(0) + x.shape[1], x.dim(), x * x.size(1)),
    lambda x: x.masked_fill(x > 0, 0.0).cumsum(1),
    lambda x: torch.roll(x, shifts=(-1, 2), dims=(2, 3)).flip(1),
    lambda x: {"a": [x, (x + 1,)], "b": 3, "c": None},
    lambda x: torch.add(x, x, alpha=2) + torch.rsub(x, 1) + torch.sub(input=x, other=2),
    lambda x: x.add(1).mul(2).sub_(3).relu_(),
    lambda x: torch.linspace(0, 1, 8) + x,
]


class Applied(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("shapes", [False, True], ids=["unknown", "shapes"])
@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_functions_and_methods(number: int, shapes: bool) -> None:
    model = Applied(FUNCTIONS[number])
    x = torch.randn(IMAGE)
    program = graph_of(model, x, shapes=shapes)
    assert_same(program, model, x)


def test_a_size_is_a_shape_to_normalize() -> None:
    model, x = Applied(lambda x: F.rms_norm(x, x.size())), torch.randn(IMAGE)
    assert_same(graph_of(model, x, shapes=True), model, x)
    with pytest.raises(CaptureError, match="the rank is not known"):
        graph_of(model, x, shapes=False)


def test_sizes_are_read_at_run_time_where_they_are_unknown() -> None:
    model = Applied(lambda x: x.view(x.size(0), x.shape[1] * 2, -1))
    program = graph_of(model, torch.randn(2, 4, 6), shapes=False)
    assert names(program) == ["sym_size.int", "sym_size.int", "mul.int", "view"]
    for shape in ((2, 4, 6), (5, 3, 2)):
        x = torch.randn(shape)
        assert_same(program, model, x)


def test_types_come_from_shape_propagation() -> None:
    program = graph_of(Applied(lambda x: x.view(2, -1)), torch.randn(2, 4, 6), shapes=True)
    assert str(program.graph.inputs[0].type) == "f32[2, 4, 6]"
    unknown = graph_of(Applied(lambda x: x.view(2, -1)), torch.randn(2, 4, 6), shapes=False)
    assert str(unknown.graph.inputs[0].type) == "?"


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}])
def test_multihead_attention_is_one_operation(options: dict[str, Any], need_weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, dropout=0.25, **options)

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
            found, weights = self.mha(q, k, v, need_weights=need_weights)
            return (found, weights) if need_weights else found + 1

    model = Model().eval()
    inputs = [torch.randn(3, 5, options.get(name, 8)) for name in ("qdim", "kdim", "vdim")]
    for shapes in (False, True):
        program = graph_of(model, *inputs, shapes=shapes)
        assert names(program)[0] == "multihead_attention"
        op = next(program.graph.operations())
        assert op.location.module_path == "mha" and op.attributes["dropout"] == 0.25
        assert_same(program, model, *inputs)


def test_modes_of_leaf_modules() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.Dropout(0.5)).train()
    program = graph_of(model, torch.randn(IMAGE), shapes=False)
    norm, drop = program.graph.operations()
    assert norm.attributes["training"] and norm.attributes["momentum"] is None and norm.attributes["follows_mode"]
    assert drop.attributes["train"] and drop.attributes["follows_mode"]
    assert program.weights["0.running_mean"].is_mutated and program.weights["0.num_batches_tracked"].is_mutated
    assert int(model.get_buffer("0.num_batches_tracked")) == 0
    x = torch.randn(IMAGE)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    assert_same(graph_of(model, x, shapes=False), model, x)


def test_a_literal_flag_does_not_follow_the_mode() -> None:
    program = graph_of(Applied(lambda x: F.dropout(x, 0.5, False)), torch.randn(2), shapes=False)
    assert [op.attributes["follows_mode"] for op in program.graph.operations()] == [False]


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor, *, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return (x * self.weight * scale, x) if x.sum() > -1e9 else (x, x)


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Custom) or super().is_leaf_module(m, module_qualified_name)


def test_a_module_of_ones_own_stays_as_it_is() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Custom()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.own(self.fc(x), scale=2.0)
            return first + second

    model = Model()
    program = lower(capture(fx.GraphModule(model, LeafTracer().trace(model))))
    verify(program)
    assert names(program) == ["linear", "opaque", "add.Tensor"]
    assert list(program.weights) == ["fc.weight", "fc.bias"]
    assert program.opaques["own"].weight is model.own.weight
    x = torch.randn(3, 8)
    assert_same(program, model, x)


class ByKeyword(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(input=x)


@pytest.mark.parametrize("inner", [nn.Softmax2d(), nn.BatchNorm2d(4), nn.ReLU()], ids=str)
def test_a_leaf_module_is_called_by_keyword(inner: nn.Module) -> None:
    model, x = ByKeyword(inner), torch.randn(IMAGE)
    program = graph_of(model, x, shapes=False)
    assert not program.opaques
    assert_same(program, model, x)


class Branching(nn.Module):
    """Stands for a layer of `torch.nn` that depends on the values of its input."""

    def __init__(self, test: Callable[[Any], Any]) -> None:
        super().__init__()
        self.test = test

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if self.test(x) else x * 2


@pytest.mark.parametrize(
    "test", [lambda x: x.sum(), lambda x: x.sum() == 2, lambda x: x.sum() != 2], ids=["bool", "eq", "ne"]
)
def test_a_leaf_module_that_depends_on_values_is_an_opaque_call(
    monkeypatch: pytest.MonkeyPatch, test: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(Branching, "__module__", "torch.nn.modules.branching")
    model = Unary(Branching(test))
    for x in (torch.zeros(2), torch.ones(2)):
        program = graph_of(model, x, shapes=False)
        assert "opaque" in names(program)
        assert_same(program, model, x)


def test_leaf_modules_of_an_fx_graph() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    program = lower(capture(fx.symbolic_trace(model), leaf_modules=(nn.Linear,)))
    assert names(program) == ["opaque", "relu"] and not program.weights
    x = torch.randn(3, 8)
    assert_same(program, model, x)


@fx.wrap
def own_function(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


@fx.wrap
def writes_in_place_(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


def test_a_function_of_ones_own_stays_as_it_is() -> None:
    model = Applied(lambda x: own_function(x, 3.0) + own_function(x, 2.0))
    program = graph_of(model, torch.randn(2), shapes=False)
    assert names(program) == ["opaque", "opaque", "add.Tensor"]
    assert list(program.opaques.values()) == [own_function]
    assert_same(program, model, torch.randn(3))


def test_a_function_that_writes_its_argument_is_refused() -> None:
    with pytest.raises(CaptureError, match="may write to its arguments"):
        graph_of(Applied(lambda x: writes_in_place_(x) + 1), torch.randn(2), shapes=False)


def test_weights_constants_and_defaults() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.constant = torch.ones(3)

        def forward(self, x: torch.Tensor, mask: Any = None, factor: int = 2) -> torch.Tensor:
            return x * self.weight + self.constant

    model = Model()
    program = graph_of(model, torch.randn(3), shapes=False)
    assert [(leaf.name, leaf.value) for leaf in program.convention.inputs] == [
        ("x", 0),
        ("mask", None),
        ("factor", None),
    ]
    assert next(iter(program.weights)) == "weight" and program.weights["weight"].data is model.weight
    assert_same(program, model, torch.randn(3))


def test_upsample_is_interpolation_with_fewer_options() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(F.upsample, (graph.placeholder("x"), (5, 6))))
    program = lower(capture(fx.GraphModule(nn.Module(), graph)))
    assert names(program) == ["upsample_nearest2d.vec"]
    assert_same(program, Applied(lambda x: F.interpolate(x, (5, 6))), torch.randn(IMAGE))


def test_item_assignment() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(operator.mul, (x, 2))
    graph.call_function(operator.setitem, (y, (slice(None), 0), 5.0))
    graph.output(y)
    program = lower(capture(fx.GraphModule(nn.Module(), graph)))
    data = torch.randn(3, 4)

    class Reference(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y[:, 0] = 5.0
            return y

    assert_same(program, Reference(), data)
