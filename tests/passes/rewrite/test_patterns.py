"""The pattern language: what matches, what does not, and why."""

from __future__ import annotations

import re

import pytest
import torch

from ir.errors import DidNotConverge, PatternError
from ir.opdef import Trait
from ir.text.printer import print_program
from ir.types import ScalarType, TensorType, make_symbol
from passes.rewrite.driver import RewriteLog, run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.rewriter import Rewriter
from tests.passes.building import f32, names, program


class ReluRelu(Pattern):
    """relu(relu(x)) = relu(x)"""

    exact = True

    def pattern(self, p):
        return p.relu(p.relu(p.any("x")))

    def rewrite(self, m, b):
        return b.relu(m.x)


def apply(rule, p, **options):
    log = RewriteLog()
    count = run_worklist(p, RuleIndex([rule]), log, record=True, **options)
    return count, log


def test_chain_of_five_becomes_one():
    def body(b, x):
        for _ in range(5):
            x = b.relu(x)
        return x

    p = program([f32(2, 3)], body)
    count, log = apply(ReluRelu(), p)
    assert names(p) == ["aten.relu"]
    assert count == len(log.matches) == 4
    assert log.matches[0].pattern is ReluRelu
    assert [op.name for op in log.matches[0].replaced] == ["aten.relu", "aten.relu"]


def test_inner_value_with_another_user_survives():
    def body(b, x):
        inner = b.relu(x)
        return b.relu(inner), b.neg(inner)

    p = program([f32(2)], body)
    assert apply(ReluRelu(), p)[0] == 1
    assert sorted(names(p)) == ["aten.neg", "aten.relu", "aten.relu"]


def test_closed_rule_refuses_and_says_who_uses_the_value():
    class Closed(ReluRelu):
        closed = True

    p = program([f32(2)], lambda b, x: (lambda inner: (b.relu(inner), b.neg(inner)))(b.relu(x)))
    count, log = apply(Closed(), p)
    assert count == 0
    (remark,) = log.remarks
    assert remark.kind == "missed"
    assert "aten.relu at `block` has 2 users" in remark.message
    assert "aten.neg" in remark.message
    assert "user.py:7" in str(remark)


def test_value_that_is_an_output_counts_as_used():
    class Closed(ReluRelu):
        closed = True

    p = program([f32(2)], lambda b, x: (lambda inner: (b.relu(inner), inner))(b.relu(x)))
    count, log = apply(Closed(), p)
    assert count == 0
    assert "an output of the model" in next(iter(log.remarks)).message


def test_literals_are_part_of_the_pattern():
    class LastSoftmax(Pattern):
        """softmax(x, -1)"""

        def pattern(self, p):
            return p.op("aten.softmax.int", p.any("x"), dim=-1)

        def rewrite(self, m, b):
            return b.neg(m.x)

    for dim, expected in ((-1, 1), (0, 0)):
        p = program([f32(2, 2)], lambda b, x, dim=dim: b.call("aten.softmax.int", x, dim))
        count, log = apply(LastSoftmax(), p)
        assert count == expected
        if not expected:
            assert "dim of aten.softmax.int at `block` is 0, not -1" in next(iter(log.remarks)).message


def test_int_float_and_bool_literals_differ():
    class AddOne(Pattern):
        """x + 1"""

        def pattern(self, p):
            return p.op("aten.add.Scalar", p.any("x"), other=1)

        def rewrite(self, m, b):
            return b.neg(m.x)

    for other, expected in ((1, 1), (1.0, 0), (True, 0)):
        p = program([f32(2)], lambda b, x, other=other: b.call("aten.add.Scalar", x, other))
        assert apply(AddOne(), p)[0] == expected


def test_commutative_operands_match_in_both_orders():
    class MulSigmoid(Pattern):
        """x * sigmoid(x) = silu(x)"""

        def pattern(self, p):
            x = p.any("x")
            return p.mul(x, p.sigmoid(x))

        def rewrite(self, m, b):
            return b.silu(m.x)

    for order in (0, 1):
        p = program([f32(2)], lambda b, x, o=order: b.mul(*((x, b.sigmoid(x)), (b.sigmoid(x), x))[o]))
        assert apply(MulSigmoid(), p)[0] == 1
        assert names(p) == ["aten.silu"]
    p = program([f32(2), f32(2)], lambda b, x, y: b.mul(x, b.sigmoid(y)))
    assert apply(MulSigmoid(), p)[0] == 0


def test_subtraction_does_not_commute():
    class SubSigmoid(Pattern):
        """x - sigmoid(x)"""

        def pattern(self, p):
            x = p.any("x")
            return p.op("aten.sub.Tensor", x, p.sigmoid(x))

        def rewrite(self, m, b):
            return b.silu(m.x)

    p = program([f32(2)], lambda b, x: b.sub(b.sigmoid(x), x))
    assert apply(SubSigmoid(), p)[0] == 0


