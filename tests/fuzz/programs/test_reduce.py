"""What has no part in a failure is cut out of a counterexample, and what has stays."""

from __future__ import annotations

import pytest
import torch

from fuzz.programs.case import Case
from fuzz.programs.properties import Finding
from fuzz.programs.reduce import reduced
from graphwright import Match, Pattern, PatternBuilder, Rewriter
from graphwright.fuzz import check
from graphwright.ir import Value, parse_program
from passes.rewrite.pattern import Node


class ReluForClamp(Pattern):
    """clamp(x, 0, 1) = relu(x): wrong above 1"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Node:
        return p.clamp(p.any("x"), min=0, max=1)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.relu(m.x)


WITH_MORE = """
program "more" {
  parameter %w : f32[2, 2]
  buffer %unused : f32[3]
  out_spec (*, *)
  argument "x" = input 0
  argument "y" = input 1
  result = output 0
  result = output 1
  graph(%x : f32[2, 2], %y : f32[2, 2]) {
    %turned = aten.permute(%x) {dims=[1, 0]} : f32[2, 2]
    %product = aten.mul.Tensor(%turned, %w) : f32[2, 2]
    %dead = aten.neg(%product) : f32[2, 2]
    %clamp = aten.clamp(%product) {min=0, max=1} : f32[2, 2]
    %sum = aten.add.Tensor(%clamp, %y) : f32[2, 2]
    %other = aten.sigmoid(%y) : f32[2, 2]
    return %sum, %other
  }
}
"""


def finding_of(case: Case) -> Finding:
    with pytest.raises(Finding) as caught:
        check(ReluForClamp, case)
    return caught.value


def test_what_has_no_part_in_it_is_cut_out() -> None:
    x, w = torch.tensor([[-3.0, -1.0], [-2.0, -0.5]]), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    case = Case(WITH_MORE, (x, torch.ones(2, 2)), {"w": w, "unused": torch.ones(3)})
    smaller, finding = reduced(case, finding_of(case), lambda less: check(ReluForClamp, less))
    program = parse_program(smaller.program)
    assert [op.name for op in program.graph.operations()] == ["aten.clamp"]
    assert [value.name for value in program.graph.inputs] == ["product"]
    assert not program.weights
    assert not smaller.weights
    torch.testing.assert_close(smaller.inputs[0], x * w)  # the operand is what it was, without the permutation
    assert finding.property == "values"
    assert finding_of(smaller).message == finding.message


def test_what_comes_behind_it_is_cut_off() -> None:
    """An output that hangs on it becomes what it is made of."""
    behind = "%other = aten.cat([%clamp, %clamp]) {dim=1} : f32[2, 4]"
    text = WITH_MORE.replace("%other = aten.sigmoid(%y) : f32[2, 2]", behind).replace("return %sum", "return %y")
    case = Case(text, (-torch.ones(2, 2), torch.ones(2, 2)), {"w": -torch.full((2, 2), 3.0), "unused": torch.ones(3)})
    smaller, _ = reduced(case, finding_of(case), lambda less: check(ReluForClamp, less))
    assert [op.name for op in parse_program(smaller.program).graph.operations()] == ["aten.clamp"]


def test_what_it_takes_stays() -> None:
    """Where the operand is computed in the only way that fails, it is."""
    case = Case(
        WITH_MORE, (torch.ones(2, 2), torch.ones(2, 2)), {"w": torch.full((2, 2), 3.0), "unused": torch.ones(3)}
    )

    def with_a_product(less: Case) -> None:
        if "aten.mul.Tensor" in less.program:
            check(ReluForClamp, less)

    smaller, _ = reduced(case, finding_of(case), with_a_product)
    names = [op.name for op in parse_program(smaller.program).graph.operations()]
    assert names == ["aten.mul.Tensor", "aten.clamp"]
    assert list(smaller.weights) == ["w"]


def test_another_failure_is_no_smaller_form_of_it() -> None:
    case = Case(
        WITH_MORE, (torch.ones(2, 2), torch.ones(2, 2)), {"w": torch.full((2, 2), 3.0), "unused": torch.ones(3)}
    )
    finding = finding_of(case)

    def recheck(less: Case) -> None:
        raise Finding("no error", "something else")

    same, found = reduced(case, finding, recheck)
    assert same is case
    assert found is finding

    def breaks(less: Case) -> None:
        raise RuntimeError("the rule is ill-formed")

    assert reduced(case, finding, breaks) == (case, finding)


def test_what_is_written_keeps_its_place() -> None:
    """Where an output is written back to an input, the outputs have places of their own: nothing is cut out."""
    text = WITH_MORE.replace("  result = output 1\n", "  mutation input 1 = output 1\n")
    case = Case(text, (torch.ones(2, 2), torch.ones(2, 2)), {"w": torch.full((2, 2), 3.0), "unused": torch.ones(3)})
    finding = Finding("values", "")

    def always(less: Case) -> None:
        raise finding

    assert reduced(case, finding, always)[0] is case
