"""One spelling of operators and arguments that mean the same."""

from __future__ import annotations

import pytest
import torch

from ir.evaluate import evaluate
from ir.opdef import get_opdef, operators_with
from ir.types import UNKNOWN_TENSOR, TensorType, make_symbol
from passes.canonicalize import CANONICALIZATION_RULES
from passes.rewrite.pattern import Pattern
from tests.passes.building import f32, names, program
from tests.passes.canonical import canonicalize, check, symbolic

MAP = f32(2, 3, 4, 5)
N = make_symbol("n")
SYNONYMS = operators_with(lambda facts: facts.synonym)


def mean(b, x, dims, keepdim=False, **options):
    return b.call("aten.mean.dim", x, dims, keepdim, **options)


def only(p):
    (op,) = p.graph.operations()
    return op


def test_rules_are_exact_patterns_with_an_equation():
    for rule in CANONICALIZATION_RULES:
        assert issubclass(rule, Pattern) and rule.exact and not rule.warns_without_shapes
        assert "=" in rule().equation


@pytest.mark.parametrize("dims", [[2, 3], [3, 2], [-1, -2], [2, -1]])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_mean_over_a_map_is_a_pool(dims, keepdim, dtype):
    p = check([TensorType((2, 3, 4, 5), dtype)], lambda b, x: b.sigmoid(mean(b, x, dims, keepdim)))
    assert names(p) == ["aten.adaptive_avg_pool2d", *([] if keepdim else ["aten.reshape"]), "aten.sigmoid"]
    assert next(p.graph.operations()).attributes["output_size"] == (1, 1)


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.flatten(b.adaptive_avg_pool2d(x, 1), 1),
        lambda b, x: b.call("aten.mean.dim", x, [2, 3]),
        lambda b, x: b.call("aten.squeeze", mean(b, x, [2, 3], True)),
        lambda b, x: b.call("aten.view", mean(b, x, [-1, -2], True), [2, -1]),
        lambda b, x: b.reshape(b.adaptive_avg_pool2d(x, [1, 1]), [2, 3]),
        lambda b, x: b.call("aten.squeeze.dim", b.call("aten.squeeze.dim", b.adaptive_avg_pool2d(x, 1), -1), -1),
    ],
)
def test_global_pooling_has_one_spelling(build):
    p = check([MAP], build)
    assert names(p) == ["aten.adaptive_avg_pool2d", "aten.reshape"]
    assert [dict(op.attributes) for op in p.graph.operations()] == [{"output_size": (1, 1)}, {"shape": (2, 3)}]


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: mean(b, x, [1, 2]),
        lambda b, x: mean(b, x, [3]),
        lambda b, x: mean(b, x, [1, 2, 3]),
        lambda b, x: mean(b, x, [2, 3], False, dtype=torch.float64),
        lambda b, x: mean(b, b.reshape(x, [6, 4, 5]), [1, 2]),
        lambda b, x: b.call("aten.mean", x),
        lambda b, x: b.call("aten.sum.dim_IntList", x, [2, 3]),
        lambda b, x: b.call("aten.amax", x, [2, 3]),
    ],
)
def test_other_reductions_are_no_pool(build):
    assert "aten.adaptive_avg_pool2d" not in names(check([MAP], build))


def test_a_kept_mean_that_is_an_output_stays():
    assert names(check([MAP], lambda b, x: mean(b, x, [2, 3], True))) == ["aten.mean.dim"]


def test_the_mean_of_an_empty_map_is_nan_and_no_pool():
    assert names(check([f32(2, 3, 0, 5)], lambda b, x: mean(b, x, [2, 3]))) == ["aten.mean.dim"]


def test_a_symbolic_mean_is_a_pool():
    p = program([f32(N, 3, N, 5)], lambda b, x: mean(b, x, [2, 3]))
    assert names(canonicalize(symbolic(p))) == ["aten.adaptive_avg_pool2d", "aten.reshape"]


