"""Modules are judged by all that a caller sees, and what is found is told as for programs."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from compiler.emitted.parameter_map import Entry, ParameterMap
from compiler.equality.observation import named_state
from compiler.pipeline import pipeline_of
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.modules.check import check_module, lowered_and_changed
from fuzz.modules.observation import module_differences, observe_module
from fuzz.programs.budget import Budget
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.rules.rule_pass import ApplyRules
from fuzz.search.judge import write_script
from fuzz.search.sound import assert_sound, check, find_counterexample
from fuzz.strategies import modules
from ir.errors import GraphwrightError
from passes.canonicalize import Canonicalize
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.pattern import Match, Pattern, PatternBuilder

ROOT = Path(__file__).parents[3]
STANDARD = pipeline_of(())


class TanhForSigmoid(Pattern):
    """A wrong rule."""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.sigmoid(p.any("x"))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.tanh(m.x)


class TwiceRelu(Pattern):
    """A right rule, to stand before and behind the wrong one."""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.relu(p.any("x")))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.relu(m.x)


class RaisesLate(Pass):
    """A pass that fails."""

    name = "raises-late"

    def run(self, program: Any, context: PassContext) -> None:
        raise GraphwrightError("it fails")


class Simple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        self.calls.add_(1)
        y = torch.relu(torch.relu(self.linear(self.norm(x))))
        return torch.sigmoid(y), x


SIMPLE = ModuleCase(Simple, (InputSpec("x", (3, 4)),), seed=8)
PIPELINE = PassManager((ApplyRules((TwiceRelu(), TanhForSigmoid())),))


def test_assert_sound_takes_modules() -> None:
    seen = assert_sound(PassManager([Canonicalize()]), on=modules(max_ops=30), settings=settings(max_examples=20))
    assert seen.examples >= 15
    assert seen.fired
    assert len(seen.operators) > 20


def test_a_rule_is_tried_on_modules() -> None:
    seen = assert_sound(TwiceRelu, on=st.just(SIMPLE))
    assert seen.fired["TwiceRelu"] >= 2  # in both captures


def test_a_case_of_a_class_is_held_in_both_captures() -> None:
    outcome = check(STANDARD, SIMPLE)
    assert outcome.operators
    assert check(PassManager((ApplyRules((TwiceRelu(),)),)), SIMPLE).fired["TwiceRelu"] == 2


@pytest.mark.long
def test_a_wrong_rewrite_is_found_and_named(tmp_path: Path) -> None:
    # one module in forty calls a sigmoid, and what is tried here is what is said of it
    with_sigmoid = modules(max_ops=3).filter(lambda case: "sigmoid" in str(case.module))
    rules = (TwiceRelu, TanhForSigmoid)
    found = find_counterexample(rules, on=with_sigmoid, max_examples=400, seed=0, properties=Properties())
    assert found is not None
    assert found.property in ("values", "gradients", "state", "inputs")
    assert found.rewrite is not None
    assert "TanhForSigmoid" in found.rewrite
    assert isinstance(found.case, ModuleCase)
    assert len(found.case.ways) == 1
    assert "aten.sigmoid" in found.before
    assert "aten.tanh" in found.after
    assert "class Net(nn.Module)" in str(found)
    script = tmp_path / "script.py"
    assert found.suffix == ".py"
    script.write_text(found.file)
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ran.returncode == 1
    assert f"Finding: {found.property}: " in ran.stderr


def test_what_a_wrong_rewrite_leaves_is_shown() -> None:
    before, after = lowered_and_changed(PIPELINE, SIMPLE)
    assert "aten.sigmoid" in before
    assert "aten.tanh" in after


def test_a_script_of_a_pipeline_names_its_text() -> None:
    script = write_script(str(Canonicalize()), Canonicalize(), (), Properties(), SIMPLE, "values: wrong")
    assert "parse_pipeline('canonicalize')" in script
    assert "class Simple(nn.Module):" in script
    compile(script, "script", "exec")


def test_a_pass_that_raises_is_found() -> None:
    with pytest.raises(Finding, match=r"no error: export: .*it fails"):
        check_module(RaisesLate(), SIMPLE, Properties())


def test_a_rule_that_raises_is_found() -> None:
    class Raises(TanhForSigmoid):
        def rewrite(self, m: Match, b: Any) -> Any:
            raise KeyError("lost")

    with pytest.raises(Finding, match=r"no error: .*raised KeyError: 'lost'"):
        check((Raises(),), SIMPLE)


def test_a_module_that_does_not_run_is_no_finding() -> None:
    with pytest.raises(Unusable):
        check_module(STANDARD, attrs.evolve(SIMPLE, inputs=(InputSpec("x", (3, 5)),)), Properties())


# ---- what is seen, and told ----


class Base(nn.Module):
    """What the others are compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight).t(), x, self.weight


