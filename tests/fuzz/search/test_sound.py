"""`assert_sound` passes right rules, finds what is wrong with wrong ones, and says which rewrite did it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fuzz.__main__ import main
from fuzz.rules.names import RULES
from fuzz.rules.rule_pass import ApplyRules
from fuzz.search import sound
from fuzz.search.casefile import read_case
from fuzz.search.counterexample import bisect
from graphwright import Fixpoint, Match, Pass, PassContext, PassManager, Pattern, PatternBuilder, Rewriter
from graphwright.fuzz import (
    Case,
    Properties,
    UnsoundError,
    assert_sound,
    check,
    find_counterexample,
    instances,
    modules,
    programs,
)
from graphwright.ir import Program, parse_program
from graphwright.passes import Canonicalize
from ir.errors import GraphwrightError, InputError
from passes.fold.batch_norm import FoldBatchNorm, FoldBatchNormPattern
from passes.manager.manager import run_pass
from passes.rewrite.driver import run_worklist
from passes.rewrite.matching import RuleIndex

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


class NoDoubleNegation(Pattern):
    """neg(neg(x)) = x"""

    exact = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.neg(p.neg(p.any("x")))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.clone(m.x)


class ForgetsAlpha(Pattern):
    """add(x, y, alpha=a) = add(x, y): wrong where a is not 1"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.add.Tensor", p.any("x"), p.any("y"), alpha=p.attr("alpha"))

    def check(self, m: Match) -> str | None:
        return "there is none" if m.alpha == 1 else None

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.add(m.x, m.y)


class SoftmaxOfAnyDim(Pattern):
    """softmax(x, d) = exp(x) / sum(exp(x), last dimension): wrong for other dimensions"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.softmax(p.any("x"), dtype=None)

    def check(self, m: Match) -> str | None:
        return "it is scalar" if m.x.tensor_type.rank == 0 else None

    def rewrite(self, m: Match, b: Any) -> Any:
        e = b.exp(m.x)
        return b.div(e, b.op("aten.sum.dim_IntList", e, (-1,), True).result)


class ViewForCopy(Pattern):
    """clone(x) = x: wrong where the caller sees that memory is shared"""

    exact = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.clone(p.any("x"), memory_format=None)

    def rewrite(self, m: Match, b: Any) -> Any:
        return m.x


class CutsGradient(Pattern):
    """sigmoid(x) = detach(sigmoid(x)): wrong in training"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.sigmoid(p.any("x"), name="act")

    def check(self, m: Match) -> str | None:
        return "it is done" if any(user.name == "aten.detach" for user in m.root.result.users) else None

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.detach(b.sigmoid(m.x))


class Loops(Pattern):
    """tanh(x) = tanh(x): never ends"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.tanh(p.any("x"))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.tanh(m.x)


class ReluForSigmoid(Pattern):
    """relu(x) = sigmoid(x): wrong"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.sigmoid(m.x)


