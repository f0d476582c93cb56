"""Generated modules run, leave their input alone, and can be followed by both tracers."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from torch import nn
from torch.utils import _pytree as pytree

from fuzz.strategies import modules

Case = tuple[nn.Module, tuple[torch.Tensor, ...]]


def equal(a: object, b: object) -> bool:
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(torch.allclose(x, y, equal_nan=True, rtol=0, atol=0) for x, y in pairs)


@given(modules())
def test_modules_run_and_leave_their_input_alone(case: Case) -> None:
    model, inputs = case
    kept = [x.clone() for x in inputs]
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first, second = model(*inputs), model(*inputs)
    assert equal(first, second)
    assert equal(kept, list(inputs))
    assert equal(state, model.state_dict())


@settings(max_examples=15)
@given(modules())
def test_modules_are_traced_by_both_tracers(case: Case) -> None:
    model, inputs = case
    with torch.no_grad():
        want = model(*inputs)
        assert equal(torch.fx.symbolic_trace(model)(*inputs), want)
        assert equal(torch.export.export(model, inputs).module()(*inputs), want)


def test_drawing_a_module_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    @settings(max_examples=5, database=None)
    @given(modules())
    def draw(case: Case) -> None:
        assert torch.equal(torch.random.get_rng_state(), before)

    draw()