def test_an_unknown_mean_stays():
    assert names(canonicalize(program([UNKNOWN_TENSOR], lambda b, x: mean(b, x, [2, 3])))) == ["aten.mean.dim"]


def test_hardtanh_of_0_and_6_is_relu6():
    assert only(check([MAP], lambda b, x: b.hardtanh(x, 0, 6))).name == "aten.relu6"
    assert only(check([MAP], lambda b, x: b.hardtanh(x, 0.0, 6.0))).name == "aten.relu6"


@pytest.mark.parametrize("bounds", [(-1, 1), (0, 5), (1, 6), (-0.0, 6.0)])
def test_other_hardtanhs_stay(bounds):
    assert only(check([MAP], lambda b, x: b.hardtanh(x, *bounds))).name == "aten.hardtanh"


def test_clamps_have_one_spelling():
    assert dict(only(check([MAP], lambda b, x: b.clamp_min(x, 0.5))).attributes) == {"min": 0.5, "max": None}
    assert dict(only(check([MAP], lambda b, x: b.clamp_max(x, 0.5))).attributes) == {"min": None, "max": 0.5}
    assert only(check([MAP], lambda b, x: b.call("aten.clip", x, 0, 1))).name == "aten.clamp"
    # relu has the gradient 0 at 0, clamp has 1
    assert only(check([MAP], lambda b, x: b.clamp(x, 0))).name == "aten.clamp"


@pytest.mark.parametrize("name", SYNONYMS)
def test_synonyms(name):
    def build(b, x):
        params = [p.name for p in b.op(name, *arguments(b, x)).opdef.params]
        assert params
        return b.graph.last.prev.results[0]

    def arguments(b, x):
        if name in ("aten.concat", "aten.concatenate"):
            return ([x, x], 1)
        if name == "aten.clip":
            return (x, -1, 1)
        if name == "aten.clip.Tensor":
            return (x, b.neg(x), x)
        if name.endswith(".Tensor") or name == "aten.arctan2":
            return (x, b.exp(x))
        return (x, 2) if name.endswith(".Scalar") else (x,)

    p = check([f32(2, 3)], build)
    assert get_opdef(name).facts.synonym in names(p) and name not in names(p)


def test_synonyms_have_the_same_arguments():
    for synonym in SYNONYMS:
        a = get_opdef(synonym)
        assert a.facts.synonym is not None
        b = get_opdef(a.facts.synonym)
        assert [(p.name, p.kind, p.default) for p in a.params] == [(p.name, p.kind, p.default) for p in b.params]


def test_rsub_is_sub():
    p = check([MAP], lambda b, x: b.call("aten.rsub.Tensor", x, b.exp(x), alpha=2))
    last = list(p.graph.operations())[-1]
    assert last.name == "aten.sub.Tensor" and last.attributes["alpha"] == 2
    assert last.operands[1] is p.graph.inputs[0]


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d", "max_pool2d_with_indices"])
def test_the_stride_of_a_pool_is_written(pool):
    p = check([f32(1, 2, 6, 6)], lambda b, x: b.call(f"aten.{pool}", x, [2, 3]))
    assert only(p).attributes["stride"] == (2, 3)
    p = check([f32(1, 2, 6, 6)], lambda b, x: b.call(f"aten.{pool}", x, [2, 3], [1, 1]))
    assert only(p).attributes["stride"] == (1, 1)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "expected"),
    [(3, 1, "same", (1, 1)), (3, 2, "same", (2, 2)), (3, 1, "valid", (0, 0)), (2, 2, "same", (1, 1))],
)
def test_padding_is_written_as_numbers(kernel, dilation, padding, expected):
    def build(b, x, w):
        return b.call("aten.conv2d.padding", x, w, None, 1, padding, dilation)

    p = check([f32(1, 2, 6, 6)], build, {"w": f32(3, 2, kernel, kernel)})
    assert only(p).name == "aten.conv2d" and only(p).attributes["padding"] == expected


