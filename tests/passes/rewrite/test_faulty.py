"""Rules that raise: reported with their line and the place, and skipped where that is safe."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from compiler.bisection import bisect
from compiler.driver import transform
from ir.errors import PatternError, VerificationError
from ir.locations import Location
from ir.program import Program
from ir.text.printer import print_program
from passes.apply import Convert
from passes.canonicalize import Canonicalize
from passes.manager.manager import Fixpoint, PassContext, PassManager
from passes.rewrite.driver import RewriteLog, run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import GraphwrightWarning
from tests.passes.building import f32, names, program


class Relu(Pattern):
    """relu(x) = -x, by a method that fails"""

    def pattern(self, p):
        return p.relu(p.any("x"), name="relu")

    def rewrite(self, m, b):
        return b.neg(m.x)


class Checks(Relu):
    def check(self, m):
        return m.nothing


class ChecksOddly(Relu):
    def check(self, m):
        return 3


class SaysNothing(Relu):
    def check(self, m):
        return ""


class Asks(Relu):
    def pattern(self, p):
        return p.relu(p.any("x", where=lambda value: 1 / 0 > 1))


class Raises(Relu):
    def rewrite(self, m, b):
        b.tanh(b.neg(m.x))
        raise KeyError("lost")


class ReturnsNothing(Relu):
    def rewrite(self, m, b):
        b.neg(b.gelu(m.x))


class ReturnsAnotherType(Relu):
    def rewrite(self, m, b):
        return b.call("aten.sum.default", m.x)


class Region(Relu):
    is_fusion = True

    def rewrite(self, m, b):
        b.fuse("a b", m.ops)


class AsksOddly(Relu):
    def pattern(self, p):
        return p.relu(p.any("x", where=lambda value: None))


class AsksTheOperation(Relu):
    def pattern(self, p):
        return p.relu(p.any("x"), where=lambda op: 0)


SAFE = [
    Checks,
    ChecksOddly,
    SaysNothing,
    Asks,
    AsksOddly,
    AsksTheOperation,
    Raises,
    ReturnsNothing,
    ReturnsAnotherType,
    Region,
]


class ReluToTanh(Relu):
    def rewrite(self, m, b):
        return b.tanh(m.x)


def chain() -> Program:
    return program([f32(2, 3)], lambda b, x: b.relu(b.sigmoid(b.relu(x))))


def lenient() -> RewriteLog:
    return RewriteLog(strict=False)


@pytest.mark.parametrize("run", [run_worklist, run_sweep])
@pytest.mark.parametrize("rule", SAFE)
def test_a_rule_that_fails_is_skipped_and_reported(rule: type[Pattern], run: Any) -> None:
    p, log = chain(), lenient()
    before = print_program(p)
    with pytest.warns(GraphwrightWarning, match=f"{rule.__name__} skipped: .* of {rule.__name__} .*the bug is in"):
        assert run(p, RuleIndex([rule()]), log) == 0
    assert print_program(p) == before
    (remark,) = log.remarks  # both are at one place
    assert (remark.kind, remark.rule, remark.location.module_path) == ("failed", rule.__name__, "block")
    assert "test_faulty.py:" in remark.message
    with pytest.raises(PatternError, match=f"of {rule.__name__} "):
        run(chain(), RuleIndex([rule()]), RewriteLog())


@pytest.mark.parametrize("rule", SAFE)
def test_other_rules_apply_where_one_fails(rule: type[Pattern]) -> None:
    p = chain()
    with pytest.warns(GraphwrightWarning, match="the bug is in the rule"):
        assert run_worklist(p, RuleIndex([rule(), ReluToTanh()]), lenient()) == 2
    assert names(p) == ["aten.tanh", "aten.sigmoid", "aten.tanh"]


def test_the_condition_of_an_attribute_answers_yes_or_no() -> None:
    class Softmax(Pattern):
        def pattern(self, p):
            return p.softmax(p.any("x"), p.attr_where(lambda dim: "not the last", "the last"))

        def rewrite(self, m, b):
            return m.x

    p = program([f32(2, 3)], lambda b, x: b.softmax(x, 0))
    with pytest.raises(
        PatternError, match=r"the condition of the attribute dim of aten\.softmax\.int returned 'not the l"
    ):
        run_worklist(p, RuleIndex([Softmax()]), RewriteLog())


def test_a_rule_that_fails_in_a_fixpoint_fails_once() -> None:
    calls: list[int] = []

    class Counts(Raises):
        def rewrite(self, m, b):
            calls.append(1)
            return super().rewrite(m, b)

    p = chain()
    with pytest.warns(GraphwrightWarning):
        PassManager([Fixpoint([Convert([Counts]), Canonicalize()])])(p, PassContext(lenient()))
    assert len(calls) == 2 and names(p) == ["aten.relu", "aten.sigmoid", "aten.relu"]


def test_a_rule_that_has_edited_the_graph_is_an_error() -> None:
    class Replaces(Relu):
        def rewrite(self, m, b):
            b.replace_value(m.relu.result, b.neg(m.x))
            raise KeyError("lost")

    class Attribute(Pattern):
        def pattern(self, p):
            return p.op("aten.mul.Scalar", p.any("x"), other=2, name="mul")

        def rewrite(self, m, b):
            b.set_attribute(m.mul, "other", 3)
            raise KeyError("lost")

    scaled = program([f32(2)], lambda b, x: b.call("aten.mul.Scalar", x, 2))
    for rule, p in ((Replaces(), chain()), (Attribute(), scaled)):
        with pytest.raises(PatternError, match="raised KeyError: 'lost'") as caught:
            run_worklist(p, RuleIndex([rule]), lenient())
        assert caught.value.__notes__ == ["the rule is not skipped: it has edited the graph before"]


def test_warnings_that_are_errors_reach_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphwrightWarning)
        with pytest.raises(GraphwrightWarning, match="Checks skipped"):
            run_worklist(chain(), RuleIndex([Checks()]), lenient())


def test_a_pattern_that_cannot_be_compiled_is_an_error() -> None:
    class IllFormed(Relu):
        def pattern(self, p):
            return p.rellu(p.any("x"))

    with pytest.raises(PatternError, match="the pattern of IllFormed"):
        run_worklist(chain(), RuleIndex([IllFormed()]), lenient())


class ChecksAndEdits(Relu):
    def check(self, m):
        m.relu.set_attribute("noted", True)


class ChecksEditsAndRaises(ChecksAndEdits):
    def check(self, m):
        super().check(m)
        raise KeyError("lost")


class AsksAndEdits(Relu):
    def pattern(self, p):
        def where(op):
            op.set_attribute("noted", True)

        return p.relu(p.any("x"), name="relu", where=where)


@pytest.mark.parametrize("rule", [ChecksAndEdits, ChecksEditsAndRaises, AsksAndEdits])
@pytest.mark.parametrize("strict", [True, False])
def test_a_check_or_condition_that_changes_the_program_is_named(rule, strict):
    p = program([f32(2)], lambda b, x: b.relu(b.neg(b.neg(x))))
    p.graph.last.prev.location = Location("net.act", file="net.py", line=7)
    log = RewriteLog(strict=strict)
    with pytest.raises(PatternError, match=f"of {rule.__name__} .*{__file__}:.*changed the program") as caught:
        run_worklist(p, RuleIndex([rule()]), log)
    assert "net.act" in str(caught.value)
    assert "net.py:7" in str(caught.value)
    assert "`rewrite`" in caught.value.remedy
    assert p.graph.num_operations == 3


def test_a_rule_that_breaks_the_program_is_found_by_what_the_error_says():
    class Shortens(Relu):
        """relu(x) = x, of another type"""

        is_conversion = True

        def rewrite(self, m, b):
            result = b.neg(m.x)
            result.type = f32(7)
            m.relu.results[0].type = f32(7)
            return result

    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    pipeline = PassManager([Canonicalize(), Fixpoint([Convert([Shortens])])])
    with pytest.raises(VerificationError, match=r"the pass `sequence > fixpoint > convert` broke") as caught:
        transform(model, (torch.ones(2),), pipeline=pipeline)
    assert "graphwright.bisect" in caught.value.remedy
    found = bisect(model, (torch.ones(2),), pipeline=pipeline)
    assert found.culprit is not None
    assert found.culprit.rule == "Shortens"
