"""The check of each result: what is accepted as rounding, of results and of what the call leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from compiler.driver import transform
from ir.core import Value
from ir.errors import ValidationError
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Thirds(Pattern):
    """x·3 = x + x + x: it rounds twice where the product rounds once"""

    factor: ClassVar[float] = 1.0

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a product."""
        return p.op("aten.mul.Scalar", p.any("x"), other=3.0)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Add."""
        found = b.call("aten.add.Tensor", b.call("aten.add.Tensor", m.x, m.x), m.x)
        return found if self.factor == 1.0 else b.call("aten.mul.Scalar", found, self.factor)


class RoughThirds(Thirds):
    """x·3 = 3.00002·x"""

    factor = 1 + 1e-5


class Does(nn.Module):
    """Calls a function with itself and its input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("total", torch.zeros(3, 4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        """Call it."""
        return self.function(self, x)


def rest(x: torch.Tensor) -> torch.Tensor:
    """Return what is left of a sum after cancellation: mostly rounding."""
    return x * 3.0 - x * 2.9999


def test_momentum_is_checked_where_no_result_shows_it() -> None:
    class Hasty(Pass):
        name: ClassVar[str] = "hasty"

        def run(self, program: Any, context: PassContext) -> None:
            for op in program.graph.operations():
                if op.name == "aten.batch_norm":
                    Rewriter(program).set_attribute(op, "momentum", 0.9)

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    with pytest.raises(ValidationError, match=r"buffer '1\.running_mean' after the call: values differ by"):
        transform(model, (X,), pipeline=PassManager([Hasty()]))


def results(m: Any, x: torch.Tensor) -> Any:
    return rest(x)


def buffers(m: Any, x: torch.Tensor) -> Any:
    m.total.add_(rest(x))
    return x


def inputs(m: Any, x: torch.Tensor) -> Any:
    x.copy_(rest(x))
    return x.shape[0]


def all_three(m: Any, x: torch.Tensor) -> Any:
    found = rest(x)
    m.total.add_(found)
    x.copy_(found)
    return found


@pytest.mark.parametrize("function", [results, buffers, inputs, all_three])
def test_rounding_is_accepted_and_more_is_not(function: Callable[..., Any]) -> None:
    model = Does(function)
    assert transform(model, (X,), patterns=(Thirds,)).counts() == {"Thirds": 1}
    with pytest.raises(ValidationError, match="values differ by"):
        transform(model, (X,), patterns=(RoughThirds,))


def test_what_follows_rounding_is_compared() -> None:
    class Doubled(Thirds):
        """count + 1 = count + 2, besides"""

        def pattern(self, p: PatternBuilder) -> Node:
            """Match the count."""
            return p.op("aten.add.Scalar", p.any("x"), other=1.0)

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            """Count two."""
            return b.call("aten.add.Scalar", m.x, 2.0)

    def function(m: Any, x: torch.Tensor) -> Any:
        m.count.copy_(m.count + 1.0)
        return rest(x)

    with pytest.raises(ValidationError, match="buffer 'count' after the call: values differ by 1 of 1"):
        transform(Does(function), (X,), patterns=(Thirds, Doubled))