class OtherValues(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight * 1.0001).t(), x, self.weight


class OtherStrides(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight).t().contiguous(), x, self.weight


class OtherDtype(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight).t().float(), x, self.weight


class CopiesTheInput(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight).t(), x.clone(), self.weight


class CopiesTheWeight(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight).t(), x, self.weight.clone()


class ReturnsAList(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return [(x * self.weight).t(), x, self.weight]


class ForgetsTheState(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return (x * self.weight).t(), x, self.weight


class LosesTheBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        del self.count

    def forward(self, x: torch.Tensor) -> Any:
        return (x * self.weight).t(), x, self.weight


class DrawsNumbers(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        torch.rand(1)
        return (x * self.weight).t(), x, self.weight


class WritesTheInput(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        y = (x * self.weight).t()
        with torch.no_grad():
            x.mul_(2)
        return y, x, self.weight


class CutsAGradient(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        return (x * self.weight.detach()).t(), x, self.weight


@pytest.mark.parametrize(
    ("other", "properties"),
    [
        (Base, set()),
        (OtherValues, {"values", "gradients"}),
        (OtherStrides, {"strides"}),
        (OtherDtype, {"values", "types", "gradients"}),
        (CopiesTheInput, {"sharing"}),
        (CopiesTheWeight, {"sharing", "structure", "gradients"}),
        (ReturnsAList, {"structure"}),
        (ForgetsTheState, {"state"}),
        (LosesTheBuffer, {"state"}),
        (DrawsNumbers, {"random numbers"}),
        (WritesTheInput, {"values", "inputs"}),
        (CutsAGradient, {"gradients"}),
    ],
)
def test_what_a_caller_sees_is_told_apart(other: type[nn.Module], properties: set[str]) -> None:
    args = (torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4),)
    one, two = Base().double(), other().double()
    names = ParameterMap({name: Entry((name,)) for name in named_state(two)})
    found: set[str] = set()
    for gradients in (False, True) if other is not WritesTheInput else (False,):
        a, b = (observe_module(copy.deepcopy(m), args, {}, gradients=gradients) for m in (one, two))
        found |= {property_ for property_, _ in module_differences(a, b, names, Budget())}
    assert found == properties


def test_half_precision_is_judged_by_its_own_error() -> None:
    half = ModuleCase(Simple, (InputSpec("x", (3, 4), torch.bfloat16),), seed=2, dtype=torch.bfloat16)
    check(STANDARD, half)
    with pytest.raises(Finding, match=r"values|gradients"):
        check(PIPELINE, half)


def test_open_sizes_are_tried_at_other_sizes() -> None:
    class RollsRows(Pattern):
        """Right for three rows only."""

        def pattern(self, p: PatternBuilder) -> Any:
            return p.sigmoid(p.any("x"))

        def rewrite(self, m: Match, b: Any) -> Any:
            rows = b.op("aten.roll", m.x, (3,), (0,)).result
            return b.exp(b.op("aten.log_sigmoid", rows).result)

    manager = PassManager((ApplyRules((RollsRows(),)),))
    case = attrs.evolve(SIMPLE, inputs=(InputSpec("x", (3, 4)),), seed=1)
    check(manager, case)
    with pytest.raises(Finding, match=r"at \[\(5, 4\)\]"):
        check(manager, attrs.evolve(case, dynamic=(("x", 0),), ways=("export",)))
