"""Analyses: kept while the program stays as it is, dropped when it changes, and never taken for another program's."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from ir.core import Operation
from ir.errors import InputError, PassError
from ir.program import Program, copy_program
from passes.canonicalize import Canonicalize
from passes.cleanup.dce import SizeDefiners
from passes.manager.analysis import Analysis
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.rewriter import Rewriter
from tests.passes.building import f32
from tests.passes.building import program as small


class Count(Analysis):
    """How many operations there are."""

    runs: ClassVar[int] = 0

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        type(self).runs += 1
        self.number = program.graph.num_operations


@attrs.frozen
class Ask(Pass):
    """Asks, and takes note of the answer."""

    name: ClassVar[str] = "ask"
    answers: list[int] = attrs.field(factory=list, eq=False)

    def run(self, program: Program, context: PassContext) -> None:
        """Ask twice."""
        self.answers.extend(context.analysis(Count, program).number for _ in range(2))


@attrs.frozen
class Double(Pass):
    """Repeats an idempotent operation."""

    name: ClassVar[str] = "double"

    def run(self, program: Program, context: PassContext) -> None:
        """Put a ReLU behind one, ask, and put another."""
        for _ in range(2):
            op: Operation = next(op for op in program.graph.operations() if op.name == "aten.tanh")
            rewriter = Rewriter(program)
            with rewriter.at(op):
                rewriter.set_operand(op, 0, rewriter.relu(op.operands[0]))
            assert context.analysis(Count, program).number == program.graph.num_operations


class Carefully(Double):
    """Says that the number stays, which is not so, so that a test can see that it is believed."""

    name: ClassVar[str] = "carefully"
    preserves: ClassVar[tuple[type[Analysis], ...]] = (Count,)

    def run(self, program: Program, context: PassContext) -> None:
        """Put a ReLU behind one."""
        op = next(op for op in program.graph.operations() if op.name == "aten.tanh")
        rewriter = Rewriter(program)
        with rewriter.at(op):
            rewriter.set_operand(op, 0, rewriter.relu(op.operands[0]))


@pytest.fixture
def program() -> Program:
    Count.runs = 0
    return small([f32(3)], lambda b, x: b.tanh(b.relu(x)))


def run(program: Program, *passes: Pass) -> PassContext:
    return PassManager(passes)(program)


def test_an_analysis_runs_once_while_nothing_changes(program: Program) -> None:
    ask = Ask()
    run(program, ask, PassManager([ask], only="*"), ask)
    assert ask.answers == [2] * 6
    assert Count.runs == 1


def test_it_runs_again_after_each_change(program: Program) -> None:
    ask = Ask()
    run(program, ask, Double(), ask)
    assert ask.answers == [2, 2, 4, 4]
    assert Count.runs == 3  # before, between the two edits, and after them; the last one is known to the second `ask`


def test_a_pass_may_preserve_what_was_true_when_it_began(program: Program) -> None:
    ask = Ask()
    run(program, ask, Carefully(), ask)
    assert ask.answers == [2] * 4
    stale = Ask()
    run(program, Carefully(), stale, Double(), Carefully(), stale)
    assert stale.answers == [4, 4, 6, 6]  # of which `Double` left 6, and the last one is not counted


def test_another_program_is_another_one(program: Program) -> None:
    other, context = copy_program(program), PassContext()
    run(other, Double())
    assert other.graph.revision != program.graph.revision
    context.analysis(Count, program)
    other.graph.revision = program.graph.revision
    assert [context.analysis(Count, each).number for each in (program, other, program)] == [2, 4, 2]


@pytest.mark.parametrize("given", [Count, ("Count",), (int,), None])
def test_what_is_preserved_is_a_tuple_of_analyses(given: Any) -> None:
    @attrs.frozen
    class Keeps(Pass):
        name = "keeps"
        preserves = given

    with pytest.raises(InputError, match=r"pass `keeps` preserves [\s\S]*write `preserves = \(MyAnalysis,\)`"):
        Keeps()


def test_what_is_no_analysis_is_refused(program: Program) -> None:
    class Edits(Analysis):
        """Changes the program."""

        def __init__(self, program: Program) -> None:
            super().__init__(program)
            program.graph.revision += 1

    wrong: Any
    for wrong, message in ((Edits, "changes the program"), (Count(program), "no class"), (int, "no class")):
        with pytest.raises(PassError, match=message):
            PassContext().analysis(wrong, program)


def test_canonicalization_shares_what_dead_code_needs(program: Program) -> None:
    context = PassManager([Canonicalize()])(program)
    assert context.analyses.known(SizeDefiners, program) is not None
