"""The emitter: fused regions, as hand-written modules and as generated ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.emitted.fused import (
    FusedAdaptiveAvgPool2d,
    FusedConvBN,
    FusedConvBNAct,
    FusedConvBNActMaxPool,
    FusedConvBNAddAct,
    FusedLayerNorm,
    FusedLinear,
    FusedLinearAct,
    FusedModule,
    MHAInProjection,
    ScaledDotProductAttention,
)
from compiler.emitted.graphmodule import FusedRegion
from ir.core import Operation, Value
from ir.types import make_symbol
from passes.fuse.conv import ConvBNAddActPattern
from passes.rewrite.rewriter import Rewriter
from tests.compiler.drafts import Draft, f32, randomize


class Net(nn.Module):
    """The layers that the regions here are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.prelu = nn.PReLU(4)
        self.pool = nn.MaxPool2d(2)
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)


class Chain(Draft):
    """A draft whose methods append the operations of `Net` and remember them by part name."""

    def __init__(self, **inputs: Any) -> None:
        super().__init__(randomize(Net()).eval(), **inputs)
        self.parts: dict[str, Operation] = {}

    def remember(self, part: str, value: Any) -> Value:
        assert isinstance(value, Value)
        assert value.defining_op is not None
        self.parts[part] = value.defining_op
        return value

    def conv(self, x: Value) -> Value:
        return self.remember("conv", self.at("conv").call("aten.conv2d", x, self["conv.weight"], padding=1))

    def bn(self, x: Value) -> Value:
        weights = [self[f"bn.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
        return self.remember("bn", self.at("bn").call("aten.batch_norm", x, *weights, False, 0.1, 1e-5, True))

    def act(self, x: Value, name: str = "act") -> Value:
        b = self.at(name)
        return self.remember("act", b.relu(x) if name == "act" else b.prelu(x, self["prelu.weight"]))

    def pool(self, x: Value) -> Value:
        return self.remember("pool", self.at("pool").max_pool2d(x, 2))

    def add(self, x: Value, y: Value, **kwargs: Any) -> Value:
        return self.remember("add", self.at("").call("aten.add.Tensor", x, y, **kwargs))

    def linear(self, x: Value) -> Value:
        return self.remember("linear", self.at("fc").linear(x, self["fc.weight"], self["fc.bias"]))

    def fuse(
        self,
        kind: str,
        inputs: Mapping[Value, str],
        *,
        without: tuple[str, ...] = ("add",),
        points: tuple[str, ...] = ("input",),
    ) -> Operation:
        ops = list(self.graph.operations())
        parts = {op: name for name, op in self.parts.items() if name not in without}
        return Rewriter(self.program).fuse(kind, ops, parts=parts, inputs=inputs, quantization_points=points)


IMAGE = f32(2, 3, 8, 8)
MAP = f32(2, 4, 8, 8)


def conv_bn(c: Chain) -> Value:
    return c.bn(c.conv(c["x"]))


CHAINS: list[tuple[str, type[nn.Module], Callable[[Chain], Value], Callable[[Any, torch.Tensor], torch.Tensor]]] = [
    ("conv_bn", FusedConvBN, conv_bn, lambda m, x: m.bn(m.conv(x))),
    ("conv_bn", FusedConvBN, lambda c: c.conv(c["x"]), lambda m, x: m.conv(x)),
    ("conv_bn_act", FusedConvBNAct, lambda c: c.act(conv_bn(c)), lambda m, x: m.act(m.bn(m.conv(x)))),
    ("conv_bn_act", FusedConvBNAct, lambda c: c.act(c.conv(c["x"]), "prelu"), lambda m, x: m.prelu(m.conv(x))),
    (
        "conv_bn_act_max_pool",
        FusedConvBNActMaxPool,
        lambda c: c.pool(c.act(conv_bn(c))),
        lambda m, x: m.pool(m.act(m.bn(m.conv(x)))),
    ),
]


@pytest.mark.parametrize(("kind", "cls", "build", "reference"), CHAINS)
def test_a_chain_becomes_its_hand_written_module(kind: str, cls: type[nn.Module], build: Any, reference: Any) -> None:
    c = Chain(x=IMAGE)
    y = build(c)
    c.graph.set_outputs([y])
    region = c.fuse(kind, {c["x"]: "input"})
    result = c.emit(region.result)
    emitted = result.module
    fused = emitted.get_submodule("conv")
    assert type(fused) is cls
    assert fused.kind == kind
    assert fused.quantization_points == ("input",)
    assert [name for name, _ in fused.named_children()] == list(c.parts)
    assert isinstance(fused.get_submodule("conv"), nn.Conv2d)
    assert result.parameter_map["conv.conv.weight"] == ("conv.weight",)
    if "bn" in c.parts:
        assert result.parameter_map["conv.bn.num_batches_tracked"] == ("bn.num_batches_tracked",)
        assert not any(key.startswith("bn.") for key in emitted.state_dict())
    emitted.load_state_dict(result.parameter_map.convert(c.model.state_dict()))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(emitted(x), reference(c.model, x))
    for parameter in c.model.parameters():
        parameter.grad = None
    saved = {k: v.clone() for k, v in c.model.state_dict().items()}
    expected = reference(c.model.train(), x)
    expected.sum().backward()
    after = {k: v.clone() for k, v in c.model.state_dict().items()}
    c.model.load_state_dict(saved)
    actual = emitted.train()(x)
    actual.sum().backward()
    assert torch.equal(actual, expected)
    state = emitted.state_dict()
    names = result.parameter_map
    assert all(torch.equal(state[key], after[names[key][0]]) for key in state)
    originals = dict(c.model.named_parameters())
    for key, parameter in emitted.named_parameters():
        grad = originals[names[key][0]].grad
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or (parameter.grad is not None and torch.equal(parameter.grad, grad))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("with_bn", [False, True])
@pytest.mark.parametrize("with_act", [False, True])
def test_a_residual_addition_keeps_its_operands(swapped: bool, with_bn: bool, with_act: bool) -> None:
    c = Chain(x=IMAGE, r=MAP)
    y = conv_bn(c) if with_bn else c.conv(c["x"])
    y = c.add(c["r"], y) if swapped else c.add(y, c["r"])
    y = c.act(y) if with_act else y
    c.graph.set_outputs([y])
    region = c.fuse("conv_bn_add_act", {c["x"]: "input", c["r"]: "residual"}, points=("input", "residual"))
    emitted = c.emit(region.result).module
    fused = emitted.get_submodule("conv")
    assert type(fused) is FusedConvBNAddAct
    assert fused.quantization_points == ("input", "residual")
    x, r = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    expected = c.model.get_submodule("conv")(x)
    if with_bn:
        expected = c.model.get_submodule("bn")(expected)
    expected = expected + r
    assert torch.equal(emitted(x, r), F.relu(expected) if with_act else expected)


def test_bodies_of_another_shape_are_generated() -> None:
    x, r = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)

    def fused(
        build: Callable[[Chain], Value], reference: Callable[[Any], torch.Tensor], kind: str = "conv_bn_add_act"
    ) -> Any:
        c = Chain(x=IMAGE, r=MAP)
        y = build(c)
        c.graph.set_outputs([y])
        region = c.fuse(kind, {c["x"]: "input", c["r"]: "residual"})
        emitted = c.emit(region.result).module
        assert torch.equal(emitted(x, r), reference(c.model))
        return emitted.get_submodule("conv")

    scaled = fused(lambda c: c.add(c.conv(c["x"]), c["r"], alpha=2), lambda m: torch.add(m.conv(x), r, alpha=2))
    assert isinstance(scaled, FusedRegion)
    assert "alpha = 2" in scaled.code
    doubled = fused(
        lambda c: (lambda y: c.add(c.add(y, y), c["r"]))(c.conv(c["x"])), lambda m: m.conv(x) + m.conv(x) + r
    )
    assert isinstance(doubled, FusedRegion)
    early = fused(lambda c: c.bn(c.add(c.conv(c["x"]), c["r"])), lambda m: m.bn(m.conv(x) + r))
    assert isinstance(early, FusedRegion)
    before = fused(
        lambda c: c.act(c.add(c.bn(c.conv(c["x"])), c["r"])), lambda m: F.relu(m.bn(m.conv(x)) + r), "conv_bn_act"
    )
    assert isinstance(before, FusedRegion)
    assert type(before).__name__ == "FusedConvBNAct"


def test_linear_norm_and_pool() -> None:
    c = Chain(x=f32(2, 4))
    y = c.linear(c["x"])
    c.graph.set_outputs([y])
    region = c.fuse("linear", {c["x"]: "input"})
    c.parts = {}
    d = c.at("norm")
    norm = d.op("aten.layer_norm", region.result, (5,), c["norm.weight"], c["norm.bias"])
    c.graph.set_outputs([norm.result])
    region = Rewriter(c.program).fuse("layer_norm", [norm], parts={norm: "norm"}, inputs={region.result: "input"})
    emitted = c.emit(region.result).module
    assert type(emitted.get_submodule("fc")) is FusedLinear
    assert type(emitted.get_submodule("norm")) is FusedLayerNorm
    keys = list(emitted.state_dict())
    assert keys[keys.index("fc.linear.weight") :] == [
        "fc.linear.weight",
        "fc.linear.bias",
        "norm.norm.weight",
        "norm.norm.bias",
    ]
    x = torch.randn(2, 4)
    assert torch.equal(emitted(x), c.model.get_submodule("norm")(c.model.get_submodule("fc")(x)))

    c = Chain(x=f32(2, 4))
    y = c.remember("act", c.at("").call("aten.gelu", c.linear(c["x"])))
    c.graph.set_outputs([y])
    emitted = c.emit(c.fuse("linear_act", {c["x"]: "input"}).result).module
    fused = emitted.get_submodule("fc")
    assert type(fused) is FusedLinearAct
    assert repr(fused.get_submodule("act")) == "GELU(approximate='none')"

    c = Chain(x=MAP)
    y = c.remember("pool", c.at("avg").adaptive_avg_pool2d(c["x"], 1))
    z = c.remember("pool", c.at("").adaptive_avg_pool2d(c["x"], 1))
    c.graph.set_outputs([y, z])
    outputs = []
    for value in (y, z):
        op = value.defining_op
        assert op is not None
        outputs.append(
            Rewriter(c.program).fuse("adaptive_avg_pool2d", [op], parts={op: "pool"}, inputs={c["x"]: "input"}).result
        )
    emitted = c.emit(*outputs).module
    assert type(emitted.get_submodule("avg")) is FusedAdaptiveAvgPool2d
    assert type(emitted.get_submodule("adaptive_avg_pool2d")) is FusedAdaptiveAvgPool2d


def test_one_block_called_twice_is_one_fused_module() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "other": nn.Conv2d(3, 3, 1)})
    d = Draft(model, x=f32(2, 3, 4, 4))
    y = d["x"]
    ops = []
    for path in ("conv", "other", "conv"):
        y = d.at(path).call("aten.conv2d", y, d[f"{path}.weight"], d[f"{path}.bias"])
        ops.append(y.defining_op)
    d.graph.set_outputs([y])
    for op in ops:
        Rewriter(d.program).fuse("conv_bn", [op], parts={op: "conv"}, inputs={op.operands[0]: "input"})
    result = d.emit(*d.graph.outputs)
    targets = [n.target for n in result.module.graph.nodes if n.op == "call_module"]
    assert targets == ["_guard", "conv", "other", "conv"]
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(result.module(x), model["conv"](model["other"](model["conv"](x))))


