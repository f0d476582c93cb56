"""How patterns are compiled and matched: parameters, backtracking, operand orders, names."""

from __future__ import annotations

import attrs
import pytest

from ir.errors import PatternError
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.effects import crossed_effect
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Pattern
from tests.passes.building import f32, names, program


@attrs.frozen
class TimesNumber(Pattern):
    """x * number = -x"""

    number: int

    def pattern(self, p):
        return p.op("aten.mul.Scalar", p.any("x"), other=self.number)

    def rewrite(self, m, b):
        return b.neg(m.x)


def test_a_rule_with_parameters_in_slots_has_a_pattern_of_its_own():
    p = program([f32(2)], lambda b, x: [b.call("aten.mul.Scalar", x, number) for number in (1, 2, 3)])
    for number, expected in ((1, ["mul", "mul", "neg"]), (2, ["mul", "neg", "neg"])):
        assert not vars(TimesNumber(number))
        assert run_worklist(p, RuleIndex([TimesNumber(number)]), RewriteLog()) == 1
        assert sorted(op.opdef.short_name for op in p.graph.operations()) == expected


def matches(rule, p):
    """Return the matches of a rule at the last operation of a program."""
    (root,) = (v.defining_op for v in p.graph.outputs[-1:])
    found = [variant.try_match(root) for variant in compile_rule(rule)]
    return [m for m in found if m is not None]


class Rule(Pattern):
    def rewrite(self, m, b):
        return b.neg(m.root.operands[0])


def test_a_chain_forgets_what_a_failed_attempt_bound():
    class Shared(Rule):
        """rms_norm's(rms_norm(s, w)) + s"""

        def pattern(self, p):
            s = p.op(("aten.neg", "aten.rms_norm"), p.any("x"), name="s")
            return p.add(p.chain(["aten.rms_norm"], p.op("aten.rms_norm", s, weight=p.any("w"))), s, alpha=1)

    def body(b, x, w):
        s = b.neg(x)
        return b.add(b.rms_norm(b.rms_norm(s, [4], w), [4]), s)

    (m,) = matches(Shared(), program([f32(4), f32(4)], body))
    assert [op.opdef.short_name for op in m.ops] == ["neg", "rms_norm", "rms_norm", "add"]
    assert m.s.name == "aten.neg" and m.x.name == "x0"


def test_operands_of_a_scaled_sum_do_not_commute():
    class Sum(Rule):
        """relu(a) + alpha * b"""

        def pattern(self, p):
            return p.add(p.relu(p.any("a")), p.any("b"), alpha=p.attr("alpha"))

    class Open(Rule):
        """a + b, or a & b"""

        def pattern(self, p):
            return p.op(("aten.add.Tensor", "aten.mul.Tensor"), p.relu(p.any("a")), p.any("b"))

    class Twice(Rule):
        """relu(a) + 2 * b"""

        def pattern(self, p):
            return p.add(p.relu(p.any("a")), p.any("b"), alpha=2)

    def first(alpha):
        return program([f32(2), f32(2)], lambda b, x, y: b.add(b.relu(x), y, alpha=alpha))

    def second(alpha):
        return program([f32(2), f32(2)], lambda b, x, y: b.add(y, b.relu(x), alpha=alpha))

    reason = "alpha of aten.add.Tensor at `block` is 2: its operands do not commute"
    for rule in (Sum(), Open()):
        for p in (first(1), first(2), second(1)):
            (m,) = matches(rule, p)
            assert m.a.name == "x0"
        assert matches(rule, second(2)) == [reason]
    assert matches(Twice(), first(2))[0].b.name == "x1"
    assert all(isinstance(m, str) for p in (first(1), second(1), second(2)) for m in matches(Twice(), p))
    (m,) = matches(Open(), program([f32(2), f32(2)], lambda b, x, y: b.mul(y, b.relu(x))))
    assert m.b.name == "x1"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.neg(p.any("a"), name="a"), "an operation and a value are named 'a'"),
        (lambda p: p.neg(p.chain(["aten.relu"], p.any("a"), name="a")), "an operation and a value are named 'a'"),
        (lambda p: p.softmax(p.any("dim"), dim=p.attr("dim")), "a value and an attribute are named 'dim'"),
        (
            lambda p: p.softmax(p.any("x"), dim=p.attr("a"), name="a"),
            "an operation and an attribute are named 'a'",
        ),
        (lambda p: p.cat([p.any("ops"), p.any("y")]), "'ops' is what a match itself calls something else"),
        (lambda p: p.neg(p.any("x"), name="root"), "'root' is what"),
        (lambda p: p.softmax(p.any("x"), dim=p.attr("location")), "'location' is what"),
        (lambda p: p.chain(["aten.relu"], p.any("x"), name="get", minimum=1), "'get' is what"),
    ],
)
def test_names_that_clash_are_refused(build, message):
    class Clash(Rule):
        def pattern(self, p):
            return build(p)

    with pytest.raises(PatternError) as caught:
        compile_rule(Clash())
    assert message in caught.value.message
    assert "give each its own name" in str(caught.value) or "choose another name" in str(caught.value)


@pytest.mark.parametrize("answer", [None, 1])
def test_a_condition_on_a_value_returns_a_bool(answer):
    class Conditional(Rule):
        def pattern(self, p):
            return p.relu(p.any("x", where=lambda value: answer))

    p = program([f32(2)], lambda b, x: b.relu(x))
    with pytest.raises(PatternError) as caught:
        run_worklist(p, RuleIndex([Conditional()]), RewriteLog())
    assert f"the condition `where` of the value 'x' returned {answer!r}" in caught.value.message
    assert "return True or False" in str(caught.value)


def test_a_dropout_far_between_is_seen():
    def body(b, x):
        y = z = b.dropout(x, 0.5, True)
        for _ in range(4100):
            z = b.relu(z)
        return b.neg(y), b.dropout(z, 0.5, True), b.exp(b.neg(y))

    p = program([f32(2)], body)
    ops = list(p.graph.operations())
    assert names(p)[-4:] == ["aten.neg", "aten.dropout", "aten.neg", "aten.exp"]
    reason = crossed_effect([ops[0], ops[-2], ops[-1]])
    assert reason is not None and "aten.dropout at `block` would move past aten.dropout" in reason
    assert crossed_effect([ops[0], ops[-4]]) is None
    assert crossed_effect([ops[-3], ops[-1]]) is None
