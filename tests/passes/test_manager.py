"""PassManager: contract, text form, functional edits, nesting, instruments."""

from __future__ import annotations

import warnings
from typing import ClassVar

import attrs
import pytest

from ir.errors import DidNotConverge, GraphwrightError, InputError, ParseError, PassError, VerificationError
from passes.apply import Convert, Fuse
from passes.driver import RewriteLog
from passes.instruments import DumpIR, Statistics, Timing, VerifyEach
from passes.manager import Fixpoint, Pass, PassContext, PassManager, Verify, run_pass
from passes.rewriter import Rewriter
from tests.passes.building import f32, names, program
from tests.passes.test_patterns import ReluRelu


@attrs.frozen
class AppendNeg(Pass):
    """Adds `times` negations in front of the first output."""

    name: ClassVar[str] = "append-neg"
    times: int = 1
    loud: bool = False

    def run(self, program, context):
        b = Rewriter(program)
        value = program.graph.outputs[0]
        for _ in range(self.times):
            value = b.neg(value)
        program.graph.set_outputs([value])


@attrs.frozen
class Nothing(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    def run(self, program, context):
        pass


def chain():
    return program([f32(2)], lambda b, x: b.relu(b.relu(x)))


def test_results_are_measured_by_the_revision():
    p = chain()
    context = PassManager([AppendNeg(times=2), Nothing()])(p)
    by_name = {r.name: r for r in context.results}
    assert by_name["append-neg"].changed and not by_name["nothing"].changed
    assert (by_name["append-neg"].operations_before, by_name["append-neg"].operations_after) == (2, 4)
    assert names(p) == ["aten.relu", "aten.relu", "aten.neg", "aten.neg"]


def test_text_round_trip():
    manager = PassManager(
        [
            AppendNeg(times=3, loud=True),
            Fixpoint([Convert([ReluRelu]), Nothing()], max_rounds=4),
            Fuse([ReluRelu]),
            Verify(),
        ]
    )
    text = str(manager)
    assert text == (
        "append-neg{times=3 loud=true},fixpoint(convert{patterns=ReluRelu},nothing){max-rounds=4},"
        "fuse{patterns=ReluRelu},verify"
    )
    parsed = PassManager.parse(text, passes=[AppendNeg, Nothing, Convert, Fuse, Verify], patterns=[ReluRelu])
    assert parsed == manager
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unknown", "no pass is named 'unknown'"),
        ("append-neg{times=x}", "'x' is not a int"),
        ("append-neg{color=1}", "no option 'color'"),
        ("append-neg{times=1", "never closed"),
        ("fixpoint(append-neg", r"expected `\)`"),
        ("fixpoint", "in parentheses"),
        ("append-neg)", "unexpected text"),
        ("convert{patterns=Nope}", "no pattern is named Nope"),
    ],
)
def test_faulty_text_is_refused_with_the_column(text, message):
    with pytest.raises(ParseError, match=message) as caught:
        PassManager.parse(text, passes=[AppendNeg, Convert])
    assert "column" in str(caught.value) and "^" in str(caught.value)


def test_functional_edits_leave_the_original_alone():
    manager = PassManager([AppendNeg(), Fixpoint([Nothing()])])
    assert str(manager.insert_before("append-neg", Verify())) == "verify,append-neg,fixpoint(nothing)"
    assert str(manager.insert_after("nothing", Verify())) == "append-neg,fixpoint(nothing,verify)"
    assert str(manager.replace("append-neg", Nothing(), Nothing())) == "nothing,nothing,fixpoint(nothing)"
    assert str(manager.without("nothing")) == "append-neg,fixpoint()"
    assert str(manager.append(Verify())) == "append-neg,fixpoint(nothing),verify"
    assert str(manager) == "append-neg,fixpoint(nothing)"
    with pytest.raises(InputError, match="no pass named 'typo'"):
        manager.without("typo")


def test_what_is_no_pass_is_refused():
    with pytest.raises(InputError, match="is not a Pass"):
        PassManager([ReluRelu])  # type: ignore[list-item]


