"""Patterns with several roots: found by what they share, replaced together at one place."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz.rules.partial import explained_otherwise
from ir.core import Operation, Value
from ir.errors import PatternError
from ir.program import Program
from ir.verify import verify
from passes.explain import partial
from passes.rewrite.driver import RewriteLog, run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder, Tree
from passes.rewrite.rewriter import Rewriter
from tests.passes.building import f32, names, program


class SinCos(Pattern):
    """sin(x), cos(x) = imaginary and real part of exp(i x), which stand for them here"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
        """Match both."""
        x = p.any("x")
        return p.sin(x, name="sin"), p.cos(x, name="cos")

    def rewrite(self, m: Match, b: Rewriter) -> tuple[Value, ...]:
        """Compute both of one value."""
        y = b.erf(m.x)
        return b.sinh(y), b.cosh(y)


class Linears(Pattern):
    """linear(x, v), linear(x, w) = split(linear(x, cat(v, w)))"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
        """Match two."""
        x = p.any("x")
        return p.linear(x, p.any("v"), None), p.linear(x, p.any("w"), None)

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        """Make one of them."""
        sizes = [value.tensor_type.shape[0] for value in (m.v, m.w)]
        return b.op("aten.split_with_sizes", b.linear(m.x, b.cat([m.v, m.w], 0)), sizes, -1).results


def applied(rule: Pattern, p: Program) -> RewriteLog:
    log = RewriteLog()
    assert explained_otherwise(rule, p) is None
    run_worklist(p, RuleIndex([rule]), log, record=True)
    verify(p)
    return log


@pytest.mark.parametrize("turned", [False, True])
def test_roots_are_replaced_together(turned: bool) -> None:
    def body(b: Any, x: Value) -> Any:
        if turned:
            cos = b.cos(x)
            return b.sin(x), cos
        return b.sin(x), b.cos(x)

    p = program([f32(3)], body)
    log = applied(SinCos(), p)
    assert names(p) == ["aten.erf", "aten.sinh", "aten.cosh"]
    assert [v.defining_op.name for v in p.graph.outputs if v is not None and v.defining_op is not None] == [
        "aten.sinh",
        "aten.cosh",
    ]
    (match,) = log.matches
    assert [op.name for op in match.replaced] == ["aten.sin", "aten.cos"]


def test_more_than_two_are_merged_by_and_by() -> None:
    def body(b: Any, x: Value, *weights: Value) -> Any:
        return [b.linear(x, weight) for weight in weights]

    p = program([f32(2, 4)], body, {name: f32(size, 4) for name, size in (("u", 2), ("v", 3), ("w", 5))})
    assert len(applied(Linears(), p).matches) == 2
    assert names(p).count("aten.linear") == 1


def test_a_match_is_refused_only_where_there_is_no_place() -> None:
    def between(b: Any, x: Value) -> Any:  # the first is used before the second is computed
        return b.relu(b.sin(x)), b.cos(x)

    p = program([f32(3)], between)
    applied(SinCos(), p)
    assert names(p) == ["aten.erf", "aten.sinh", "aten.cosh", "aten.relu"]

    def dependent(b: Any, x: Value, w: Value) -> Any:  # the second reads what is made of the first
        y = b.linear(x, w)
        return y, b.linear(x, y)

    p = program([f32(4, 4)], dependent, {"w": f32(4, 4)})
    log = applied(Linears(), p)
    assert names(p) == ["aten.linear", "aten.linear"]
    assert not log.matches

    def late(b: Any, x: Value, w: Value) -> Any:  # its weight is computed after the first is used
        y = b.linear(x, w)
        z = b.relu(y)
        return z, b.linear(x, b.relu(z))

    p = program([f32(4, 4)], late, {"w": f32(4, 4)})
    log = applied(Linears(), p)
    assert not log.matches
    assert any("computed after what uses another root" in remark.message for remark in log.remarks)


def test_what_has_an_effect_is_not_moved() -> None:
    class Drops(SinCos):
        """dropout(x), cos(x) = erf(x) twice"""

        def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
            x = p.any("x")
            return p.cos(x), p.dropout(x)

    p = program([f32(3)], lambda b, x: (b.cos(x), b.dropout(x, 0.5, True)))
    log = applied(Drops(), p)
    assert not log.matches
    assert any("has an effect" in remark.message for remark in log.remarks)


def test_a_root_is_found_behind_other_operations_and_past_those_that_do_not_fit() -> None:
    class Deep(SinCos):
        """sin(x), cos(relu(x)) with a condition"""

        def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
            x = p.any("x")
            return p.sin(x), p.cos(p.mul(p.relu(x), p.any("y")))

    def body(b: Any, x: Value, y: Value) -> Any:
        first = b.relu(x)
        return b.sin(x), b.cos(first), b.cos(b.mul(y, first))

    p = program([f32(3), f32(3)], body)
    assert len(applied(Deep(), p).matches) == 1
    assert names(p).count("aten.cos") == 1


def test_a_condition_chooses_among_siblings_and_else_is_the_reason() -> None:
    class Scaled(SinCos):
        """sin(x), 2 x = erf(x) twice"""

        def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
            x = p.any("x")
            return p.sin(x), p.op("aten.mul.Scalar", x, 2.0)

    def body(*numbers: float) -> Any:
        return lambda b, x: (b.sin(x), *(b.call("aten.mul.Scalar", x, number) for number in numbers))

    p = program([f32(3)], body(3.0, 2.0))
    assert len(applied(Scaled(), p).matches) == 1
    p = program([f32(3)], body(3.0, 4.0))
    log = applied(Scaled(), p)
    assert not log.matches
    assert any("is 3.0, not 2.0" in remark.message for remark in log.remarks)


def test_a_root_may_be_inside_of_another() -> None:
    class Both(SinCos):
        """sin(x), cos(sin(x)) = sinh(erf(x)), cosh(erf(x))"""

        def pattern(self, p: PatternBuilder) -> tuple[Node, ...]:
            inner = p.sin(p.any("x"))
            return inner, p.cos(inner)

    p = program([f32(3)], lambda b, x: (lambda y: (b.relu(y), b.cos(y)))(b.sin(x)))
    assert len(applied(Both(), p).matches) == 1
    assert names(p) == ["aten.erf", "aten.sinh", "aten.cosh", "aten.relu"]


def test_fusions_have_several_roots_too() -> None:
    class FuseBoth(SinCos):
        """sin(x), cos(x) = fused.sin_cos(x)"""

        is_conversion = False
        is_fusion = True
        closed = True

        def rewrite(self, m: Match, b: Rewriter) -> Any:
            return b.fuse("sin_cos", m.ops, parts={m.sin: "sin", m.cos: "cos"}, inputs={m.x: "input"})

    p = program([f32(3)], lambda b, x: (b.sin(x), b.cos(x)))
    assert run_sweep(p, RuleIndex([FuseBoth()]), RewriteLog()) == 1
    assert names(p) == ["fused.sin_cos"]
    verify(p)


def test_how_far_it_got_names_the_root_that_is_missing() -> None:
    rule = SinCos()
    tree = partial.Tree(rule, compile_rule(rule))
    p = program([f32(3), f32(3)], lambda b, x, y: (b.sin(x), b.cos(y)))
    for op, other in zip(p.graph.operations(), ("cos", "sin"), strict=True):
        found = tree.furthest(op)
        assert found is not None
        assert found.extent == "1 of 2 operations fits"
        assert f"there is no aten.{other} that reads the same value" in found.differences[0].message


def test_the_wrong_number_of_results_is_told() -> None:
    class Half(SinCos):
        """sin(x), cos(x) = erf(x)"""

        def rewrite(self, m: Match, b: Rewriter) -> Any:
            return b.erf(m.x)

    p = program([f32(3)], lambda b, x: (b.sin(x), b.cos(x)))
    with pytest.raises(PatternError, match=r"aten\.sin and aten\.cos have 2 results, 1 replacements given"):
        run_worklist(p, RuleIndex([Half()]), RewriteLog())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: (p.sin(p.any("x")), p.cos(p.any("y"))), "no value in common"),
        (lambda p: (p.sin(p.any("x")), p.any("x")), "without any operation"),
        (lambda p: (), r"returned \(\), not a pattern"),
        (lambda p: (p.sin(p.any("x")),) * 2, "two of its roots are one and the same operation"),
        (lambda p: (p.sin(p.any("x")), None), "not a pattern"),
    ],
)
def test_ill_formed_roots_are_refused(build: Any, message: str) -> None:
    class Wrong(SinCos):
        """Wrong."""

        def pattern(self, p: PatternBuilder) -> Any:
            return build(p)

    with pytest.raises(PatternError, match=message):
        compile_rule(Wrong())


def _same_rank(first: Match, other: Match) -> str | None:
    ranks = first.w.tensor_type.rank, other.w.tensor_type.rank
    return None if ranks[0] == ranks[1] else f"its weight has rank {ranks[1]}, not {ranks[0]}"


class AllLinears(Pattern):
    """linear(x, wᵢ) = split(linear(x, cat(w))), of weights with one rank"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Tree:
        """Match all."""
        x = p.any("x")
        linear = p.linear(x, p.any("w"), None, name="linear", where=self.condition)
        return p.siblings(linear, x, "linears", minimum=3, alike=_same_rank)

    def condition(self, op: Operation) -> str | None:
        """Leave out weights of one row."""
        return "its weight has one row" if op.input("weight").tensor_type.shape == (1, 4) else None

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        """Make one of them."""
        sizes = [each.w.tensor_type.shape[0] for each in m.linears]
        return b.op("aten.split_with_sizes", b.linear(m.x, b.cat([each.w for each in m.linears], 0)), sizes, -1).results


