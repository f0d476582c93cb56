"""The language of patterns: literals by position, named alternatives, sums and products in any order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fuzz.rules.partial import explained_otherwise
from ir.core import Value
from ir.errors import PatternError
from ir.program import Program
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Match, Node, OpNode, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter
from tests.passes.building import f32, names, program

P = PatternBuilder()


class Rule(Pattern):
    """Some values = their negative"""

    is_conversion = True

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build a ReLU of the first operand."""
        return b.relu(m.root.operands[0])


def applied(rule: Pattern, p: Program) -> RewriteLog:
    log = RewriteLog()
    assert explained_otherwise(rule, p) is None
    run_worklist(p, RuleIndex([rule]), log, record=True)
    return log


# --- literals by position


@pytest.mark.parametrize(
    ("node", "operands", "attributes"),
    [
        (P.op("aten.permute", P.any("x"), (1, 0)), [0], {"dims": (1, 0)}),
        (P.softmax(P.any("x"), -1), [0], {"dim": -1}),
        (P.op("aten.mul.Scalar", P.any("x"), 0.5), [0], {"other": 0.5}),
        (P.cat([P.any("x"), P.any("y")], 1), [0], {"dim": 1}),
        (P.op("aten.index_select", P.any("x"), 0, P.any("i")), [0, 1], {"dim": 0}),
        (P.layer_norm(P.any("x"), (4,), None, P.any("b")), [0, 1, 2], {"normalized_shape": (4,)}),
        (P.op(("aten.amax", "aten.amin"), P.any("x"), [0]), [0], {"dim": (0,)}),
        (P.conv2d(P.any("x"), P.any("w"), None, [1, 1]), [0, 1, 2], {"stride": (1, 1)}),
    ],
)
def test_a_literal_is_an_attribute_at_its_place(node: OpNode, operands: list[int], attributes: dict[str, Any]) -> None:
    assert [key for key, _ in node.operands] == operands
    assert dict(node.attributes) == attributes


def test_captures_and_conditions_are_given_by_position_too() -> None:
    class Moved(Rule):
        """permute(x, d) = relu(x)"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.permute(p.any("x"), p.attr("dims"))

        def check(self, m: Match) -> str | None:
            return None if m.dims == (1, 0) else f"it moves {m.dims}"

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            return b.permute(b.relu(m.x), (-1, 0)) if False else b.t(m.x)

    p = program([f32(2, 3)], lambda b, x: b.permute(x, (1, 0)))
    assert len(applied(Moved(), p).matches) == 1
    assert names(p) == ["aten.t"]
    node = P.softmax(P.any("x"), P.attr_where(lambda dim: dim == 1, "1"))
    assert node.attributes[0][0] == "dim"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: P.relu(3.0), r"3\.0 as an operand of aten\.relu is not a pattern"),
        (lambda: P.op("aten.mul.Tensor", P.any("x"), 2.0), r"2\.0 as an operand of aten\.mul\.Tensor"),
        (lambda: P.gelu(P.any("x"), "tanh"), r"argument 2 of aten\.gelu.*\n?.*approximate="),
        (lambda: P.softmax(P.any("x"), -1, dim=1), "'dim' is given twice"),
        (lambda: P.op(("aten.softmax.int", "aten.permute"), P.any("x"), 1), "argument 2 of"),
        (lambda: P.relu(P.any("x"), 1), "1 as an operand of aten.relu"),
        (lambda: P.sum(P.any("x"), torch.float32), r"argument 2 of aten\.sum.*\n?.*by keyword: dtype="),
    ],
)
def test_what_has_no_place_is_refused(build: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        build()


@pytest.mark.parametrize(
    ("short", "given"), [("sum", 1), ("sum", (1,)), ("mean", [-1]), ("prod", 1), ("bernoulli", 0.5)]
)
def test_an_argument_of_another_overload_is_told_that_one(short: str, given: Any) -> None:
    class Summed(Rule):
        """sum(x) = relu(x), in the overload that the error names"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.op(named, p.any("x"), given)

        def check(self, m: Match) -> str | None:
            return "it is found"

    with pytest.raises(PatternError, match="an overload that has it there is written") as caught:
        getattr(P, short)(P.any("x"), given)
    named = str(caught.value).partition('`p.op("')[2].partition('"')[0]
    p = program([f32(2, 3)], lambda b, x: b.call(named, x, given))
    assert [remark.message for remark in applied(Summed(), p).remarks] == ["it is found"]