class CannotFire(Pattern):
    """relu(x) = x, under a condition that no tensor meets"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))

    def check(self, m: Match) -> str | None:
        return "the rank is not below zero"

    def rewrite(self, m: Match, b: Any) -> Any:
        return m.x


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.__name__)
def test_every_rule_of_ours_is_sound_alone(rule: type[Pattern]) -> None:
    seen = assert_sound(rule, settings=QUICK)
    assert seen.examples >= 50


def test_a_right_rule_is_sound() -> None:
    seen = assert_sound(NoDoubleNegation)
    assert seen.fired["NoDoubleNegation"] > 20
    assert not seen.never


WRONG: dict[type[Pattern], tuple[str, int]] = {
    ForgetsAlpha: ("values", 2),
    SoftmaxOfAnyDim: ("values", 3),
    ViewForCopy: ("sharing", 2),
    CutsGradient: ("gradients", 2),
    Loops: ("no error", 2),
}
"""Wrong rule -> the property that does not hold, and how many operations the smallest counterexample may have."""


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_wrong_rules_are_found_and_shrink(rule: type[Pattern]) -> None:
    property_, operations = WRONG[rule]
    with pytest.raises(UnsoundError) as caught:
        assert_sound(rule)
    found = caught.value.counterexample
    assert found is not None
    assert found.property == property_
    program = parse_program(found.case.program)
    assert program.graph.num_operations - 1 <= operations, found
    assert all(x.numel() <= 8 for x in found.case.inputs)
    if property_ != "no error":
        assert found.rewrite is not None
        assert rule.__name__ in found.rewrite


@pytest.mark.long
def test_a_rule_that_cannot_fire_is_an_error() -> None:
    with pytest.raises(UnsoundError, match=r"CannotFire never fired on \d+ programs.*the rank is not below zero"):
        assert_sound(CannotFire)


def test_the_text_says_what_happened_and_the_file_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_counterexample(SoftmaxOfAnyDim, max_examples=300, seed=1)
    assert found is not None
    text = str(found)
    for part in (
        "SoftmaxOfAnyDim is not sound: the property `values` does not hold: ",
        "the rewrite that does it: number 1 of 1",
        "before:",
        "after:",
        f"# rules: {__name__}:SoftmaxOfAnyDim",
    ):
        assert part in text
    file = tmp_path / f"failure{found.suffix}"
    file.write_text(found.file)
    assert main(["replay", str(file)]) == 1
    assert "values: result 0" in capsys.readouterr().out
    case = read_case(file).case
    assert case.program == found.case.program.strip()
    assert all(map(torch.equal, case.inputs, found.case.inputs))


def test_a_seed_gives_the_same_counterexample_again() -> None:
    first, second = (find_counterexample(ForgetsAlpha, max_examples=200, seed=5) for _ in range(2))
    assert first is not None and second is not None
    assert first.file == second.file


def test_without_a_seed_searches_differ_in_each_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[settings] = []
    monkeypatch.setattr(sound, "search", lambda target, on, given, seed: chosen.append(given))
    with pytest.raises(TypeError):  # what stands in for the search returns nothing
        find_counterexample(ForgetsAlpha)
    assert not chosen[0].derandomize


def test_of_several_rules_the_wrong_one_is_named() -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound([NoDoubleNegation, ViewForCopy])
    assert "ViewForCopy" in str(caught.value.counterexample.rewrite)


@pytest.mark.parametrize(
    "pass_",
    [Canonicalize(), Canonicalize(inference=True), PassManager([Fixpoint([Canonicalize()])])],
    ids=str,
)
def test_passes_are_sound_on_programs(pass_: Any) -> None:
    assert assert_sound(pass_, settings=QUICK).changed > 5


def test_folding_is_sound_on_programs_of_layers() -> None:
    on = instances(FoldBatchNormPattern())
    assert assert_sound(FoldBatchNorm(), on=on, settings=QUICK).changed > 5


@attrs.frozen
class RewritesAndSpoils(Pass):
    """Applies a right rule, and then does something wrong that is no rewrite of a rule."""

    name: ClassVar[str] = "rewrites-and-spoils"

    def run(self, program: Program, context: PassContext) -> None:
        run_worklist(program, RuleIndex((NoDoubleNegation(),)), context.log)
        for op in program.graph.operations():
            if op.name == "aten.relu":
                rewriter = Rewriter(program)
                rewriter.anchor = op
                rewriter.replace(op, rewriter.op("aten.sigmoid", op.operands[0]).result)


def test_what_is_no_rewrite_is_not_blamed_on_one() -> None:
    case = Case.seeded("""
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4]) {
    %a = aten.neg(%x) : f32[4]
    %b = aten.neg(%a) : f32[4]
    %y = aten.relu(%b) : f32[4]
    return %y
  }
}
""")
    with pytest.raises(AssertionError, match="values"):
        check(RewritesAndSpoils(), case)
    assert bisect(RewritesAndSpoils(), case, Properties()) is None
    wrong = (NoDoubleNegation, ReluForSigmoid)
    assert "ReluForSigmoid" in str(bisect(ApplyRules(tuple(rule() for rule in wrong)), case, Properties()))


def test_a_strategy_takes_the_place_of_the_own_one() -> None:
    with pytest.raises(UnsoundError):
        assert_sound(CutsGradient, on=programs(operators=("aten.sigmoid", "aten.relu")))


def test_a_case_is_checked_alone() -> None:
    text = """
program "one" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3]) {
    %y = aten.softmax.int(%x) {dim=DIM} : f32[2, 3]
    return %y
  }
}
"""
    x = torch.arange(6.0).reshape(2, 3)
    assert check(SoftmaxOfAnyDim, Case(text.replace("DIM", "1"), (x,))).fired == {"SoftmaxOfAnyDim": 1}
    with pytest.raises(AssertionError, match="values"):
        check(SoftmaxOfAnyDim, Case(text.replace("DIM", "0"), (x,)))


def test_what_is_no_rule_and_no_pass_is_refused() -> None:
    wrong: tuple[Any, ...] = ("relu", 3, [], int)
    for subject in wrong:
        with pytest.raises(InputError):
            assert_sound(subject)


def test_properties_can_be_chosen() -> None:
    seen = assert_sound(ViewForCopy, properties=Properties(strides=False, sharing=False))
    assert seen.fired["ViewForCopy"] > 10


class ViewForCopyRounded(ViewForCopy):
    """clone(x) = x, by a rule that does not say that it is exact"""

    exact = False


class ZeroAddedRounded(Pattern):
    """x + 0 = x"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.add.Scalar", p.any("x"), other=0, alpha=1)

    def rewrite(self, m: Match, b: Any) -> Any:
        return m.x


