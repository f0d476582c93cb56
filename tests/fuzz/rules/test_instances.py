"""The programs that are built for rules reach the hard cases, each in a stated share of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch

from fuzz.calls.generators import GENERATORS
from fuzz.programs.strategy import OPERATORS
from fuzz.rules.dictionary import dictionary_of
from fuzz.rules.growth import NEAR_MISSES
from fuzz.rules.instances import Instance, expanded_pattern
from fuzz.rules.names import RULES
from fuzz.strategies import instances
from ir.core import RETURN, Operation, Value
from ir.verify import verify
from passes.convert.classifier import FlattenLinearToConv1x1Pattern
from passes.fuse.conv import StemConvBNActMaxPoolPattern
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Node, OpNode, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter
from tests.drawn import draws

EACH = 12
"""Programs drawn for each rule."""


@cache
def drawn() -> tuple[Instance, ...]:
    return tuple(made for rule in RULES.values() for made in draws(instances(rule()), EACH))


def tensors(instance: Instance) -> list[tuple[tuple[int, ...], torch.dtype | None]]:
    values: list[Value] = [*instance.program.graph.inputs, *(w.value for w in instance.program.weights.values())]
    return [
        (tuple([d if type(d) is int else 12 for d in v.tensor_type.shape or ()]), v.tensor_type.dtype) for v in values
    ]


def shape_where(condition: Callable[[tuple[int, ...]], bool]) -> Callable[[Instance], bool]:
    return lambda instance: any(condition(shape) for shape, _ in tensors(instance))


def has_dtype(dtype: torch.dtype) -> Callable[[Instance], bool]:
    return lambda instance: any(found is dtype for _, found in tensors(instance))


def operations(instance: Instance) -> list[Operation]:
    return list(instance.program.graph.operations())


_LAYOUTS = ("aten.transpose.int", "aten.permute", "aten.slice.Tensor", "aten.expand")

HARD: dict[str, tuple[float, Callable[[Instance], bool]]] = {
    "rank 0": (0.02, shape_where(lambda s: len(s) == 0)),
    "rank 1": (0.15, shape_where(lambda s: len(s) == 1)),
    "rank 4": (0.25, shape_where(lambda s: len(s) == 4)),
    "rank 5": (0.002, shape_where(lambda s: len(s) == 5)),
    "a size of 0": (0.005, shape_where(lambda s: 0 in s)),
    "a size of 1": (0.3, shape_where(lambda s: 1 in s)),
    "all sizes equal, rank 3 or more": (0.1, shape_where(lambda s: len(s) > 2 and len(set(s)) == 1 and s[0] > 1)),
    "an odd size": (0.3, shape_where(lambda s: any(n > 1 and n % 2 for n in s))),
    "symbolic sizes": (0.005, lambda instance: bool(instance.program.symbols)),
    "float64": (0.03, has_dtype(torch.float64)),
    "float16": (0.01, has_dtype(torch.float16)),
    "bfloat16": (0.01, has_dtype(torch.bfloat16)),
    "int64": (0.01, has_dtype(torch.int64)),
    "bool": (0.01, has_dtype(torch.bool)),
    "a value with several users": (
        0.4,
        lambda i: any(len(set(r.users)) > 1 for op in operations(i) for r in op.results),
    ),
    "a value that is both operands": (
        0.03,
        lambda i: any(len(op.operand_values) > len(set(op.operand_values)) for op in operations(i)),
    ),
    "an output that is used": (
        0.1,
        lambda i: any(
            any(user.opdef is not RETURN for user in v.users) for v in i.program.graph.outputs if v is not None
        ),
    ),
    "an input that is an output": (
        0.005,
        lambda i: any(v is not None and v.is_input for v in i.program.graph.outputs),
    ),
    "another layout in front": (0.1, lambda i: any(op.name in _LAYOUTS for op in operations(i)[:3])),
    "training": (0.01, lambda i: any(op.in_training for op in operations(i))),
}


@pytest.mark.long
@pytest.mark.xdist_group("instances")
@pytest.mark.parametrize("what", HARD)
def test_hard_cases_are_reached(what: str) -> None:
    share, condition = HARD[what]
    reached = sum(map(condition, drawn()))
    assert reached >= share * len(drawn()), f"{reached} of {len(drawn())}"


@pytest.mark.long
def test_every_kind_of_near_miss_is_drawn() -> None:
    kinds = Counter(instance.change for instance in drawn())
    assert all(kinds[kind] >= 0.01 * len(drawn()) for kind in NEAR_MISSES), kinds
    assert kinds[None] >= 0.4 * len(drawn())


def test_what_is_drawn_is_valid() -> None:
    for instance in drawn():
        verify(instance.program)


# what 64 families of timm 1.0.31 and the torchvision models of the tests lower to
_OF_MODELS = """
_upsample_bicubic2d_aa.vec adaptive_avg_pool2d add.Scalar add.Tensor addcmul alias amax arange arange.start
avg_pool2d batch_norm bitwise_not cat chunk clamp clamp_min clone contiguous conv1d conv2d conv2d.padding
cos cumsum div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode dropout einsum exp expand expand_as
flatten.using_ints gelu group_norm hardsigmoid hardswish hardtanh index.Tensor layer_norm leaky_relu
lift_fresh_copy linalg_vector_norm linear lstm.input matmul max_pool2d mean.dim meshgrid.indexing mul.Scalar
mul.Tensor neg pad permute pow.Scalar pow.Tensor_Scalar relu repeat repeat_interleave.self_int reshape
reshape_as rms_norm roll rsqrt scaled_dot_product_attention select.int sigmoid silu sin slice.Tensor
softmax.int split.Tensor split_with_sizes square squeeze.dim stack sub.Tensor sum.dim_IntList to.device
to.dtype transpose.int type_as unbind.int unfold unsqueeze upsample_bicubic2d.vec upsample_bilinear2d.vec
upsample_nearest2d.vec view zeros
"""


def test_there_is_a_generator_for_what_models_use() -> None:
    assert len(OPERATORS) >= 120
    assert {f"aten.{name}" for name in _OF_MODELS.split()} <= GENERATORS.keys()
    named = {
        opdef.name
        for rule in RULES.values()
        for node in _nodes(rule)
        if isinstance(node.ops, tuple)
        for opdef in node.ops
        if opdef.name.startswith("aten.")
    }
    # the other spellings of one operator are built without a generator of their own
    assert len(named - GENERATORS.keys()) < 0.4 * len(named), sorted(named - GENERATORS.keys())


def _nodes(rule: type[Pattern]) -> list[OpNode]:
    return [node for node in expanded_pattern(rule()) if isinstance(node, OpNode)]


def test_the_numbers_that_a_rule_names_are_known() -> None:
    assert {3, 7, 4} <= set(dictionary_of(StemConvBNActMaxPoolPattern()))
    assert {1, 4, 2} <= set(dictionary_of(FlattenLinearToConv1x1Pattern()))


OF_INTEGERS: dict[str, Callable[[PatternBuilder], Node]] = {
    "add, one value": lambda p: p.add(p.any("x"), p.any("x")),
    "mul": lambda p: p.mul(p.any("x"), p.any("y")),
    "mul.Scalar": lambda p: p.op("aten.mul.Scalar", p.any("x")),
    "neg": lambda p: p.neg(p.any("x")),
    "relu": lambda p: p.relu(p.any("x")),
    "sum": lambda p: p.op("aten.sum.dim_IntList", p.any("x")),
    "silu": lambda p: (lambda x: p.mul(x, p.sigmoid(x)))(p.any("x")),
}


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(written, id=name, marks=() if name in ("neg", "silu") else pytest.mark.long)
        for name, written in OF_INTEGERS.items()
    ],
)
def test_placeholders_are_integers_where_operators_take_them(written: Callable[[PatternBuilder], Node]) -> None:
    class Rule(Pattern):
        """a rule for any numbers"""

        def pattern(self, p: PatternBuilder) -> Node:
            return written(p)

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            return m.x

    rule = Rule()
    dtypes: Counter[torch.dtype | None] = Counter()
    for made in draws(instances(rule, near=False), 600):
        for op in made.program.graph.operations():
            matches = [v.try_match(op) for v in compile_rule(rule) if v.accepts(op.opdef)]
            dtypes.update({m.x.tensor_type.dtype: 1 for m in matches if isinstance(m, Match)})
    assert dtypes[torch.int64] + dtypes[torch.bool] >= 0.03 * dtypes.total(), dtypes
