"""Constants are folded where that changes no number, in float64 either; reshaped weights become weights."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from ir.builder import Builder
from ir.core import Graph
from ir.evaluate import evaluate
from ir.program import CallingConvention, Program, Weight, WeightKind, weight_of
from ir.types import UNKNOWN_TENSOR, make_symbol, type_of_tensor
from passes.canonicalize import Canonicalize
from passes.manager.manager import PassContext, run_pass
from tests.passes.building import f32, names, program
from tests.passes.canonical import canonicalize, check, check_program, constant, symbolic

X = f32(2, 3)


def with_constant(data, build, kind=WeightKind.CONSTANT, **fields):
    """A program of one input that also uses a constant."""
    p = Program("test", Graph([("x", X)]), CallingConvention(None, None))
    value = constant(p, "c", data, kind, **fields)
    outputs = build(Builder(p.graph), p.graph.inputs[0], value)
    p.graph.set_outputs(outputs if isinstance(outputs, tuple) else (outputs,))
    return p


def kinds(p):
    return {name: weight.kind for name, weight in p.weights.items()}


def test_a_chain_on_a_literal_becomes_one_constant():
    p = with_constant(torch.randn(3, 4), lambda b, x, c: b.call("aten.matmul", x, b.exp(b.neg(c))))
    check_program(p)
    assert names(p) == ["aten.matmul"]
    assert kinds(p) == {"folded_exp": WeightKind.CONSTANT}
    assert not p.weights["folded_exp"].persistent and not p.weights["folded_exp"].requires_grad
    assert p.weights["folded_exp"].is_folded


def test_what_folding_made_in_vain_goes_later():
    p = check([X], lambda b, x: b.call("aten.add.Tensor", x, b.call("aten.new_ones", x, [3])))
    assert kinds(p) == {"folded_new_ones": WeightKind.BUFFER}
    p.graph.set_outputs([p.graph.inputs[0]])
    run_pass(Canonicalize(), p, PassContext())
    assert not p.weights


def test_creations_fold():
    def build(b, x):
        y = b.call("aten.add.Tensor", x, b.call("aten.arange", 3, dtype=torch.float32))
        return b.call("aten.mul.Tensor", y, b.call("aten.full", [2, 1], 2.5))

    p = check([X], build)
    assert names(p) == ["aten.add.Tensor", "aten.mul.Tensor"]
    assert sorted(p.weights) == ["folded_arange", "folded_full"]


def test_equal_small_constants_are_one():
    def build(b, x):
        y = b.call("aten.add.Tensor", x, b.call("aten.new_ones", x, [3]))
        return b.call("aten.add.Tensor", y, b.call("aten.new_ones", y, [3]))

    p = check([X], build)
    assert len(p.weights) == 1
    signs = check([X], lambda b, x: b.cat([x, b.call("aten.full", [2, 3], 0.0), b.call("aten.full", [2, 3], -0.0)]))
    assert len(signs.weights) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.call("aten.rand", [2, 3]),
        lambda b, x: b.call("aten.empty.memory_format", [2, 3]),
        lambda b, x: b.call("aten.full", [1 << 19], 1.0),
        lambda b, x: b.call("aten.new_full", x, [2, 3], 0.1),
    ],
)
def test_what_is_random_large_or_inexact_stays(build):
    p = program([X], lambda b, x: (b.exp(x), b.neg(build(b, x))))
    assert len(names(canonicalize(p))) == 3


def test_a_new_tensor_that_is_an_output_stays():
    p = check([X], lambda b, x: (b.exp(x), b.call("aten.full", [2], 1.0)))
    assert names(p) == ["aten.exp", "aten.full"]
    p = check_program(with_constant(torch.randn(2), lambda b, x, c: (b.exp(x), b.transpose(b.exp(c), 0, 0))))
    assert names(p) == ["aten.exp", "aten.exp"]


def test_a_view_of_a_constant_stays_a_view():
    data = torch.randn(3, 4)
    p = with_constant(data, lambda b, x, c: b.call("aten.matmul", x, b.call("aten.slice.Tensor", c, 1, 0, 2)))
    check_program(p)
    (weight,) = p.weights.values()
    assert weight.data is not None
    assert weight.data.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "fields", [{"is_mutated": True}, {"requires_grad": True}, {"data": torch.empty(3, device="meta")}, {"data": None}]
)
def test_what_may_be_written_or_is_not_there_stays(fields):
    data = fields.pop("data", torch.randn(3)) if "data" in fields else torch.randn(3)
    p = Program("test", Graph([("x", X)]), CallingConvention(None, None))
    type_ = type_of_tensor(torch.empty(3) if data is None or data.is_meta else data)
    value = p.add_weight(Weight("c", WeightKind.CONSTANT, type_, data, **fields))
    b = Builder(p.graph)
    p.graph.set_outputs([b.call("aten.add.Tensor", p.graph.inputs[0], b.exp(value))])
    assert names(canonicalize(p)) == ["aten.exp", "aten.add.Tensor"]


@pytest.mark.parametrize("type_", [UNKNOWN_TENSOR, attrs.evolve(X, device=torch.device("meta"))])
def test_what_is_made_on_the_device_of_another_stays_where_that_is_not_known(type_):
    def build(b, x):
        return b.call("aten.add.Tensor", x, b.call("aten.new_zeros", x, [3], dtype=torch.float32))

    assert names(canonicalize(program([type_], build))) == ["aten.new_zeros", "aten.add.Tensor"]


def test_parameters_and_persistent_buffers_are_not_folded():
    p = check([X], lambda b, x, w: b.call("aten.add.Tensor", x, b.exp(w)), {"w": f32(3)})
    assert names(p) == ["aten.exp", "aten.add.Tensor"]
    p = with_constant(torch.randn(3), lambda b, x, c: b.call("aten.add.Tensor", x, b.exp(c)), WeightKind.BUFFER)
    assert names(canonicalize(p)) == ["aten.exp", "aten.add.Tensor"]


def fold_buffer(data, build):
    p = with_constant(data, build, WeightKind.BUFFER, persistent=False)
    before = in_float64(p)
    canonicalize(p)
    assert torch.equal(before, in_float64(p))
    return p


def in_float64(p):
    """Run as the module would after `.to(torch.float64)`: buffers follow, literals of the code do not."""
    weights = {
        name: w.data.double()
        for name, w in p.weights.items()
        if w.data is not None and w.kind is WeightKind.BUFFER and w.data.is_floating_point()
    }
    return evaluate(p, [torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))], weights)[0]


def test_a_buffer_that_follows_to_float64_is_folded_where_the_numbers_stay():
    def add(b, x, c):
        return b.call("aten.add.Tensor", x, c)

    exact = fold_buffer(torch.arange(3.0), lambda b, x, c: add(b, x, b.call("aten.mul.Scalar", c, 2)))
    assert names(exact) == ["aten.add.Tensor"]
    inexact = fold_buffer(torch.arange(3.0), lambda b, x, c: add(b, x, b.exp(c)))
    assert names(inexact) == ["aten.exp", "aten.add.Tensor"]
    view = fold_buffer(torch.randn(3, 2), lambda b, x, c: add(b, x, b.call("aten.select.int", c, 1, 0)))
    assert names(view) == ["aten.add.Tensor"]
    compared = fold_buffer(torch.randn(3), lambda b, x, c: add(b, x, b.call("aten.gt.Scalar", c, 0)))
    assert names(compared) == ["aten.add.Tensor"]
    assert [w.kind for name, w in compared.weights.items() if name != "c"] == [WeightKind.CONSTANT]


def test_what_is_made_in_the_dtype_of_another_follows_it():
    def build(b, x):
        mask = b.call(
            "aten.masked_fill.Scalar",
            b.call("aten.new_zeros", x, [3]),
            b.call("aten.ones", [3], dtype=torch.bool),
            -100.0,
        )
        return b.call("aten.add.Tensor", x, b.call("aten.unsqueeze", mask, 0))

    p = check([X], build)
    assert names(p) == ["aten.add.Tensor"]
    assert [w.kind for w in p.weights.values()] == [WeightKind.BUFFER]
    p = program([X], lambda b, x: b.call("aten.add.Tensor", x, b.exp(b.call("aten.new_ones", x, [3]))))
    before = in_float64(p)
    assert names(canonicalize(p)) == ["aten.exp", "aten.add.Tensor"]
    assert torch.equal(before, in_float64(p))


def test_symbolic_sizes_are_not_folded():
    n = make_symbol("n")
    p = program([f32(n)], lambda b, x: b.call("aten.add.Tensor", x, b.call("aten.zeros", [n])))
    assert "aten.zeros" in names(canonicalize(symbolic(p)))


def test_an_operation_that_fails_is_left_for_the_call():
    p = with_constant(
        torch.tensor([7]),
        lambda b, x, c: b.call("aten.index_select", x, 0, c),
    )
    assert names(canonicalize(p)) == ["aten.index_select"]
    p = with_constant(
        torch.tensor([7]), lambda b, x, c: b.neg(b.call("aten.embedding", b.call("aten.ones", [2, 2]), c))
    )
    assert "aten.embedding" in names(canonicalize(p))


def test_intermediate_constants_do_not_pile_up():
    def build(b, x, c):
        y = c
        for _ in range(5):
            y = b.call("aten.add.Tensor", y, c)
        return b.call("aten.add.Tensor", x, y)

    p = check_program(with_constant(torch.randn(3), build))
    assert len(p.weights) == 1


# --- weights ----------------------------------------------------------------------------------------------------------


def classifier(use=lambda b, x, view, w: b.conv2d(x, view), **fields):
    p = Program("test", Graph([("x", f32(2, 3, 1, 1))]), CallingConvention(None, None))
    data = nn.Parameter(torch.randn(4, 3))
    w = p.add_weight(Weight("fc.weight", WeightKind.PARAMETER, type_of_tensor(data), data, True, **fields))
    b = Builder(p.graph)
    view = b.call("aten.reshape", w, [4, 3, 1, 1])
    p.graph.set_outputs([use(b, p.graph.inputs[0], view, w)])
    return p, data


def test_a_reshaped_weight_is_replaced_by_a_view_of_itself():
    p, data = classifier()
    check_program(p, fold_parameter_views=True)
    assert names(p) == ["aten.conv2d"]
    (weight,) = p.weights.values()
    assert weight.name == "fc.weight" and weight.kind is WeightKind.PARAMETER and weight.requires_grad
    assert isinstance(weight.data, nn.Parameter) and weight.data.shape == (4, 3, 1, 1)
    assert weight.data.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()
    assert weight_of(weight.value) is weight
    assert weight.derivation is not None and weight.derivation.sources == ("fc.weight",)
    (loaded,) = evaluate(weight.derivation.program, [data.detach()])
    assert torch.equal(loaded, weight.data)


def test_it_is_replaced_on_request_only():
    p, _ = classifier()
    assert names(check_program(p)) == ["aten.reshape", "aten.conv2d"]


@pytest.mark.parametrize("fields", [{"aliases": ("head.weight",)}, {"is_mutated": True}])
def test_a_tied_or_written_weight_stays(fields):
    p, _ = classifier(**fields)
    assert names(check_program(p, fold_parameter_views=True)) == ["aten.reshape", "aten.conv2d"]


def test_a_weight_with_another_user_stays():
    p, _ = classifier(
        lambda b, x, view, w: b.linear(b.flatten(b.conv2d(x, b.call("aten.reshape", w, [4, 3, 1, 1])), 1), b.t(w))
    )
    assert names(check_program(p, fold_parameter_views=True)).count("aten.reshape") == 2


def test_chains_compose_and_record_where_they_come_from():
    p = Program("test", Graph([("x", f32(2, 4, 1, 1))]), CallingConvention(None, None))
    data = nn.Parameter(torch.randn(4, 3))
    w = p.add_weight(Weight("fc.weight", WeightKind.PARAMETER, type_of_tensor(data), data, True))
    b = Builder(p.graph)
    view = b.permute(b.call("aten.reshape", w, [4, 3, 1, 1]), [1, 0, 2, 3])
    p.graph.set_outputs([b.conv2d(p.graph.inputs[0], view)])
    check_program(p, fold_parameter_views=True)
    assert names(p) == ["aten.conv2d"]
    derivation = p.weights["fc.weight"].derivation
    assert derivation is not None and derivation.sources == ("fc.weight",)
    assert names(derivation.program) == ["aten.reshape", "aten.permute"]
    (loaded,) = evaluate(derivation.program, [data.detach()])
    assert torch.equal(loaded, data.detach()[:, :, None, None].transpose(0, 1))


def test_a_view_that_needs_a_copy_stays():
    data = nn.Parameter(torch.randn(4, 3).t())
    p = Program("test", Graph([("x", X)]), CallingConvention(None, None))
    w = p.add_weight(Weight("w", WeightKind.PARAMETER, type_of_tensor(data), data, True))
    b = Builder(p.graph)
    p.graph.set_outputs([b.call("aten.sum", b.call("aten.reshape", w, [2, 6]))])
    assert names(canonicalize(p, fold_parameter_views=True)) == ["aten.reshape", "aten.sum"]


@pytest.mark.parametrize("data", [None, torch.empty(4, 3, device="meta")])
def test_weights_without_data_are_replaced_too(data):
    p = Program("test", Graph([("x", f32(2, 3, 1, 1))]), CallingConvention(None, None))
    w = p.add_weight(Weight("w", WeightKind.PARAMETER, f32(4, 3), data, True))
    b = Builder(p.graph)
    p.graph.set_outputs([b.conv2d(p.graph.inputs[0], b.call("aten.reshape", w, [4, 3, 1, 1]))])
    run_pass(Canonicalize(fold_parameter_views=True), p, PassContext())
    (weight,) = p.weights.values()
    assert str(weight.type) == "f32[4, 3, 1, 1]"
    assert weight.data is None or (weight.data.is_meta and weight.data.shape == (4, 3, 1, 1))
