"""How far a rule got at an operation: what fits, and in what the program differs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ir.opdef import Trait
from ir.program import Program
from ir.text.parser import parse_program
from passes.explain.found import PartialMatch
from passes.explain.partial import Tree
from passes.rewrite.example import Example
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Node, Pattern, PatternBuilder


class Rule(Pattern):
    """A rule of which only the pattern matters."""

    def __init__(self, written: Callable[[PatternBuilder], Node]) -> None:
        self.written = written

    def pattern(self, p: PatternBuilder) -> Node:
        return self.written(p)

    def rewrite(self, m, b):
        return m.root.operands[0]


def of(body: str, arguments: str = "%x : f32[2, 3]") -> Program:
    return Example(f"graph({arguments}) {{ {body} }}").program()


def furthest(rule: Pattern | Callable[[PatternBuilder], Node], program: Program, at: str) -> PartialMatch | None:
    rule = rule if isinstance(rule, Pattern) else Rule(rule)
    (op,) = (op for op in program.graph.operations() if op.results[0].name == at)
    found = Tree(rule, compile_rule(rule)).furthest(op)
    if found is not None:
        assert found.is_whole == (not found.differences)
        assert any(fit is op for _, fit in found.fits)
    return found


def gelu(p: PatternBuilder) -> Node:
    x = p.any("x")
    cube = p.op("aten.mul.Scalar", p.op("aten.pow.Tensor_Scalar", x, exponent=3), other=0.044715)
    inner = p.op("aten.mul.Scalar", p.add(x, cube, alpha=1), other=0.7978845608028654)
    half = p.op("aten.mul.Scalar", x, other=0.5)
    return p.mul(half, p.op("aten.add.Scalar", p.tanh(inner), other=1, alpha=1))


SPELLED = """
    %s = aten.mul.Tensor(%x, %x) %c = aten.mul.Tensor(%s, %x)
    %d = aten.mul.Scalar(%c) {other=0.044715} %e = aten.add.Tensor(%d, %x)
    %f = aten.mul.Scalar(%e) {other=0.7978845608028654} %t = aten.tanh(%f)
    %u = aten.add.Scalar(%t) {other=1} %h = aten.mul.Scalar(%x) {other=0.5}
    %y = aten.mul.Tensor(%u, %h) %z = aten.sigmoid(%y) return %z