def test_a_kind_of_the_users_becomes_a_region_with_its_parts_as_children() -> None:
    batch = make_symbol("batch")
    c = Chain(x=f32(batch, 3, 8, 8))
    y = c.act(conv_bn(c))
    y = c.at("").reshape(y, (4 * batch, 64))
    y = c.b.call("aten.mul.Scalar", y, 0.5)
    y = c.b.dropout(y, 0.5, False)
    c.graph.set_outputs([y, c.parts["conv"].result])
    region = c.fuse("my_block", {c["x"]: "input"})
    emitted = c.emit(*region.results).module
    fused = emitted.get_submodule("conv")
    assert type(fused).__name__ == "FusedMyBlock"
    assert isinstance(fused, FusedRegion)
    assert [name for name, _ in fused.named_children()] == ["conv", "bn", "act", "dropout"]
    assert not fused.training
    x = torch.randn(3, 3, 8, 8)
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        conv, out = module(x)
        expected = c.model.get_submodule("conv")(x)
        assert torch.equal(conv, expected)
        assert torch.equal(out, F.relu(c.model.get_submodule("bn")(expected)).reshape(12, 64) * 0.5)
        block = module.get_submodule("conv")
        assert isinstance(block, FusedRegion)
        assert (type(block).__name__, block.kind, block.quantization_points) == ("FusedMyBlock", "my_block", ("input",))