def test_optional_link_prefers_the_longer_match():
    class ActNeg(Pattern):
        """neg([relu](x))"""

        def pattern(self, p):
            return p.neg(p.optional(lambda y: p.relu(y, name="act"), p.any("x")), name="neg")

        def rewrite(self, m, b):
            return b.abs(m.x) if m.get("act") is not None else b.sin(m.x)

    p = program([f32(2)], lambda b, x: b.neg(b.relu(x)))
    apply(ActNeg(), p)
    assert names(p) == ["aten.abs"]
    p = program([f32(2)], lambda b, x: b.neg(x))
    apply(ActNeg(), p)
    assert names(p) == ["aten.sin"]


def test_chain_captures_its_links_in_order():
    class Links(Pattern):
        """exp(links(neg(x)))"""

        def pattern(self, p):
            return p.exp(p.chain([Trait.ACTIVATION, "aten.dropout"], p.neg(p.any("x")), name="links"))

        def rewrite(self, m, b):
            assert [op.name for op in m.links] == ["aten.relu", "aten.dropout", "aten.gelu"]
            return b.cos(m.x)

    p = program([f32(2)], lambda b, x: b.exp(b.gelu(b.dropout(b.relu(b.neg(x)), 0.5, False))))
    assert apply(Links(), p)[0] == 1
    p = program([f32(2)], lambda b, x: b.exp(b.sin(b.neg(x))))
    assert apply(Links(), p)[0] == 0


def test_lists_match_by_length_and_element():
    class CatTwo(Pattern):
        """cat([relu(x), y])"""

        def pattern(self, p):
            return p.cat([p.relu(p.any("x")), p.any("y")])

        def rewrite(self, m, b):
            return b.cat([m.x, m.y])

    p = program([f32(2), f32(2)], lambda b, x, y: b.cat([b.relu(x), y]))
    assert apply(CatTwo(), p)[0] == 1
    p = program([f32(2), f32(2)], lambda b, x, y: b.cat([b.relu(x), y, y]))
    assert apply(CatTwo(), p)[0] == 0


def test_a_certain_result_of_an_operation():
    class SecondHalf(Pattern):
        """neg(split(x)[1])"""

        def pattern(self, p):
            return p.neg(p.op("aten.split_with_sizes", p.any("x"), result=1))

        def rewrite(self, m, b):
            return b.abs(b.slice(m.x, 0, 2, 4))

    for index, expected in ((0, 0), (1, 1)):
        p = program([f32(4)], lambda b, x, i=index: b.neg(b.split_with_sizes(x, [2, 2])[i]))
        assert apply(SecondHalf(), p)[0] == expected


def test_rules_that_undo_each_other_are_named():
    class ToSin(Pattern):
        """cos(x) = sin(x)"""

        def pattern(self, p):
            return p.cos(p.any("x"))

        def rewrite(self, m, b):
            return b.sin(m.x)

    class ToCos(Pattern):
        """sin(x) = cos(x)"""

        def pattern(self, p):
            return p.sin(p.any("x"))

        def rewrite(self, m, b):
            return b.cos(m.x)

    p = program([f32(2)], lambda b, x: b.cos(x))
    with pytest.raises(DidNotConverge, match=r"ToSin.*ToCos|ToCos.*ToSin") as caught:
        run_worklist(p, RuleIndex([ToSin(), ToCos()]), RewriteLog(), max_rewrites=50)
    assert "last edits" in str(caught.value)
    assert caught.value.location.module_path == "block"


def test_a_rule_that_matches_what_it_builds_is_told_so():
    class Again(Pattern):
        """relu(x) = relu(x), a new one each time"""

        def pattern(self, p):
            return p.relu(p.any("x"))

        def rewrite(self, m, b):
            return b.relu(m.x)

    p = program([f32(2)], lambda b, x: b.relu(x))
    with pytest.raises(DidNotConverge, match="the rule that goes on: Again") as caught:
        run_worklist(p, RuleIndex([Again()]), RewriteLog(), max_rewrites=50)
    assert "it matches its own result" in str(caught.value)


def test_a_rule_that_returns_its_input_changes_nothing_and_ends():
    class Same(Pattern):
        """relu(x) = relu(x)"""

        def pattern(self, p):
            return p.relu(p.any("x"), name="op")

        def rewrite(self, m, b):
            return m.op.result

    p = program([f32(2)], lambda b, x: b.relu(x))
    revision = p.graph.revision
    count, log = apply(Same(), p)
    assert (count, len(log.matches)) == (0, 0)
    assert p.graph.revision == revision