@pytest.mark.parametrize("rule", [ViewForCopyRounded, ZeroAddedRounded])
def test_shared_memory_is_seen_of_rules_that_are_not_exact(rule: type[Pattern]) -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound(rule)
    found = caught.value.counterexample
    assert found is not None
    assert found.property in ("sharing", "strides", "values")


class Never(ViewForCopy):
    def check(self, m: Match) -> str | None:
        return "never"


class DoesNothing(Pass):
    """a pass that changes nothing"""

    name: ClassVar[str] = "does-nothing"

    def run(self, program: Program, context: PassContext) -> None:
        return None


def test_a_search_says_that_nothing_was_tried() -> None:
    with pytest.raises(UnsoundError, match="never fired"):
        assert_sound(Never, settings=settings(max_examples=30))
    with pytest.raises(UnsoundError, match="changed none of"):
        find_counterexample(DoesNothing(), max_examples=30)


class OfRankThirty(Pattern):
    """relu(x) = x, of a rank that nothing has"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x", where=lambda v: v.tensor_type.rank == 30))

    def rewrite(self, m: Match, b: Any) -> Any:
        return m.x


@pytest.mark.long
def test_a_condition_that_nothing_meets_is_said() -> None:
    with pytest.raises(UnsoundError, match=r"never fired on 0 programs .* none could be built"):
        assert_sound(OfRankThirty, settings=settings(max_examples=10))


def test_a_rule_must_fire_on_the_programs_that_are_given() -> None:
    with pytest.raises(UnsoundError, match="SoftmaxOfAnyDim never fired on 10 programs"):
        assert_sound(SoftmaxOfAnyDim, on=programs(3, operators=("aten.relu",)), settings=settings(max_examples=10))


def test_a_slow_program_is_no_failure() -> None:
    class Slow(Pass):
        name: ClassVar[str] = "slow"

        def run(self, program: Program, context: PassContext) -> None:
            time.sleep(0.05)
            run_pass(Canonicalize(), program, context)

    assert assert_sound(Slow(), settings=settings(max_examples=10, deadline=10)).changed


class DoublesRelu(Pass):
    """a pass that is wrong"""

    name: ClassVar[str] = "doubles-relu"

    def run(self, program: Program, context: PassContext) -> None:
        rewriter = Rewriter(program)
        for op in list(program.graph.operations()):
            if op.name == "aten.relu":
                with rewriter.at(op, op.location):
                    twice = rewriter.op("aten.mul.Scalar", op.operands[0], 2.0).result
                rewriter.replace_value(op.result, twice)


def test_the_script_of_a_pass_of_ones_own_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_counterexample(PassManager([DoublesRelu()]), on=programs(operators=("aten.relu",)), max_examples=50)
    assert found is not None
    assert f"from {DoublesRelu.__module__} import DoublesRelu" in found.file
    assert "passes=(DoublesRelu,)" in found.file
    namespace: dict[str, Any] = {"__name__": "a script"}
    exec(found.file, namespace)
    with pytest.raises(AssertionError, match="values"):
        check(namespace["SUBJECT"], namespace["CASE"], namespace["PROPERTIES"])


def test_the_script_says_what_cannot_be_imported() -> None:
    class Inner(ViewForCopy):
        pass

    found = find_counterexample(Inner, max_examples=50, seed=1)
    assert found is not None
    assert "# define Inner here" in found.file
    compile(found.file, "script", "exec")


def test_requests_that_make_no_sense_are_refused() -> None:
    for subject, text in ((DoesNothing, "is a class of passes"), (Unwritten, "has no `rewrite`")):
        with pytest.raises(GraphwrightError, match=text):
            assert_sound(subject)
    for on, text in (
        (modules, "not a strategy"),
        ([1], "not a strategy"),
        (st.integers(), "draws 0, which is not a program"),
    ):
        with pytest.raises(InputError, match=text):
            assert_sound(ViewForCopy, on=on)
    for options, text in (
        ({"operators": ("aten.reluu",)}, "did you mean aten.relu"),
        ({"operators": ("relu",)}, "did you mean aten.relu"),
        ({"operators": "aten.relu"}, "is the text"),
        ({"max_ops": 0}, "max_ops is 0"),
    ):
        with pytest.raises(InputError, match=text):
            assert_sound(Canonicalize(), on=programs(**options))
    with pytest.raises(InputError, match="max_examples is 0"):
        find_counterexample(ViewForCopy, max_examples=0)


class Unwritten(Pattern):
    """half of a rule"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))