def test_a_chain_of_the_users_becomes_a_fused_module_of_its_kind() -> None:
    classes = []
    for build in (lambda c: c.pool(c.conv(c["x"])), lambda c: c.pool(c.bn(c.conv(c["x"])))):
        c = Chain(x=IMAGE)
        y = build(c)
        c.graph.set_outputs([y])
        emitted = c.emit(c.fuse("my_stem", {c["x"]: "input"}).result).module
        x = torch.randn(2, 3, 8, 8)
        expected = c.model.get_submodule("conv")(x)
        expected = c.model.get_submodule("pool")(c.model.get_submodule("bn")(expected) if "bn" in c.parts else expected)
        for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
            stem = module.get_submodule("conv")
            assert isinstance(stem, FusedModule)
            assert (stem.kind, stem.parts, stem.quantization_points) == ("my_stem", tuple(c.parts), ("input",))
            assert torch.equal(module(x), expected)
            classes.append(type(stem))
    assert [cls.__name__ for cls in set(classes)] == ["FusedMyStem"]


def test_fused_modules_have_the_declaration_of_their_rules() -> None:
    assert FusedConvBNAddAct.parts == ConvBNAddActPattern.parts
    assert FusedConvBNAddAct.quantization_points == ("input", "residual")
    act = FusedLinearAct(linear=nn.Linear(3, 3), act=nn.ReLU())
    assert (act.kind, act.parts) == ("linear_act", ("linear", "act"))
    assert torch.equal(act(-torch.ones(3)), F.relu(act.get_submodule("linear")(-torch.ones(3))))
    assert torch.equal(copy.deepcopy(act)(torch.ones(3)), act(torch.ones(3)))


