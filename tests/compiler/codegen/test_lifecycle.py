"""The emitter: what people do with a module: copy, pickle, move, train, export, compile, print."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compiler.codegen import Emitted
from compiler.emitted.graphmodule import EmittedModule
from ir.program import CallingConvention, OutputLeaf
from ir.types import make_symbol
from passes.rewrite.rewriter import Rewriter
from tests.compiler.drafts import Draft, f32, randomize


class Net(nn.Module):
    """A model with fused parts, a functional part, a buffer, a tied weight and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(4)})
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1))
        self.drop = nn.Dropout(0.0)
        self.fc = nn.Linear(256, 5)
        self.fc2 = nn.Linear(256, 5, bias=False)
        self.fc2.weight = self.fc.weight

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = F.relu(self.stem["bn"](self.stem["conv"](x)))
        y = F.softplus(y * self.scale + self.shift)
        y = self.drop(y.flatten(1))
        return {"a": self.fc(y), "b": F.gelu(self.fc2(y))}


def build(symbolic: bool = False) -> tuple[Net, Emitted, Draft]:
    model = Net().eval()
    randomize(model)
    batch: Any = make_symbol("batch") if symbolic else 2
    d = Draft(model, x=f32(batch, 3, 8, 8))
    y = d.at("stem.conv").call("aten.conv2d", d["x"], d["stem.conv.weight"], padding=1)
    weights = [d[f"stem.bn.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
    y = d.at("stem.bn").call("aten.batch_norm", y, *weights, False, 0.1, 1e-5, True)
    y = d.at("").relu(y)
    stem = list(d.graph.operations())
    y = d.b.softplus(d.b.add(d.b.mul(y, d["scale"]), d["shift"]))
    y = d.at("drop").dropout(d.at("").reshape(y, (batch, 256)), 0.0, False)
    a = d.at("fc").linear(y, d["fc.weight"], d["fc.bias"])
    b = d.at("").gelu(d.at("fc2").linear(y, d["fc.weight"]))
    d.graph.set_outputs([a, b])
    generated = [
        op for op in d.graph.operations() if op.name in ("aten.mul.Tensor", "aten.add.Tensor", "aten.softplus")
    ]
    rewriter = Rewriter(d.program)
    parts = dict(zip(stem, ("conv", "bn", "act"), strict=True))
    rewriter.fuse("conv_bn_act", stem, parts=parts, inputs={d["x"]: "input"})
    rewriter.fuse("affine_softplus", generated, parts={generated[-1]: "act"})
    d.program.convention = CallingConvention(
        None, torch.utils._pytree.tree_structure({"a": 0, "b": 0}), outputs=(OutputLeaf(0), OutputLeaf(1))
    )
    return model, d.emit(*d.graph.outputs), d


def same(actual: Any, expected: dict[str, torch.Tensor]) -> bool:
    return list(actual) == list(expected) and all(torch.equal(actual[k], expected[k]) for k in expected)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved, lambda m: pickled(copy.deepcopy(m))])
def test_copies_are_equal_in_all_that_can_be_seen(copied: Callable[[Any], Any]) -> None:
    model, emitted, _ = build()
    module = emitted.module
    twin = copied(module)
    assert isinstance(twin, EmittedModule)
    assert type(twin).__name__ == type(module).__name__
    assert twin.code == module.code
    assert str(twin) == str(module)
    assert [n.name for n in twin.graph.nodes] == [n.name for n in module.graph.nodes]
    assert [k for k, _ in twin.named_modules()] == [k for k, _ in module.named_modules()]
    assert [k for k, _ in twin.named_parameters()] == [k for k, _ in module.named_parameters()]
    assert {k: m.training for k, m in twin.named_modules()} == {k: m.training for k, m in module.named_modules()}
    assert list(twin.state_dict()) == list(module.state_dict())
    assert twin.fc.weight is twin.fc2.weight
    assert same(twin(X), model(X))
    with pytest.raises(Exception, match="compiled for"):
        twin(X[:1])


def test_a_deep_copy_shares_nothing() -> None:
    model, emitted, _ = build()
    twin = copy.deepcopy(emitted.module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert same(emitted.module(X), model(X))


def test_a_deep_copy_inside_another_module() -> None:
    model, emitted, _ = build()
    outer = copy.deepcopy(nn.Sequential(emitted.module))
    assert same(pickled(outer)(X), model(X))


def test_moving_to_float64_leaves_the_original_alone() -> None:
    model, emitted, _ = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    module = emitted.module.to(torch.float64)
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    reference = copy.deepcopy(model).double()
    assert same(module(X.double()), reference(X.double()))
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    emitted.module.requires_grad_(False)
    assert all(p.requires_grad for p in model.parameters())


def test_a_training_step_is_that_of_the_original() -> None:
    original, emitted, _ = build()
    model, module = copy.deepcopy(original).train(), copy.deepcopy(emitted.module).train()
    assert [m.training for m in module.modules()] == [True] * len(list(module.modules()))
    for net in (model, module):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            out = net(X)
            (out["a"].sum() + out["b"].square().sum()).backward()
            optimizer.step()
    names = emitted.parameter_map
    expected = model.state_dict()
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected[names[key][0]]), key
    assert [p.shape for p in module.parameters()] == [p.shape for p in model.parameters()]


def test_torch_export() -> None:
    model, emitted, _ = build()
    exported = torch.export.export(emitted.module, (X,))
    assert same(exported.module()(X), model(X))
    strict = torch.export.export(emitted.module, (X,), strict=True)
    assert same(strict.module()(X), model(X))


def test_torch_export_with_a_symbolic_batch() -> None:
    model, emitted, _ = build(symbolic=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(emitted.module, (X,), dynamic_shapes={"x": {0: batch}})
    more = torch.cat([X, X, X])
    assert same(exported.module()(more), model(more))
    assert same(emitted.module(more[:1]), model(more[:1]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("symbolic", [False, True])
def test_torch_compile_without_graph_breaks(backend: str, symbolic: bool) -> None:
    model, emitted, _ = build(symbolic)
    torch._dynamo.reset()
    compiled = torch.compile(emitted.module, fullgraph=True, backend=backend)
    result, expected = compiled(X), model(X)
    assert all(torch.allclose(result[k], expected[k], rtol=1e-6, atol=1e-6) for k in expected)
    result["a"].sum().backward()
    assert emitted.module.get_parameter("fc.weight").grad is not None


def test_symbolic_tracing_and_interpretation() -> None:
    model, emitted, _ = build(symbolic=True)
    traced = fx.symbolic_trace(emitted.module)
    assert same(traced(X), model(X))
    assert same(fx.Interpreter(emitted.module).run(X), model(X))


def test_the_printed_forms_read_well() -> None:
    _, emitted, _ = build(symbolic=True)
    code = emitted.module.code.strip()
    assert code.splitlines()[0] == "def forward(self, x):"
    assert "_guard = self._guard(x)" in code
    assert "self.stem.conv(x)" in code
    assert "torch.flatten(" in code
    assert "torch.nn.functional.gelu(" in code
    assert "torch._C" not in code
    assert "return {'a': fc, 'b': gelu}" in code
    text = repr(emitted.module)
    assert "(conv): FusedConvBNAct(" in text
    assert "(bn): BatchNorm2d(4" in text
    assert "FusedAffineSoftplus(" in text
    assert "x: f32[batch, 3, 8, 8]" in text


def test_emitting_twice_gives_the_same_code() -> None:
    _, emitted, d = build()
    again = d.emit(*d.graph.outputs)
    assert again.module.code == emitted.module.code
    assert list(again.parameter_map.items()) == list(emitted.parameter_map.items())
