"""Rules and passes that change numbers on purpose: held to the bound that they state, and to rounding without one."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

from compiler.bisection import FOUND, NEVER, bisect
from compiler.driver import TransformResult, transform
from compiler.equality.accuracy import measure_accuracy
from compiler.pipeline import parse_pipeline
from ir.core import Value
from ir.errors import InputError, ParseError, PatternError, ValidationError
from ir.program import Program
from passes.apply import Convert
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.bounds.tolerance import Approximation, Tolerance, composed
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
MODEL = nn.Sequential(nn.Tanh(), nn.Tanh())
ONE = nn.Sequential(nn.Tanh())


class Longer(Pattern):
    """tanh(x) = 1.01 sin(atan(sinh(x))), up to 1 in 100"""

    is_conversion = True
    tolerance: Tolerance | None = Tolerance(0.0101)

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it."""
        return p.tanh(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Make it longer."""
        return b.call("aten.mul.Scalar", b.sin(b.atan(b.sinh(m.x))), 1.01)


class TooLong(Longer):
    """tanh(x) = 1.01 tanh(x), up to 1 in 1000, which is not so"""

    tolerance = Tolerance(0.001)


class Silent(Longer):
    """tanh(x) = 1.01 tanh(x), which is not so"""

    tolerance = None


@attrs.frozen
class Scale(Pass):
    """Multiplies by the factor of each product, once more."""

    name: ClassVar[str] = "scale"
    factor: float = 1.01

    @property
    def tolerance(self) -> Tolerance:
        """What is left when it is divided by the factor."""
        return Tolerance(abs(self.factor - 1) * 1.001)

    def run(self, program: Program, context: PassContext) -> None:
        """Scale."""
        rewriter = Rewriter(program)
        for op in program.graph.operations():
            if op.name == "aten.tanh":
                with rewriter.at(op):
                    rewriter.replace_value(
                        op.result, rewriter.call("aten.mul.Scalar", rewriter.tanh(op.operands[0]), self.factor)
                    )
                rewriter.erase(op)


def compiled(*passes: Pass, model: nn.Module = MODEL, **options: Any) -> TransformResult:
    tolerance = options.pop("tolerance", None)
    return transform(model, (X,), pipeline=PassManager(passes, tolerance=tolerance), **options)


@pytest.mark.parametrize("validate", ["off", "final", "each"])
def test_a_rule_is_held_to_its_bound(validate: str) -> None:
    result = compiled(Convert([Longer]), validate=validate)
    assert result.approximations == (Approximation("Longer", "rewrite", Tolerance(0.0101), 2),)
    assert result.tolerance == Tolerance(0.0101).then(Tolerance(0.0101))
    assert [r.rule for r in result.remarks if r.kind == "approximated"] == ["Longer", "check"]
    assert 0 < (result.model(X) - MODEL(X)).abs().max() < 0.02
    for wrong, what in ((TooLong, r"0\.00[12].* of the largest magnitude"), (Silent, None)):
        with pytest.raises(ValidationError, match=what):
            compiled(Convert([wrong]), validate=validate, check=validate == "off")


def test_a_rewrite_that_is_not_made_allows_nothing() -> None:
    class Slightly(Silent):
        """relu(x) = 1.00001 relu(x), which is not so"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.relu(p.any("x"))

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            return b.call("aten.mul.Scalar", b.clamp_min(m.x, 0.0), 1.00001)

    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValidationError) as caught:
        compiled(Convert([Longer, Slightly]), model=model, validate="final", check=False)
    assert "on purpose" not in str(caught.value)


def test_a_pass_answers_for_what_runs_in_it_and_options_decide_how_far() -> None:
    assert compiled(Scale(), model=ONE).tolerance == Scale().tolerance
    assert compiled(Scale(1.01, label="rough"), model=nn.Sequential(nn.ReLU())).approximations == ()
    with pytest.raises(ValidationError, match=r"on purpose"):
        compiled(Scale(1.001), Scale(1.02), tolerance=Tolerance(0.003))
    whole = compiled(Convert([Longer]), Scale(), tolerance=Tolerance(0.05), validate="final")
    assert [(a.name, a.count) for a in whole.approximations] == [("sequence", 1)]
    both = compiled(PassManager([Convert([Longer])], label="first", tolerance=Tolerance(0.03)), Convert([Silent]))
    assert [a.name for a in both.approximations] == ["first"]


def test_gradients_and_accuracy_are_held_to_the_bound_as_well() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).train()
    result = compiled(Convert([Longer]), model=model, validate="final")
    assert not measure_accuracy(model, result.model, (X,)).is_within_bound
    assert measure_accuracy(model, result.model, (X,), tolerance=result.tolerance).is_within_bound
    assert not result.model.state_dict().keys() - model.state_dict().keys()


def test_a_bisection_allows_what_was_stated() -> None:
    assert bisect(MODEL, (X,), pipeline=PassManager([Convert([Longer])])).verdict == NEVER
    found = bisect(MODEL, (X,), pipeline=PassManager([Convert([Longer]), Convert([Silent])], label="both"))
    assert found.verdict == NEVER  # nothing was left to it
    found = bisect(ONE, (X,), pipeline=PassManager([Scale(), Convert([Silent])]))
    assert found.verdict == FOUND
    assert found.culprit is not None and found.culprit.rule == "Silent"


def test_bounds_add_up() -> None:
    first, second = Tolerance(0.5, absolute=1.0), Tolerance(0.1)
    assert first.then(second).relative == pytest.approx(0.65)
    assert first.then(second).absolute == pytest.approx(1.1)
    assert first.allows(4.0) == 3.0
    assert composed([]) is None
    assert composed([Approximation("A", "rewrite", second, 2)]) == second.then(second)
    assert str(first) == "0.5 of the largest magnitude and 1"


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf"), True, "0.1"])
def test_what_is_no_bound_is_refused(bound: Any) -> None:
    with pytest.raises(InputError):
        Tolerance(bound)


def test_wrong_statements_are_refused() -> None:
    class Bare(Longer):
        """tanh(x) = tanh(x)"""

        tolerance = 0.01  # type: ignore[assignment]

    class Both(Longer):
        """tanh(x) = tanh(x)"""

        exact = True

    for wrong in (Bare, Both):
        with pytest.raises((PatternError, InputError), match=r"Tolerance|exact"):
            compiled(Convert([wrong]))
    with pytest.raises(InputError, match="Tolerance"):
        PassManager([], tolerance=0.1)


def test_the_bound_of_a_manager_is_text() -> None:
    text = "sequence(canonicalize,fixpoint(canonicalize){max-rounds=4 tolerance=0.01,1e-06}){tolerance=0.02}"
    manager = parse_pipeline(text)
    assert str(manager) == text
    assert manager.tolerance == Tolerance(0.02)
    assert parse_pipeline(str(manager)) == manager
    for wrong in ("much", "1,2,3", "-1", "0"):
        with pytest.raises(ParseError, match="column"):
            parse_pipeline(f"sequence(canonicalize){{tolerance={wrong}}}")
