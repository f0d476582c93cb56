"""Calls of constants in FX graphs: what only computes is evaluated once, the rest refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from ir.errors import CaptureError
from ir.program import Program
from tests.compiler.lower.lowering import assert_same, names


def call_of_constants(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
    """Return the program of a graph that calls a function of constants, and returns its result beside another."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    called = graph.call_function(function, args, kwargs)
    graph.output((graph.call_function(torch.relu, (x,)), called))
    return lower(capture(fx.GraphModule(nn.Module(), graph)))


WITH_EFFECTS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (torch._C._set_grad_enabled, (False,)),
    (torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, None)),
    (torch.manual_seed, (3,)),
    (torch.set_default_dtype, (torch.float64,)),
    (torch.is_grad_enabled, ()),
    (torch.is_autocast_enabled, ("cpu",)),
    (torch.get_default_dtype, ()),
    (print, ("called",)),
    (torch.ops.aten.rand, ([2],)),
    (operator.setitem, ([1, 2], 0, 3)),
]


@pytest.mark.parametrize(("function", "args"), WITH_EFFECTS)
def test_a_function_with_effects_is_not_called(
    function: Callable[..., Any], args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    seed, dtype = torch.initial_seed(), torch.get_default_dtype()
    try:
        with pytest.raises(CaptureError, match="it may have an effect, or return something else") as caught:
            call_of_constants(function, *args)
        assert caught.value.remedy is not None and "example inputs" in caught.value.remedy
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert (torch.initial_seed(), torch.get_default_dtype()) == (seed, dtype) and not capsys.readouterr().out
    finally:
        torch._C._set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)
        torch.set_default_dtype(dtype)


def test_random_numbers_are_not_drawn_once() -> None:
    assert names(call_of_constants(torch.rand, 3)) == ["rand", "relu"]
    state = torch.get_rng_state()
    with pytest.raises(CaptureError, match="it may have an effect"):
        call_of_constants(torch.rand, 3, requires_grad=True)  # no operator takes this argument
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (math.sqrt, (4.0,), 2.0),
        (max, (1, 2), 2),
        (operator.getitem, ((1, 2), 1), 2),
        (getattr, (torch.finfo(torch.float32), "max"), torch.finfo(torch.float32).max),
        (torch.broadcast_shapes, ((1, 3), (2, 1)), (2, 3)),
    ],
)
def test_a_function_that_only_computes_is_called(
    function: Callable[..., Any], args: tuple[Any, ...], expected: Any
) -> None:
    class Expected(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.relu(x), expected

    program = call_of_constants(function, *args)
    assert names(program) == ["relu"]
    assert_same(program, Expected(), torch.randn(3))


def test_a_call_of_constants_that_raises_is_an_error_of_capture() -> None:
    with pytest.raises(CaptureError, match=r"math\.sqrt, which raises ValueError"):
        call_of_constants(math.sqrt, -1.0)
