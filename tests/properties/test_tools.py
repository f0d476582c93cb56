"""The tools for people who write rules, on generated programs: text in and out, and the rewrite that is at fault."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from unittest.mock import patch

import torch
from hypothesis import strategies as st

from compiler.__main__ import main
from compiler.bisection import FOUND, NEVER, Bisector
from compiler.pipeline import parse_pipeline
from compiler.usercode.difference import tensor_difference
from fuzz.programs.observation import quiet
from fuzz.strategies import input_tensors, programs
from graphwright import Match, PassManager, Pattern, PatternBuilder
from graphwright.passes import Canonicalize, Convert
from ir.compare import programs_equal
from ir.core import Value
from ir.errors import EvaluationError
from ir.evaluate import evaluate
from ir.program import Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from passes.manager.manager import PassContext, run_pass
from passes.rewrite.bounds.tolerance import Tolerance
from passes.rewrite.pattern import Node
from passes.rewrite.rewriter import Rewriter
from tests.drawn import draws

PIPELINES = (
    "canonicalize",
    "eliminate-common-subexpressions,eliminate-dead-code",
    "canonicalize,convert{patterns=tensorrt.conversions},canonicalize,fuse{patterns=tensorrt.fusions}",
)
_EXACT = ("relu", "add.Tensor", "mul.Tensor", "neg", "reshape", "permute", "to.dtype", "relu6")
_Inputs = list[torch.Tensor]


class AbsForRelu(Pattern):
    """relu(x) = |x|: wrong where x is negative"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        value: Value = b.abs(m.x)
        return value


def opt(text: str, *arguments: str) -> str:
    """Return what `graphwright opt` prints for a text from standard input."""
    printed = io.StringIO()
    with patch.object(sys, "stdin", io.StringIO(text)), redirect_stdout(printed), quiet():
        assert main(["opt", *arguments]) == 0
    return printed.getvalue()


def test_what_opt_prints_is_the_program_that_the_pipeline_makes() -> None:
    drawn = draws(st.one_of(programs(), programs(symbolic=True)), 24)
    changed = 0
    for number, program in enumerate(drawn):
        pipeline = PIPELINES[number % len(PIPELINES)]
        text = print_program(program)
        made = parse_program(text)
        with quiet():
            run_pass(parse_pipeline(pipeline), made, PassContext())
        printed = opt(text, "--pipeline", pipeline)
        assert programs_equal(made, parse_program(printed)) is None
        assert opt(printed) == printed
        changed += printed.strip() != text.strip()
    assert changed > len(drawn) // 4


@st.composite
def cases(draw: st.DrawFn) -> tuple[Program, _Inputs]:
    program = draw(programs(operators=tuple(f"aten.{name}" for name in _EXACT)))
    return program, list(draw(input_tensors(program)))


def test_bisect_names_the_wrong_rule_among_right_ones() -> None:
    found = 0
    pipeline = PassManager([Canonicalize(), Convert((AbsForRelu,)), Canonicalize()])
    for program, inputs in draws(cases(), 40):

        def judge(made: Program, _: Tolerance | None, first: Program = program, given: _Inputs = inputs) -> str | None:
            with torch.no_grad():
                pairs = zip(evaluate(first, given), evaluate(made, given), strict=True)
            differences = [tensor_difference(a, b, exact=True) for a, b in pairs if isinstance(a, torch.Tensor)]
            return next((each for each in differences if each is not None), None)

        with quiet():
            try:
                bisection = Bisector(program, pipeline, judge).run()
            except EvaluationError:
                continue  # the program itself does not run
        if bisection.verdict == NEVER:
            continue
        assert bisection.verdict == FOUND
        assert bisection.culprit is not None
        assert bisection.culprit.rule == "AbsForRelu", bisection
        assert bisection.before is not None
        assert bisection.after is not None
        assert judge(bisection.before, None) is None
        assert judge(bisection.after, None) is not None
        found += 1
    assert found > 3