def test_fixpoint_stops_when_nothing_changes_and_raises_when_it_never_does():
    p = chain()
    context = PassManager([Fixpoint([Convert([ReluRelu])])])(p)
    assert names(p) == ["aten.relu"]
    assert [r.changed for r in context.results if r.name == "convert"] == [True, False]
    with pytest.raises(DidNotConverge, match="append-neg"):
        PassManager([Fixpoint([AppendNeg()], max_rounds=3)])(chain())


def test_requires_is_asked_before_and_ensures_of_the_result():
    @attrs.frozen
    class Promise(AppendNeg):
        name: ClassVar[str] = "promise"

        def ensures(self, program):
            return None if names(program)[-1] == "aten.neg" else "the program does not end in a negation"

    @attrs.frozen
    class Broken(Promise):
        name: ClassVar[str] = "broken"

        def run(self, program, context):
            pass

    @attrs.frozen
    class Demanding(AppendNeg):
        name: ClassVar[str] = "demanding"

        def requires(self, program):
            return "it wants another program"

    PassManager([Promise()])(chain())
    with pytest.raises(PassError, match=r"`broken` broke its promise.*negation"):
        PassManager([Broken()])(chain())
    p = chain()
    with pytest.raises(PassError, match=r"`demanding` cannot run: it wants another"):
        PassManager([Demanding()])(p)
    assert names(p) == ["aten.relu", "aten.relu"]


def test_a_pass_that_raises_or_returns_is_named():
    @attrs.frozen
    class Raises(Nothing):
        name: ClassVar[str] = "raises"

        def run(self, program, context):
            raise KeyError("lost")

    @attrs.frozen
    class Returns(Nothing):
        name: ClassVar[str] = "returns"

        def run(self, program, context):
            return program

    with pytest.raises(PassError, match=r"`raises` raised KeyError.*lost"):
        run_pass(Raises(), chain(), PassContext())
    with pytest.raises(PassError, match="`returns` returned"):
        run_pass(Returns(), chain(), PassContext())


def test_verify_each_catches_a_pass_that_breaks_the_ir():
    @attrs.frozen
    class Breaks(Nothing):
        name: ClassVar[str] = "breaks"

        def run(self, program, context):
            program.graph.first.results[0].type = f32(7)
            program.graph.revision += 1

    with pytest.raises(VerificationError) as caught:
        PassManager([Breaks()]).with_instruments(VerifyEach())(chain())
    assert any("breaks" in note for note in caught.value.__notes__)


def test_verify_each_catches_a_change_behind_the_revision():
    @attrs.frozen
    class Sneaky(Nothing):
        name: ClassVar[str] = "sneaky"

        def run(self, program, context):
            program.graph.inputs[0].name = "renamed"

    with pytest.raises(GraphwrightError, match="sneaky"):
        PassManager([Sneaky()]).with_instruments(VerifyEach(check_unchanged=True))(chain())


def test_instruments_see_every_pass(tmp_path):
    timing, statistics = Timing(), Statistics()
    dumps: list[tuple[str, str]] = []
    manager = PassManager([AppendNeg(), Nothing(), Fixpoint([Convert([ReluRelu])])])
    manager.with_instruments(
        timing, statistics, DumpIR(lambda title, text: dumps.append((title, text))), DumpIR(tmp_path)
    )(chain())
    assert list(timing.seconds) == ["append-neg", "nothing", "convert"]
    assert statistics.before_counts == {"aten.relu": 2}
    assert statistics.after_counts == {"aten.relu": 1, "aten.neg": 1}
    assert statistics.runs["convert"] == 2 and statistics.changes["convert"] == 1
    assert [title for title, _ in dumps] == ["000-append-neg", "001-convert"]
    assert "aten.neg" in dumps[0][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-append-neg.gw", "001-convert.gw"]


def test_context_collects_matches_and_remarks():
    context = PassContext(RewriteLog())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PassManager([Convert([ReluRelu])])(chain(), context)
    assert [match.pattern for match in context.log.matches] == [ReluRelu]
