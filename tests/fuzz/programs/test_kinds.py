"""Regions are what their kind says: every kind of ours has a meaning, and what is something else is found."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, settings

from compiler.targets import STANDARD_PATTERNS
from graphwright import Pattern, PatternBuilder
from graphwright.fuzz import Case, Finding, Region, UnsoundError, assert_sound, check, register_kind
from ir.errors import InputError, PatternError
from passes import fuse
from passes.fuse.attention import ScaledDotProductAttentionPattern
from passes.fuse.base import FusionPattern
from passes.fuse.dense import LinearActPattern
from passes.fuse.kinds import KINDS

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def kinds_in_code() -> set[str]:
    """Return the kinds that our fusions name: as `kind =` of a class, or as the first argument of `fuse`."""
    found = set()
    for path in Path(fuse.__file__).parent.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value: Any = None
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "fuse" and node.args:
                value = node.args[0]
            elif isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["kind"]:
                value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.add(value.value)
    return found


def test_every_kind_has_a_meaning() -> None:
    declared = {rule.kind for rule in STANDARD_PATTERNS if issubclass(rule, FusionPattern)}
    assert declared | {"mha_in_projection"} <= kinds_in_code()
    assert kinds_in_code() <= set(KINDS)
    assert all(meaning.__doc__ for meanings in KINDS.values() for meaning in meanings)


class Misnamed(FusionPattern):
    """neg(linear(x)), called linear_act"""

    kind = "linear_act"
    parts = ("linear", "act")

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.neg", p.linear(p.any("input"), name="linear"), name="act")


class Twice(FusionPattern):
    """relu(relu(linear(x))), of which the second one is no part"""

    kind = "linear_act"
    parts = ("linear", "act")

    def pattern(self, p: PatternBuilder) -> Any:
        return p.sigmoid(p.relu(p.linear(p.any("input"), name="linear"), name="act"))


class Nameless(FusionPattern):
    """relu(linear(x)), whose input has no name"""

    kind = "linear_act"
    parts = ("linear", "act")
    inputs = ()
    quantization_points = ()

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.linear(p.any("input"), name="linear"), name="act")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Misnamed, "has aten.neg for its part 'act'"),
        (Twice, r"is not act\(linear\(input\)\): result 0: values differ"),
        (Nameless, "has no operand 'input', but linear_input"),
    ],
)
def test_a_region_that_is_something_else_is_found(rule: type[Pattern], message: str) -> None:
    with pytest.raises(UnsoundError, match=f"property `kind` does not hold: .*{message}"):
        assert_sound(rule, settings=QUICK)


ATTENTION = """
program "attention" {
  argument "q" = input 0
  argument "k" = input 1
  argument "v" = input 2
  argument "m" = input 3
  result = output 0
  graph(%q : f32[2, 3, 3], %k : f32[2, 3, 3], %v : f32[2, 3, 3], %m : f32[3, 3]) {
    %t = aten.permute(%k) {dims=[0, 2, 1]} : f32[2, 3, 3]
    %s = aten.matmul(%q, %t) : f32[2, 3, 3]
    %c = aten.mul.Scalar(%s) {other=0.5} : f32[2, 3, 3]
    %a = aten.add.Tensor(%c, %m) {alpha=ALPHA} : f32[2, 3, 3]
    %w = aten.softmax.int(%a) {dim=DIM} : f32[2, 3, 3]
    %r = aten.matmul(%w, %v) : f32[2, 3, 3]
    return %r
  }
}
"""


class AnyAttention(ScaledDotProductAttentionPattern):
    """softmax(...) v, over any dimension, and with any number of the mask"""

    def pattern(self, p: PatternBuilder) -> Any:
        scores = p.op("aten.matmul", p.any("query"), p.permute(p.any("key"), name="transpose"))
        masked = p.op("aten.add.Tensor", p.op("aten.mul.Scalar", scores), p.any("mask"))
        return p.op("aten.matmul", p.op("aten.softmax.int", masked), p.any("value"))


def test_attention_means_a_softmax_over_the_last_dimension() -> None:
    inputs = (*(torch.randn(2, 3, 3) for _ in range(3)), torch.randn(3, 3))

    def held(dim: int, alpha: int) -> Any:
        text = ATTENTION.replace("DIM", str(dim)).replace("ALPHA", str(alpha))
        return check(AnyAttention, Case(text, inputs))

    assert held(-1, 1).changed and held(2, 1).changed
    for dim, alpha in ((1, 1), (0, 1), (-1, 2)):
        with pytest.raises(Finding, match=r"kind: fused.scaled_dot_product_attention .* is not \[dropout\]\(softmax"):
            held(dim, alpha)


WINDOWS = """
program "windows" {
  argument "q" = input 0
  argument "k" = input 1
  argument "v" = input 2
  argument "m" = input 3
  argument "n" = input 4
  result = output 0
  graph(%q : f32[2, 3, 3], %k : f32[2, 3, 3], %v : f32[2, 3, 3], %m : f32[3, 3], %n : f32[2, 3, 3]) {
    %t = aten.permute(%k) {dims=[0, 2, 1]} : f32[2, 3, 3]
    %s = aten.matmul(%q, %t) : f32[2, 3, 3]
    %a = aten.add.Tensor(%s, %m) : f32[2, 3, 3]
    %p = aten.reshape(%a) {shape=[1, 2, 3, 3]} : f32[1, 2, 3, 3]
    %b = aten.add.Tensor(%p, %n) : f32[1, 2, 3, 3]
    %u = aten.reshape(%b) {shape=SHAPE} : f32SHAPE
    %w = aten.softmax.int(%u) {dim=-1} : f32SHAPE
    %r = aten.matmul(%w, %v) : f32[2, 3, 3]
    return %r
  }
}
"""


def test_scores_come_back_from_the_windows_in_their_own_shape() -> None:
    inputs = (*(torch.randn(2, 3, 3) for _ in range(3)), torch.randn(3, 3), torch.randn(2, 3, 3))
    right, wrong = (Case(WINDOWS.replace("SHAPE", shape), inputs) for shape in ("[2, 3, 3]", "[1, 2, 3, 3]"))
    assert check(ScaledDotProductAttentionPattern, right).fired
    seen = check(ScaledDotProductAttentionPattern, attrs.evolve(wrong, program=wrong.program.replace(_LAST, _OTHER)))
    assert not seen.fired
    assert any("does not provably give the scores their shape" in reason for _, reason in seen.refused)


_LAST = "%r = aten.matmul(%w, %v) : f32[2, 3, 3]"
_OTHER = "%r = aten.matmul(%w, %v) : f32[1, 2, 3, 3]"


class Gated(FusionPattern):
    """x * sigmoid(x) = fused.gate(x), a kind of the user's"""

    kind = "gate_of_the_tests"
    parts = ()

    def pattern(self, p: PatternBuilder) -> Any:
        x = p.any("input")
        return p.mul(x, p.sigmoid(x))