def test_weights_without_a_part_are_passed_in() -> None:
    model = nn.Module()
    model.gamma = nn.Parameter(torch.rand(4))
    d = Draft(model, x=f32(2, 4))
    y = d.b.mul(d["x"], d["gamma"])
    d.graph.set_outputs([d.b.relu(y)])
    region = Rewriter(d.program).fuse("scaled", list(d.graph.operations()), inputs={d["x"]: "input"})
    emitted = d.emit(region.result).module
    assert list(emitted.state_dict()) == ["gamma"]
    x = torch.randn(2, 4)
    assert torch.equal(emitted(x), F.relu(x * model.gamma))


def test_attention_and_its_projection() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)}).eval()
    d = Draft(model, x=f32(2, 5, 8))
    b = d.at("attn")
    joint = b.linear(d["x"], d["attn.in_proj_weight"], d["attn.in_proj_bias"])
    heads = b.call("aten.permute", b.reshape(joint, (2, 5, 3, 2, 4)), (2, 0, 3, 1, 4))
    q, k, v = b.call("aten.unbind.int", heads)
    y = b.call("aten.scaled_dot_product_attention", q, k, v, train_dropout_p=0.1)
    d.graph.set_outputs([y])
    ops = list(d.graph.operations())
    rewriter = Rewriter(d.program)
    points = ("query", "key", "value")
    rewriter.fuse("mha_in_projection", ops[:-1], parts={ops[0]: "in_proj"}, inputs={d["x"]: "input"})
    rewriter.fuse(
        "scaled_dot_product_attention",
        ops[-1:],
        inputs=dict(zip(ops[-1].operand_values, points, strict=True)),
        quantization_points=points,
    )
    result = d.emit(*d.graph.outputs)
    emitted = result.module
    projection = emitted.get_submodule("attn.mha_in_projection")
    assert isinstance(projection, MHAInProjection)
    assert isinstance(projection.get_submodule("in_proj"), nn.Linear)
    attention = emitted.get_submodule("attn.scaled_dot_product_attention")
    assert type(attention) is ScaledDotProductAttention
    assert attention.quantization_points == points
    assert attention.dropout_p == 0.1
    assert result.parameter_map["attn.mha_in_projection.in_proj.weight"] == ("attn.in_proj_weight",)
    assert list(emitted.state_dict()) == [
        "attn.mha_in_projection.in_proj.weight",
        "attn.mha_in_projection.in_proj.bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
    ]
    emitted.load_state_dict(result.parameter_map.convert(model.state_dict()))
    x = torch.randn(2, 5, 8)
    weight, bias = model["attn"].in_proj_weight, model["attn"].in_proj_bias
    parts = F.linear(x, weight, bias).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    for module in (emitted, pickle.loads(pickle.dumps(emitted))):
        assert torch.equal(module(x), F.scaled_dot_product_attention(*parts))
        assert isinstance(module.get_submodule("attn.mha_in_projection"), MHAInProjection)


