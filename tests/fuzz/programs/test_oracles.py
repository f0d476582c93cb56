"""What is seen of a changed program beside its results: that it keeps nothing from run to run, and writes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from compiler.equality.unit_strides import OtherUnitStrides
from fuzz.programs.case import Case
from fuzz.programs.check import check_case
from fuzz.programs.definite import has_definite_gradients
from fuzz.programs.properties import Finding
from fuzz.search.sound import Target
from graphwright import Match, Pattern, PatternBuilder
from graphwright.fuzz import Properties, UnsoundError, assert_sound
from ir.program import weight_of

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))
_RUNS: list[int] = []


@torch.library.custom_op("graphwright_tests::relu_that_counts", mutates_args=())
def relu_that_counts(x: torch.Tensor) -> torch.Tensor:
    """Return relu(x), the first time."""
    _RUNS.append(1)
    return x.relu() + len(_RUNS) // 2


@torch.library.custom_op("graphwright_tests::relu_that_writes", mutates_args=())
def relu_that_writes(x: torch.Tensor) -> torch.Tensor:
    """Return relu(x), and write to x, which the schema does not say."""
    result = x.relu()
    x.mul_(0.5)
    return result


@relu_that_counts.register_fake
@relu_that_writes.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class KeepsCount(Pattern):
    """relu(x) = relu(x), by an operator that gives something else the next time"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))

    def rewrite(self, m: Match, b: Any) -> Any:
        _RUNS.clear()
        return b.call("graphwright_tests.relu_that_counts", m.x)


class WritesToItsOperand(Pattern):
    """relu(x) = relu(x), by an operator that writes to x"""

    exact = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.call("graphwright_tests.relu_that_writes", m.x)


class FoldsInPlace(Pattern):
    """linear(x, w) = linear(x, 2 * w) / 2, where the tensor of w is written"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.linear(p.any("x"), p.any("w"), None)

    def check(self, m: Match) -> str | None:
        return "the weight is none" if weight_of(m.w) is None else None

    def rewrite(self, m: Match, b: Any) -> Any:
        weight = weight_of(m.w)
        assert weight is not None and weight.data is not None
        with torch.no_grad():
            weight.data.mul_(2)
        return b.op("aten.div.Scalar", b.op("aten.matmul", m.x, b.op("aten.t", m.w).result).result, 2).result


@pytest.mark.parametrize(
    ("rule", "property_"),
    [(WritesToItsOperand, "inputs and weights stay"), (FoldsInPlace, "inputs and weights stay")],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_what_writes_is_found(rule: type[Pattern], property_: str) -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound(rule, settings=QUICK)
    found = caught.value.counterexample
    assert found is not None and found.property == property_, found


def test_what_keeps_something_between_runs_is_found() -> None:
    with pytest.raises(UnsoundError) as caught:
        assert_sound(KeepsCount, properties=Properties(strides=False, gradients=False), settings=QUICK)
    found = caught.value.counterexample
    assert found is not None and found.property == "second run", found


@pytest.mark.parametrize(("width", "definite"), [(1, False), (2, True)])
def test_gradients_that_depend_on_the_strides_of_unit_dimensions_are_told(width: int, definite: bool) -> None:
    """PyTorch 2.13 takes a contiguous map of width 1 for one in channels_last, and mixes up its channels."""
    case = Case.seeded(
        f"""
program "case" {{
  buffer %mean : f32[2]
  buffer %var : f32[2]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[1, 2, 2, {width}]) {{
    %relu = aten.sigmoid(%x) : f32[1, 2, 2, {width}]
    %bn = aten.batch_norm(%relu, None, None, %mean, %var) {{training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False}} : f32[1, 2, 2, {width}]
    %permute = aten.permute(%bn) {{dims=[2, 0, 1, 3]}} : f32[2, 1, 2, {width}]
    return %permute
  }}
}}
""",  # noqa: E501 - the text form has lines of its own length
        bounds={"var": (0.5, 2.0)},
    )
    assert has_definite_gradients(case.build(), case.inputs) is definite


@pytest.mark.parametrize(("size", "definite"), [("[2]", True), ("[]", False)])
def test_gradients_that_hang_on_an_expanded_scale_are_told(size: str, definite: bool) -> None:
    # eager PyTorch reads beyond the memory of a scale of stride 0
    case = Case.seeded(
        f"""
program "case" {{
  parameter %beta : f32[2] requires_grad
  buffer %mean : f32[2]
  buffer %var : f32[2]
  argument "x" = input 0
  argument "s" = input 1
  result = output 0
  graph(%x : f32[2, 2, 1], %s : f32{size}) {{
    %scale = aten.expand(%s) {{size=[2]}} : f32[2]
    %bn = aten.batch_norm(%x, %scale, %beta, %mean, %var) {{training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False}} : f32[2, 2, 1]
    return %bn
  }}
}}
""",  # noqa: E501 - the text form has lines of its own length
        bounds={"var": (0.5, 2.0)},
    )
    assert has_definite_gradients(case.build(), case.inputs) is definite


def test_unit_dimensions_get_strides_of_their_own() -> None:
    x = torch.randn(1, 2, 1, 4)
    strides = set()
    for level in OtherUnitStrides.LEVELS:
        other = OtherUnitStrides(level).restride(x)
        assert torch.equal(x, other)
        strides.add(other.stride()[::2])
    assert len(strides) > 4
    assert any(outer != inner for outer, inner in strides)


class WritesTheSumOfAWeight(Pattern):
    """sum(w) = the number that it is now"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.op("aten.sum", p.any("w"))

    def check(self, m: Match) -> str | None:
        weight = weight_of(m.w)
        return "no weight with data" if weight is None or weight.data is None or weight.data.is_meta else None

    def rewrite(self, m: Match, b: Any) -> Any:
        weight = weight_of(m.w)
        assert weight is not None and weight.data is not None
        return b.call("aten.full", [], weight.data.sum().item(), dtype=m.root.result.tensor_type.dtype)


def test_what_writes_numbers_of_a_weight_into_a_program_is_found() -> None:
    target = Target.of(WritesTheSumOfAWeight, Properties(gradients=False))
    properties = set()
    for number in range(16):  # one in some programs runs on other weights
        case = Case.seeded(f"""
program "case {number}" {{
  parameter %w : f32[3] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2]) {{
    %sum = aten.sum(%w) : f32[]
    %add = aten.add.Tensor(%x, %sum) : f32[2]
    return %add
  }}
}}
""")
        try:
            check_case(target.pass_, case, target.properties)
        except Finding as found:
            properties.add(found.property)
    assert properties == {"other weights"}
