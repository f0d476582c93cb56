"""PassManager: contract, text form, functional edits, nesting, instruments."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from ir.errors import (
    DidNotConverge,
    GraphwrightError,
    InputError,
    ParseError,
    PassError,
    PatternError,
    VerificationError,
)
from passes.apply import Convert, Fuse
from passes.canonicalize import Canonicalize
from passes.cleanup.dce import EliminateDeadCode
from passes.manager.instruments import DumpIR, Statistics, VerifyEach
from passes.manager.manager import Fixpoint, Instrument, Pass, PassContext, PassManager, Verify, run_pass
from passes.manager.timing import Timing
from passes.rewrite.driver import RewriteLog
from passes.rewrite.rewriter import Rewriter
from tests.passes.building import f32, names, program
from tests.passes.rewrite.test_patterns import ReluRelu


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
        ("?unknown", "no pass is named 'unknown'; known: append-neg, convert, fixpoint, sequence"),
        ("append-neg, ?apend-neg", "no pass is named 'apend-neg'; did you mean 'append-neg'"),
        ("append-neg{loud=true times=?x}", "option 'times': 'x' is not of type int"),
        ("append-neg{loud=?yes}", "'yes' is not `true` or `false`"),
        ("append-neg{?color=1}", "has no option 'color'; known: label, loud, only, skip, times"),
        ("append-neg{times=1 ?lout=true}", "has no option 'lout'; did you mean 'loud'"),
        ("append-neg{?times}", "'times' has no value"),
        ("append-neg?{times=1", "never closed"),
        ("append-neg?(verify)", "holds no other passes"),
        ("fixpoint(append-neg?", r"expected `\)`"),
        ("fixpoint?", "in parentheses"),
        ("fixpoint(append-neg){?passes=1}", "no option 'passes'; known: label, max-rounds, only, skip"),
        ("?fixpoint(append-neg){max-rounds=0}", "at least one round"),
        ("append-neg{times=1 ?times=2}", "option 'times' is given twice"),
        ("append-neg{times=1 loud=true ?times=1}", "option 'times' is given twice"),
        ("fixpoint(append-neg){max-rounds=3 ?max_rounds=4}", "option 'max_rounds' is given twice"),
        ("fixpoint(" * 50 + "fixpoint(?" + "fixpoint(" * 20_000, "nested more than 50 deep"),
        (f"append-neg{{times=?{'9' * 5000}}}", "is not of type int"),
        ("append-neg?)", "unexpected text"),
        ("append-neg,?", "the name of a pass is missing"),
        ("convert{patterns=?Nope}", "no pattern is named 'Nope'; known: ReluRelu"),
        ("convert{patterns=ReluRelu,?ReluRlu}", "no pattern is named 'ReluRlu'; did you mean 'ReluRelu'"),
        ("?convert", "has no patterns"),
        ("append-neg,\n  ?nope", "line 2, column 3: no pass is named 'nope'"),
    ],
)
def test_faulty_text_is_refused_at_the_word(text, message):
    """The fault is where the `?` stands."""
    before, after = text.split("?")
    with pytest.raises(ParseError, match=message) as caught:
        PassManager.parse(before + after, passes=[AppendNeg, Convert], patterns=[ReluRelu])
    start = before.rpartition("\n")[2]
    assert str(caught.value).splitlines()[1:3] == [f"  {start}{after}", f"  {' ' * len(start)}^"]
    assert caught.value.column == len(start) + 1


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


# Untyped: what the next test passes is wrong on purpose.
Manager: Any = PassManager
Fix: Any = Fixpoint


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Manager([ReluRelu]), "the class ReluRelu is not a Pass"),
        (lambda: Manager([Nothing]), "the class Nothing is not a Pass"),
        (lambda: Manager(Nothing()), "are the pass `nothing`, not a list"),
        (lambda: Manager(Fixpoint([Nothing()])), r"are the pass `fixpoint\(nothing\)`, not a list"),
        (lambda: Fix(Nothing()), "are the pass `nothing`, not a list"),
        (lambda: Manager(None), "are None, not a list"),
        (lambda: Fix([Nothing()], max_rounds=0), "max_rounds is 0"),
        (lambda: Fix([Nothing()], max_rounds=True), "max_rounds is True"),
        (lambda: Manager().with_instruments(Timing), "the class Timing is not an Instrument"),
        (lambda: Manager([], instruments=Timing()), "not a list"),
        (lambda: Manager.parse(None), "the text of a pipeline is None, not a string"),
        (lambda: Manager.parse("nothing", passes=[Nothing()]), r"the pass `nothing` in `passes` is not a subclass"),
        (lambda: Manager.parse("nothing", passes=Nothing), "`passes` is the class Nothing, not a list"),
        (lambda: Manager.parse("verify", patterns=[ReluRelu()]), r"ReluRelu\(\) in `patterns` is not a subclass"),
        (lambda: Manager.parse("verify", patterns=[Nothing]), "the class Nothing in `patterns` is not a subclass"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_a_pass_needs_a_name_and_a_run():
    @attrs.frozen
    class Unnamed(Pass):
        def run(self, program, context):
            pass

    @attrs.frozen
    class Spaced(Unnamed):
        name: ClassVar[str] = "two words"

    @attrs.frozen
    class Idle(Pass):
        name: ClassVar[str] = "idle"

    for cls, message in ((Unnamed, "Unnamed has no name"), (Spaced, "Spaced has the name 'two words'")):
        with pytest.raises(InputError, match=message):
            cls()
        with pytest.raises(InputError, match=message):
            PassManager.parse("verify", passes=[Verify, cls])
    with pytest.raises(PassError, match="Idle has no `run`"):
        PassManager([Idle()])(chain())


def test_passes_over_patterns_need_patterns_of_their_kind():
    class Region(ReluRelu):
        is_fusion = True

    class Conversion(ReluRelu):
        is_conversion = True

    class Both(Region):
        is_conversion = True

    for cls in (Convert, Fuse):
        for build in (cls, lambda cls=cls: cls([])):
            with pytest.raises(PatternError, match="has no patterns"):
                build()
        with pytest.raises(PatternError, match="Both is both a conversion and a fusion"):
            cls([Both])
    with pytest.raises(PatternError, match=r"Region is a fusion, which the pass `convert`[^\0]*Fuse\(\[Region\]\)"):
        Convert([ReluRelu, Region])
    with pytest.raises(PatternError, match=r"Conversion is a conversion, which the pass `fuse`[^\0]*Convert\("):
        Fuse([Conversion()])
    assert str(PassManager([Convert([Conversion, ReluRelu]), Fuse([Region, ReluRelu])]))


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
    with pytest.raises(PassError) as caught:
        PassManager([PassManager([Raises()])])(chain())
    # both managers have the text of the pass, which the message names already
    assert caught.value.__notes__ == ["in pass `raises`"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_instrument_that_raises_is_named_and_not_the_pass(when):
    class Counts(Instrument):
        pass

    def fail(self, *args):
        raise KeyError("lost")

    setattr(Counts, when, fail)
    for manager in (PassManager([Nothing()]), PassManager([PassManager([Nothing()])])):
        with pytest.raises(PassError, match=f"Counts raised KeyError {when} pass `[a-z]+`: 'lost'") as caught:
            manager.with_instruments(Counts())(chain())
        assert f"{Path(__file__).name}:{fail.__code__.co_firstlineno + 1}" in caught.value.message
        assert "bug in the pass" not in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_dump_that_cannot_be_written_names_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "000-append-neg.gw").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken"):
        manager = PassManager([PassManager([AppendNeg()])]).with_instruments(DumpIR(folder))
        with pytest.raises(InputError, match=f"to the folder {folder}: ") as caught:
            manager(chain())
        assert caught.value.remedy
        assert "bug" not in str(caught.value)
    for target in (3, None):
        with pytest.raises(InputError, match=f"cannot be dumped to {target}"):
            DumpIR(target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Canonicalize(inference="x"), "option `inference` of pass `canonicalize` is 'x', not True or False"),
        (lambda: Canonicalize(fold_parameter_views=1), "`fold_parameter_views` .* is 1, not True or False"),
        (lambda: EliminateDeadCode(inference=None), "option `inference` of pass `eliminate-dead-code` is None"),
        (lambda: AppendNeg(times=True), "option `times` of pass `append-neg` is True, not an int"),
        (lambda: AppendNeg(times=1.0), "option `times` of pass `append-neg` is 1.0, not an int"),
    ],
)
def test_options_of_another_type_are_refused(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert caught.value.remedy


def test_options_with_annotations_of_their_own_are_left_alone():
    @attrs.frozen
    class Free(Nothing):
        name: ClassVar[str] = "free"
        limit: int | None = 3
        scale: float = 1.0

    assert Free(limit=None, scale=2).limit is None
    with pytest.raises(InputError, match="`scale` of pass `free` is '2', not a number"):
        Free(scale="2")


def test_verify_each_catches_a_pass_that_breaks_the_ir():
    @attrs.frozen
    class Breaks(Nothing):
        name: ClassVar[str] = "breaks"
        on: bool = True

        def run(self, program, context):
            if not self.on:
                return
            program.graph.first.results[0].type = f32(7)
            program.graph.revision += 1

    with pytest.raises(VerificationError, match="the pass `breaks` broke the program"):
        PassManager([Breaks()]).with_instruments(VerifyEach())(chain())
    inner = PassManager([Breaks(label="first"), Breaks(False), Breaks()])
    with pytest.raises(VerificationError, match=r"the pass `sequence > sequence > first` broke") as caught:
        run_pass(PassManager([inner]), chain(), PassContext(instruments=(VerifyEach(),)))
    assert "bisect" in str(caught.value.remedy)
    assert caught.value.__cause__ is not None
    twice = PassManager([Nothing(), Breaks(False), Breaks()])
    with pytest.raises(VerificationError, match=r"the pass `sequence > breaks\[1\]` broke"):
        run_pass(twice, chain(), PassContext(instruments=(VerifyEach(),)))


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


def test_instruments_see_the_passes_of_canonicalize():
    dumps: list[str] = []
    timing = Timing()
    manager = PassManager([Canonicalize()]).with_instruments(timing, DumpIR(lambda title, text: dumps.append(title)))
    manager(chain())
    own = [pass_.name for pass_ in Canonicalize()]
    assert (
        list(timing.seconds)
        == own
        == [
            "apply-canonical-rules",
            "fold-constants",
            "eliminate-common-subexpressions",
            "eliminate-dead-code",
        ]
    )
    assert dumps == ["000-apply-canonical-rules"]


def test_canonicalize_makes_its_passes_from_its_options():
    pass_ = Canonicalize(inference=True, fold_parameter_views=True)
    names_ = [inner.name for inner in pass_]
    assert names_[0] == "drop-opaque-identities" and "fold-parameter-views" in names_
    assert str(pass_) == "canonicalize{inference=true fold-parameter-views=true}"
    assert PassManager.parse(str(pass_), passes=[Canonicalize]) == PassManager([pass_])
    with pytest.raises(InputError, match="no pass named 'fold-constants'"):
        PassManager([pass_]).without("fold-constants")
    for edit in (lambda: pass_.append(Nothing()), lambda: pass_.without("fold-constants")):
        with pytest.raises(InputError, match=r"the passes of `canonicalize.*` are its own") as caught:
            edit()
        assert "PassManager([Canonicalize()])" in caught.value.remedy


def test_a_fixpoint_names_its_own_passes_that_take_turns():
    @attrs.frozen
    class Flip(Nothing):
        name: ClassVar[str] = "flip"

        def run(self, program, context):
            program.graph.revision += 1

    with pytest.raises(DidNotConverge, match=r"passes that take turns: flip\n") as caught:
        PassManager([Fixpoint([Canonicalize(), Fixpoint([Nothing()]), Flip()], max_rounds=2)])(chain())
    assert "undo each other" in caught.value.remedy
