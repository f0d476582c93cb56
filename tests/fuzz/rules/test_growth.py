"""Patterns as people write them, for models and not for the fuzzer: most of what is built for them matches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuzz.rules.demands import demanded_ranks
from fuzz.rules.instances import expanded_pattern, instances
from ir.opdef import Trait
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Match, Node, OpNode, Pattern, PatternBuilder
from tests.drawn import draws

DRAWN = 80
SHARE = 0.8


def silu(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.mul(x, p.sigmoid(x))


def centred(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.sub(x, p.op("aten.mean.dim", x))


def rms_norm(p: PatternBuilder) -> Node:
    x = p.any("x")
    mean = p.op("aten.mean.dim", p.mul(x, x), keepdim=True)
    return p.mul(p.mul(x, p.rsqrt(p.op("aten.add.Scalar", mean))), p.any("weight"))


def layer_norm(p: PatternBuilder) -> Node:
    x = p.any("x")
    centre = p.sub(x, p.op("aten.mean.dim", x, keepdim=True))
    variance = p.op("aten.mean.dim", p.op("aten.pow.Tensor_Scalar", centre, exponent=2), keepdim=True)
    return p.div(centre, p.sqrt(p.op("aten.add.Scalar", variance)))


def gelu(p: PatternBuilder) -> Node:
    x = p.any("x")
    cubed = p.op("aten.mul.Scalar", p.op("aten.pow.Tensor_Scalar", x, exponent=3))
    inner = p.tanh(p.op("aten.mul.Scalar", p.add(x, cubed)))
    return p.mul(p.op("aten.mul.Scalar", x, other=0.5), p.op("aten.add.Scalar", inner, other=1))


def attention(p: PatternBuilder) -> Node:
    scores = p.matmul(p.any("q"), p.transpose(p.any("k")))
    return p.matmul(p.softmax(p.op("aten.mul.Scalar", scores)), p.any("v"))


def softmax(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.div(p.exp(x), p.op("aten.sum.dim_IntList", p.exp(x)))


def two_convolutions(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.add(p.conv2d(x, p.any("w1")), p.conv2d(x, p.any("w2")))


def two_embeddings(p: PatternBuilder) -> Node:
    i = p.any("i")
    return p.add(p.embedding(p.any("a"), i), p.embedding(p.any("b"), i))


def rotary(p: PatternBuilder) -> Node:
    x = p.any("x")
    turned = p.op("aten.cat", [p.neg(p.op("aten.slice.Tensor", x)), p.op("aten.slice.Tensor", x)])
    return p.add(p.mul(x, p.any("cos")), p.mul(turned, p.any("sin")))


def windows(p: PatternBuilder) -> Node:
    return p.reshape(p.permute(p.reshape(p.any("x")), dims=(0, 1, 3, 2, 4, 5)))


def rank_behind_a_chain(p: PatternBuilder) -> Node:
    return p.permute(p.chain([Trait.ACTIVATION], p.reshape(p.any("x")), minimum=1), dims=(0, 2, 1))


def rank_behind_other_ranks(p: PatternBuilder) -> Node:
    chain = p.chain(["aten.unsqueeze"], p.matmul(p.any("x"), p.any("y")), minimum=1)
    return p.permute(chain, dims=(0, 2, 1))


def sizes_behind_a_vector(p: PatternBuilder) -> Node:
    return p.reshape(p.ravel(p.any("x")), shape=(-1, 4))


def transposed_twice(p: PatternBuilder) -> Node:
    once = p.transpose(p.any("x"), dim0=p.attr("a"), dim1=p.attr("b"))
    return p.transpose(once, dim0=p.attr("b"), dim1=p.attr("a"))


def half_to_float(p: PatternBuilder) -> Node:
    half = p.any("x", where=lambda v: v.tensor_type.dtype is torch.float16)
    return p.op("aten.to.dtype", half, dtype=torch.float32)


def of_rank_five(p: PatternBuilder) -> Node:
    return p.relu(p.any("x", where=lambda v: v.tensor_type.rank == 5))


def on_squares(p: PatternBuilder) -> Node:
    def is_square(value: object) -> bool:
        shape = value.tensor_type.shape  # type: ignore[attr-defined]
        return len(shape) == 2 and shape[0] == shape[1] > 1

    return p.matmul(p.any("x", where=is_square), p.any("y"))


def by_a_weight(p: PatternBuilder) -> Node:
    return p.mul(p.any("x"), p.any("w", where=lambda v: v.is_weight))


def depthwise(p: PatternBuilder) -> Node:
    weight = p.any("w", where=lambda v: v.tensor_type.shape is not None and v.tensor_type.shape[1:2] == (1,))
    return p.conv2d(p.any("x"), weight, groups=p.attr_where(lambda g: isinstance(g, int) and g > 1, "several"))


def computed_scale(p: PatternBuilder) -> Node:
    return p.group_norm(p.any("x"), p.mul(p.any("w"), p.any("s")), p.any("b"))


def computed_statistics(p: PatternBuilder) -> Node:
    return p.batch_norm(p.any("x"), p.any("w"), p.any("b"), p.neg(p.any("mean")), p.any("var"))


def computed_kernel(p: PatternBuilder) -> Node:
    return p.conv2d(p.any("x"), p.mul(p.any("w"), p.any("s")), p.any("b", optional=True))


def attention_of_linears(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.scaled_dot_product_attention(*[p.linear(x, p.any(name)) for name in "qkv"])


def gated_linear(p: PatternBuilder) -> Node:
    x = p.any("x")
    return p.linear(p.mul(p.silu(p.linear(x, p.any("g"))), p.linear(x, p.any("u"))), p.any("d"))


WRITTEN = [
    silu,
    centred,
    rms_norm,
    layer_norm,
    gelu,
    attention,
    softmax,
    pytest.param(two_convolutions, marks=pytest.mark.long),
    pytest.param(two_embeddings, marks=pytest.mark.long),
    pytest.param(rotary, marks=pytest.mark.long),
    pytest.param(windows, marks=pytest.mark.long),
    rank_behind_a_chain,
    pytest.param(rank_behind_other_ranks, marks=pytest.mark.long),
    sizes_behind_a_vector,
    transposed_twice,
    half_to_float,
    of_rank_five,
    on_squares,
    by_a_weight,
    depthwise,
    pytest.param(computed_scale, marks=pytest.mark.long),
    pytest.param(computed_statistics, marks=pytest.mark.long),
    pytest.param(computed_kernel, marks=pytest.mark.long),
    pytest.param(attention_of_linears, marks=pytest.mark.long),
    gated_linear,
]


def rule_of(written: Callable[[PatternBuilder], Node]) -> Pattern:
    class Written(Pattern):
        def pattern(self, p: PatternBuilder) -> Node:
            return written(p)

        def check(self, m: Match) -> str | None:
            return "only counted"

        def rewrite(self, m: Match, b: object) -> None:
            raise AssertionError

    return Written()


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.__name__)
def test_most_instances_match(written: Callable[[PatternBuilder], Node]) -> None:
    rule = rule_of(written)
    index = RuleIndex((rule,))
    matched = 0
    for instance in draws(instances(rule, near=False), DRAWN):
        log = RewriteLog()
        run_worklist(instance.program, index, log, record=True)
        matched += any(remark.message == "only counted" for remark in log.remarks)
    assert matched >= SHARE * DRAWN


class Gated(Pattern):
    def pattern(self, p: PatternBuilder) -> Node:
        x = p.any("x")
        halves = [p.op("aten.split.Tensor", x, name=name, result=i) for i, name in enumerate(("left", "right"))]
        return p.mul(halves[0], p.sigmoid(halves[1]))

    def rewrite(self, m: Match, b: object) -> None:
        raise AssertionError


def test_two_results_are_often_those_of_one_operation() -> None:
    made = draws(instances(Gated(), near=False), DRAWN)
    splits = [sum(op.name == "aten.split.Tensor" for op in instance.program.graph.operations()) for instance in made]
    assert splits.count(1) >= 0.3 * DRAWN, splits


def test_a_condition_that_raises_does_not_hold() -> None:
    def of_rank_three(p: PatternBuilder) -> Node:
        return p.relu(p.any("x", where=lambda v: v.tensor_type.shape[2] > 0))  # type: ignore[index]

    for instance in draws(instances(rule_of(of_rank_three), near=False), 10):
        # others may be among the surroundings
        relus = [op for op in instance.program.graph.operations() if op.name == "aten.relu"]
        assert any((relu.operand_values[0].tensor_type.rank or 0) > 2 for relu in relus)


def root_of(written: Callable[[PatternBuilder], Node]) -> OpNode:
    (root,) = expanded_pattern(rule_of(written))
    assert isinstance(root, OpNode)
    return root


@pytest.mark.parametrize(
    ("written", "ranks"),
    [
        (lambda p: p.permute(p.any("x"), dims=(0, 2, 1)), {3}),
        (lambda p: p.op("aten.select.int", p.any("x"), dim=3, index=0), {4, 5, 6, 7}),
        (lambda p: p.op("aten.expand", p.any("x"), size=(2, 3)), None),
        (lambda p: p.reshape(p.any("x"), shape=(2, 2)), None),
        (lambda p: p.reshape(p.any("x"), shape=(-1, 4)), None),
        (lambda p: p.permute(p.any("x")), None),
        (lambda p: p.softmax(p.any("x"), dim=p.attr("d")), None),
        (lambda p: p.op("aten.mul.Scalar", p.any("x"), other=2), None),
        (lambda p: p.sub(p.any("x"), p.any("y"), alpha=1), None),
        (lambda p: p.op(Trait.ACTIVATION, p.any("x")), None),
    ],
)
def test_literals_say_what_ranks_they_take(written: Callable[[PatternBuilder], Node], ranks: set[int] | None) -> None:
    assert demanded_ranks(root_of(written)) == ranks
