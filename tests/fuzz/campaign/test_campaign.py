"""Campaigns find what is planted, keep it once, go on where they stopped, and say what was called wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis.internal.conjecture import providers

from fuzz.__main__ import main
from fuzz.campaign.campaign import Campaign, Unit, run_campaign, run_unit, units
from fuzz.campaign.coverage import condition
from fuzz.search.sound import find_counterexample
from fuzz.search.soundness import Soundness
from graphwright import Example, GraphwrightError, Match, Pattern, PatternBuilder, Rewriter
from passes.rewrite.pattern import Node

WRONG = "rule tests.fuzz.search.test_sound:ViewForCopy"
RIGHT = "rule NoPermute"


def test_a_planted_fault_is_found_once_and_its_file_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = Campaign(tmp_path)
    run_campaign(campaign, [WRONG, RIGHT], examples=120, batch=40)
    assert [found.property for found in campaign.found.values()] == ["sharing"]
    assert campaign.coverage[RIGHT].examples >= 100
    assert campaign.coverage[RIGHT].fired["NoPermute"] > 10
    assert any("the order changes" in reason for reason in campaign.coverage[RIGHT].refused)
    (file,) = tmp_path.glob("found_*.gw")
    assert main(["replay", str(file)]) == 1
    assert "sharing: " in capsys.readouterr().out


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    seen: list[Unit] = []
    run_campaign(Campaign.load(tmp_path), [RIGHT], examples=50, batch=20, report=lambda r, new: seen.append(r.unit))
    run_campaign(Campaign.load(tmp_path), [RIGHT], examples=70, batch=20, report=lambda r, new: seen.append(r.unit))
    assert [(unit.seed, unit.examples) for unit in seen] == [(0, 20), (1, 20), (2, 10), (3, 20)]
    campaign = Campaign.load(tmp_path)
    assert campaign.asked == {RIGHT: 70}
    assert campaign.seeds == {RIGHT: [0, 1, 2, 3]}
    run_campaign(campaign, [RIGHT], examples=70, report=lambda r, new: pytest.fail("nothing is left"))


def test_units_that_ended_out_of_order_are_not_done_twice() -> None:
    campaign = Campaign(seeds={RIGHT: [0, 2]}, asked={RIGHT: 20})
    left = list(units(campaign, [RIGHT], seed=5, examples=40, batch=10))
    assert [(unit.number, unit.seed) for unit in left] == [(1, 6), (3, 8)]


def test_a_unit_gives_the_same_result_again() -> None:
    first, second = (run_unit(Unit(RIGHT, 3, 30)) for _ in range(2))
    assert first.coverage.to_json() == second.coverage.to_json()


def test_two_processes_do_the_work_of_one() -> None:
    one, two = Campaign(), Campaign()
    run_campaign(one, [RIGHT, WRONG], examples=20, batch=10)
    run_campaign(two, [RIGHT, WRONG], examples=20, batch=10, processes=2)
    assert one.found.keys() == two.found.keys()
    assert one.coverage[RIGHT].to_json() == two.coverage[RIGHT].to_json()


def test_what_a_process_has_imported_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for numbers in (range(0), range(-900, 900)):
        make = vars(providers)["Constants"]  # not among what the module exports
        constants = make(integers=set(numbers), floats={number / 7 for number in numbers})
        monkeypatch.setattr(providers, "_get_local_constants", lambda constants=constants: constants)
        providers.CONSTANTS_CACHE.cache.clear()
        seen.append(run_unit(Unit(RIGHT, 1, 40)).coverage.to_json())
    providers.CONSTANTS_CACHE.cache.clear()
    assert seen[0] == seen[1]


class NowAndThen(Pattern):
    """sigmoid(x) = tanh(x), each second time"""

    calls = 0

    def pattern(self, p):
        return p.sigmoid(p.any("x"))

    def rewrite(self, m, b):
        type(self).calls += 1
        return b.tanh(m.x) if type(self).calls % 2 else b.clone(b.op("aten.special_expit", m.x).result)


class Broken(Pattern):
    """raises what no rule may raise while programs are built"""

    calls = 0

    def pattern(self, p):
        Broken.calls += 1
        if Broken.calls > 1:
            raise RuntimeError("no pattern today")
        return p.relu(p.any("x"))

    def rewrite(self, m, b):
        return m.x


def test_a_rule_that_is_wrong_now_and_then_is_found() -> None:
    result = run_unit(Unit("rule tests.fuzz.campaign.test_campaign:NowAndThen", 0, 60))
    assert result.found is not None
    assert result.found.property == "values"


def test_a_unit_that_fails_does_not_end_the_campaign() -> None:
    campaign = Campaign()
    run_campaign(campaign, ["rule tests.fuzz.campaign.test_campaign:Broken", RIGHT], examples=20)
    assert len(campaign.errors) == 1
    assert "no pattern today" in campaign.errors[0]
    assert campaign.coverage[RIGHT].examples > 10


def test_a_target_for_which_nothing_can_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.campaign.campaign.search", lambda *args, **options: (Soundness(), None))
    campaign = Campaign()
    run_campaign(campaign, [RIGHT], examples=10)
    assert len(campaign.errors) == 1
    assert "no program could be built" in campaign.errors[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main(["--rules", "NoPermute", "--examples", "30", "--report", str(report)]) == 0
    assert "0 found" in capsys.readouterr().out
    assert json.loads(report.read_text())["coverage"][RIGHT]["examples"] >= 25
    assert main(["--rules", WRONG.removeprefix("rule "), "--examples", "30", "--state", str(tmp_path / "state")]) == 1
    assert "found: " in capsys.readouterr().out


class EndsTheProcess(Pattern):
    def pattern(self, p: PatternBuilder) -> Node:
        return p.neg(p.neg(p.any("x")))

    def rewrite(self, m: Match, b: Rewriter) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_a_kernel_that_ends_its_process_is_told_and_ends_nothing_else() -> None:
    campaign = Campaign()
    died = "rule tests.fuzz.campaign.test_campaign:EndsTheProcess"
    run_campaign(campaign, [RIGHT, died], examples=40, batch=40, processes=2)
    (error,) = campaign.errors
    assert error.startswith(f"{died}, seed 0: the process died")
    assert error.count("aten.neg") >= 2, "the case it died on is shown"
    assert campaign.coverage[RIGHT].examples >= 30


def test_an_interrupt_that_a_unit_swallows_ends_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def swallow(*args: object, **options: object) -> object:
        asked.append(1)
        raise AssertionError  # what hypothesis has made of a KeyboardInterrupt

    monkeypatch.setattr("fuzz.campaign.campaign.search", swallow)
    campaign = Campaign()
    with pytest.raises(KeyboardInterrupt):
        run_campaign(campaign, [RIGHT], examples=1000, stopped=lambda: bool(asked))
    assert asked == [1]
    assert not campaign.errors


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ctrl_c_is_no_success_and_loses_nothing(processes: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzz", "--rules", "NoPermute", "--time", "5m", "--state", str(tmp_path / "state")]
    with subprocess.Popen(
        [*command, "--processes", str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        try:
            while "250 programs" not in running.stdout.readline():
                assert running.poll() is None
        finally:
            os.killpg(running.pid, signal.SIGINT)  # a terminal tells all processes
        shown = running.stdout.read()
    assert running.returncode == 130
    assert "the same command with the same --state goes on" in shown
    assert "Traceback" not in shown
    assert Campaign.load(tmp_path / "state").examples >= 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "ConvBNPatern"], "did you mean ConvBNPattern"),
        (["--rules", "no.such:Rule"], "cannot be imported"),
        (["--rules", "torch:nn"], "no subclass of graphwright.Pattern"),
        (["--passes", "cannonicalize"], "no pass is named"),
        (["--time", "5 hours"], "is not a time"),
        (["--processes", "0"], "less than 1"),
        (["--rules", ","], "nothing is named"),
        (["--time", "0s"], "leaves no time"),
        (["--report", "no/such/folder.json"], "there is no folder"),
        (["--state", "README.md"], "is not a folder"),
        (["search", "case.py"], "a search takes no files"),
        (["replay", "no_such_case.py"], "there is no file"),
    ],
)
def test_wrong_calls(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert main(["--rules", "NoPermute", "--state", str(tmp_path)]) == 2
    assert "is not a campaign state" in " ".join(capsys.readouterr().err.split())


def test_reasons_are_counted_without_what_is_different_each_time() -> None:
    reason = "the convolution at `net.conv` with weight f32[4, 1, 3, 3] is not 7x7 on 3 channels"
    assert condition(reason) == "the convolution at … with weight … is not … on … channels"


def test_passes_are_also_tried_on_inflated_programs_and_in_other_orders(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--passes", "canonicalize", "--inflated", "--reordered", "--examples", "12"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "inflated canonicalize, seed 0" in printed
    assert "reordered canonicalize, seed 0" in printed


TWICE = Example("graph(%x : f32[n, c]) { %y = aten.relu(%x) %z = aten.relu(%y) return %z }")


class ReluTwice(Pattern):
    """relu(relu(x)) = relu(x)"""

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.relu(p.any("x")))

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        return b.relu(m.x)


class NoProgram(ReluTwice):
    """relu(relu(x)) = relu(x), whose example names no operator"""

    examples = (TWICE.changed(("aten.relu(%x)", "aten.reluu(%x)")),)


class NoMatch(ReluTwice):
    """relu(relu(x)) = relu(x), which does not match its example"""

    examples = (TWICE.changed(("aten.relu(%x)", "aten.gelu(%x)")),)


class NearMissThatFires(ReluTwice):
    """relu(relu(x)) = relu(x), which does not refuse its near miss"""

    examples = (TWICE.changed(refused="too few"),)


class WrongOnItsExample(ReluTwice):
    """relu(relu(x)) = x, which is right for no negative number"""

    examples = (TWICE,)

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        return m.x


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (NoProgram, "an example is no program: line 2, column 30:"),
        (NoMatch, "NoMatch does not fire on its example: it does not match"),
        (NearMissThatFires, "NearMissThatFires fires on its near miss"),
    ],
)
def test_a_rule_that_is_not_what_its_examples_say_is_told_once(rule: type[Pattern], text: str) -> None:
    campaign = Campaign()
    run_campaign(campaign, [f"rule {__name__}:{rule.__name__}"], examples=20, batch=10)
    (error,) = campaign.errors
    assert text in error
    assert campaign.examples
    with pytest.raises(GraphwrightError, match=re.escape(text)):
        find_counterexample(rule, max_examples=1)


def test_a_rule_that_is_wrong_on_its_example_is_found_before_the_search() -> None:
    result = run_unit(Unit(f"rule {__name__}:WrongOnItsExample", 0, 1))
    found = find_counterexample(WrongOnItsExample, max_examples=1)
    assert result.found is not None
    assert found is not None
    assert (result.found.property, result.found.examples) == (found.property, found.examples) == ("values", 0)
