"""Bisection: the search, what it reports, and the programs it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

from compiler.bisection import Bisector, Judge, UntestableError
from graphwright import GraphwrightError, InputError, Match, Pass, PassManager, Pattern, Rewriter, bisect, load_program
from graphwright.ir import Program, parse_program, print_program
from graphwright.passes import Canonicalize, Convert, Fixpoint, Timing
from passes.fuse.dense import LinearPattern
from passes.manager.manager import PassContext


def chain(count: int) -> Program:
    """A chain of relus, each followed by a negation, in modules of their own."""
    lines = [
        f'%a{i} = aten.relu(%{f"b{i - 1}" if i else "x"}) loc("act.{i}", "ReLU", "net.py", {i + 1})\n'
        f"%b{i} = aten.neg(%a{i})"
        for i in range(count)
    ]
    return parse_program('program "N" { graph(%x : f32[2]) {\n' + "\n".join(lines) + f"\nreturn %b{count - 1} }} }}")


class ToSigmoid(Pattern):
    """relu(x) = sigmoid(x): wrong."""

    is_conversion = True

    def pattern(self, p: Any) -> Any:
        return p.relu(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        return b.sigmoid(m.x)


@attrs.frozen
class DropNeg(Pass):
    """Edits the graph itself: every negation goes."""

    name: ClassVar[str] = "drop-neg"

    def run(self, program: Program, context: PassContext) -> None:
        for op in list(program.graph.operations()):
            if op.name == "aten.neg":
                program.graph.replace_all_uses(op.result, op.operand_values[0])
                program.graph.erase(op)


def names(program: Program) -> list[str]:
    return [op.name.removeprefix("aten.") for op in program.graph.operations()]


def too_many(what: str, least: int) -> Judge:
    """A judge for whom a program is wrong from `least` operations of a kind on."""

    def judge(program: Program, _: object = None) -> str | None:
        count = names(program).count(what)
        return f"{count} {what}" if count >= least else None

    return judge


@pytest.mark.parametrize("least", range(1, 8))
def test_the_step_that_makes_it_wrong_is_found_with_few_checks(least: int) -> None:
    program, said = chain(7), list[str]()
    text = print_program(program)
    found = Bisector(program, PassManager([Convert([ToSigmoid])]), too_many("sigmoid", least), report=said.append).run()
    assert print_program(program) == text
    # the run of the pass is a step, too
    assert (found.verdict, found.steps) == ("found", 8) and found.culprit is not None
    assert (found.culprit.rule, found.culprit.number, found.culprit.pass_) == ("ToSigmoid", least + 1, "convert")
    assert (
        found.culprit.location.source == f"net.py:{least}" and found.culprit.location.module_path == f"act.{least - 1}"
    )
    assert [each.partition("(")[0] for each in (*found.culprit.replaced, *found.culprit.created)] == [
        f"%a{least - 1} = aten.relu",
        f"%a{least - 1} = aten.sigmoid",
    ]
    assert found.before is not None and found.after is not None and found.reason == f"{least} sigmoid"
    assert [names(each).count("sigmoid") for each in (found.before, found.after)] == [least - 1, least]
    assert found.checks == len(said) <= 2 + 3 + 1
    # with this one left out, the others make it wrong just the same; the last step alone needs no check
    assert found.is_alone is (None if least == 7 else False)
    assert f"step {least + 1} of 8 makes it wrong: ToSigmoid" in str(found) and f"net.py:{least}" in str(found)


def test_a_step_that_is_wrong_alone_is_said_to_be() -> None:
    def judge(program: Program, _: object = None) -> str | None:
        second = [op.name for op in program.graph.operations() if op.location.module_path == "act.1"]
        return None if second == ["aten.relu"] else "wrong"

    found = Bisector(chain(4), PassManager([Convert([ToSigmoid])]), judge).run()
    assert found.culprit is not None and found.culprit.location.line == 2
    assert found.is_alone and "without this step alone the result is right" in str(found)


def test_a_pass_without_rules_is_a_step() -> None:
    timing = Timing()
    manager = PassManager([Fixpoint([Convert([ToSigmoid])]), PassManager([DropNeg()])], instruments=[timing])
    found = Bisector(chain(3), manager, lambda program, _: None if "neg" in names(program) else "no neg").run()
    assert found.culprit is not None and (found.culprit.rule, found.culprit.pass_) == ("", "drop-neg")
    assert len([each for each in found.culprit.replaced if "aten.neg" in each]) == 3
    assert "the pass `drop-neg`" in str(found)
    assert found.before is not None and names(found.before).count("sigmoid") == 3
    assert not timing.passes  # what is tried is not done


def test_rewrites_of_canonicalization_are_steps() -> None:
    program = parse_program('program "N" { graph(%x : f32[2]) { %a = aten.relu(%x)\n%b = aten.relu(%a) return %b } }')
    found = Bisector(program, PassManager([Canonicalize()]), lambda p, _: None if len(names(p)) == 2 else "one").run()
    assert found.culprit is not None and found.culprit.pass_ == "apply-canonical-rules" and found.culprit.rule


def test_verdicts_without_a_culprit() -> None:
    manager = PassManager([Convert([ToSigmoid])])
    never = Bisector(chain(2), manager, lambda program, _: None).run()
    assert (never.verdict, never.checks, never.culprit) == ("never wrong", 1, None) and str(never).startswith("never")
    before = Bisector(chain(2), manager, lambda program, _: "it is Monday").run()
    assert (before.verdict, before.checks) == ("wrong before the first step", 2) and "it is Monday" in str(before)
    for found in (never, before):
        assert found.diff == ""
        with pytest.raises(InputError, match="nothing to save"):
            found.save("x")


def test_a_rule_that_raises_is_the_culprit() -> None:
    class Raises(ToSigmoid):
        def rewrite(self, m: Match, b: Rewriter) -> Any:
            if m.root.location.line == 3:
                raise KeyError("three")
            return b.sigmoid(m.x)

    found = Bisector(chain(4), PassManager([Convert([Raises])]), lambda program, _: None, strict=True).run()
    assert found.culprit is not None and found.culprit.location.line == 3 and "KeyError" in found.reason


def test_programs_that_cannot_be_tested_are_passed_by() -> None:
    def judge(program: Program, _: object = None) -> str | None:
        count = names(program).count("sigmoid")
        if count in (2, 3):
            raise UntestableError
        return "wrong" if count >= 4 else None

    found = Bisector(chain(6), PassManager([Convert([ToSigmoid])]), judge).run()
    assert found.culprit is not None and found.culprit.location.line == 4 and found.untested == (3, 4)
    assert "or one of the steps 3, 4, which could not be tested" in str(found)


def test_what_is_wrong_again_later_is_not_missed() -> None:
    # right, wrong, right, wrong: one of the steps that make it wrong is found
    def judge(program: Program, _: object = None) -> str | None:
        return "odd" if names(program).count("sigmoid") % 2 else None

    found = Bisector(chain(5), PassManager([Convert([ToSigmoid])]), judge).run()
    assert found.culprit is not None and found.culprit.location.line % 2 == 1


def test_the_programs_are_written(tmp_path: Path) -> None:
    found = Bisector(chain(3), PassManager([Convert([ToSigmoid])]), too_many("sigmoid", 2)).run()
    files = found.save(tmp_path / "found")
    assert [file.name for file in files] == ["before.gw", "after.gw", "change.diff"]
    assert names(load_program(files[0])).count("sigmoid") == 1 and names(load_program(files[1])).count("sigmoid") == 2
    assert "+    %a1 = aten.sigmoid(%b0)" in files[2].read_text()


# Models


class BiasLost(Pattern):
    """linear(x, w, b) = linear(x, w): wrong where the bias is not zero."""

    is_conversion = True

    def pattern(self, p: Any) -> Any:
        return p.linear(p.any("x"), p.any("w"), p.any("b"))

    def rewrite(self, m: Match, b: Rewriter) -> Any:
        return b.linear(m.x, m.w, None)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(model[0].bias)
    return model


X = (torch.randn(2, 4),)


def test_a_model_is_compared_with_its_original(net: nn.Module) -> None:
    found = bisect(net, X, patterns=[BiasLost, LinearPattern])
    assert found.culprit is not None and found.culprit.rule == "BiasLost"
    assert found.culprit.location.module_path == "2" and "differ" in found.reason
    assert found.is_alone is False  # the third one is wrong as well
    assert bisect(net, X, patterns=[LinearPattern]).verdict == "never wrong"


def test_a_check_of_the_users_decides(net: nn.Module) -> None:
    lines: list[str] = []

    def check(module: nn.Module) -> bool:
        calls = [node for node in module.graph.nodes if node.target is torch.nn.functional.linear]
        return len(calls) < 3

    found = bisect(net, X, patterns=[BiasLost], check=check, progress=lines.append)
    assert found.culprit is not None and found.culprit.location.module_path == "4"
    assert found.reason == "the check returned False" and len(lines) == found.checks

    def raises(module: nn.Module) -> None:
        assert module(*X).shape == (1,), "another shape"

    wrong = bisect(net, X, patterns=[BiasLost], check=raises)
    assert wrong.verdict == "wrong before the first step"
    assert wrong.reason.startswith("AssertionError: another shape")
    array: Any = lambda module: torch.tensor(check(module))  # noqa: E731
    text: Any = lambda module: "no"  # noqa: E731
    of_arrays = bisect(net, X, patterns=[BiasLost], check=array)
    assert of_arrays.culprit is not None and of_arrays.culprit.location.module_path == "4"
    with pytest.raises(InputError, match="the check returned 'no'"):
        bisect(net, X, patterns=[BiasLost], check=text)
    with pytest.raises(InputError, match="check=3 is not a function"):
        bisect(net, X, check=3)


def test_without_inputs_there_must_be_a_check(net: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(net)
    with pytest.raises(InputError, match="there is nothing to compare results with"):
        bisect(traced, patterns=[BiasLost])
    assert bisect(traced, patterns=[BiasLost], check=lambda module: None).verdict == "never wrong"


def test_a_model_that_cannot_be_captured_is_refused() -> None:
    with pytest.raises(GraphwrightError):
        bisect(nn.Linear(2, 2), (torch.randn(3),))
