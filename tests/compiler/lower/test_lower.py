"""Exported programs as programs of ours: types, names, locations, weights, conventions, modes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest
import sympy
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from ir.core import Operation
from ir.errors import CaptureError
from ir.evaluate import evaluate
from ir.parameters import NO_DEFAULT
from ir.program import Program, SymbolRange, WeightKind
from ir.types import make_symbol
from ir.verify import verify
from tests.compiler.lower.lowering import Function, assert_same, lowered, names, slow_attention
from tests.helpers import model_params, quick_model, real_model


def the(program: Program, name: str) -> Operation:
    (found,) = [op for op in program.graph.operations() if op.name == name]
    return found


# ---- real models ----


@pytest.mark.parametrize("name", model_params())
def test_real_models_keep_their_bits(name: str) -> None:
    model, x = quick_model(name)
    program = lowered(model, x)
    assert program.mode_locked == ""
    with torch.no_grad(), slow_attention():
        assert torch.equal(evaluate(program, (x,))[0], model(x))
    for op in program.graph.operations():
        assert op.location.module_class and op.location.file


@pytest.mark.parametrize("shapes", [False, True], ids=["without-shapes", "with-shapes"])
@pytest.mark.parametrize("name", model_params())
def test_real_models_as_fx_graphs_keep_their_bits(name: str, shapes: bool) -> None:
    model, x = quick_model(name)
    graph_module = fx.symbolic_trace(model)
    if shapes:
        with torch.no_grad():
            ShapeProp(graph_module).propagate(x)
    program = lower(capture(graph_module))
    verify(program)
    if shapes:
        assert program.graph.outputs[0] is not None and program.graph.outputs[0].tensor_type.is_static
    with torch.no_grad(), slow_attention():
        assert torch.equal(evaluate(program, (x,))[0], model(x))


def test_resnet18_with_a_symbolic_batch() -> None:
    model, x = quick_model("resnet18")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = lowered(model, x, dynamic_shapes={"x": {0: batch}})
    symbol = make_symbol("batch")
    assert program.symbols == {symbol: SymbolRange(1, 64)}
    assert program.graph.inputs[0].tensor_type.shape == (symbol, 3, 64, 64)
    assert the(program, "aten.linear").result.tensor_type.shape == (symbol, 10)
    for size in (1, 2, 5):
        data = torch.randn(size, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(evaluate(program, (data,))[0], model(data))


def test_lowering_is_much_faster_than_capture() -> None:
    model, x = quick_model("resnet50")
    start = time.perf_counter()
    captured = capture(model, (x,))
    middle = time.perf_counter()
    lower(captured)
    assert time.perf_counter() - middle < 0.5 * (middle - start)


# ---- types, attributes, locations, weights ----


def test_types_attributes_and_locations() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + 1

    program = lowered(nn.Sequential(Block()), torch.randn(2, 3, 5, 5))
    conv, add = program.graph.operations()
    assert str(conv.result.type) == "f32[2, 4, 5, 5]"
    assert conv.attributes == {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert (conv.location.module_path, conv.location.module_class) == ("0.conv", "torch.nn.modules.conv.Conv2d")
    assert add.name == "aten.add.Scalar" and add.attributes == {"other": 1, "alpha": 1}
    assert add.location.module_path == "0" and add.location.class_name == "Block"
    assert conv.location.file == add.location.file == __file__
    assert conv.location.line == add.location.line > 0


def test_a_helper_function_is_located_by_its_own_line() -> None:
    def helper(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    (op,) = lowered(Function(lambda self, x: helper(x)), torch.randn(2)).graph.operations()
    assert (op.location.file, op.location.line) == (__file__, helper.__code__.co_firstlineno + 1)


def test_results_of_several_values_need_no_getitem() -> None:
    program = lowered(Function(lambda self, x: x.split([1, 2], 1)[1] + 1), torch.randn(2, 3))
    assert names(program) == ["split_with_sizes", "add.Scalar"]
    split = the(program, "aten.split_with_sizes")
    assert [str(r.type) for r in split.results] == ["f32[2, 1]", "f32[2, 2]"]


def test_all_weights_in_their_order_tied_ones_once() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1), persistent=False)
            self.a = nn.Linear(2, 2)
            self.unused = nn.Parameter(torch.ones(3), requires_grad=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight
            self.constant = torch.ones(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) * self.scale + self.constant

    model = Model()
    program = lowered(model, torch.randn(4, 2))
    assert list(program.weights) == ["unused", "scale", "a.weight", "a.bias", "constant"]
    weights = program.weights
    assert weights["a.weight"].aliases == ("b.weight",)
    assert weights["a.weight"].data is model.a.weight and weights["a.weight"].requires_grad
    assert not weights["scale"].persistent and not weights["unused"].requires_grad
    assert weights["constant"].kind is WeightKind.CONSTANT
    assert [op.operand("weight") for op in program.graph.operations() if op.name == "aten.linear"] == [
        weights["a.weight"].value
    ] * 2


def test_sizes_are_expressions_over_the_users_names() -> None:
    def forward(self: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        n = x.shape[0]
        return x.reshape(n * 2, -1) + 1, y.flatten(), n * 3

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    model = Function(forward)
    program = lowered(
        model, torch.randn(3, 4), torch.randn(3, 7), dynamic_shapes={"args": ({0: batch}, {0: batch, 1: length})}
    )
    b, n = make_symbol("batch"), make_symbol("length")
    assert the(program, "aten.reshape").attributes["shape"] == (2 * b, -1)
    assert the(program, "aten.reshape").result.tensor_type.shape == (2 * b, 2)
    assert sympy.expand(the(program, "aten.flatten.using_ints").result.tensor_type.shape[0] - b * n) == 0  # type: ignore[index]
    assert program.convention.outputs[2].constant == 3 * b
    assert set(program.symbols) == {b, n}


def test_symbols_without_a_name_are_numbered() -> None:
    program = lowered(
        Function(lambda self, x: x * 2),
        torch.randn(3, 4),
        dynamic_shapes={"args": (({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}),)},
    )
    assert program.graph.inputs[0].tensor_type.shape == (make_symbol("s0"), make_symbol("s1"))


# ---- calling convention ----


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def test_structures_of_arguments_and_results() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, extra: Any, flag: bool = True, *, scale: Any = None) -> Any:
            y = x + extra["a"][0]
            return {"pair": Pair(y, x), "n": 3, "same": [y, y], "none": None, "text": "t", "scale": scale * 2}

    x, a, scale = torch.randn(2), torch.randn(2), torch.randn(2)
    program = lower(capture(Model(), (x, {"a": [a], "unused": torch.ones(1)}), {"scale": scale}))
    verify(program)
    assert [leaf.value for leaf in program.convention.inputs] == [0, 1, 2, 3]
    assert [(each.name, each.default) for each in program.convention.parameters] == [
        ("x", NO_DEFAULT),
        ("extra", NO_DEFAULT),
        ("flag", True),
        ("scale", None),
    ]
    results = evaluate(program, (x, a, torch.ones(1), scale))
    values = [leaf.constant if leaf.value is None else results[leaf.value] for leaf in program.convention.outputs]
    assert program.convention.out_spec is not None
    built = torch.utils._pytree.tree_unflatten(values, program.convention.out_spec)
    assert isinstance(built["pair"], Pair) and built["n"] == 3 and built["none"] is None and built["text"] == "t"
    assert torch.equal(built["pair"].first, x + a) and built["pair"].second is x
    assert built["same"][0] is built["same"][1] is built["pair"].first


def test_a_constant_argument_is_no_input() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, factor: int) -> torch.Tensor:
            return x * factor

    program = lower(capture(Model(), (torch.randn(2), 3)))
    assert [(leaf.value, leaf.constant) for leaf in program.convention.inputs] == [(0, None), (None, 3)]


# ---- exported programs alone ----


def test_an_exported_program_needs_no_model() -> None:
    model, x = quick_model("resnet18")
    exported = torch.export.export(model, (x,))
    program = lower(capture(exported))
    verify(program)
    assert next(iter(program.weights)) == "conv1.weight"
    with torch.no_grad():
        assert torch.equal(evaluate(program, (x,))[0], model(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # run_decompositions warns about PyTorch's own code
def test_a_decomposed_program_with_mutations() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        self.count.add_(1)
        return x * self.count

    model = Function(forward, count=torch.zeros(()))
    x = torch.randn(3)
    exported = torch.export.export(model, (x,)).run_decompositions()
    program = lower(capture(exported))
    verify(program)
    assert [m.buffer for m in program.convention.mutations] == ["count"]
    assert_same(program, model, x)


def test_a_loaded_program_keeps_views(tmp_path: Any) -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x * 2
        y[0].add_(1)
        return y

    model, x = Function(forward), torch.randn(2, 3)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    program = lower(capture(torch.export.load(tmp_path / "model.pt2")))
    assert_same(program, model, x)


# ---- modules ----


def test_batch_norm_in_training_writes_its_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)).train()
    x = torch.randn(2, 3, 4, 4)
    program = lowered(model, x)
    first, second = program.graph.operations()
    assert first.attributes["momentum"] is None and first.attributes["training"] and first.attributes["follows_mode"]
    assert second.attributes["training"] and not second.attributes["follows_mode"]
    assert program.weights["0.running_mean"].is_mutated and program.weights["0.num_batches_tracked"].is_mutated
    assert int(model[0].num_batches_tracked) == 0
    assert model[0].momentum is None
    assert program.convention.mutations == ()


def test_the_statistics_of_a_training_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    x = torch.randn(2, 3, 4, 4)
    assert_same(lowered(model, x), model, x)


def test_dropout_follows_its_module_and_not_a_literal() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.25)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.drop(x), 0.5, training=True)

    module, literal = lowered(Model().eval(), torch.randn(2)).graph.operations()
    assert module.attributes == {"p": 0.25, "train": False, "follows_mode": True}
    assert literal.attributes == {"p": 0.5, "train": True, "follows_mode": False}


def test_a_functional_dropout_follows_where_the_code_reads_its_mode() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.dropout(x, 0.5, self.training)
            x = F.dropout(x, 0.25 if self.training else 0.0)
            return F.dropout(x, 0.125, False)

    for mode in (False, True):
        program = lowered(Model().train(mode), torch.randn(2))
        assert [op.attributes for op in program.graph.operations()] == [
            {"p": 0.5, "train": mode, "follows_mode": True},
            {"p": 0.25, "train": mode, "follows_mode": True},
            {"p": 0.125, "train": False, "follows_mode": False},
        ]
        assert program.mode_locked == ""


def test_attention_dropout_that_the_code_switches() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.25 if self.training else 0.0)

    x = torch.randn(1, 2, 3, 4)
    op = the(lowered(Model().eval(), x), "aten.scaled_dot_product_attention")
    assert (op.attributes["dropout_p"], op.attributes["train_dropout_p"]) == (0.0, 0.25)
    op = the(lowered(Model().train(), x), "aten.scaled_dot_product_attention")
    assert (op.attributes["dropout_p"], op.attributes["train_dropout_p"]) == (0.25, 0.25)


def test_code_that_does_something_else_in_training_locks_the_mode() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            return y if self.training else y.softmax(-1)

    program = lowered(nn.Sequential(Head()).eval(), torch.randn(1, 2))
    assert "`0` computes something else in the other mode" in program.mode_locked
    assert "softmax" in program.mode_locked


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_dropout_of_multihead_attention(need_weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(4, 2, dropout=0.25, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mha(x, x, x, need_weights=need_weights)[0]

    x = torch.randn(2, 3, 4)
    model = Model().eval()
    program = lowered(model, x)
    assert_same(program, model, x)
    if need_weights:
        assert the(program, "aten.dropout").attributes == {"p": 0.25, "train": False, "follows_mode": True}
        training = the(lowered(model.train(), x), "aten.dropout")
        assert training.attributes == {"p": 0.25, "train": True, "follows_mode": True}
    else:
        assert the(program, "aten.scaled_dot_product_attention").attributes["train_dropout_p"] == 0.25


# ---- regions ----


def test_no_grad_cuts_the_gradient() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = x * self.weight
            return y * self.weight

    model = Model()
    x = torch.tensor([2.0, 3.0])
    program = lowered(model, x)
    evaluate(program, (x,))[0].sum().backward()
    found = model.weight.grad
    model.weight.grad = None
    model(x).sum().backward()
    assert found is not None and model.weight.grad is not None
    assert torch.equal(found, model.weight.grad)


def test_control_flow_is_refused_by_name() -> None:
    def branch(self: nn.Module, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))

    with pytest.raises(CaptureError, match="cond"):
        lowered(Function(branch), torch.randn(2, 2))


def test_a_region_of_autocast_is_casts() -> None:
    def autocast(self: nn.Module, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    program = lowered(Function(autocast), torch.randn(2, 2))
    assert [op.name for op in program.graph.operations()] == ["aten.to.dtype", "aten.to.dtype", "aten.matmul"]
    assert list(program.surroundings) == ["autocast"]


def test_a_size_that_depends_on_data_is_a_symbol() -> None:
    program = lowered(Function(lambda self, x: x[x > 0]), torch.randn(4))
    (result,) = program.graph.outputs
    assert result is not None and str(result.type) == "f32[u0]"
    assert "symbol u0 in [0, 4]" in str(program)


@pytest.mark.long
def test_vit_in_its_own_size_keeps_its_bits() -> None:
    model = real_model("vit_b_16", num_classes=10)
    x = torch.randn(1, 3, 224, 224)
    program = lowered(model, x)
    with torch.no_grad(), slow_attention():
        assert torch.equal(evaluate(program, (x,))[0], model(x))