def _linears(*sizes: int) -> Program:
    def body(b: Any, x: Value, *weights: Value) -> Any:
        first, *others = [b.linear(x, weight) for weight in weights]
        return b.relu(first), *others

    return program([f32(2, 4)], body, {f"w{i}": f32(size, 4) if size else f32(4) for i, size in enumerate(sizes)})


@pytest.mark.parametrize("count", [3, 4, 7])
def test_siblings_are_replaced_together_however_many_there_are(count: int) -> None:
    p = _linears(*range(2, count + 2))
    (match,) = applied(AllLinears(), p).matches
    assert [op.name for op in match.replaced] == ["aten.linear"] * count
    assert names(p) == ["aten.cat", "aten.linear", "aten.split_with_sizes", "aten.relu"]
    assert [value.known_shape for value in p.graph.outputs if value is not None] == [
        (2, n) for n in range(2, count + 2)
    ]


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((2, 3), ""),
        ((2, 3, 1), "its weight has one row"),
        ((1, 2, 3), "its weight has one row"),
        ((2, 3, 0), "its weight has rank 1, not 2"),
    ],
)
def test_too_few_siblings_are_left_alone_for_a_reason(sizes: tuple[int, ...], reason: str) -> None:
    p = _linears(*sizes)
    log = applied(AllLinears(), p)
    assert names(p).count("aten.linear") == len(sizes)
    said = [remark.message for remark in log.remarks if remark.kind == "missed"]
    assert any(reason in message for message in said) if reason else not said


