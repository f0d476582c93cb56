"""The emitter: weights that were computed at compile time, and checkpoints of the original."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ir.builder import Builder
from ir.core import Graph, Value
from ir.errors import InputError
from ir.program import (
    CallingConvention,
    Derivation,
    Program,
    Weight,
    WeightKind,
)
from tests.compiler.drafts import Draft, f32


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


def test_two_views_of_one_trained_weight_stay_one_parameter() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 4, bias=False)})
    d = Draft(model, x=f32(3, 4, 1, 1), y=f32(3, 4, 1))
    first = derived(d, "fc.weight", "fc.weight_2d", (4, 4, 1, 1))
    second = derived(d, "fc.weight", "fc.weight_1d", (4, 4, 1))
    result = d.emit(d.at("fc").call("aten.conv2d", d["x"], first), d.at("fc").call("aten.conv1d", d["y"], second))
    emitted = result.module
    assert list(emitted.state_dict()) == ["fc.weight"]
    x = torch.randn(3, 4, 1, 1)
    a, b = emitted(x, x.flatten(2))
    (a.sum() + b.sum()).backward()
    assert torch.allclose(emitted.get_parameter("fc.weight").grad, 2 * x.sum(0).flatten().expand(4, 4))


def test_a_weight_without_data_becomes_a_parameter_on_the_meta_device() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    d = Draft(model, x=f32(3, 4))
    for weight in d.program.weights.values():
        weight.data = None
    result = d.emit(d.at("fc").linear(d["x"], d["fc.weight"], d["fc.bias"]))
    assert {p.device.type for p in result.module.parameters()} == {"meta"}
    result.module.load_state_dict(result.parameter_map.convert(model.state_dict()), assign=True)
    x = torch.randn(3, 4)
    assert torch.equal(result.module(x), model["fc"](x))


def test_no_memory_is_spent_on_weights() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 2), "bn": nn.BatchNorm1d(2)}).eval()
    d = Draft(model, x=f32(3, 4))
    y = d.at("fc").linear(d["x"], d["fc.weight"], d["fc.bias"])
    weights = [d[f"bn.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
    emitted = d.emit(d.at("bn").call("aten.batch_norm", y, *weights, False, 0.1, 1e-5, True)).module
    mine = {t.untyped_storage().data_ptr() for t in emitted.state_dict(keep_vars=True).values()}
    assert mine == {t.untyped_storage().data_ptr() for t in model.state_dict(keep_vars=True).values()}