"""


@pytest.mark.parametrize("at", ["d", "e", "f", "t", "u", "h", "y"])
def test_a_gelu_in_another_spelling_fits_but_for_its_cube_wherever_one_asks(at):
    found = furthest(gelu, of(SPELLED), at)
    assert found.extent == "7 of 8 operations fit"
    (difference,) = found.differences
    assert (difference.kind, difference.expected) == ("operator", ("aten.pow.Tensor_Scalar",))
    assert "operand `self` of aten.mul.Scalar" in difference.message
    assert "is aten.mul.Tensor" in difference.message and "not aten.pow.Tensor_Scalar" in difference.message


def test_an_operation_that_no_part_could_be_has_no_match():
    assert furthest(gelu, of(SPELLED), "z") is None
    assert furthest(gelu, of(SPELLED), "s").extent == "1 of 8 operations fits"


def test_the_right_spelling_fits_as_a_whole():
    program = of(SPELLED.replace("aten.mul.Tensor(%s, %x)", "aten.pow.Tensor_Scalar(%x) {exponent=3}"))
    found = furthest(gelu, program, "t")
    assert found.is_whole and len(found.fits) == found.wanted == 8
    assert found.evidence >= 7  # numbers, alpha, and one x in three places


DIFFERENCES: dict[str, tuple[Callable[[PatternBuilder], Node], str, str, str, str]] = {
    "operator": (
        lambda p: p.relu(p.op(Trait.CONV, p.any("x"))),
        "%y = aten.tanh(%x) %z = aten.relu(%y) return %z",
        "z",
        "operator",
        "operand `self` of aten.relu at `an unknown place` is aten.tanh at `an unknown place`, not an operator with",
    ),
    "alternatives": (
        lambda p: p.relu(p.optional(p.neg, p.one_of(p.exp(p.any("x")), p.sin(p.any("x"))))),
        "%z = aten.relu(%x) return %z",
        "z",
        "operator",
        "is the input `x`, not aten.neg or aten.exp or aten.sin",
    ),
    "users": (
        lambda p: p.relu(p.neg(p.any("x"))),
        "%y = aten.neg(%x) %z = aten.exp(%y) return %z, %y",
        "y",
        "users",
        "goes to aten.exp at `an unknown place`, an output of the model, not to aten.relu",
    ),
    "users, as another operand": (
        lambda p: p.sub(p.neg(p.any("x")), p.any("y"), alpha=1),
        "%y = aten.neg(%x) %z = aten.sub.Tensor(%x, %y) return %z",
        "y",
        "users",
        "goes to aten.sub.Tensor at `an unknown place`, which does not take it as operand `self`",
    ),
    "attribute": (
        lambda p: p.softmax(p.neg(p.any("x")), dim=0),
        "%y = aten.neg(%x) %z = aten.softmax.int(%y) {dim=1} return %z",
        "y",
        "attribute",
        "dim of aten.softmax.int at `an unknown place` is 1, not 0",
    ),
    "attribute that a function refuses": (
        lambda p: p.softmax(p.any("x"), dim=p.attr_where(lambda d: d == 0, "the first")),
        "%z = aten.softmax.int(%x) {dim=1} return %z",
        "z",
        "attribute",
        "is 1, not the first",
    ),
    "one value in two places": (
        lambda p: p.mul(p.any("x"), p.sigmoid(p.any("x"))),
        "%y = aten.neg(%x) %s = aten.sigmoid(%x) %z = aten.mul.Tensor(%y, %s) return %z",
        "z",
        "same",
        "operand `self` of aten.sigmoid at `an unknown place` is the input `x`, and `x` is aten.neg at",
    ),
    "one operation in two places": (
        lambda p: (lambda n: p.sub(p.exp(n), p.sin(n), alpha=1))(p.neg(p.any("x"))),
        "%a = aten.neg(%x) %e = aten.exp(%a) %s = aten.sin(%b) %z = aten.sub.Tensor(%e, %s) return %z".replace(
            " %e", " %b = aten.neg(%x) %e", 1
        ),
        "z",
        "same",
        "operand `self` of aten.sin at `an unknown place` is aten.neg at `an unknown place`, and must be aten.neg at",
    ),
    "absent operand": (
        lambda p: p.linear(p.any("x"), p.any("w"), p.any("b")),
        "%z = aten.linear(%x, %x, None) return %z",
        "z",
        "operand",
        "operand `bias` of aten.linear at `an unknown place` is absent, and must not be",
    ),
    "operand that must be absent": (
        lambda p: p.rms_norm(p.any("x"), None),
        "%z = aten.rms_norm(%x, %x) {normalized_shape=[2, 3]} return %z",
        "z",
        "operand",
        "operand `weight` of aten.rms_norm at `an unknown place` is the input `x`, and must be absent",
    ),
    "list of another length": (
        lambda p: p.cat([p.neg(p.any("x")), p.any("y")]),
        "%y = aten.neg(%x) %z = aten.cat([%y, %x, %x]) return %z",
        "y",
        "operand",
        "has 3 values, not 2",
    ),
    "another result": (
        lambda p: p.relu(p.op("aten.split_with_sizes", p.any("x"), result=1)),
        "%a, %b = aten.split_with_sizes(%x) {split_sizes=[1, 1]} %z = aten.relu(%a) return %z, %b",
        "z",
        "result",
        "is result 0 of aten.split_with_sizes at `an unknown place`, not result 1",
    ),
    "condition of an operation": (
        lambda p: p.relu(p.op("aten.neg", p.any("x"), where=lambda op: "it is Monday")),
        "%y = aten.neg(%x) %z = aten.relu(%y) return %z",
        "z",
        "condition",
        "it is Monday",
    ),
    "condition of a value": (
        lambda p: p.relu(p.any("x", where=lambda value: value.defining_op is not None)),
        "%z = aten.relu(%x) return %z",
        "z",
        "value",
        "operand `self` of aten.relu at `an unknown place`, `x`, is the input `x`: it does not meet its condition",
    ),
    "condition that raises": (
        lambda p: p.relu(p.op("aten.neg", p.any("x"), where=lambda op: str(op.attributes["nonsense"]))),
        "%y = aten.neg(%x) %z = aten.relu(%y) return %z",
        "z",
        "condition",
        "its condition raised KeyError",
    ),
    "chain that is too short": (
        lambda p: p.exp(p.chain(["aten.neg"], p.sin(p.any("x")), minimum=2)),
        "%a = aten.sin(%x) %b = aten.neg(%a) %z = aten.exp(%b) return %z",
        "z",
        "operator",
        "operand `self` of aten.neg at `an unknown place` is aten.sin at `an unknown place`, not aten.neg",
    ),
    "what is behind a chain": (
        lambda p: p.exp(p.chain(["aten.neg"], p.sin(p.any("x")))),
        "%a = aten.cos(%x) %b = aten.neg(%a) %z = aten.exp(%b) return %z",
        "b",
        "operator",
        "operand `self` of aten.neg at `an unknown place` is aten.cos at `an unknown place`, not aten.sin",
    ),
}


@pytest.mark.parametrize(("written", "body", "at", "kind", "message"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_each_kind_of_difference_is_told(written, body, at, kind, message):
    found = furthest(written, of(body), at)
    assert found.rank < (True,)
    assert [(each.kind, message in each.message) for each in found.differences] == [(kind, True)], found.differences


def test_both_orders_of_operands_are_tried_and_a_scaled_one_does_not_commute():
    written = lambda p: p.relu(p.add(p.neg(p.any("x")), p.any("y")))  # noqa: E731
    swapped = "%y = aten.neg(%x) %s = aten.add.Tensor(%x, %y) {alpha=A} %z = aten.relu(%s) return %z"
    assert furthest(written, of(swapped.replace("A", "1")), "y").is_whole
    (difference,) = furthest(written, of(swapped.replace("A", "2")), "y").differences
    assert difference.kind == "condition" and "alpha of aten.add.Tensor" in difference.message


def test_a_choice_that_is_bad_elsewhere_is_no_difference():
    # the first alternative fits alone, and then `x` is another value
    written = lambda p: p.sub(p.one_of(p.exp(p.any("x")), p.exp(p.neg(p.any("x")))), p.any("x"), alpha=1)  # noqa: E731
    program = of("%y = aten.neg(%x) %e = aten.exp(%y) %z = aten.sub.Tensor(%e, %x) return %z")
    found = furthest(written, program, "z")
    assert found.is_whole and found.wanted == len(found.fits)


def test_the_subject_names_what_a_pattern_is_made_of():
    rule = Rule(lambda p: p.relu(p.op(Trait.CONV, p.any("x"))))
    assert Tree(rule, compile_rule(rule)).subject == "aten.relu, an operator with Trait.CONV"


def test_text_that_is_parsed_has_places():
    program = parse_program(str(of("%y = aten.neg(%x) %z = aten.relu(%y) return %z")))
    assert furthest(lambda p: p.relu(p.neg(p.any("x"))), program, "y").is_whole
