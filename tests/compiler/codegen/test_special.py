"""The emitter: modules kept as they are, leaf attention, recurrent layers, sizes and devices from the inputs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ir.attributes import Ref
from ir.core import Value
from ir.errors import CodegenError
from ir.ops.nn_ops import encode_call
from ir.types import TensorType, make_symbol
from tests.compiler.drafts import Draft, f32, randomize


def opaque(d: Draft, callee: str, function: Any, *args: Any, results: tuple[str, ...], **kwargs: Any) -> Any:
    positional, keywords, operands = encode_call(args, kwargs, lambda leaf: isinstance(leaf, Value))
    d.program.opaques[callee] = function
    op = d.b.op("nn.opaque", operands, callee, positional, keywords, False, results)
    return op.results


class Kept(nn.Module):
    """A module that nobody can trace, with state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, *, twice: bool, pair: Any = None) -> dict[str, Any]:
        self.calls.add_(1)
        return {"y": x * self.weight * (2 if twice else 1), "z": pair[0] if pair else x}


def test_a_kept_module_stands_at_its_path_with_its_own_state() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(3, 3), "kept": Kept()}).eval()
    d = Draft(nn.ModuleDict({"fc": model["fc"]}), x=f32(3))
    hidden = d.at("fc").linear(d["x"], d["fc.weight"], d["fc.bias"])
    first = opaque(d, "kept", model["kept"], hidden, twice=True, pair=(d["x"],), results=("f32[3]", "f32[3]"))
    second = opaque(d, "kept", model["kept"], first[0], twice=False, results=("f32[3]", "f32[3]"))
    result = d.emit(second[0], first[1])
    emitted = result.module
    kept = emitted.get_submodule("kept")
    assert isinstance(kept, Kept)
    assert kept is not model["kept"]
    assert kept.weight is not model["kept"].weight
    assert kept.weight.data_ptr() == model["kept"].weight.data_ptr()
    assert list(emitted.state_dict()) == list(model.state_dict())
    emitted.load_state_dict(result.parameter_map.convert(model.state_dict()))
    x = torch.randn(3)
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        y, z = module(x)
        assert torch.equal(y, model["fc"](x) * kept.weight * 2 * kept.weight)
        assert torch.equal(z, x)
    emitted.to(torch.float64)
    assert model["kept"].weight.dtype == torch.float32


def doubled(x: torch.Tensor, by: int) -> torch.Tensor:
    return x * by


def test_a_kept_function_is_called() -> None:
    d = Draft(None, x=f32(3))
    (y,) = opaque(d, "doubled", doubled, d["x"], 2, results=("f32[3]",))
    emitted = d.emit(y).module
    x = torch.randn(3)
    assert torch.equal(emitted(x), x * 2)
    assert torch.equal(pickle.loads(pickle.dumps(emitted))(x), x * 2)


def test_a_missing_callable_is_named() -> None:
    d = Draft(None, x=f32(3))
    (y,) = opaque(d, "gone", None, d["x"], results=("f32[3]",))
    del d.program.opaques["gone"]
    with pytest.raises(CodegenError, match="gone"):
        d.emit(y)


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 7}, {"batch_first": True}]
)
def test_leaf_attention_is_emitted_as_the_module(options: dict[str, Any]) -> None:
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, **options)
    model = randomize(nn.ModuleDict({"attn": attention})).eval()
    kdim, vdim = options.get("kdim", 8), options.get("vdim", 8)
    d = Draft(model, q=f32(4, 4, 8), k=f32(4, 4, kdim), v=f32(4, 4, vdim), mask=f32(4, 4))
    weights = {n.replace(".", "_"): d[f"attn.{n}"] for n, _ in attention.named_parameters()}
    op = d.at("attn").op(
        "nn.multihead_attention",
        d["q"],
        d["k"],
        d["v"],
        **weights,
        attn_mask=d["mask"],
        num_heads=2,
        embed_dim=8,
        dropout=0.5,
        batch_first=attention.batch_first,
    )
    emitted = d.emit(*op.results).module
    assert list(emitted.state_dict()) == list(model.state_dict())
    args = [torch.randn(4, 4, n) for n in (8, kdim, vdim)]
    mask = torch.randn(4, 4)
    for mode in (False, True):
        model.train(mode)
        emitted.train(mode)
        torch.manual_seed(3)
        expected = attention(*args, attn_mask=mask)
        torch.manual_seed(3)
        assert all(torch.equal(a, b) for a, b in zip(emitted(*args, mask), expected, strict=True))


