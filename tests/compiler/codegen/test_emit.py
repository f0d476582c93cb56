"""The emitter: operations as modules and functions, weights and modes."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ir.core import Value
from ir.errors import InputError
from ir.locations import Location
from ir.types import TensorType
from tests.compiler.drafts import Draft, f32, randomize


def module_cases() -> list[Any]:
    """(module, input type, builds the operation from the draft with the module at path `m`)."""

    def conv(kind: str) -> Any:
        def build(d: Draft, m: Any) -> Value:
            padding = m.padding
            name = kind if not isinstance(padding, str) else f"{kind}.padding"
            bias = None if m.bias is None else d["m.bias"]
            op = d.b.call(f"aten.{name}", d["x"], d["m.weight"], bias, m.stride, padding, m.dilation, m.groups)
            assert isinstance(op, Value)
            return op

        return build

    def transposed(kind: str) -> Any:
        return lambda d, m: d.b.call(
            f"aten.{kind}",
            d["x"],
            d["m.weight"],
            None if m.bias is None else d["m.bias"],
            m.stride,
            m.padding,
            m.output_padding,
            m.groups,
            m.dilation,
        )

    def batch_norm(d: Draft, m: Any) -> Value:
        w = [
            d[f"m.{n}"] if getattr(m, n) is not None else None
            for n in ("weight", "bias", "running_mean", "running_var")
        ]
        training = m.training or m.running_mean is None
        op = d.b.op("aten.batch_norm", d["x"], *w, training, m.momentum or 0.0, m.eps, True)
        op.attributes["momentum"] = m.momentum
        return op.result

    def instance_norm(d: Draft, m: Any) -> Value:
        w = [
            d[f"m.{n}"] if getattr(m, n) is not None else None
            for n in ("weight", "bias", "running_mean", "running_var")
        ]
        tracks = m.running_mean is not None
        args = d["x"], *w, m.training or not tracks, m.momentum, m.eps, True
        return d.b.call("aten.instance_norm", *args, follows_mode=tracks)

    def layer_norm(d: Draft, m: Any) -> Value:
        w = [d[f"m.{n}"] if getattr(m, n, None) is not None else None for n in ("weight", "bias")]
        return d.b.call("aten.layer_norm", d["x"], m.normalized_shape, *w, m.eps)

    def group_norm(d: Draft, m: Any) -> Value:
        w = [d[f"m.{n}"] if getattr(m, n) is not None else None for n in ("weight", "bias")]
        return d.b.call("aten.group_norm", d["x"], m.num_groups, *w, m.eps)

    def rms_norm(d: Draft, m: Any) -> Value:
        return d.b.call("aten.rms_norm", d["x"], m.normalized_shape, d["m.weight"], m.eps)

    def plain(name: str, *attributes: str) -> Any:
        return lambda d, m: d.b.call(f"aten.{name}", d["x"], *(getattr(m, a) for a in attributes))

    image, seq, vol = f32(2, 4, 9, 9), f32(2, 4, 9), f32(2, 4, 5, 6, 7)
    pool = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    avg = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    return [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), image, conv("conv2d")),
        (nn.Conv2d(4, 6, (3, 1), padding=(1, 0), bias=False), image, conv("conv2d")),
        (nn.Conv2d(4, 6, 3, padding="same"), image, conv("conv2d")),
        (nn.Conv1d(4, 6, 3), seq, conv("conv1d")),
        (nn.Conv1d(4, 6, 3), f32(4, 9), conv("conv1d")),
        (nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 2, 1)), vol, conv("conv3d")),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), seq, transposed("conv_transpose1d")),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), image, transposed("conv_transpose2d.input")),
        (nn.ConvTranspose3d(4, 2, 2, bias=False), vol, transposed("conv_transpose3d.input")),
        (nn.Linear(9, 5), image, lambda d, m: d.b.linear(d["x"], d["m.weight"], d["m.bias"])),
        (nn.Linear(9, 5, bias=False), f32(9), lambda d, m: d.b.linear(d["x"], d["m.weight"])),
        (nn.BatchNorm1d(4, eps=1e-3, momentum=0.3), seq, batch_norm),
        (nn.BatchNorm1d(4), f32(5, 4), batch_norm),
        (nn.BatchNorm2d(4, momentum=None), image, batch_norm),
        (nn.BatchNorm2d(4, affine=False), image, batch_norm),
        (nn.BatchNorm2d(4, bias=False), image, batch_norm),
        (nn.BatchNorm2d(4, track_running_stats=False), image, batch_norm),
        (nn.BatchNorm3d(4), vol, batch_norm),
        (nn.InstanceNorm2d(4, affine=True), image, instance_norm),
        (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), seq, instance_norm),
        (nn.LayerNorm((9, 9), eps=1e-3), image, layer_norm),
        (nn.LayerNorm(9, bias=False), image, layer_norm),
        (nn.LayerNorm(9, elementwise_affine=False), image, layer_norm),
        (nn.GroupNorm(2, 4, eps=1e-3), image, group_norm),
        (nn.GroupNorm(2, 4, affine=False), image, group_norm),
        (nn.RMSNorm(9, eps=1e-3), image, rms_norm),
        (nn.PReLU(4), image, lambda d, m: d.b.prelu(d["x"], d["m.weight"])),
        (nn.ReLU(), image, plain("relu")),
        (nn.ReLU6(), image, lambda d, m: d.b.hardtanh(d["x"], 0.0, 6.0)),
        (nn.Hardtanh(-0.5, 0.25), image, plain("hardtanh", "min_val", "max_val")),
        (nn.LeakyReLU(0.3), image, plain("leaky_relu", "negative_slope")),
        (nn.ELU(0.7), image, plain("elu", "alpha")),
        (nn.GELU(approximate="tanh"), image, lambda d, m: d.b.gelu(d["x"], approximate="tanh")),
        (nn.SiLU(), image, plain("silu")),
        (nn.Hardswish(), image, plain("hardswish")),
        (nn.Hardsigmoid(), image, plain("hardsigmoid")),
        (nn.Sigmoid(), image, plain("sigmoid")),
        (nn.Tanh(), image, plain("tanh")),
        (nn.Mish(), image, plain("mish")),
        (nn.Softplus(2.0, 5.0), image, plain("softplus", "beta", "threshold")),
        (nn.Softmax(-2), image, plain("softmax.int", "dim")),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), image, plain("max_pool2d", *pool)),
        (nn.MaxPool1d(2, dilation=2), seq, plain("max_pool1d", *pool)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), image, plain("avg_pool2d", *avg)),
        (nn.AvgPool3d((1, 2, 3)), vol, plain("avg_pool3d", *avg)),
        (nn.AdaptiveAvgPool2d((1, 3)), image, plain("adaptive_avg_pool2d", "output_size")),
        (nn.AdaptiveAvgPool1d(2), seq, plain("adaptive_avg_pool1d", "output_size")),
    ]


@pytest.mark.parametrize(
    ("module", "type_", "build"),
    module_cases(),
    ids=lambda p: getattr(p, "_get_name", str)() if isinstance(p, nn.Module) else None,
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_operation_of_a_module_is_emitted_as_that_module(
    module: nn.Module, type_: TensorType, build: Any, training: bool
) -> None:
    model = randomize(nn.ModuleDict({"m": module})).train(training)
    d = Draft(model, x=type_)
    d.at("m")
    emitted = d.emit(build(d, module)).module
    mine = emitted.get_submodule("m")
    assert type(mine) is type(module)
    assert mine is not module
    assert mine.training == training
    assert repr(mine) == repr(module)
    assert list(emitted.state_dict()) == list(model.state_dict())
    for name, original in [*model.named_parameters(), *model.named_buffers()]:
        tensor = emitted.get_parameter(name) if name in dict(model.named_parameters()) else emitted.get_buffer(name)
        assert tensor is not original
        assert tensor.data_ptr() == original.data_ptr()
        assert tensor.requires_grad == original.requires_grad
    x = torch.randn([int(n) for n in type_.shape or ()])
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in (training, not training):
        model.train(mode)
        emitted.train(mode)
        expected = module(x)
        after = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(saved)
        assert torch.equal(emitted(x), expected)
        assert all(torch.equal(a, b) for a, b in zip(emitted.state_dict().values(), after.values(), strict=True))
        model.load_state_dict(saved)


@pytest.mark.parametrize(
    "bounds", [(0.0, 1.0), (-0.0, 1.0), (0, 1), (0.0, 1), (0, 6), (-0.0, 6.0), (0.0, 6.0)], ids=str
)
def test_bounds_that_are_equal_are_not_one(bounds: tuple[float, float]) -> None:
    d = Draft(nn.ModuleDict({"m": nn.Hardtanh(*bounds)}), x=f32(3))
    emitted = d.emit(d.at("m").call("aten.hardtanh", d["x"], *bounds)).module
    made = emitted.get_submodule("m")
    assert isinstance(made, nn.Hardtanh)
    is_relu6 = bounds[1] == 6 and math.copysign(1, bounds[0]) == 1
    assert type(made) is (nn.ReLU6 if is_relu6 else nn.Hardtanh)
    assert is_relu6 or repr((made.min_val, made.max_val)) == repr(bounds)
    x = torch.tensor([-1.0, 0.5, 9.0])
    assert torch.equal(torch.signbit(emitted(x)), torch.signbit(F.hardtanh(x, *bounds)))


def test_embedding_and_padding_index() -> None:
    model = nn.ModuleDict({"m": nn.Embedding(7, 3, padding_idx=2)})
    d = Draft(model, x=TensorType((4,), torch.int64))
    emitted = d.emit(d.at("m").call("aten.embedding", d["m.weight"], d["x"], 2)).module
    x = torch.tensor([0, 2, 6, 2])
    assert repr(emitted.m) == repr(model["m"])
    emitted(x).sum().backward()
    grad = emitted.get_parameter("m.weight").grad
    assert grad is not None
    assert grad[2].abs().sum() == 0
    assert grad[6].tolist() == [1, 1, 1]
    assert model["m"].weight.grad is None


def test_unknown_rank_gives_a_batch_norm_of_any_rank() -> None:
    bn = nn.BatchNorm2d(4)
    model = randomize(nn.ModuleDict({"m": bn})).eval()
    d = Draft(model, x=TensorType(None, torch.float32))
    d.b.location = Location("m")
    w = [d[f"m.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
    emitted = d.emit(d.b.call("aten.batch_norm", d["x"], *w, False, 0.1, 1e-5, True)).module
    for shape in ((2, 4, 3, 3), (2, 4)):
        x = torch.randn(shape)
        expected = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
        assert torch.equal(emitted(x), expected)
    assert list(emitted.state_dict()) == list(model.state_dict())


# ---- sharing, ties, functional forms ----


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("shift", torch.rand(3, 1, 1), persistent=False)


def conv_of(d: Draft, x: Value, path: str = "conv", **kwargs: Any) -> Value:
    b = d.at(path)
    kwargs.setdefault("padding", 1)
    result = b.call("aten.conv2d", x, d[f"{path}.weight"], d[f"{path}.bias"], **kwargs)
    assert isinstance(result, Value)
    return result


def test_one_module_called_twice_is_emitted_once() -> None:
    model = Block()
    d = Draft(model, x=f32(2, 3, 8, 8))
    y = d["x"]
    for _ in range(2):
        y = conv_of(d, y)
        y = d.at("act").relu(y)
    emitted = d.emit(y).module
    assert [n.target for n in emitted.graph.nodes if n.op == "call_module"] == ["_guard", "conv", "act", "conv", "act"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(emitted(x), model.act(model.conv(model.act(model.conv(x)))))


def test_one_weight_with_other_attributes_is_a_second_module_tied_to_the_first() -> None:
    model = Block()
    d = Draft(model, x=f32(2, 3, 8, 8))
    y = conv_of(d, conv_of(d, d["x"]), stride=2)
    result = d.emit(y)
    emitted = result.module
    assert emitted.conv_1.weight is emitted.conv.weight
    assert emitted.conv_1.stride == (2, 2)
    assert result.parameter_map["conv_1.weight"] == ("conv.weight",)
    emitted.load_state_dict(result.parameter_map.convert(model.state_dict()))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(emitted(x), F.conv2d(model.conv(x), model.conv.weight, model.conv.bias, stride=2, padding=1))
    assert len(list(emitted.parameters())) == len(list(model.parameters()))


def test_weights_of_functions_stay_under_their_names() -> None:
    model = Block()
    d = Draft(model, x=f32(2, 3, 8, 8))
    d.at("")
    y = d.b.add(d.b.mul(d["x"], d["scale"]), d["shift"])
    result = d.emit(y)
    emitted = result.module
    assert "x * scale" in emitted.code
    assert "mul + shift" in emitted.code
    # unused weights are kept, the buffer is in no state_dict, and the order is the original's
    assert list(emitted.state_dict()) == list(model.state_dict()) == ["scale", "conv.weight", "conv.bias"]
    assert [n for n, _ in emitted.named_buffers()] == ["shift"]
    assert isinstance(emitted.scale, nn.Parameter)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(emitted(x), x * model.scale + model.shift)
    assert list(result.parameter_map) == ["scale", "conv.weight", "conv.bias", "shift"]
    emitted.load_state_dict(result.parameter_map.convert(model.state_dict()))


def test_tied_weights_keep_both_names_and_stay_one_parameter() -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model["head"].weight = model["emb"].weight
    d = Draft(model, x=TensorType((4,), torch.int64))
    y = d.at("emb").call("aten.embedding", d["emb.weight"], d["x"])
    result = d.emit(d.at("head").linear(y, d["emb.weight"]))
    emitted = result.module
    assert emitted.emb.weight is emitted.head.weight
    assert list(emitted.state_dict()) == ["emb.weight", "head.weight"]
    assert result.parameter_map["head.weight"] == ("head.weight",)
    emitted.to(torch.float64)
    assert emitted.emb.weight is emitted.head.weight
    assert model["emb"].weight.dtype == torch.float32
    checkpoint = {"emb.weight": torch.ones(7, 3)}
    converted = result.parameter_map.convert(checkpoint)
    assert torch.equal(converted["head.weight"], checkpoint["emb.weight"])


def test_a_root_that_is_a_layer_is_emitted_as_a_function() -> None:
    model = nn.Linear(4, 2)
    d = Draft(model, x=f32(3, 4))
    d.at("")
    emitted = d.emit(d.b.linear(d["x"], d["weight"], d["bias"])).module
    assert list(emitted.state_dict()) == ["weight", "bias"]
    assert "torch.nn.functional.linear(x, weight, bias)" in emitted.code
    x = torch.randn(3, 4)
    assert torch.equal(emitted(x), model(x))


def test_a_batch_norm_as_root_follows_the_mode() -> None:
    model = randomize(nn.BatchNorm2d(3)).eval()
    d = Draft(model, x=f32(2, 3, 4, 4))
    d.at("")
    w = [d[n] for n in ("weight", "bias", "running_mean", "running_var")]
    emitted = d.emit(d.b.call("aten.batch_norm", d["x"], *w, False, 0.1, 1e-5, True)).module
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(emitted(x), model(x))
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model.train()(x)
    model.load_state_dict(saved)
    assert torch.equal(emitted.train()(x), expected)


def test_a_layer_that_ignores_a_weight_of_its_own_is_a_function() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    d = Draft(model, x=f32(3, 4))
    emitted = d.emit(d.at("fc").linear(d["x"], d["fc.weight"])).module
    x = torch.randn(3, 4)
    assert torch.equal(emitted(x), F.linear(x, model["fc"].weight))
    assert list(emitted.state_dict()) == ["fc.weight", "fc.bias"]


def test_names_that_fx_has_taken_are_moved_aside() -> None:
    model = nn.ModuleDict({"graph": nn.Linear(4, 4), "code": nn.ReLU()})
    d = Draft(model, x=f32(3, 4))
    y = d.at("graph").linear(d["x"], d["graph.weight"], d["graph.bias"])
    result = d.emit(d.at("code").relu(y))
    x = torch.randn(3, 4)
    assert torch.equal(result.module(x), F.relu(model["graph"](x)))
    assert result.parameter_map["graph_1.weight"] == ("graph.weight",)
    result.module.load_state_dict(result.parameter_map.convert(model.state_dict()))


# ---- dropout, modes, literal flags ----


def test_dropout_follows_the_mode_where_the_module_does() -> None:
    model = nn.ModuleDict({"drop": nn.Dropout(0.3), "body": nn.Identity()}).eval()
    d = Draft(model, x=f32(50))
    y = d.at("drop").dropout(d["x"], 0.3, False)
    y = d.at("body").dropout(y, 0.4, False)
    y = d.b.dropout(y, 0.4, False)
    y = d.b.call("aten.dropout", y, 0.2, True, follows_mode=False)
    emitted = d.emit(y).module
    targets = [n.target for n in emitted.graph.nodes if n.op == "call_module"]
    assert targets == ["_guard", "drop", "body.dropout", "body.dropout_1"]
    assert "dropout(body_dropout_1, 0.2, True)" in emitted.code
    x = torch.ones(50)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.2, True)
    torch.manual_seed(1)
    assert torch.equal(emitted(x), expected)
    torch.manual_seed(1)
    expected = x
    for p in (0.3, 0.4, 0.4, 0.2):
        expected = F.dropout(expected, p, True)
    torch.manual_seed(1)
    assert torch.equal(emitted.train()(x), expected)


def test_modes_of_submodules_are_those_of_the_original() -> None:
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"bn": nn.BatchNorm1d(3)}), "b": nn.ModuleDict({"bn": nn.BatchNorm1d(3)})}
    )
    model.train()
    model["a"].eval()
    d = Draft(model, x=f32(5, 3))
    y = d["x"]
    for path, training in (("a.bn", False), ("b.bn", True)):
        w = [d[f"{path}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
        y = d.at(path).call("aten.batch_norm", y, *w, training, 0.1, 1e-5, True)
    emitted = d.emit(y).module
    modes = {name: m.training for name, m in emitted.named_modules() if name != "_guard"}
    assert modes == {name: m.training for name, m in model.named_modules()}


def test_a_program_that_holds_for_one_mode_refuses_the_other() -> None:
    d = Draft(nn.Identity().eval(), x=f32(3))
    d.program.mode_locked = "`rnn` (LSTM) calls aten.lstm.input"
    emitted = d.emit(d.b.relu(d["x"])).module
    emitted.eval()
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted)), copy.copy(emitted)):
        with pytest.raises(InputError, match="`rnn`"):
            module.train()
        assert not module.training


def test_attention_drops_out_in_training_only() -> None:
    shape = f32(2, 2, 5, 4)
    d = Draft(nn.ModuleDict({"attn": nn.Identity()}).eval(), q=shape, k=shape, v=shape)
    y = d.at("attn").call("aten.scaled_dot_product_attention", d["q"], d["k"], d["v"], train_dropout_p=0.5)
    emitted = d.emit(y).module
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    assert torch.equal(emitted(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.manual_seed(2)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(2)
    assert torch.equal(emitted.train()(q, k, v), expected)
    assert not torch.equal(expected, F.scaled_dot_product_attention(q, k, v))
