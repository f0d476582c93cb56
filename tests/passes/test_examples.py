"""Each rule does on its examples what these say: it fires and means the same, or gives its reason."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz.rules.names import RULES
from fuzz.search.counterexample import UnsoundError
from fuzz.search.examples import hold_example
from fuzz.search.sound import Target, assert_sound
from graphwright import Example, Match, Pattern, PatternBuilder
from ir.errors import PatternError

EXAMPLES = [(rule, number) for rule in RULES.values() for number in range(len(rule.examples))]


@pytest.mark.parametrize(("rule", "number"), EXAMPLES, ids=lambda item: getattr(item, "__name__", str(item)))
def test_a_rule_does_what_its_example_says(rule: type[Pattern], number: int) -> None:
    target = Target.of(rule)
    hold_example(target.rules[0], rule.examples[number], target.properties)


TWICE = Example("""
    graph(%x : f32[n, c]) {
      %y = aten.neg(%x)
      %z = aten.neg(%y)
      return %z
    }
""")


class NegTwice(Pattern):
    """neg(neg(x)) = abs(x), which is right for no negative number"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.neg(p.neg(p.any("x")))

    def check(self, m: Match) -> str | None:
        return "the rank is not 2" if m.x.tensor_type.rank != 2 else None

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.abs(m.x)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (TWICE, "the property `values` does not hold"),
        (TWICE.changed(("[n, c]", "[n]")), "does not fire on its example: the rank is not 2"),
        (TWICE.changed(("neg(%y)", "abs(%y)")), "does not fire on its example: it does not match"),
        (TWICE.changed(("[n, c]", "[n]"), refused="the dtype"), "refuses its near miss for another reason: the rank"),
        (TWICE.changed(unknown="all"), "does not fire on its example: the rank is not 2"),
        (TWICE.changed(refused="the rank", unknown="batch"), "the property `values` does not hold"),
    ],
)
def test_an_example_that_is_not_so_is_an_error(example: Example, message: str) -> None:
    target = Target.of(NegTwice)
    with pytest.raises(UnsoundError, match=message):
        hold_example(target.rules[0], example, target.properties)


def test_sizes_are_numbers_that_differ_or_that_are_given() -> None:
    assert str(TWICE.program().graph.inputs[0].type) == "f32[2, 3]"
    assert str(TWICE.program({"n": 7, "c": 1}.__getitem__).graph.inputs[0].type) == "f32[7, 1]"


def test_a_text_that_is_no_program_is_shown() -> None:
    with pytest.raises(PatternError, match=r"an example is no program: .*named 'q'"):
        TWICE.changed(("neg(%y)", "neg(%q)")).program()
    with pytest.raises(PatternError, match="an example has no 'relu'"):
        TWICE.changed(("relu", "gelu"))


def test_what_is_not_known_of_the_inputs_is_stated() -> None:
    target = Target.of(NegTwice)
    example = TWICE.changed(refused="the rank is not 2", unknown="all")
    hold_example(target.rules[0], example, target.properties)
    assert str(example).endswith("unknown: all\nrefused: the rank is not 2")
    with pytest.raises(PatternError, match=r"unknown='types'.*\n.*\"batch\" or \"all\""):
        TWICE.changed(unknown="types")


BEGIN = "f32[n, c]) {\n  %y = aten.neg(%x)"
OF_ROWS = "i64[n], %w : f32[1, 2]) {\n  %e = aten.embedding(%w, %x)\n  %y = aten.neg(%e)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("f32[n, c]", "f32[*]", r"NegTwice: %x of an example has type f32\[\*\]"),
        ("f32[n, c]", "?", r"NegTwice: %x of an example has type \?"),
        ("f32[n, c]", "?[n, 2]", "NegTwice: %x of an example has type"),
        ("f32[n, c]", "f32[?, 2]", "NegTwice: %x of an example has type"),
        ("f32[n, c]", "int", "NegTwice: %x of an example has type int"),
        ("f32[n, c]", "f32[n, c]@cuda:0", "NegTwice: %x of an example is on cuda:0: examples run on the CPU"),
        ("f32[n, c]", "f32[1000000000, 1000000000, n]", "no tensor can be drawn for %x"),
        (BEGIN, OF_ROWS, r"NegTwice: an example does not run on random numbers: .*index out of range"),
        ("return %z", "return", "NegTwice: an example returns nothing"),
        ("return %z", "return None", "NegTwice: an example returns nothing"),
        ("neg(%y)", "neg(%q)", "NegTwice: an example is no program"),
    ],
)
def test_an_example_that_cannot_be_tried_is_an_error_of_the_rule(old: str, new: str, message: str) -> None:
    target = Target.of(NegTwice)
    with pytest.raises(PatternError, match=message):
        hold_example(target.rules[0], TWICE.changed((old, new)), target.properties)


@pytest.mark.parametrize("given", [TWICE, None, TWICE.text, (TWICE.text,)], ids=["alone", "none", "text", "texts"])
def test_examples_that_are_none_are_an_error_of_the_rule(given: Any) -> None:
    class Given(NegTwice):
        examples = given

    with pytest.raises(PatternError, match=r"Given\.examples is"):
        assert_sound(Given)


def test_what_makes_no_example_is_an_error() -> None:
    for changes in (("neg", "abs"), ("qq",), ("",), (("neg",),)):
        with pytest.raises(PatternError, match=r"is not an \(old, new\) pair"):
            TWICE.changed(*changes)
    for text in (3, b"graph"):
        with pytest.raises(PatternError, match="an example is made of"):
            Example(text)


def test_a_check_that_raises_on_an_example_is_a_finding() -> None:
    class Raises(NegTwice):
        examples = (TWICE,)

        def check(self, m: Match) -> str | None:
            return "no" if m.x.tensor_type.shape[5] == 3 else None

    with pytest.raises(UnsoundError, match="the property `no error` does not hold"):
        assert_sound(Raises)


def test_a_rule_prints_its_equation_and_examples() -> None:
    class Documented(NegTwice):
        """neg(neg(x)) = x"""

        examples = (TWICE.changed(("[n, c]", "[n]"), refused="the rank"),)

    assert str(Documented()).splitlines()[0] == "neg(neg(x)) = x"
    assert "graph(%x : f32[n])" in str(Documented())
    assert str(Documented()).endswith("refused: the rank")