def test_attention_with_a_mask_and_options() -> None:
    shape = f32(2, 2, 5, 4)
    d = Draft(None, q=shape, k=shape, v=shape, m=f32(5, 5))
    y = d.b.call("aten.scaled_dot_product_attention", d["q"], d["k"], d["v"], d["m"], scale=0.3)
    d.graph.set_outputs([y])
    ops = list(d.graph.operations())
    Rewriter(d.program).fuse(
        "scaled_dot_product_attention", ops, inputs={d["q"]: "query", d["k"]: "key", d["v"]: "value"}
    )
    emitted = d.emit(*d.graph.outputs).module
    assert repr(emitted.get_submodule("scaled_dot_product_attention")) == "ScaledDotProductAttention(scale=0.3)"
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    mask = torch.randn(5, 5)
    assert torch.equal(emitted(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask, scale=0.3))


def test_attention_written_out_is_generated() -> None:
    shape = f32(2, 2, 5, 4)
    d = Draft(None, q=shape, k=shape, v=shape)
    scores = d.b.call("aten.mul.Scalar", d.b.matmul(d["q"], d.b.call("aten.transpose.int", d["k"], -2, -1)), 0.5)
    y = d.b.matmul(d.b.call("aten.softmax.int", scores, -1), d["v"])
    d.graph.set_outputs([y])
    ops = list(d.graph.operations())
    Rewriter(d.program).fuse(
        "scaled_dot_product_attention", ops, inputs={d["q"]: "query", d["k"]: "key", d["v"]: "value"}
    )
    emitted = d.emit(*d.graph.outputs).module
    region = emitted.get_submodule("scaled_dot_product_attention")
    assert isinstance(region, FusedRegion)
    assert type(region).__name__ == "ScaledDotProductAttention"
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    assert torch.equal(emitted(q, k, v), torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v)


def test_arguments_of_a_region_keep_apart_whatever_they_are_called() -> None:
    d = Draft(None, x=f32(3), input=f32(3), input_0=f32(3), input_1=f32(3))
    values = [d[name] for name in ("input", "input_1", "x", "input_0")]
    values[2].name = "self"
    total = d.b.sub(d.b.mul(values[0], values[1]), d.b.mul(values[2], values[3]))
    ops = [op for op in d.program.graph.operations() if op.results]
    region = Rewriter(d.program).fuse("drawn", ops, outputs=[total])
    emitted = d.emit(region.results[0]).module
    given = {value.name: torch.randn(3) for value in values}
    a, b, c, e = given.values()
    assert torch.equal(emitted(*(given[value.name] for value in d.program.graph.inputs)), a * b - c * e)
