"""The claims of the operator table hold for the kernels, on drawn calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fuzz.calls.columns import Call, called, same
from fuzz.calls.generators import GENERATORS
from fuzz.calls.traits import broken_claims
from fuzz.programs.observation import quiet
from fuzz.programs.strategy import input_tensors
from fuzz.strategies import programs
from ir.builder import make_operation
from ir.columns import Dims, Layout, StorageRule, StrideRule
from ir.core import Graph
from ir.memory.aliasing import aliased_operands, may_alias_operands
from ir.opdef import Facts, Trait, get_opdef, operators_with
from ir.types import type_of_tensor

# Each of several hundred operators gets a small part of what the profile grants one test.
SHARE = settings(max_examples=max(6, settings().max_examples // 20))


@pytest.mark.parametrize("name", sorted(GENERATORS))
@SHARE
@given(st.data())
def test_the_kernel_does_what_the_table_says(name: str, data: st.DataObject) -> None:
    program = data.draw(programs(1, operators=(name,)))
    op = program.graph.first
    if op is None or op.name != name:
        reject()  # no call of it was possible
    tensors = dict(zip(program.graph.inputs, data.draw(input_tensors(program, special=False)), strict=True))
    tensors |= {w.value: w.data for w in program.weights.values() if w.data is not None}
    with quiet():
        call = called(op, tensors)
        if call is not None:
            assert broken_claims(call) == []
            for other in operators_with(lambda facts: facts.synonym == name):
                assert same(call.results[0], call.again(get_opdef(other)))


def call_of(name: str, *args: Any) -> Call:
    """A call of an operator on tensors and literals."""
    graph, values = Graph(), {}

    def value(arg: Any) -> Any:
        if isinstance(arg, list):
            return [value(item) for item in arg]
        if not isinstance(arg, torch.Tensor):
            return arg
        made = graph.add_input(type_of_tensor(arg))
        values[made] = arg
        return made

    call = called(make_operation(name, *map(value, args)), values)
    assert call is not None
    return call


X = torch.arange(24.0).reshape(2, 3, 4)
Y = X.permute(2, 0, 1)
MASK = X.permute(0, 2, 1).contiguous().permute(0, 2, 1) > 3
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("aten.as_strided", (X, (2, 3), (1, 2))),
    ("aten.atleast_1d", (X.sum(),)),
    ("aten.atleast_2d", (X[0, 0],)),
    ("aten.atleast_3d", (X[0],)),
    ("aten.atleast_3d", (Y,)),
    ("aten.clip.Tensor", (X, X - 1, X * 0.5)),
    ("aten.concat", ([X, X], 1)),
    ("aten.concatenate", ([X, X], -1)),
    ("aten.conv_tbc", (X, torch.ones(3, 4, 5), torch.ones(5))),
    ("aten.convolution", (X, torch.ones(5, 3, 2), None, (1,), (0,), (1,), False, (0,), 1)),
    ("aten.mT", (Y,)),
    ("aten.masked_fill.Tensor", (X, MASK, torch.tensor(2.0))),
    ("aten.native_layer_norm", (X, (4,), None, None, 1e-5)),
    ("aten.numpy_T", (Y,)),
    ("aten.ravel", (X,)),
    ("aten.ravel", (Y,)),
    ("aten.resolve_conj", (Y,)),
    ("aten.resolve_neg", (Y,)),
    ("aten.tensor_split.indices", (X, (1, 3), 2)),
    ("aten.tensor_split.sections", (Y, 3, 0)),
    ("aten.to.other", (Y, X)),
    ("aten.to.other", (Y, X.double())),
]
"""Calls of operators that have no generator."""


@pytest.mark.parametrize(("name", "args"), CALLS, ids=[name for name, _ in CALLS])
def test_the_kernel_does_what_the_table_says_of_operators_without_a_generator(name: str, args: tuple[Any, ...]) -> None:
    assert broken_claims(call_of(name, *args)) == []


def test_what_is_said_of_operators_is_tried() -> None:
    """A claim that no call tests could be wrong."""

    def claims(facts: Facts) -> bool:
        return bool(facts.layout or facts.storage or facts.strides or facts.dims or facts.shape or facts.synonym)

    tried = {*GENERATORS, *(name for name, _ in CALLS)}
    assert [name for name in operators_with(claims) if not tried & {name, get_opdef(name).facts.synonym}] == []


WRONG: list[tuple[str, tuple[Any, ...], Facts]] = [
    ("aten.alias", (X,), Facts(storage=StorageRule.FRESH)),
    ("aten.add.Tensor", (X, X + 1), Facts(layout=Layout.SAME)),
    ("aten.permute", (X, (1, 0, 2)), Facts(layout=Layout.RESHAPE)),
    ("aten.reshape", (X, (4, 6)), Facts(layout=Layout.SAME)),
    ("aten.relu", (X.permute(2, 0, 1),), Facts(strides=StrideRule.CONTIGUOUS)),
    ("aten.relu", (X,), Facts(strides=StrideRule.FIXED)),
    ("aten.permute", (X, (1, 0, 2)), Facts(strides=StrideRule.PASSED)),
    ("aten.permute", (X, (1, 0, 2)), Facts(strides=StrideRule.FORMAT)),
    ("aten.zeros_like", (X,), Facts(fill=1)),
    ("aten.rand", ((3,),), Facts(creates=True)),
    ("aten.sub.Tensor", (X, X + 1), Facts(synonym="aten.add.Tensor")),
    ("aten.exp", (X,), Facts(inverse="aten.exp")),
    ("aten.reshape", (X, (6, 4)), Facts(adds_dim=True)),
    ("aten.rand_like", (X,), Facts(traits=Trait.PURE)),
    ("aten.rand_like", (X,), Facts()),
    ("aten.relu_", (X - 5,), Facts(traits=Trait.PURE)),
    ("aten.cumsum", (X, 0), Facts(traits=Trait.ELEMENTWISE)),
    ("aten.transpose.int", (X, 0, 1), Facts(traits=Trait.ELEMENTWISE)),
    ("aten.gt.Scalar", (X, 0.0), Facts(traits=Trait.ACTIVATION)),
    ("aten.add.Tensor", (X, X), Facts(traits=Trait.ACTIVATION)),
    ("aten.neg", (X,), Facts(traits=Trait.CAST)),
    ("aten.neg", (X,), Facts(traits=Trait.SELECTS)),
    ("aten.avg_pool2d", (X, (2, 2)), Facts(traits=Trait.SELECTS)),
    ("aten.neg", (X,), Facts(traits=Trait.IDEMPOTENT)),
    ("aten.sub.Tensor", (X, X + 1), Facts(traits=Trait.COMMUTATIVE)),
    ("aten.mul.Tensor", (X, X), Facts(unit=0)),
    ("aten.neg", (X,), Facts(evaluate=torch.abs)),
    ("aten.neg", (X,), Facts(training="train")),
    ("aten.neg", (X,), Facts(traits=Trait.DROPOUT)),
    ("aten.neg", (X,), Facts(dims=Dims.ALONG)),
    ("aten.neg", (X,), Facts(shape="size")),
    ("aten.neg", (X,), Facts(fill="value")),
    ("aten.neg", (X,), Facts(layout=Layout.PERMUTE)),
]


@pytest.mark.parametrize(("name", "args", "claim"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_claim_is_found(
    name: str, args: tuple[Any, ...], claim: Facts, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    call = call_of(name, *args)
    assert broken_claims(call) == []
    opdef = get_opdef(name)
    monkeypatch.setattr(opdef, "facts", claim)
    for column in ("layout", "traits", "training"):
        monkeypatch.setattr(opdef, column, getattr(claim, column))
    monkeypatch.setattr(opdef, "is_pure", Trait.PURE in claim.traits)
    may_alias_operands.cache_clear()  # type: ignore[attr-defined]
    request.addfinalizer(may_alias_operands.cache_clear)  # type: ignore[attr-defined]
    assert broken_claims(call), claim


def test_dimensions_counted_from_the_back_are_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of("aten.unsqueeze", X, 0)
    monkeypatch.setattr(get_opdef("aten.unsqueeze"), "facts", Facts(dims=Dims.ALONG))
    assert broken_claims(call)


@pytest.mark.parametrize("name", ["aten.view_as", "aten.reshape_as", "aten.expand_as", "aten.type_as", "aten.to.other"])
def test_what_takes_the_form_of_another_is_no_view_of_it(name: str) -> None:
    opdef = get_opdef(name)
    x, like = torch.ones(2, 3), torch.zeros(2, 3)
    assert opdef.target is not None
    made = opdef.target(x, like)
    assert made.data_ptr() == x.data_ptr() != like.data_ptr()
    graph = Graph([(n, type_of_tensor(t)) for n, t in (("x", x), ("like", like))])
    op = make_operation(name, *graph.inputs)
    assert aliased_operands(op) == graph.inputs[:1]


def test_what_returns_its_operand_is_known() -> None:
    for name in ("lift", "lift_fresh", "alias", "detach", "view", "_unsafe_view", "unsafe_split.Tensor", "to.dtype"):
        assert may_alias_operands(get_opdef(f"aten.{name}"))