def test_attention_with_weights_that_no_layer_has_is_refused() -> None:
    """The layer would have one weight for all three, and leave it as the memory is."""
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=7, bias=False)
    for name in ("k", "v"):
        attention.register_parameter(f"{name}_proj_weight", nn.Parameter(torch.ones(8, 8)))
    d = Draft(nn.ModuleDict({"attn": attention}), x=f32(4, 4, 8))
    weights = {n.replace(".", "_"): d[f"attn.{n}"] for n, _ in attention.named_parameters()}
    op = d.at("attn").op("nn.multihead_attention", *[d["x"]] * 3, **weights, num_heads=2, embed_dim=8)
    with pytest.raises(CodegenError, match="cannot be emitted"):
        d.emit(*op.results)


def test_a_recurrent_layer_is_a_call_that_follows_the_inputs_dtype() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    model = nn.ModuleDict({"rnn": lstm}).eval()
    d = Draft(model, x=f32(5, 2, 3))
    b = d.at("rnn")
    zeros = b.call("aten.zeros", (4, 2, 4), dtype=torch.float32, device=torch.device("cpu"))
    weights = [d[f"rnn.{n}"] for n, _ in lstm.named_parameters()]
    op = b.op("aten.lstm.input", d["x"], [zeros, zeros], weights, True, 2, 0.0, False, True, False)
    emitted = d.emit(*op.results).module
    assert list(emitted.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 2, 3)
    y, (h, c) = lstm(x)
    assert all(torch.equal(a, e) for a, e in zip(emitted(x), (y, h, c), strict=True))
    reference = copy.deepcopy(lstm).double()
    emitted.double()
    y, (h, c) = reference(x.double())
    assert all(torch.equal(a, e) for a, e in zip(emitted(x.double()), (y, h, c), strict=True))
    assert "dtype = x_dtype" in emitted.code.replace("getattr_1", "x_dtype").replace("getattr_2", "x_dtype")


def test_new_tensors_are_made_on_the_device_of_the_input() -> None:
    d = Draft(None, x=f32(3))
    b = d.b
    positions = b.call("aten.arange", 3, dtype=torch.int64, device=torch.device("cpu"))
    emitted = d.emit(b.add(d["x"], positions)).module
    assert "x.device" in emitted.code
    assert "dtype = torch.int64" in emitted.code
    emitted.to("meta")
    assert emitted(torch.empty(3, device="meta")).device.type == "meta"


def test_symbolic_arithmetic_and_sizes_from_results() -> None:
    n = make_symbol("n")
    d = Draft(None, x=f32(2 * n + 1))
    padded = d.b.call("aten.constant_pad_nd", d["x"], (0, 1), 0.0)
    emitted = d.emit(d.b.reshape(padded, (n + 1, 2))).module
    for k in (1, 4):
        x = torch.randn(2 * k + 1)
        assert torch.equal(emitted(x), F.pad(x, (0, 1)).reshape(k + 1, 2))


def test_values_in_attributes() -> None:
    d = Draft(None, x=TensorType(None, torch.float32, None))
    size = d.b.call("aten.sym_size.int", d["x"], 0)
    op = d.b.op("aten.reshape", d["x"], (size, -1))
    assert op.attributes["shape"] == (Ref(1), -1)
    emitted = d.emit(op.result).module
    x = torch.randn(4, 2, 3)
    assert torch.equal(emitted(x), x.reshape(4, -1))


FUNCTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("aten.add.Tensor", ("x", "y"), {"alpha": 2}, "torch.ops.aten.add.Tensor"),
    ("aten.sub.Tensor", ("x", "y"), {}, "x - y"),
    ("aten.rsub.Scalar", ("x", 2), {}, "2 - x"),
    ("aten.rsub.Tensor", ("x", "y"), {}, "y - x"),
    ("aten.div.Tensor", ("x", "y"), {}, "x / y"),
    ("aten.mul.Scalar", ("x", 2.5), {}, "x * 2.5"),
    ("aten.pow.Tensor_Scalar", ("x", 3), {}, "x ** 3"),
    ("aten.remainder.Scalar", ("x", 0.7), {}, "x % 0.7"),
    ("aten.neg", ("x",), {}, "-x"),
    ("aten.lt.Scalar", ("x", 0), {}, "x < 0"),
    ("aten.clamp", ("x",), {"max": 0.5}, "torch.clamp(x, max = 0.5)"),
    ("aten.permute", ("x", (2, 0, 1)), {}, "x.permute(2, 0, 1)"),
    ("aten.transpose.int", ("x", 0, -1), {}, "x.transpose(0, -1)"),
    ("aten.reshape", ("x", (2, 12)), {}, "torch.flatten(x, 1)"),
    ("aten.reshape", ("x", (6, 4)), {}, "torch.flatten(x, 0, 1)"),
    ("aten.reshape", ("x", (3, 8)), {}, "x.reshape(3, 8)"),
    ("aten.expand", ("x", (5, -1, -1, -1)), {}, "x.expand(5, -1, -1, -1)"),
    ("aten.expand", ("x", (5, 2, 3, 4)), {"implicit": True}, "implicit"),
    ("aten.unsqueeze", ("x", 1), {}, "x.unsqueeze(1)"),
    ("aten.slice.Tensor", ("x", 1, 1, 3), {}, "x[:, 1:3]"),
    ("aten.slice.Tensor", ("x", -1, 1), {}, "x[:, :, 1:]"),
    ("aten.slice.Tensor", ("x", 0, 0, 9223372036854775807, 2), {}, "x[::2]"),
    ("aten.select.int", ("x", 2, -1), {}, "x[:, :, -1]"),
    ("aten.sum.dim_IntList", ("x", (1, 2)), {"keepdim": True}, "torch.sum("),
    ("aten.mean.dim", ("x", (1,)), {}, "torch.mean("),
    ("aten.var.correction", ("x", (1,)), {"correction": 0}, "torch.var("),
    ("aten.where.self", ("m", "x", "y"), {}, "torch.where("),
    ("aten.cat", (["x", "y"], 1), {}, "torch.cat([x, y], 1)"),
    ("aten.stack", (["x", "y"],), {}, "torch.stack([x, y])"),
    ("aten.softmax.int", ("x", 1), {}, "torch.softmax(x, 1)"),
    ("aten.einsum", ("abc,abc->ab", ["x", "y"]), {}, "torch.einsum('abc,abc->ab', x, y)"),
    ("aten.index.Tensor", ("x", [None, "i"]), {}, "x[:, i]"),
    ("aten.index.Tensor", ("x", ["j"]), {}, "x[j]"),
    ("aten.clone", ("x",), {"memory_format": torch.contiguous_format}, "x.clone("),
    ("aten.to.dtype", ("x", torch.float64), {}, "x.to(torch.float64)"),
    ("aten.pad", ("x", (1, 2)), {"mode": "circular"}, "torch.nn.functional.pad("),
    ("aten.upsample_nearest1d", ("x", (8,)), {}, "torch.ops.aten.upsample_nearest1d.default"),
    ("aten.relu", ("x",), {}, "torch.relu(x)"),
    ("aten.elu", ("x", 0.5, 2.0), {}, "torch.ops.aten.elu.default"),
    ("aten.gelu", ("x",), {"approximate": "tanh"}, "torch.nn.functional.gelu(x, approximate = 'tanh')"),
    ("aten.max.dim", ("x", 1), {}, "torch.max(x, 1)"),
    ("aten.topk", ("x", 2), {"dim": 1}, "torch.topk("),
    ("aten.layer_norm", ("x", (4,)), {}, "torch.nn.functional.layer_norm("),
    ("aten.cumsum", ("x", 1), {}, "torch.cumsum(x, 1)"),
    ("aten.gather", ("x", 2, "g"), {}, "torch.gather("),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "text"), FUNCTIONS)
def test_functions_read_well_and_compute_the_operator(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    tensors = {
        "x": torch.randn(2, 3, 4),
        "y": torch.randn(2, 3, 4),
        "m": torch.rand(2, 3, 4) < 0.5,
        "i": torch.tensor([2, 0]),
        "j": torch.tensor([1, 1, 0]),
        "g": torch.tensor([[[0, 3], [1, 1], [2, 0]]] * 2),
    }
    types = {k: TensorType(tuple(v.shape), v.dtype) for k, v in tensors.items()}
    d = Draft(None, **types)

    def given(item: Any, table: Any) -> Any:
        if isinstance(item, list):
            return [given(part, table) for part in item]
        return table[item] if isinstance(item, str) and item in tensors else item

    op = d.b.op(name, *(given(a, d) for a in args), **kwargs)
    emitted = d.emit(*op.results).module
    assert text in emitted.code
    assert op.opdef.target is not None
    expected = op.opdef.target(*(given(a, tensors) for a in args), **kwargs)
    for module in (emitted, pickle.loads(pickle.dumps(emitted))):
        actual = module(*tensors.values())
        pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
        for a, e in pairs:
            assert a.dtype == e.dtype
            assert a.stride() == e.stride()
            assert torch.equal(a, e)
