"""Timing as a tree and as a trace, and diffs after passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from ir.errors import InputError, PassError
from ir.program import Program
from passes.apply import Convert
from passes.canonicalize import Canonicalize
from passes.manager.instruments import DiffIR
from passes.manager.manager import Fixpoint, Instrument, Pass, PassContext, PassManager
from passes.manager.timing import Timing
from passes.rewrite.pattern import Pattern
from tests.passes.manager.test_manager import AppendNeg, Nothing, chain
from tests.passes.rewrite.test_patterns import ReluRelu


@attrs.frozen
class Raises(Pass):
    name: ClassVar[str] = "raises"

    def run(self, program: Program, context: PassContext) -> None:
        raise KeyError("x")


def test_the_tree_has_the_passes_in_managers_and_the_rules_in_passes() -> None:
    timing = Timing()
    pipeline = PassManager([AppendNeg(), Fixpoint([Convert([ReluRelu])], label="all"), Canonicalize()])
    pipeline.with_instruments(timing)(chain())
    assert list(timing.passes) == ["append-neg", "all", "canonicalize"]
    convert = timing.passes["all"].passes["convert"]
    assert (convert.runs, convert.changes) == (2, 1)
    rule = convert.rules["ReluRelu"]
    # two relus in the first round, of which the second matches; then one
    assert (rule.matches, rule.rewrites) == (1, 1) and rule.tried >= 2
    assert 0 < rule.seconds <= convert.seconds <= timing.passes["all"].seconds
    assert timing.seconds["convert"] == convert.seconds and "all" not in timing.seconds
    lines = str(timing).splitlines()
    shares = {line.split()[-1]: line for line in lines[1:]}
    assert {"append-neg", "canonicalize", "all", "convert", "ReluRelu", "fold-constants"} <= set(shares)
    assert shares["convert"].index("convert") == shares["all"].index("all") + 2
    assert float(shares["all"].split()[2].rstrip("%")) < 100


def test_rules_are_not_timed_where_nobody_asks() -> None:
    context = PassContext()
    PassManager([Convert([ReluRelu])])(chain(), context)
    assert context.log.watchers == []
    # an instrument of an inner manager hears of the rules in it, and of no others
    timing = Timing()
    other = Convert([ReluRelu], label="other")
    PassManager([PassManager([Convert([ReluRelu])], instruments=[timing]), other])(chain(), context)
    assert list(timing.passes) == ["convert"] and context.log.watchers == []


def _events(timing: Timing) -> list[dict[str, Any]]:
    return [event for event in timing.trace()["traceEvents"] if event["ph"] == "X"]


def test_the_trace_has_events_that_lie_in_each_other(tmp_path: Path) -> None:
    timing = Timing()
    timing.stage("capture")
    timing.stage("rewrite")
    PassManager([Fixpoint([Convert([ReluRelu])])]).with_instruments(timing)(chain())
    timing.stage("")
    events = {event["name"]: event for event in reversed(_events(timing))}
    assert set(events) == {"capture", "rewrite", "fixpoint", "convert", "ReluRelu"}
    for inner, outer in (("ReluRelu", "convert"), ("convert", "fixpoint"), ("fixpoint", "rewrite")):
        a, b = events[inner], events[outer]
        assert b["ts"] <= a["ts"] and a["ts"] + a["dur"] <= b["ts"] + b["dur"] + 1e-3
    assert events["convert"]["args"] == {"changed": True, "operations_before": 2, "operations_after": 1}
    assert events["capture"]["tid"] != events["convert"]["tid"]
    timing.save_trace(tmp_path / "t.json")
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved == timing.trace()
    assert {e["args"]["name"] for e in saved["traceEvents"] if e["ph"] == "M"} == {"stages", "passes and rewrites"}
    with pytest.raises(InputError, match="the trace cannot be written"):
        timing.save_trace(tmp_path / "no" / "t.json")


def test_a_pass_that_raises_is_timed_too() -> None:
    timing = Timing()
    with pytest.raises(PassError):
        PassManager([Fixpoint([Nothing(), Raises()])]).with_instruments(timing)(chain())
    assert [event["args"].get("failed") for event in _events(timing)] == ["PassError", None, "PassError"]
    assert timing.passes["fixpoint"].passes["raises"].runs == 1


def test_a_diff_after_each_pass_that_changed_something(tmp_path: Path) -> None:
    diffs: list[tuple[str, str]] = []
    pipeline = PassManager([AppendNeg(), Nothing(), Fixpoint([Convert([ReluRelu])])])
    pipeline.with_instruments(DiffIR(lambda title, text: diffs.append((title, text))), DiffIR(tmp_path))(chain())
    assert [title for title, _ in diffs] == ["000-append-neg", "001-convert"]
    lines = diffs[1][1].splitlines()
    assert lines[:2] == ["--- before convert", "+++ after convert"]
    assert sum(line.startswith("-") for line in lines[2:]) > sum(line.startswith("+") for line in lines[2:])
    assert (tmp_path / "001-convert.diff").read_text() == diffs[1][1]


def test_a_pass_that_an_instrument_does_not_allow_is_passed_over() -> None:
    class Without(Instrument):
        def allows(self, pass_: Pass, program: Program) -> bool:
            return pass_.name != "append-neg"

    seen: list[str] = []

    class Seen(Instrument):
        def before(self, pass_: Pass, program: Program) -> None:
            seen.append(pass_.name)

    program = chain()
    context = PassManager([AppendNeg(), Fixpoint([AppendNeg(), Nothing()])]).with_instruments(Without(), Seen())(
        program
    )
    assert seen == ["fixpoint", "nothing"] and context.results[0].name == "nothing"
    assert all(op.name == "aten.relu" for op in program.graph.operations())


def test_what_an_instrument_raises_when_a_pass_failed_is_its_own() -> None:
    class Bad(Instrument):
        def failed(self, pass_: Pass, program: Program, error: Exception) -> None:
            raise ValueError("mine")

    with pytest.raises(PassError, match=r"the instrument .*Bad raised ValueError after pass `raises`: mine"):
        PassManager([Raises()]).with_instruments(Bad())(chain())


def test_a_veto_is_asked_of_rewrites_that_are_not_recorded_too() -> None:
    asked: list[tuple[str, bool]] = []
    context = PassContext()

    def veto(rule: Pattern, match: Any, is_recorded: bool) -> str | None:
        asked.append((rule.name, is_recorded))
        return "no"

    context.log.veto = veto
    program = chain()
    PassManager([Canonicalize(), Convert([ReluRelu])])(program, context)
    assert program.graph.num_operations == 2
    assert ("ReluRelu", True) in asked and any(not is_recorded for _, is_recorded in asked)