def gate(region: Region) -> torch.Tensor:
    """input * sigmoid(input)"""
    x = region.operand("input")
    return x * torch.sigmoid(x)


def doubled(region: Region) -> torch.Tensor:
    """2 * input"""
    return 2 * region.operand("input")


def test_a_kind_of_the_users_may_have_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.fuse.kinds.KINDS", dict(KINDS))
    assert assert_sound(Gated, settings=QUICK).changed  # it says nothing
    register_kind(Gated.kind, gate)
    register_kind(Gated.kind, gate)
    assert assert_sound(Gated, settings=QUICK).changed
    with pytest.raises(InputError, match="has a meaning already"):
        register_kind(Gated.kind, doubled)
    monkeypatch.setattr("passes.fuse.kinds.KINDS", {Gated.kind: (doubled,)})
    with pytest.raises(UnsoundError, match=r"is not 2 \* input: result 0"):
        assert_sound(Gated, settings=QUICK)


def test_what_is_no_meaning_is_refused() -> None:
    with pytest.raises(PatternError, match="is not an identifier"):
        register_kind("my kind", gate)
    with pytest.raises(InputError, match="pass a function"):
        register_kind("mine")
    assert "mine" not in KINDS


def test_our_fusions_are_held_to_their_kinds_when_types_are_erased() -> None:
    text = """
program "erased" {
  parameter %w : f32[3, 3]
  argument "x" = input 0
  result = output 0
  graph(%x : ?) {
    %y = aten.linear(%x, %w, None) : ?
    %z = aten.relu(%y) : ?
    return %z
  }
}
"""
    case = Case(text, (torch.randn(2, 3),), {"w": torch.randn(3, 3)})
    assert check(LinearActPattern, case).changed
    with pytest.raises(Finding, match=r"kind: .*has no operand 'input'"):
        check(Nameless, case)