def test_replacement_of_another_type_is_refused():
    class Wrong(Pattern):
        """relu(x) = sum(x)"""

        def pattern(self, p):
            return p.relu(p.any("x"))

        def rewrite(self, m, b):
            return b.call("aten.sum", m.x)

    p = program([f32(2)], lambda b, x: b.relu(x))
    with pytest.raises(PatternError, match=r"type f32\[2\] cannot be replaced by one of type f32\[\]"):
        apply(Wrong(), p)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ScalarType("int"), ScalarType("float")),
        (ScalarType("int"), ScalarType("bool")),
        (ScalarType("int", make_symbol("s0")), ScalarType("int", make_symbol("s1"))),
        (ScalarType("float"), f32()),
    ],
)
def test_a_scalar_of_another_type_is_refused(old, new):
    p = program([f32(2), old, new], lambda b, x, n, m: b.repeat(x, [n]))
    before = print_program(p)
    _, first, second = p.graph.inputs
    with pytest.raises(PatternError, match=f"type {re.escape(str(old))} cannot be replaced by one of type"):
        Rewriter(p).replace_value(first, second)
    assert print_program(p) == before


@pytest.mark.parametrize("method", ["check", "rewrite", "pattern"])
def test_a_pattern_that_raises_is_named(method):
    class Faulty(ReluRelu):
        pass

    def fail(self, *args):
        raise ZeroDivisionError("oops")

    setattr(Faulty, method, fail)
    p = program([f32(2)], lambda b, x: b.relu(b.relu(x)))
    with pytest.raises(PatternError, match=r"Faulty.*oops"):
        apply(Faulty(), p)


def test_unknown_pattern_is_refused():
    with pytest.raises(PatternError, match="not a subclass"):
        instantiate([ReluRelu, int])  # type: ignore[list-item]
    with pytest.raises(PatternError, match="list or tuple"):
        instantiate(ReluRelu)


def test_pattern_with_unknown_attribute_is_refused():
    class Unknown(Pattern):
        """relu(x, dimension=1)"""

        def pattern(self, p):
            return p.relu(p.any("x"), dimension=1)

        def rewrite(self, m, b):
            return m.x

    with pytest.raises(PatternError, match="no attribute 'dimension'"):
        compile_rule(Unknown())


def test_check_must_answer_with_text():
    class Odd(ReluRelu):
        def check(self, m):
            return False

    p = program([f32(2)], lambda b, x: b.relu(b.relu(x)))
    with pytest.raises(PatternError, match="returned False"):
        apply(Odd(), p)


def test_sweep_takes_the_longest_pattern_first():
    class Two(Pattern):
        """region of neg → relu"""

        is_fusion = True
        closed = True

        def pattern(self, p):
            return p.relu(p.neg(p.any("x")))

        def rewrite(self, m, b):
            b.fuse("two", m.ops)

    class Three(Two):
        """region of neg → relu → exp"""

        def pattern(self, p):
            return p.exp(p.relu(p.neg(p.any("x"))))

        def rewrite(self, m, b):
            b.fuse("three", m.ops)

    p = program([f32(2)], lambda b, x: b.relu(b.neg(b.exp(b.relu(b.neg(x))))))
    log = RewriteLog()
    assert run_sweep(p, RuleIndex([Two(), Three()]), log) == 2
    assert names(p) == ["fused.three", "fused.two"]
    region = p.graph.first
    assert region is not None and region.body is not None
    assert [op.name for op in region.body.operations()] == ["aten.neg", "aten.relu", "aten.exp"]
    assert [match.is_fusion for match in log.matches] == [True, True]


def test_a_rewrite_may_return_an_operation_or_the_region_it_made():
    class Fused(ReluRelu):
        def rewrite(self, m, b):
            return b.fuse("relus", m.ops)

    class Replaced(ReluRelu):
        def rewrite(self, m, b):
            return b.op("aten.relu", m.x)

    for rule, expected in ((Fused(), ["fused.relus"]), (Replaced(), ["aten.relu"])):
        p = program([f32(2)], lambda b, x: b.relu(b.relu(x)))
        assert apply(rule, p)[0] == 1
        assert names(p) == expected


def test_fuse_refuses_a_value_computed_in_between():
    class Around(Pattern):
        """region of two operations with another one between them"""

        def pattern(self, p):
            return p.add(p.any("a"), p.exp(p.neg(p.relu(p.any("x"), name="first")), name="last"))

        def rewrite(self, m, b):
            b.fuse("around", [m.first, m.last])

    p = program([f32(2)], lambda b, x: (lambda r: b.add(r, b.exp(b.neg(r))))(b.relu(x)))
    with pytest.raises(PatternError, match="computed between"):
        apply(Around(), p)


def test_unknown_types_pass_through():
    unknown = TensorType(None, torch.float32)
    p = program([unknown], lambda b, x: b.relu(b.relu(x)))
    assert apply(ReluRelu(), p)[0] == 1
