"""A bound is allowed in the results that an approximation can reach, and in no other."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

from compiler.bisection import FOUND, bisect
from compiler.driver import TransformResult, transform
from compiler.equality.accuracy import measure_accuracy
from ir.core import Value
from ir.errors import ValidationError
from ir.program import Program
from passes.apply import Convert
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.bounds.tolerance import Place, Tolerance
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BOUND = Tolerance(0.011)


class Longer(Pattern):
    """tanh(x) = 1.01 sin(atan(sinh(x))), up to 1 in 100"""

    is_conversion = True
    tolerance = BOUND

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it."""
        return p.tanh(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Make it longer."""
        return b.call("aten.mul.Scalar", b.sin(b.atan(b.sinh(m.x))), 1.01)


class Wrong(Pattern):
    """sigmoid(x) = 1.001 / (1 + exp(-x)), which is not so"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it."""
        return p.sigmoid(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Make it wrong."""
        one = b.call("aten.add.Scalar", b.exp(b.neg(m.x)), 1.0)
        return b.call("aten.mul.Scalar", b.reciprocal(one), 1.001)


@attrs.frozen
class LongerPass(Pass):
    """Does what `Longer` does, as a pass."""

    name: ClassVar[str] = "longer"

    @property
    def tolerance(self) -> Tolerance:
        """As that of the rule."""
        return BOUND

    def run(self, program: Program, context: PassContext) -> None:
        """Make each longer."""
        rewriter = Rewriter(program)
        for op in program.graph.operations():
            if op.name == "aten.tanh":
                with rewriter.at(op):
                    rewriter.replace(op, rewriter.call("aten.mul.Scalar", rewriter.tanh(op.input("self")), 1.01))


class Two(nn.Module):
    """Two results, of which one is a tanh."""

    def forward(self, x: torch.Tensor) -> Any:
        """Compute both."""
        return {"a": torch.tanh(x).exp(), "b": torch.sigmoid(x), "n": 3}


class Kept(nn.Module):
    """Buffers: what one call puts into one of them, the next call reads."""

    last: torch.Tensor
    other: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3, 4))
        self.register_buffer("other", torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> Any:
        """Read and write."""
        read = self.last + x
        self.last.copy_(torch.tanh(x))
        self.other.add_(torch.sigmoid(x))
        return read, torch.sigmoid(x)


class Statistics(nn.Module):
    """The statistics of a batch norm are written by its kernel, and read in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> Any:
        """Normalize."""
        return self.norm(torch.tanh(x)).relu(), self.other(torch.sigmoid(x)), torch.sigmoid(x)


RUNS: dict[str, Pass] = {
    "rule": Convert([Longer]),
    "pass": LongerPass(),
    "manager": PassManager([Convert([Longer])], tolerance=BOUND),
}


def compiled(model: nn.Module, *passes: Pass, **options: Any) -> TransformResult:
    return transform(model, (X,), pipeline=PassManager(passes), **options)


@pytest.mark.parametrize("way", RUNS)
def test_a_wrong_rewrite_of_another_result_is_found(way: str) -> None:
    result = compiled(Two(), RUNS[way], validate="final")
    assert [a.reaches for a in result.approximations] == [frozenset({("result", 0)})]
    assert str(result.approximations[0]).endswith("in result 0")
    assert result.tolerance == BOUND
    assert result.bounds is not None
    assert result.bounds.of_results(3) == [BOUND, None, None]
    for options in ({"check": True}, {"check": False, "validate": "final"}):
        with pytest.raises(ValidationError, match="nothing that changes numbers on purpose reaches it"):
            compiled(Two(), RUNS[way], Convert([Wrong]), **options)
    assert measure_accuracy(Two(), result.model, (X,), tolerance=result.bounds).is_within_bound


def test_what_is_beyond_its_bound_is_found_where_it_is_reached() -> None:
    class Less(Longer):
        """tanh(x) = 1.01 tanh(x), up to 1e-4, which is not so"""

        tolerance = Tolerance(1e-4)

    with pytest.raises(ValidationError, match=r"output 0.*is allowed on purpose") as caught:
        compiled(Two(), Convert([Less]))
    assert "PassManager" in caught.value.remedy


def test_buffers_pass_it_on_to_the_next_call() -> None:
    result = compiled(Kept(), Convert([Longer]), validate="final")
    assert [a.reaches for a in result.approximations] == [frozenset({("result", 0), ("buffer", "last")})]
    assert result.bounds is not None
    assert (result.bounds.of_buffer("last"), result.bounds.of_buffer("other")) == (BOUND, None)
    assert result.bounds.of_buffer("no such buffer") == BOUND
    with pytest.raises(ValidationError):
        compiled(Kept(), Convert([Longer]), Convert([Wrong]))


@pytest.mark.parametrize("training", [True, False])
def test_so_do_statistics_that_a_kernel_writes(training: bool) -> None:
    result = compiled(Statistics().train(training), Convert([Longer]))
    statistics: frozenset[Place] = frozenset({("buffer", "norm.running_mean"), ("buffer", "norm.running_var")})
    assert [a.reaches for a in result.approximations] == [statistics | {("result", 0)}]


def test_a_merge_of_what_two_results_read_reaches_both() -> None:
    class Shared(Longer):
        """neg(neg(x)) = x"""

        tolerance = None  # type: ignore[assignment]

        def pattern(self, p: PatternBuilder) -> Node:
            return p.neg(p.neg(p.any("x")))

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            value: Value = m.x
            return value

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            first = torch.tanh(x)
            return first.exp(), torch.tanh(first).neg().neg(), torch.sigmoid(x)

    result = compiled(Net(), Convert([Longer, Shared]))
    found = {a.reaches: a.count for a in result.approximations}
    assert found == {frozenset({("result", 0), ("result", 1)}): 1, frozenset({("result", 1)}): 1}
    assert result.bounds is not None
    assert result.bounds.of_results(3) == [BOUND, BOUND.then(BOUND), None]


def test_sizes_that_depend_on_data_pass_it_on() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            count = torch.tanh(x).nonzero().shape[0]
            return torch.zeros(count, 2) + 1.0, torch.sigmoid(x)

    result = compiled(Net(), Convert([Longer]))
    assert [a.reaches for a in result.approximations] == [frozenset({("result", 0)})]


def test_a_bisection_finds_the_wrong_rewrite_of_the_other_result() -> None:
    found = bisect(Two(), (X,), pipeline=PassManager([Convert([Longer]), Convert([Wrong])]))
    assert found.verdict == FOUND
    assert found.culprit is not None
    assert found.culprit.rule == "Wrong"
