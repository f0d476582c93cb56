"""Programs whose types are erased: what is forgotten, and that rules which are right by types alone are found."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.programs.erasure import with_erased_types
from fuzz.programs.retyping import untrue_type, with_types_of
from fuzz.strategies import input_tensors, programs
from graphwright import Match, Pattern, PatternBuilder
from graphwright.fuzz import Case, Finding, Properties, UnsoundError, assert_sound, check
from ir.evaluate import evaluate
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import UNKNOWN_TENSOR, TensorType
from ir.verify import verify
from passes.convert.attention import DecomposeMultiheadAttentionPattern

GENERATE = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@given(st.data())
def test_an_erased_program_is_valid_and_computes_the_same(data: st.DataObject) -> None:
    program = data.draw(programs())
    inputs = data.draw(input_tensors(program))
    known, before = print_program(program), evaluate(program, inputs)
    data.draw(with_erased_types(program, always=True))
    verify(program)
    after = evaluate(program, inputs)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, after, strict=True))
    typed = with_types_of(program, inputs)
    assert print_program(typed) == known
    assert untrue_type(program, typed) is None


@pytest.mark.long
def test_types_are_erased_wholly_and_in_part() -> None:
    seen: Counter[str] = Counter()

    @settings(GENERATE, max_examples=800)
    @given(st.data())
    def count(data: st.DataObject) -> None:
        program = data.draw(programs())
        data.draw(with_erased_types(program))
        types = [v.type for v in program.graph.inputs if isinstance(v.type, TensorType)]
        seen["programs"] += 1
        seen["erased"] += any(not t.is_known for t in types)
        seen["wholly"] += all(t == UNKNOWN_TENSOR for t in types)
        seen["the batch"] += any(
            t.shape is not None and t.shape[:1] == (None,) and None not in t.shape[1:] for t in types
        )
        seen["the dtype alone"] += any(t.dtype is None and t.shape is not None for t in types)
        seen["the rank"] += any(t.shape is None and t != UNKNOWN_TENSOR for t in types)

    count()
    assert 0.15 < seen["erased"] / seen["programs"] < 0.4
    assert seen["wholly"] > seen["programs"] // 20
    assert all(seen[part] for part in ("the batch", "the dtype alone", "the rank")), seen


def test_symbols_stay_bound() -> None:
    @settings(GENERATE, max_examples=50)
    @given(st.data())
    def keep(data: st.DataObject) -> None:
        program = data.draw(programs(symbolic=True))
        text = print_program(program)
        data.draw(with_erased_types(program, always=True))
        assert not program.symbols or print_program(program) == text

    keep()


class SoftmaxOverTheLast(Pattern):
    """softmax(x, d) = softmax(x, -1), d the last dimension: wrong where the rank is not known"""

    exact = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.softmax(p.any("x"), dim=p.attr("dim"), dtype=None)

    def check(self, m: Match) -> str | None:
        rank = m.x.tensor_type.rank
        if m.dim == -1:
            return "it is written so"
        return "it is another dimension" if rank is not None and m.dim != rank - 1 else None

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.op("aten.softmax.int", m.x, -1).result


def test_a_rule_that_is_wrong_without_a_rank_is_found() -> None:
    with pytest.raises(UnsoundError, match="property `values` does not hold"):
        assert_sound(SoftmaxOverTheLast, settings=settings(max_examples=400, suppress_health_check=list(HealthCheck)))
    chosen = settings(max_examples=60, suppress_health_check=list(HealthCheck))
    assert assert_sound(SoftmaxOverTheLast, properties=Properties(unknown=False), settings=chosen).changed


class SaysTooMuch(Pattern):
    """neg(neg(x)) = x + 0, of a type that the rule makes up"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.neg(p.neg(p.any("x")))

    def rewrite(self, m: Match, b: Any) -> Any:
        added = b.op("aten.add.Scalar", m.x, 0)
        added.result.type = TensorType((1,), torch.float32)
        return added.result


def test_a_type_that_is_not_so_is_found() -> None:
    text = """
program "erased" {
  argument "x" = input 0
  result = output 0
  graph(%x : ?) {
    %a = aten.neg(%x) : ?
    %b = aten.neg(%a) : ?
    return %b
  }
}
"""
    assert check(SaysTooMuch, Case(text, (torch.ones(1),)), Properties(sharing=False)).changed
    with pytest.raises(Finding, match=r"types: .*f32\[1\].* is f32\[2\]"):
        check(SaysTooMuch, Case(text, (torch.ones(2),)), Properties(sharing=False))


def test_a_program_is_typed_by_its_inputs() -> None:
    program = parse_program("""
program "erased" {
  parameter %w : f32[4, 3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[?, 3]) {
    %y = aten.linear(%x, %w, None) : f32[?, 4]
    return %y
  }
}
""")
    typed = with_types_of(program, [torch.ones(2, 3)])
    assert "%y = aten.linear(%x, %w, None) : f32[2, 4]" in print_program(typed)
    assert "f32[?, 3]" in print_program(program)
    assert with_types_of(typed, [torch.ones(2, 3)]) is typed


def test_a_module_of_unknown_types_keeps_the_strides_that_a_caller_sees() -> None:
    text = """
program "mha" {
  parameter %w : f32[6, 2]
  parameter %o : f32[2, 2]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[?, 2, 2]) {
    %y, %z = nn.multihead_attention(%x, %x, %x, %w, None, %o, None, None, None, None, None, None, None, None) \
{num_heads=1, embed_dim=2, need_weights=False, average_attn_weights=False} : ?, opaque
    return %y
  }
}
""".replace("\\\n", "")
    case = Case(text, (torch.randn(2, 2, 2),), {"w": torch.randn(6, 2), "o": torch.randn(2, 2)})
    assert check(DecomposeMultiheadAttentionPattern, case).fired
