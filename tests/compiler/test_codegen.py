"""The emitter, on programs built by hand: nothing here depends on capture or passes."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import ir.optable  # noqa: F401 - the facts about operators
from compiler.codegen import Emitted, emit
from compiler.codegen.guard import InputGuard
from ir.builder import Builder
from ir.core import Graph, Value
from ir.errors import InputError
from ir.locations import Location
from ir.program import (
    CallingConvention,
    Derivation,
    InputLeaf,
    Mutation,
    OutputLeaf,
    Program,
    SymbolRange,
    Weight,
    WeightKind,
)
from ir.types import TensorType, make_symbol, type_of_tensor


class Draft:
    """A program in the making, over the weights and modes of a real module."""

    def __init__(self, model: nn.Module | None = None, **inputs: TensorType) -> None:
        self.model = model or nn.Module()
        self.graph = Graph(list(inputs.items()))
        self.program = Program("main", self.graph, CallingConvention(None, None))
        seen: dict[int, Weight] = {}
        for path, owner in self.model.named_modules(remove_duplicate=False):
            self.program.module_modes[path] = owner.training
            for kind, table in ((WeightKind.PARAMETER, owner._parameters), (WeightKind.BUFFER, owner._buffers)):
                for key, tensor in table.items():
                    if tensor is not None:
                        name = f"{path}.{key}" if path else key
                        if id(tensor) in seen:
                            weight = seen[id(tensor)]
                            weight.aliases = (*weight.aliases, name)
                            continue
                        persistent = key not in owner._non_persistent_buffers_set
                        seen[id(tensor)] = weight = Weight(
                            name, kind, type_of_tensor(tensor), tensor, tensor.requires_grad, persistent
                        )
                        self.program.add_weight(weight)
        self.b = Builder(self.graph)

    def at(self, path: str) -> Builder:
        """The builder, at the location of a module."""
        cls = type(self.model.get_submodule(path))
        self.b.location = Location(path, f"{cls.__module__}.{cls.__qualname__}", "model.py", 7)
        return self.b

    def __getitem__(self, name: str) -> Value:
        for value in self.graph.inputs:
            if value.name == name:
                return value
        for weight in self.program.weights.values():
            if name in (weight.name, *weight.aliases):
                return weight.value
        raise KeyError(name)

    def emit(self, *outputs: Value | None) -> Emitted:
        self.graph.set_outputs(outputs)
        return emit(self.program)


def f32(*shape: Any) -> TensorType:
    return TensorType(tuple(shape), torch.float32)


def randomize(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
    return model


# ---- modules at their paths ----


def module_cases() -> list[Any]:
    """(module, input type, builds the operation from the draft with the module at path `m`)."""

    def conv(kind: str) -> Any:
        def build(d: Draft, m: Any) -> Value:
            padding = m.padding
            name = kind if not isinstance(padding, str) else f"{kind}.padding"
            bias = None if m.bias is None else d["m.bias"]
            op = d.b.call(
                f"aten.{name}", d["x"], d["m.weight"], bias, m.stride, padding, m.dilation, m.groups
            )
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
        w = [d[f"m.{n}"] if getattr(m, n) is not None else None for n in ("weight", "bias", "running_mean", "running_var")]
        training = m.training or m.running_mean is None
        op = d.b.op("aten.batch_norm", d["x"], *w, training, m.momentum or 0.0, m.eps, True)
        op.attributes["momentum"] = m.momentum
        return op.result

    def instance_norm(d: Draft, m: Any) -> Value:
        w = [d[f"m.{n}"] if getattr(m, n) is not None else None for n in ("weight", "bias", "running_mean", "running_var")]
        return d.b.call("aten.instance_norm", d["x"], *w, m.training or m.running_mean is None, m.momentum, m.eps, True)

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


@pytest.mark.parametrize(("module", "type_", "build"), module_cases(), ids=lambda p: getattr(p, "_get_name", str)() if isinstance(p, nn.Module) else None)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_operation_of_a_module_is_emitted_as_that_module(module: nn.Module, type_: TensorType, build: Any, training: bool) -> None:
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


def test_embedding_and_padding_index() -> None:
    model = nn.ModuleDict({"m": nn.Embedding(7, 3, padding_idx=2)})
    d = Draft(model, x=TensorType((4,), torch.int64))
    emitted = d.emit(d.at("m").call("aten.embedding", d["m.weight"], d["x"], 2)).module
    x = torch.tensor([0, 2, 6, 2])
    assert repr(emitted.m) == repr(model["m"])
    emitted(x).sum().backward()
    grad = emitted.m.weight.grad
    assert grad[2].abs().sum() == 0
    assert grad[6].tolist() == [1, 1, 1]
    assert model["m"].weight.grad is None


def test_unknown_rank_gives_a_batch_norm_of_any_rank() -> None:
    model = randomize(nn.ModuleDict({"m": nn.BatchNorm2d(4)})).eval()
    d = Draft(model, x=TensorType(None, torch.float32))
    d.b.location = Location("m")
    w = [d[f"m.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
    emitted = d.emit(d.b.call("aten.batch_norm", d["x"], *w, False, 0.1, 1e-5, True)).module
    for shape in ((2, 4, 3, 3), (2, 4)):
        x = torch.randn(shape)
        expected = F.batch_norm(x, *(model["m"].get_buffer(n) for n in ("running_mean", "running_var")), model["m"].weight, model["m"].bias)
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
    model = nn.ModuleDict({"a": nn.ModuleDict({"bn": nn.BatchNorm1d(3)}), "b": nn.ModuleDict({"bn": nn.BatchNorm1d(3)})})
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
    d.program.meta["mode_locked"] = "`rnn` (LSTM) calls aten.lstm.input"
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


# ---- derived weights ----


def derived(d: Draft, source: str, name: str, shape: tuple[int, ...]) -> Value:
    origin = next(w for w in d.program.weights.values() if w.name == source)
    graph = Graph([("w", origin.type)])
    graph.set_outputs([Builder(graph).reshape(graph.inputs[0], shape)])
    program = Program("fold", graph, CallingConvention(None, None))
    data = origin.data.reshape(shape) if origin.data is not None else None
    weight = Weight(
        name,
        WeightKind.PARAMETER,
        f32(*shape),
        None if data is None else data.detach(),
        origin.requires_grad,
        derivation=Derivation((source,), program),
    )
    return d.program.add_weight(weight)


def test_a_derived_weight_takes_the_place_of_its_source() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    d = Draft(model, x=f32(3, 4, 1, 1))
    weight = derived(d, "fc.weight", "fc.weight_reshape", (2, 4, 1, 1))
    result = d.emit(d.at("fc").call("aten.conv2d", d["x"], weight, d["fc.bias"]))
    emitted = result.module
    assert isinstance(emitted.fc, nn.Conv2d)
    assert list(emitted.state_dict()) == ["fc.weight", "fc.bias"]
    assert emitted.fc.weight.data_ptr() == model["fc"].weight.data_ptr()
    assert result.parameter_map["fc.weight"] == ("fc.weight",)
    assert list(result.parameter_map.renamed()) == ["fc.weight"]
    other = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    emitted.load_state_dict(result.parameter_map.convert(other.state_dict()), strict=True)
    x = torch.randn(3, 4, 1, 1)
    assert torch.allclose(emitted(x).flatten(1), other["fc"](x.flatten(1)))


def test_a_derived_weight_whose_source_is_trained_elsewhere_is_computed_in_forward() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2, bias=False)})
    d = Draft(model, x=f32(3, 4, 1, 1), y=f32(3, 4))
    weight = derived(d, "fc.weight", "fc.weight_reshape", (2, 4, 1, 1))
    conv = d.at("fc").call("aten.conv2d", d["x"], weight)
    result = d.emit(conv, d.at("fc").linear(d["y"], d["fc.weight"]))
    emitted = result.module
    assert list(emitted.state_dict()) == ["fc.weight"]
    x, y = torch.randn(3, 4, 1, 1), torch.randn(3, 4)
    a, b = emitted(x, y)
    (a.sum() + 2 * b.sum()).backward()
    weight_ = model["fc"].weight
    (F.linear(x.flatten(1), weight_).sum() + 2 * F.linear(y, weight_).sum()).backward()
    assert torch.allclose(emitted.fc.weight.grad, weight_.grad)


def test_missing_and_unknown_keys_of_a_checkpoint_are_reported() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    d = Draft(model, x=f32(3, 4))
    result = d.emit(d.at("fc").linear(d["x"], d["fc.weight"], d["fc.bias"]))
    with pytest.raises(InputError, match=r"fc\.bias"):
        result.parameter_map.convert({"fc.weight": torch.zeros(2, 4)})
    converted = result.parameter_map.convert({**model.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="extra"):
        result.module.load_state_dict(converted)


# ---- calling convention ----


def flat_convention(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, names: tuple[str, ...] = ()) -> CallingConvention:
    """Tensors in the arguments are inputs in order; in the result, ints are output numbers wrapped in a list."""
    leaves, in_spec = pytree.tree_flatten((args, kwargs))
    inputs, number = [], 0
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            inputs.append(InputLeaf(f"arg{i}", number))
            number += 1
        else:
            inputs.append(InputLeaf(f"arg{i}", None, leaf))
    out_leaves, out_spec = pytree.tree_flatten(result)
    outputs = tuple(OutputLeaf(x.number) if isinstance(x, Out) else OutputLeaf(None, x) for x in out_leaves)
    return CallingConvention(in_spec, out_spec, tuple(inputs), outputs, parameters=names)


class Out:
    def __init__(self, number: int) -> None:
        self.number = number


def test_keyword_nested_and_constant_arguments() -> None:
    d = Draft(None, a=f32(2), b=f32(2), c=f32(2), e=f32(2))
    args: tuple[Any, ...] = (torch.zeros(2), [torch.zeros(2), {"k": torch.zeros(2)}], 3)
    kwargs = {"mask": torch.zeros(2), "flag": None}
    d.program.convention = flat_convention(args, kwargs, {"sum": Out(0), "n": 5, "pair": (Out(1), None)}, ("x", "cache", "n"))
    total = d.b.add(d.b.add(d["a"], d["b"]), d["c"])
    emitted = d.emit(total, d.b.mul(d["e"], d["a"])).module
    x, b, c, m = torch.randn(4, 2)
    result = emitted(x, [b, {"k": c}], 3, mask=m, flag=None)
    assert list(result) == ["sum", "n", "pair"]
    assert torch.equal(result["sum"], x + b + c)
    assert result["n"] == 5
    assert torch.equal(result["pair"][0], m * x)
    assert result["pair"][1] is None
    assert "cache[1]" in emitted.code
    assert "['k']" in emitted.code
    assert emitted(x=x, cache=[b, {"k": c}], n=3, mask=m, flag=None)["n"] == 5
    with pytest.raises(InputError, match=r"`n` is 4, but .* for 3"):
        emitted(x, [b, {"k": c}], 4, mask=m, flag=None)
    with pytest.raises(InputError, match=r"cache\[1\]\['k'\]"):
        emitted(x, [b, {"z": c}], 3, mask=m, flag=None)
    with pytest.raises(InputError, match="`cache` has 3 entries"):
        emitted(x, [b, {"k": c}, c], 3, mask=m, flag=None)
    with pytest.raises(TypeError):
        emitted(x, [b, {"k": c}], 3, m, flag=None)


def test_the_original_signature_gives_names_order_and_defaults() -> None:
    def forward(x: Any, scale: float = 2.0, mask: Any = None, *, flag: bool = False) -> None: ...

    d = Draft(None, a=f32(2), m=f32(2))
    d.program.convention = flat_convention((torch.zeros(2),), {"mask": torch.zeros(2)}, Out(0), ("x", "mask"))
    d.program.meta["signature"] = inspect.signature(forward)
    emitted = d.emit(d.b.add(d["a"], d["m"])).module
    assert str(inspect.signature(emitted.forward)) == "(x, scale=2.0, mask=None, *, flag=False)"
    a, m = torch.randn(2, 2)
    for result in (emitted(a, mask=m), emitted(a, 2.0, m), emitted(a, mask=m, flag=False)):
        assert torch.equal(result, a + m)
    with pytest.raises(InputError, match="`scale` is 3.0"):
        emitted(a, 3.0, m)
    with pytest.raises(InputError, match="`mask` is a NoneType"):
        emitted(a)


class Point:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


pytree.register_pytree_node(
    Point, lambda p: ([p.x, p.y], None), lambda xs, _: Point(*xs), serialized_type_name="tests.test_codegen.Point"
)


def test_objects_that_pytree_knows_go_in_and_come_out() -> None:
    d = Draft(None, a=f32(2), b=f32(2))
    d.program.convention = flat_convention((Point(torch.zeros(2), torch.zeros(2)),), {}, [Point(Out(0), 1)], ("p",))
    emitted = d.emit(d.b.sub(d["a"], d["b"])).module
    a, b = torch.randn(2, 2)
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        (result,) = module(Point(a, b))
        assert torch.equal(result.x, a - b)
        assert result.y == 1


def test_several_results_and_inputs_as_results() -> None:
    d = Draft(None, x=f32(6))
    parts = d.b.call("aten.split.Tensor", d["x"], 2)
    emitted = d.emit(parts[0], parts[2], d["x"]).module
    x = torch.randn(6)
    a, c, same = emitted(x)
    assert torch.equal(a, x[:2])
    assert torch.equal(c, x[4:])
    assert same is x
    assert "[1]" not in emitted.code


# ---- mutations ----


def test_buffers_and_inputs_are_written_at_the_end() -> None:
    model = nn.Module()
    model.register_buffer("count", torch.zeros(2))
    d = Draft(model, x=f32(2))
    count = d.b.call("aten.add.Scalar", d["count"], 1)
    doubled = d.b.call("aten.mul.Scalar", d["x"], 2)
    view = d.b.reshape(d["count"], (2, 1))
    d.program.convention = CallingConvention(
        None,
        pytree.tree_structure((0, 0)),
        outputs=(OutputLeaf(0), OutputLeaf(1)),
        mutations=(Mutation(2, buffer="count"), Mutation(3, input=0)),
    )
    emitted = d.emit(d.b.add(doubled, count), view, count, doubled).module
    for step in range(2):
        x = torch.tensor([1.0, 2.0])
        y, old = emitted(x)
        assert y.tolist() == [3.0 + step, 5.0 + step]
        assert x.tolist() == [2.0, 4.0]
        assert old.flatten().tolist() == [step, step]
    assert emitted.count.tolist() == [2.0, 2.0]
    emitted.graph.eliminate_dead_code()
    assert sum(n.target is torch.ops.aten.copy_.default for n in emitted.graph.nodes) == 2


# ---- symbolic sizes ----


def test_symbolic_sizes_are_read_once_and_guarded() -> None:
    batch, seq = make_symbol("batch"), make_symbol("seq")
    d = Draft(None, x=f32(batch, 2 * seq), y=f32(batch, seq))
    d.program.symbols = {batch: SymbolRange(1, 8), seq: SymbolRange(2, None)}
    a = d.b.reshape(d["x"], (batch, 2, seq))
    c = d.b.reshape(d["y"], (batch, 1, seq))
    out = d.b.reshape(d.b.add(a, c), (2 * batch * seq,))
    emitted = d.emit(out).module
    assert emitted.code.count("x.size(0)") == 1
    assert emitted.code.count(".size(") == 2
    for n, s in ((1, 2), (3, 5)):
        x, y = torch.randn(n, 2 * s), torch.randn(n, s)
        assert torch.equal(emitted(x, y), (x.view(n, 2, s) + y.view(n, 1, s)).flatten())
    with pytest.raises(InputError, match=r"`y` has shape \[2, 3\].*batch=3"):
        emitted(torch.zeros(3, 6), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"`x` has shape \[3, 7\]"):
        emitted(torch.zeros(3, 7), torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"`batch` of the inputs is 9.*\[1, 8\]"):
        emitted(torch.zeros(9, 6), torch.zeros(9, 3))
    with pytest.raises(InputError, match=r"`seq` of the inputs is 1.*at least 2"):
        emitted(torch.zeros(3, 2), torch.zeros(3, 1))
    exported = torch.export.export(
        emitted,
        (torch.zeros(3, 6), torch.zeros(3, 3)),
        dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim.AUTO}, "y": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim.AUTO}},
    )
    x, y = torch.randn(2, 8), torch.randn(2, 4)
    assert torch.equal(exported.module()(x, y), emitted(x, y))


def test_the_guard_names_the_input_and_what_was_expected() -> None:
    d = Draft(None, x=f32(2, 3))
    emitted = d.emit(d.b.relu(d["x"])).module
    with pytest.raises(InputError, match=r"`x` has shape \[2, 4\].*f32\[2, 3\]") as info:
        emitted(torch.zeros(2, 4))
    assert "dynamic_shapes" in str(info.value)
    with pytest.raises(InputError, match=r"dtype torch.int64"):
        emitted(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="is a list"):
        emitted([1.0])
    emitted(torch.zeros(2, 3, dtype=torch.float64))
    assert "x: f32[2, 3]" in repr(emitted)


def test_unknown_parts_are_not_checked() -> None:
    d = Draft(None, x=TensorType((None, 3), None, None))
    emitted = d.emit(d.b.relu(d["x"])).module
    assert emitted(torch.ones(5, 3, dtype=torch.int64)).shape == (5, 3)
    with pytest.raises(InputError, match=r"shape \[5, 4\]"):
        emitted(torch.ones(5, 4))


def test_dead_code_elimination_keeps_the_guard() -> None:
    d = Draft(None, x=f32(2, 3))
    emitted = d.emit(d.b.relu(d["x"])).module
    emitted.graph.eliminate_dead_code()
    emitted.recompile()
    with pytest.raises(InputError):
        emitted(torch.zeros(1, 3))
    assert isinstance(emitted._guard, InputGuard)
