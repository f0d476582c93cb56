"""Why operations stay: which rules are blamed, which edge is named, and what is near enough to be a remark."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ir.opdef import Trait
from ir.program import Program
from passes.explain.unfused import UnfusedReasons
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.example import Example
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Remark
from tests.passes.building import f32, program


class Rule(Pattern):
    def rewrite(self, m, b):
        return b.neg(m.root.operands[0])


class ReluRelu(Rule):
    """relu(relu(x)) = -x"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.relu(p.any("x")))


class Inner(Rule):
    """exp([gelu](cat(neg(x), chain of tanh))) or abs(sigmoid(x))"""

    def pattern(self, p: PatternBuilder) -> Node:
        cat = p.cat([p.neg(p.any("x")), p.chain([Trait.IDEMPOTENT, "aten.tanh"], p.sin(p.any("y")))])
        return p.one_of(p.exp(p.optional(p.gelu, cat)), p.abs(p.sigmoid(p.any("x"))))


NAMES = ("exp", "gelu", "neg", "tanh", "sin", "relu", "sigmoid", "cos")
EDGES = {
    "aten.exp": "operand `self` of aten.exp at `block` is the input `x0`, not aten.gelu or aten.cat",
    "aten.gelu": "operand `self` of aten.gelu at `block` is the input `x0`, not aten.cat",
    "aten.neg": "the output of aten.neg at `block` goes to an output of the model, not to aten.cat",
    "aten.tanh": "operand `self` of aten.tanh at `block` is the input `x0`, not aten.sin",
    "aten.sigmoid": "the output of aten.sigmoid at `block` goes to an output of the model, not to aten.abs",
}


def test_what_stays_is_blamed_on_every_pattern_that_mentions_it():
    p = program([f32(2)], lambda b, x: [getattr(b, name)(x) for name in NAMES])
    both = UnfusedReasons(RewriteLog(), [Inner(), ReluRelu()])
    inner = UnfusedReasons(RewriteLog(), [Inner()])
    for op in p.graph.operations():
        if op.name == "aten.cos":
            assert both.of(op) == "no pattern of this pipeline is about aten.cos"
            continue
        # relu is idempotent, and so may be a link of the chain; a rule whose root it may be says more
        expected = "ReluRelu" if op.name == "aten.relu" else "Inner"
        assert both.of(op).startswith(f"what surrounds it does not have the structure of {expected}: ")
        assert inner.of(op).startswith("what surrounds it does not have the structure of Inner: ")
        assert inner.of(op).endswith(EDGES.get(op.name, ""))


class Long(Rule):
    """exp(sin(cos(neg(x))))"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.exp(p.sin(p.cos(p.neg(p.any("x")))))


def of(body: str) -> Program:
    return Example(f"graph(%x : f32[2, 3]) {{ {body} }}").program()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "%a = aten.abs(%x) %b = aten.cos(%a) %c = aten.sin(%b) %d = aten.exp(%c) return %d",
            "3 of 4 operations fit, and operand `self` of aten.cos at `an unknown place` is aten.abs at",
        ),
        ("%a = aten.neg(%x) %b = aten.cos(%a) %c = aten.sin(%b) return %c", "goes to an output of the model, not to"),
        ("%a = aten.abs(%x) %b = aten.sin(%a) %c = aten.exp(%b) return %c", ""),
        ("%a = aten.neg(%x) %b = aten.cos(%a) %c = aten.sin(%b) %d = aten.exp(%c) return %d", ""),
    ],
    ids=["another operand", "another user", "half of it", "all of it"],
)
def test_a_structure_that_is_nearly_there_is_a_remark_once(body: str, message: str):
    p = of(body)
    reasons = UnfusedReasons(RewriteLog(), [], [Long()])
    found = reasons.nearly(p.graph.operations())
    assert [(each.kind, each.rule) for each in found] == [("missed", "Long")] * bool(message)
    if message:
        assert message in found[0].message
        fitting = next(op for op in p.graph.operations() if op.name == "aten.cos")
        assert reasons.of(fitting) == f"Long: {found[0].message}"


def missed(written: Callable[[PatternBuilder], Node], p: Program, *others: Pattern, adds: int = 0) -> list[Remark]:
    class Refusing(Rule):
        """a rule that refuses all that it matches"""

        check_adds = adds

        def pattern(self, p: PatternBuilder) -> Node:
            return written(p)

        def check(self, m):
            return "never"

    log = RewriteLog()
    run_worklist(p, RuleIndex([Refusing(), *others]), log, record=True)
    assert len(log.remarks) == len(list(log.remarks))
    assert log.refusals["Refusing"] > 0 and log.misses
    return [remark for remark in log.remarks if remark.rule == "Refusing"]


class SoftmaxToNeg(Rule):
    """softmax(x) = -x"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.softmax(p.any("x"))


SOFTMAX = "%a = aten.relu(%x) %z = aten.softmax.int(%a) {dim=1} return %z"


def test_a_refusal_with_no_more_than_an_operator_is_a_remark_where_that_stays():
    written = lambda p: p.softmax(p.any("x"), dim=p.attr("dim"))  # noqa: E731
    assert [remark.message for remark in missed(written, of(SOFTMAX))] == ["never"]
    assert missed(written, of(SOFTMAX), SoftmaxToNeg()) == []


@pytest.mark.parametrize(
    "written",
    [
        lambda p: p.softmax(p.relu(p.any("x"))),
        lambda p: p.softmax(p.any("x"), dim=1),
        lambda p: p.softmax(p.any("x", where=lambda value: not value.is_input)),
        lambda p: p.op("aten.softmax.int", p.any("x"), where=lambda op: None),
    ],
    ids=["two operations", "an attribute", "a condition on a value", "a condition"],
)
def test_a_refusal_with_more_than_an_operator_is_a_remark_in_any_case(written: Callable[[PatternBuilder], Node]):
    assert [remark.message for remark in missed(written, of(SOFTMAX), SoftmaxToNeg())] == ["never"]


def test_what_check_adds_to_a_match_is_more_than_an_operator():
    (remark,) = missed(lambda p: p.softmax(p.any("x")), of(SOFTMAX), SoftmaxToNeg(), adds=1)
    assert remark.message == "never"


def test_a_demand_that_fails_is_nothing_that_was_in_place():
    class Other(SoftmaxToNeg):
        def pattern(self, p: PatternBuilder) -> Node:
            return p.softmax(p.any("x"), dim=0)

    for others in ((), (SoftmaxToNeg(),)):
        log = RewriteLog()
        run_worklist(of(SOFTMAX), RuleIndex([Other(), *others]), log, record=True)
        assert [remark.rule for remark in log.remarks] == ["Other"] * (not others)


def test_one_value_in_two_places_is_a_demand():
    written = lambda p: p.add(p.any("x"), p.any("x"))  # noqa: E731

    class AddToNeg(Rule):
        """x + y = -x"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.add(p.any("x"), p.any("y"))

    assert len(missed(written, of("%z = aten.add.Tensor(%x, %x) return %z"), AddToNeg())) == 1