@pytest.mark.parametrize(("short", "key", "given"), [("sum", "dim", 1), ("sum", "dim", [-1]), ("max", "dim", 1)])
def test_an_attribute_of_another_overload_is_told_that_one(short: str, key: str, given: Any) -> None:
    class Wanted(Rule):
        """sum(x, dim=1) = relu(x), by the name that the error says"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.op(named or f"aten.{short}", p.any("x"), **{key: given})

        def check(self, m: Match) -> str | None:
            return "it is found"

    named = ""
    with pytest.raises(PatternError, match=f"aten.{short} has no attribute '{key}'") as caught:
        compile_rule(Wanted())
    assert "out" not in str(caught.value.remedy)
    named = str(caught.value.remedy).partition('`p.op("')[2].partition('"')[0]
    p = program([f32(2, 3)], lambda b, x: b.op(named, x, **{key: given}).results[0])
    assert [remark.message for remark in applied(Wanted(), p).remarks] == ["it is found"]


# --- named alternatives


class Named(Rule):
    """tanh(x) = relu(x), sigmoid(x) = relu(x)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match either."""
        x = p.any("x")
        inner = p.one_of(x, doubled=p.op("aten.mul.Scalar", x, 2.0))
        return p.one_of(round=p.tanh(inner), logistic=p.op("aten.softmax.int", inner, dim=0))

    def check(self, m: Match) -> str | None:
        """Refuse what is doubled and logistic."""
        return "it is both" if m.alternatives == ("logistic", "doubled") else None

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build a ReLU."""
        return b.relu(m.x)


def test_names_of_alternatives_are_in_matches_and_remarks() -> None:
    def body(b: Any, x: Value) -> Any:
        y = b.call("aten.mul.Scalar", x, 2.0)
        return b.tanh(x), b.tanh(y), b.softmax(y, 0), b.softmax(x, 1)

    p = program([f32(2, 2)], body)
    log = applied(Named(), p)
    assert [match.alternative for match in log.matches] == ["round", "round, doubled", "logistic"]
    (said,) = [remark.message for remark in log.remarks if "it is both" in remark.message]
    assert said == "it is both (of the alternative logistic, doubled)"
    assert any(remark.message.endswith("not 0 (of the alternative logistic)") for remark in log.remarks)


def test_variants_know_their_names() -> None:
    found = {variant.order: variant.names for variant in compile_rule(Named())}
    assert [found[order] for order in sorted(found)] == [
        ("round",),
        ("round", "doubled"),
        ("logistic",),
        ("logistic", "doubled"),
    ]


# --- sums and products


class Sum(Rule):
    """relu(a) + tanh(b) + c = relu(…)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it in any order."""
        return p.sum_of(p.sigmoid(p.any("a")), p.tanh(p.any("b")), p.any("c"), name="last")


class Scaled(Rule):
    """2 a tanh(b) = relu(…)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match it in any order."""
        return p.product_of(2.0, p.sigmoid(p.any("a")), p.tanh(p.any("b")))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("from_the_right", [False, True])
def test_a_sum_is_matched_in_every_order(order: tuple[int, ...], from_the_right: bool) -> None:
    def body(b: Any, x: Value, y: Value, z: Value) -> Any:
        one, two, three = (dict(enumerate((b.sigmoid(x), b.tanh(y), z)))[i] for i in order)
        return b.add(one, b.add(two, three)) if from_the_right else b.add(b.add(one, two), three)

    p = program([f32(3)] * 3, body)
    assert len(applied(Sum(), p).matches) == 1


def test_a_scaled_or_shared_sum_is_another_one() -> None:
    def scaled(b: Any, x: Value, y: Value, z: Value) -> Any:
        return b.add(b.add(b.sigmoid(x), b.tanh(y), alpha=2), z)

    p = program([f32(3)] * 3, scaled)
    log = applied(Sum(), p)
    assert not log.matches
    assert any("alpha" in remark.message for remark in log.remarks)


@pytest.mark.parametrize("place", range(4))
def test_numbers_are_factors_anywhere(place: int) -> None:
    def body(b: Any, x: Value, y: Value) -> Any:
        def twice(value: Value, here: int) -> Value:
            return b.call("aten.mul.Scalar", value, 2.0 if here == place else 1.5) if here == place else value

        return twice(b.mul(twice(b.tanh(y), 1), twice(b.sigmoid(x), 2)), 0)

    p = program([f32(3)] * 2, body)
    assert len(applied(Scaled(), p).matches) == (place < 3)


def test_a_sum_of_sums_may_be_larger() -> None:
    rule = type("Large", (Rule,), {"pattern": lambda self, p: p.sum_of(*map(p.any, "abcd"))})()
    assert len(compile_rule(rule)) == 120


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: P.sum_of(P.any("a")), "two parts or more"),
        (lambda: P.sum_of(1.0, 2.0), "a value among them"),
        (lambda: P.product_of(*map(P.any, "abcde")), "too many orders"),
        (lambda: P.product_of(P.any("a"), "b"), "neither a pattern nor a number"),
    ],
)
def test_what_is_no_sum_is_refused(build: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        build()