def test_uneven_padding_stays():
    p = check(
        [f32(1, 2, 6, 6)],
        lambda b, x, w: b.call("aten.conv2d.padding", x, w, None, 1, "same"),
        {"w": f32(3, 2, 2, 3)},
    )
    assert only(p).name == "aten.conv2d.padding"


@pytest.mark.parametrize("dims", [1, 3])
def test_padding_of_other_convolutions(dims):
    p = check(
        [f32(1, 2, *[5] * dims)],
        lambda b, x, w: b.call(f"aten.conv{dims}d.padding", x, w, None, 1, "same"),
        {"w": f32(3, 2, *[3] * dims)},
    )
    assert only(p).name == f"aten.conv{dims}d" and only(p).attributes["padding"] == (1,) * dims


@pytest.mark.parametrize(
    ("build", "name", "expected"),
    [
        (lambda b, x: b.softmax(x, -1), "dim", 2),
        (lambda b, x: b.call("aten.mean.dim", x, [-1, 0]), "dim", (0, 2)),
        (lambda b, x: b.call("aten.amax", x, [-2]), "dim", (1,)),
        (lambda b, x: b.cat([x, x], -2), "dim", 1),
        (lambda b, x: b.call("aten.stack", [x, x], -1), "dim", 3),
        (lambda b, x: b.call("aten.select.int", x, -1, -1), "dim", 2),
        (lambda b, x: b.call("aten.select.int", x, -1, -1), "index", 3),
        (lambda b, x: b.call("aten.slice.Tensor", x, -1, 1), "dim", 2),
        (lambda b, x: b.call("aten.argmax", x, -1), "dim", 2),
        (lambda b, x: b.call("aten.cumsum", x, -3), "dim", 0),
        (lambda b, x: b.call("aten.argmax", x), "dim", None),
        (lambda b, x: b.call("aten.expand", x, [5, -1, -1, 4]), "size", (5, 2, 3, 4)),
        (lambda b, x: b.call("aten.broadcast_to", x, [5, 2, 3, 4]), "size", (5, 2, 3, 4)),
    ],
)
def test_dimensions_are_counted_from_the_front(build, name, expected):
    assert only(check([f32(2, 3, 4)], build)).attributes[name] == expected


def test_dimensions_of_scalars_and_unknown_ranks():
    assert only(check([f32()], lambda b, x: b.softmax(x, -1))).attributes["dim"] == 0
    p = program([UNKNOWN_TENSOR], lambda b, x: b.softmax(x, -1))
    assert only(canonicalize(p)).attributes["dim"] == -1


def test_every_activation_keeps_its_gradient():
    """Canonical forms have the gradients of what they replace, at the corners too."""
    corners = torch.tensor([float("nan"), -1.0, -0.0, 0.0, 0.5, 6.0, 7.0])
    for build in (
        lambda b, x: b.hardtanh(x, 0, 6),
        lambda b, x: b.clamp_min(x, 0.5),
        lambda b, x: b.clamp_max(x, 0.5),
        lambda b, x: b.relu6(b.relu6(x)),
        lambda b, x: b.relu(b.relu(x)),
        lambda b, x: b.clamp(b.clamp(x, 0, 0.5), 0, 0.5),
        lambda b, x: b.hardtanh(b.hardtanh(x, -1, 0.5), -1, 0.5),
        lambda b, x: b.abs(b.abs(x)),
        lambda b, x: b.exp(b.call("aten.pow.Tensor_Scalar", b.sigmoid(x), 1)),
        lambda b, x: b.exp(b.neg(b.neg(b.sigmoid(x)))),
    ):
        p = program([f32(7)], build)
        expected = gradient(p, corners)
        before = len(names(p))
        canonicalize(p)
        assert len(names(p)) < before or names(p)[0] in ("aten.relu6", "aten.clamp")
        assert torch.equal(expected.nan_to_num(9), gradient(p, corners).nan_to_num(9))


def gradient(p, x):
    x = x.clone().requires_grad_()
    (y,) = evaluate(p, [x])
    (result,) = torch.autograd.grad(y.sum(), x)
    return result
