"""What is drawn around an example: each kind of change is made, and reasons that patterns do not tell are reached."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fuzz.rules.instances import instances
from fuzz.rules.names import find_rule
from fuzz.search.examples import refusals
from graphwright import Example, Match, Pattern, PatternBuilder
from ir.core import Operation
from ir.program import Program, weight_of
from passes.rewrite.pattern import Node
from tests.drawn import draws


class AddProduct(Pattern):
    """relu(x + 2 * (x @ wᵀ)) = itself"""

    examples = (
        Example("""
            parameter %w : f32[a, a]
            graph(%x : f32[n, a]) {
              %y = aten.linear(%x, %w, None)
              %z = aten.add.Tensor(%x, %y) {alpha=2}
              %u = aten.relu(%z)
              return %u
            }
        """),
    )

    def pattern(self, p: PatternBuilder) -> Node:
        return p.relu(p.op("aten.add.Tensor", p.any("x"), p.linear(p.any("x"), p.any("w"), None)))

    def rewrite(self, m: Match, b: object) -> None:
        raise NotImplementedError


def varied(rule: Pattern, count: int) -> list[Program]:
    """Return programs that vary an example of the rule."""
    return [made.program for made in draws(instances(rule, near=False), count) if made.change == "example"]


def kinds_of(program: Program) -> dict[str, bool]:
    ops = list(program.graph.operations())
    names = [op.name for op in ops]
    shapes = [value.tensor_type.shape or () for value in program.graph.inputs]
    return {
        "a size of 0": any(0 in shape for shape in shapes),
        "a size of 1": any(1 in shape for shape in shapes),
        "sizes that are equal": any(len(shape) == 2 and shape[0] == shape[1] for shape in shapes),
        "another rank": any(len(shape) != 2 for shape in shapes),
        "half precision": any(value.tensor_type.dtype is torch.float16 for value in program.graph.inputs),
        "integers": any(value.tensor_type.dtype is torch.int64 for value in program.graph.inputs),
        "complex numbers": any(value.tensor_type.dtype is torch.complex64 for value in program.graph.inputs),
        "another alpha": any(op.attributes.get("alpha", 2) != 2 for op in ops),
        "another activation": "aten.gelu" in names or "aten.silu" in names,
        "no relu": "aten.relu" not in names,
        "no product": "aten.linear" not in names,
        "a bias": any(op.name == "aten.linear" and op.operands[2] is not None for op in ops),
        "a permuted producer": "aten.permute" in names,
        "an operation between": "aten.dropout" in names or "aten.slice.Tensor" in names,
        "exchanged operands": any(
            op.name == "aten.add.Tensor"
            and isinstance(v := op.operands[0].owner, Operation)
            and v.name == "aten.linear"
            for op in ops
        ),
        "a product that is returned": any(
            value.defining_op is not None and value.defining_op.name == "aten.linear"
            for value in program.graph.outputs
            if value is not None
        ),
        "a weight that is computed": any(
            op.name == "aten.linear" and op.operands[1] is not None and weight_of(op.operands[1]) is None for op in ops
        ),
    }


def test_every_kind_of_change_is_made() -> None:
    seen: Counter[str] = Counter()
    for program in varied(AddProduct(), 700):
        seen.update(kinds_of(program))
    assert not [kind for kind, count in seen.items() if not count], seen


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        pytest.param(
            "FoldBatchNormPattern",
            ["the folded weight reaches", "is computed, not a weight", "not one number for each"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "DecomposeMultiheadAttentionPattern",
            ["is_causal=True", "its attn_mask is", "(cross-attention)"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "FlattenLinearToConv1x1Pattern",
            ["not C x 1 x 1", "the bias of the linear", "does not flatten a 4-d map"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_reasons_are_reached(rule: str, reasons: list[str]) -> None:
    made = find_rule(rule)()
    missing = reasons
    for count in (900, 2700):  # one of a rule's dozen examples may be rare among the first
        seen = [reason for program in varied(made, count) for reason in refusals(made, program)]
        missing = [reason for reason in reasons if not any(reason in one for one in seen)]
        if not missing:
            break
    assert not missing


@pytest.mark.long
def test_regions_of_an_example_get_the_types_that_are_drawn() -> None:
    programs = varied(find_rule("MHAInProjectionPattern")(), 600)
    regions = [op for program in programs for op in program.graph.operations() if op.body is not None]
    assert len({op.operand_values[0].tensor_type.dtype for op in regions}) > 1


@pytest.mark.long
def test_literals_of_the_pattern_are_missed_now_and_then() -> None:
    programs = varied(find_rule("ScaledDotProductAttentionPattern")(), 300)
    alphas = [op.attributes["alpha"] for p in programs for op in p.graph.operations() if op.name == "aten.add.Tensor"]
    assert sum(alpha != 1 for alpha in alphas) > 0