def test_siblings_that_do_not_fit_stay_beside_those_that_do() -> None:
    p = _linears(1, 2, 3, 5, 0)
    (match,) = applied(AllLinears(), p).matches
    assert len(match.replaced) == 3
    assert names(p).count("aten.linear") == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, x: p.siblings(p.any("y"), x), "is not a pattern"),
        (lambda p, x: p.siblings(p.relu(p.any("y")), x), "does not read"),
        (lambda p, x: p.siblings(p.relu(p.any()), p.any()), "is not a value that siblings read"),
        (lambda p, x: p.siblings(p.relu(x), x, minimum=1), "are none"),
        (lambda p, x: p.neg(p.siblings(p.relu(x), x)), "is not a pattern"),
    ],
)
def test_wrong_siblings_are_refused(make: Any, message: str) -> None:
    class Wrong(AllLinears):
        """a wrong pattern"""

        def pattern(self, p: PatternBuilder) -> Tree:
            return make(p, p.any("x"))

    with pytest.raises(PatternError, match=message):
        compile_rule(Wrong())


def test_an_answer_of_alike_that_is_none_is_an_error() -> None:
    class Odd(AllLinears):
        """linear(x, wᵢ), compared by a function that answers True"""

        def pattern(self, p: PatternBuilder) -> Tree:
            x = p.any("x")
            return p.siblings(p.linear(x, p.any("w"), None), x, "linears", alike=lambda a, b: True)  # type: ignore[return-value]

    with pytest.raises(PatternError, match="`alike` of the siblings 'linears' returned True"):
        run_worklist(_linears(2, 3), RuleIndex([Odd()]), RewriteLog())
