"""Where an operator is said to give new tensors, it does: no result shares memory with an operand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fuzz.calls.generators import GENERATORS
from fuzz.programs.observation import quiet
from fuzz.programs.strategy import input_tensors
from fuzz.strategies import programs
from ir.builder import make_operation
from ir.core import Graph
from ir.errors import EvaluationError
from ir.evaluate import evaluate
from ir.memory.aliasing import _LIKE_ANOTHER, aliased_operands, may_alias_operands
from ir.opdef import get_opdef
from ir.types import type_of_tensor

# Each of several hundred operators gets a small part of what the profile grants one test.
SHARE = settings(max_examples=max(6, settings().max_examples // 20))
NEW = sorted(name for name in GENERATORS if not may_alias_operands(get_opdef(name)))


@pytest.mark.parametrize("name", NEW)
@SHARE
@given(st.data())
def test_new_results_share_no_memory(name: str, data: st.DataObject) -> None:
    program = data.draw(programs(1, operators=(name,)))
    op = program.graph.first
    if op is None or op.name != name:
        reject()  # no call of it was possible
    program.graph.set_outputs(op.results)
    inputs = data.draw(input_tensors(program, special=False))
    try:
        with quiet():
            made = evaluate(program, inputs)
    except EvaluationError:
        reject()  # kernels refuse a few operands that inference takes
    operands = [*inputs, *(w.data for w in program.weights.values() if w.data is not None)]
    places = {x.untyped_storage().data_ptr() for x in operands if x.numel()}
    for tensor in made:
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            assert tensor.untyped_storage().data_ptr() not in places


@pytest.mark.parametrize("name", sorted(_LIKE_ANOTHER))
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
