"""Sizes that depend on data in programs: where they are defined, and that nothing moves across that."""

from __future__ import annotations

import pytest
import torch

from compiler.codegen.emit import emit
from ir.core import Value
from ir.data_sizes import introduced
from ir.errors import EvaluationError, VerificationError
from ir.evaluate import evaluate
from ir.program import Program
from ir.text.parser import parse_program
from ir.verify import verify
from passes.cleanup.cse import eliminate_common_subexpressions
from passes.cleanup.dce import eliminate_dead_code
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

X = torch.tensor([1.0, -2.0, 3.0, 4.0])


def program(*lines: str, head: str = "symbol u0 in [0, 4]") -> Program:
    """Return a program of a vector of 4 and a mask."""
    body = "\n".join(lines)
    return parse_program(f'program "p" {{ {head} graph(%x : f32[4], %m : bool[4]) {{\n{body}\n}} }}')


SELECT = "%y = aten.index.Tensor(%x, [%m]) : f32[u0]"
ZEROS = "%z = aten.zeros() {size=[u0]} : f32[u0]"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((ZEROS, SELECT, "return %z, %y"), "attributes of aten.zeros name the size u0, which no operation above"),
        ((ZEROS, "return %z"), "attributes of aten.zeros name the size u0, which no operation above"),
        (
            ("%y = aten.nonzero(%m) : i64[u0*u0, 1]", "return %y"),
            "results of aten.nonzero have the size u0, but do not tell its number",
        ),
        (("return %x",), None),
        ((SELECT, ZEROS, "return %z, %y"), None),
        (("%y = aten.index.Tensor(%x, [%m]) : f32[2*u0]", ZEROS, "return %z, %y"), None),
    ],
)
def test_the_verifier_wants_sizes_defined_above_their_uses(lines: tuple[str, ...], message: str | None) -> None:
    if message is None:
        verify(program(*lines))
    else:
        with pytest.raises(VerificationError, match=message):
            verify(program(*lines))


def test_inputs_and_relations_do_not_name_sizes_that_nothing_defines() -> None:
    text = 'program "p" { symbol u0 in [0, 4] graph(%x : f32[u0]) { return %x } }'
    with pytest.raises(VerificationError, match="inputs name the size u0"):
        verify(parse_program(text))
    with pytest.raises(VerificationError, match="relations of the program name the size u0"):
        verify(program("return %x", head="symbol u0 in [0, 4] require Ne(u0, 3)"))


@pytest.mark.parametrize(
    ("head", "count", "message"),
    [
        ("symbol u0 in [0, 4]", 4, None),
        ("symbol u0 in [2, 3]", 3, None),
        ("symbol u0 in [2, 3]", 4, "is 4, which is not in its range"),
        ("symbol u0 in [2, 3]", 1, "is 1, which is not in its range"),
        ("symbol u0 in [0, 4] require Eq(Mod(u0, 2), 0)", 2, None),
        ("symbol u0 in [0, 4] require Eq(Mod(u0, 2), 0)", 3, "Eq\\(Mod\\(u0, 2\\), 0\\) does not hold"),
    ],
)
def test_ranges_and_relations_are_checked_where_the_size_is_known(head: str, count: int, message: str | None) -> None:
    selecting = program(SELECT, ZEROS, "return %z", head=head)
    verify(selecting)
    mask = torch.arange(4) < count
    module = emit(selecting).module
    if message is None:
        assert evaluate(selecting, (X, mask))[0].shape == module(X, mask).shape == (count,)
        return
    with pytest.raises(EvaluationError, match=message):
        evaluate(selecting, (X, mask))
    with pytest.raises(RuntimeError, match="a size that depends on data"):
        module(X, mask)


def test_a_check_that_the_kernel_ensures_is_not_emitted() -> None:
    assert "check_size" not in emit(program(SELECT, "return %y")).module.code
    assert "check_size" in emit(program(SELECT, "return %y", head="symbol u0 in [0, 3]")).module.code


def test_one_size_of_two_selections_is_checked_unless_the_mask_is_one() -> None:
    lines = (
        SELECT,
        "%n = aten.logical_not(%m) : bool[4]",
        "%w = aten.index.Tensor(%x, [%n]) : f32[u0]",
        "return %y, %w",
    )
    two = program(*lines)
    half, most = (torch.arange(4) < count for count in (2, 3))
    assert torch.equal(emit(two).module(X, half)[1], X[2:])
    with pytest.raises(RuntimeError, match="size 0 of w == u0"):
        emit(two).module(X, most)
    with pytest.raises(EvaluationError, match="is 1, not 3"):
        evaluate(two, (X, most))
    one = program(SELECT, "%w = aten.index.Tensor(%x, [%m]) : f32[u0]", "return %y, %w")
    assert "check_size" not in emit(one).module.code


def names(program: Program) -> list[str]:
    return [op.opdef.short_name for op in program.graph.operations()]


def test_dead_code_keeps_what_defines_a_size_that_is_named() -> None:
    kept = program(SELECT, ZEROS, "return %z")
    eliminate_dead_code(kept)
    assert names(kept) == ["index", "zeros"]
    checked = program(SELECT, "return %x", head="symbol u0 in [0, 3]")
    eliminate_dead_code(checked)
    assert names(checked) == ["index"]  # the original raises for a mask of 4
    dead = program(SELECT, ZEROS, "return %x")
    eliminate_dead_code(dead)
    assert names(dead) == []


def test_equal_selections_of_two_sizes_are_not_merged() -> None:
    two = "symbol u0 in [0, 4] symbol u1 in [0, 4]"
    twins = program(SELECT, "%w = aten.index.Tensor(%x, [%m]) : f32[u1]", "return %y, %w", head=two)
    assert eliminate_common_subexpressions(twins) == 0
    sums = ("%a = aten.sum(%y) : f32[]", "%b = aten.sum(%w) : f32[]", "return %a, %b")
    same = program(SELECT, "%w = aten.index.Tensor(%x, [%m]) : f32[u0]", *sums)
    assert eliminate_common_subexpressions(same) == 1


class Respelled(Pattern):
    """x[m] = masked_select(x, m)."""

    exact = True

    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.index.Tensor", p.any("x"), [p.any("m")])

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        made: Value = b.masked_select(m.x, m.m)
        return made


class Fused(Pattern):
    """sum(x[m]) is one region."""

    exact = True
    is_fusion = True
    closed = True

    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.sum", p.op("aten.index.Tensor", p.any("x"), [p.any("m")]), name="sum")

    def rewrite(self, m: Match, b: Rewriter) -> None:
        b.fuse("masked_sum", m.ops)


def rewritten(rule: Pattern, *lines: str) -> Program:
    result = program(*lines)
    run_worklist(result, RuleIndex((rule,)), RewriteLog())
    verify(result)
    return result


def test_a_replacement_defines_the_size_of_what_it_replaces() -> None:
    result = rewritten(Respelled(), SELECT, ZEROS, "return %z")
    assert names(result) == ["masked_select", "zeros"]
    (select, _) = result.graph.operations()
    assert [symbol.name for symbol in introduced(select)] == ["u0"]


def test_a_region_does_not_hide_a_size_that_is_named_outside() -> None:
    total = "%s = aten.sum(%y) : f32[]"
    assert names(rewritten(Fused(), SELECT, total, "return %s")) == ["masked_sum"]
    assert names(rewritten(Fused(), SELECT, total, ZEROS, "return %s, %z")) == ["index", "sum", "zeros"]
