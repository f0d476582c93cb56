"""What changes nothing goes; what a caller can tell stays."""

from __future__ import annotations

import pytest
import torch

from ir.builder import Builder
from ir.locations import Location
from ir.program import WeightKind
from ir.types import UNKNOWN_TENSOR, TensorType
from passes.cleanup.cse import eliminate_common_subexpressions
from tests.passes.building import f32, names, program
from tests.passes.canonical import canonicalize, check, check_program, constant

F16, F64 = TensorType((2, 3), torch.float16), TensorType((2, 3), torch.float64)
I64, BOOL = TensorType((2, 3), torch.int64), TensorType((2, 3), torch.bool)
X = f32(2, 3)


def inside(build):
    """Put `build` between two operations, so that neither its operand nor its result is the caller's."""
    return lambda b, x: b.sigmoid(build(b, b.exp(x)))


def stays(p):
    return len(names(p)) == 3


def goes(p):
    return names(p) == ["aten.exp", "aten.sigmoid"]


REMOVABLE_COPIES = [
    lambda b, x: b.call("aten.clone", x),
    lambda b, x: b.call("aten.clone", x, memory_format=torch.preserve_format),
    lambda b, x: b.call("aten._to_copy", x, dtype=torch.float32),
    lambda b, x: b.call("aten.to.dtype", x, torch.float32, False, True),
    lambda b, x: b.call("aten.constant_pad_nd", x, [0, 0, 0, 0]),
    lambda b, x: b.call("aten.pad", x, [0, 0]),
    lambda b, x: b.call("aten.mul.Scalar", x, 1),
    lambda b, x: b.call("aten.mul.Scalar", x, 1.0),
    lambda b, x: b.call("aten.div.Scalar", x, 1),
    lambda b, x: b.call("aten.sub.Scalar", x, 0),
    lambda b, x: b.call("aten.add.Scalar", x, -0.0),
    lambda b, x: b.call("aten.pow.Tensor_Scalar", x, 1),
    lambda b, x: b.neg(b.neg(x)),
]


@pytest.mark.parametrize("build", REMOVABLE_COPIES)
def test_copies_go_where_nobody_can_tell(build):
    assert goes(check([X], inside(build)))


@pytest.mark.parametrize("build", REMOVABLE_COPIES)
def test_copies_of_an_input_stay_where_they_are_outputs(build):
    p = check([X], build)
    assert len(names(p)) >= 1


@pytest.mark.parametrize("build", REMOVABLE_COPIES)
def test_copies_of_another_output_stay_where_they_are_outputs(build):
    def twice(b, x):
        y = b.exp(x)
        return y, build(b, y)

    assert len(names(check([X], twice))) >= 2


@pytest.mark.parametrize("build", REMOVABLE_COPIES)
def test_copies_of_views_with_gaps_stay(build):
    def gaps(b, x):
        y = b.call("aten.slice.Tensor", b.exp(x), 1, 0, 6, 2)
        return b.sigmoid(build(b, y))

    assert len(names(check([f32(5, 6)], gaps))) >= 4


def test_a_copy_of_a_view_of_an_output_stays():
    def build(b, x):
        y = b.exp(x)
        return b.transpose(y, 0, 1), b.call("aten.clone", b.reshape(y, [6]))

    assert "aten.clone" in names(check([X], build))


def test_a_copy_that_is_the_only_output_of_its_storage_goes():
    p = check([X], lambda b, x: b.call("aten.clone", b.exp(x)))
    assert names(p) == ["aten.exp"]


def test_a_copy_of_a_weight_stays_where_it_is_an_output():
    p = check([X], lambda b, x, w: (b.exp(x), b.call("aten.clone", w)), {"w": f32(2)})
    assert names(p) == ["aten.exp", "aten.clone"]
    p = check([X], lambda b, x, w: b.call("aten.add.Tensor", x, b.call("aten.clone", w)), {"w": f32(3)})
    assert names(p) == ["aten.add.Tensor"]


def test_a_copy_of_a_written_buffer_stays():
    p = program([X], lambda b, x: x)
    buffer = constant(p, "count", torch.ones(3), WeightKind.BUFFER, is_mutated=True)
    b = Builder(p.graph)
    p.graph.set_outputs([b.call("aten.add.Tensor", p.graph.inputs[0], b.call("aten.clone", buffer))])
    assert names(canonicalize(p)) == ["aten.clone", "aten.add.Tensor"]


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.call("aten.add.Scalar", x, 0),
        lambda b, x: b.call("aten.add.Scalar", x, 0.0),
        lambda b, x: b.call("aten.sub.Scalar", x, -0.0),
        lambda b, x: b.call("aten.sub.Scalar", x, 0, 2),
        lambda b, x: b.call("aten.mul.Scalar", x, 0),
        lambda b, x: b.call("aten.mul.Scalar", x, -1),
        lambda b, x: b.call("aten.rsub.Scalar", x, 0),
        lambda b, x: b.call("aten.pow.Tensor_Scalar", x, 2),
        lambda b, x: b.call("aten.pow.Tensor_Scalar", x, 0),
        lambda b, x: b.call("aten.clone", x, memory_format=torch.contiguous_format),
        lambda b, x: b.call("aten.contiguous", x),
        lambda b, x: b.call("aten.lift_fresh_copy", x),
        lambda b, x: b.call("aten.to.dtype", x, torch.float64),
        lambda b, x: b.call("aten.repeat", x, [1, 1, 1]),
        lambda b, x: b.call("aten.constant_pad_nd", x, [0, 1, 0, -1]),
        lambda b, x: b.call("aten.slice.Tensor", x, 0, 0, 1),
        lambda b, x: b.call("aten.detach", x),
        lambda b, x: b.neg(b.abs(x)),
    ],
)
def test_look_alikes_stay(build):
    assert not goes(check([X], inside(build)))


@pytest.mark.parametrize(
    ("type_", "build"),
    [
        (I64, lambda b, x: b.call("aten.add.Scalar", x, 0)),
        (I64, lambda b, x: b.call("aten.mul.Scalar", x, True)),
        (I64, lambda b, x: b.call("aten.sub.Scalar", x, 0)),
        (F16, lambda b, x: b.call("aten.mul.Scalar", x, 1.0)),
        (F64, lambda b, x: b.call("aten.to.dtype", x, torch.float64)),
        (BOOL, lambda b, x: b.call("aten.bitwise_not", b.call("aten.bitwise_not", x))),
        (I64, lambda b, x: b.call("aten.detach", x)),
    ],
)
def test_other_dtypes_go(type_, build):
    p = check([type_], lambda b, x: b.call("aten.eq.Tensor", x, build(b, x)))
    assert names(p) == ["aten.eq.Tensor"]


@pytest.mark.parametrize(
    ("type_", "build"),
    [
        (I64, lambda b, x: b.call("aten.mul.Scalar", x, 1.0)),
        (I64, lambda b, x: b.call("aten.add.Scalar", x, 0.0)),
        (I64, lambda b, x: b.call("aten.div.Scalar", x, 1)),
        (BOOL, lambda b, x: b.call("aten.add.Scalar", x, 0)),
        (F16, lambda b, x: b.call("aten.to.dtype", x, torch.float32)),
    ],
)
def test_what_promotes_the_dtype_stays(type_, build):
    p = check([type_], lambda b, x: b.call("aten.eq.Tensor", x, build(b, x)))
    assert len(names(p)) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.call("aten.alias", x),
        lambda b, x: b.call("aten.to.dtype", x, torch.float32),
        lambda b, x: b.call("aten.type_as", x, x),
        lambda b, x: b.call("aten.expand", x, [-1, 3]),
        lambda b, x: b.call("aten.expand_as", x, x),
        lambda b, x: b.call("aten.slice.Tensor", x, 0, 0, 9223372036854775807),
        lambda b, x: b.call("aten.slice.Tensor", x, -1),
        lambda b, x: b.call("aten.narrow", x, 1, 0, 3),
        lambda b, x: b.call("aten.dropout", x, 0.0, True),
        lambda b, x: b.call("aten.feature_dropout", x, 0.0, False),
    ],
)
def test_what_returns_its_operand_goes_from_outputs_too(build):
    assert names(check([X], build)) == []
    assert goes(check([X], inside(build)))


def test_contiguous_goes_where_the_operand_is_contiguous():
    p = check([X], lambda b, x, w: b.call("aten.contiguous", b.linear(x, w)), {"w": f32(4, 3)})
    assert names(p) == ["aten.linear"]
    p = check([X], lambda b, x, w: b.call("aten.contiguous", b.gelu(b.linear(x, w))), {"w": f32(4, 3)})
    assert names(p) == ["aten.linear", "aten.gelu"]
    p = check([X], lambda b, x, w: b.call("aten.contiguous", b.call("aten.t", b.linear(x, w))), {"w": f32(4, 3)})
    assert names(p) == ["aten.linear", "aten.permute", "aten.contiguous"]


def test_cat_of_one_goes_behind_a_convolution_only():
    def build(b, x, w):
        return b.relu(b.cat([b.relu(b.conv2d(x, w))], 1))

    p = check([f32(1, 3, 4, 4)], build, {"w": f32(2, 3, 1, 1)})
    assert names(p) == ["aten.conv2d", "aten.relu"]  # the outer relu is idempotent
    assert names(check([X], lambda b, x: b.exp(b.cat([x], 0)))) == ["aten.cat", "aten.exp"]
    assert names(check([X], lambda b, x: b.exp(b.cat([x, x], 0)))) == ["aten.cat", "aten.exp"]


@pytest.mark.parametrize("rank", [(), (1,), (0,), (0, 3)])
def test_small_ranks_and_sizes(rank):
    p = check([f32(*rank)], inside(lambda b, x: b.call("aten.mul.Scalar", x, 1)))
    assert goes(p)


def test_unknown_types_stay():
    p = program([UNKNOWN_TENSOR], inside(lambda b, x: b.call("aten.mul.Scalar", x, 1)))
    assert stays(canonicalize(p))
    p = program([UNKNOWN_TENSOR], inside(lambda b, x: b.call("aten.to.dtype", x, torch.float32)))
    assert stays(canonicalize(p))


# --- idempotent operators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "relu6", "abs", "floor", "sign", "round"])
def test_idempotent_operators_apply_once(name):
    def build(b, x):
        once = getattr(b, name)(x)
        return getattr(b, name)(getattr(b, name)(once))

    assert names(check([X], build)) == [f"aten.{name}"]


def test_idempotent_needs_equal_arguments():
    p = check([X], lambda b, x: b.clamp(b.clamp(x, -1, 1), -1, 1))
    assert names(p) == ["aten.clamp"]
    p = check([X], lambda b, x: b.clamp(b.clamp(x, None, -1), 1, None))
    assert names(p) == ["aten.clamp", "aten.clamp"]
    assert names(check([X], lambda b, x: b.relu(b.relu6(x)))) == ["aten.relu6", "aten.relu"]
    p = check([X], lambda b, x: b.call("aten.round.decimals", b.round(x), decimals=1))
    assert len(names(p)) == 2


def test_two_outputs_of_an_idempotent_operator_stay_two_tensors():
    def build(b, x):
        y = b.relu(x)
        return y, b.relu(y)

    assert names(check([X], build)) == ["aten.relu", "aten.relu"]


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "feature_dropout", "alpha_dropout"])
@pytest.mark.parametrize("follows_mode", [False, True])
def test_dropout_stays_unless_the_program_is_for_inference(name, follows_mode):
    def build(b, x):
        y = b.call(f"aten.{name}", b.exp(x), 0.5, False, follows_mode=follows_mode)
        return b.sigmoid(y)

    assert stays(check([X], build))
    assert goes(check_program(program([X], build), inference=True))


def test_dropout_in_training_stays_for_inference_too():
    p = program([X], inside(lambda b, x: b.call("aten.dropout", x, 0.5, True)))
    assert stays(canonicalize(p, inference=True))


def test_an_unused_dropout_draws_random_numbers_once_the_model_trains():
    def build(b, x, p=0.5, **mode):
        b.call("aten.dropout", x, p, False, **mode)
        return b.exp(x)

    assert "aten.dropout" in names(check([X], build))
    assert "aten.dropout" not in names(check([X], lambda b, x: build(b, x, follows_mode=False)))
    assert "aten.dropout" not in names(check([X], lambda b, x: build(b, x, p=0.0)))
    assert "aten.dropout" not in names(check_program(program([X], build), inference=True))


def batch_norm(b, x, mean, var, **mode):
    return b.call("aten.batch_norm", x, None, None, mean, var, False, 0.1, 1e-5, True, **mode)


def test_an_unused_batch_norm_writes_its_statistics_once_the_model_trains():
    def build(b, x, mean, var):
        batch_norm(b, x, mean, var)
        return b.exp(x)

    weights = {"mean": f32(3), "var": f32(3)}
    assert "aten.batch_norm" in names(canonicalize(program([X], build, weights)))


# --- common subexpressions --------------------------------------------------------------------------------------------


def test_equal_pure_operations_become_one():
    def build(b, x):
        return b.call("aten.mul.Tensor", b.exp(b.reshape(x, [6])), b.exp(b.call("aten.view", x, [6])))

    assert names(check([X], build)) == ["aten.reshape", "aten.exp", "aten.mul.Tensor"]


def test_the_location_of_what_is_merged_is_kept():
    p = program(
        [X], lambda b, x: b.call("aten.mul.Tensor", b.exp(x), b.op("aten.exp", x, location=place("other")).result)
    )
    canonicalize(p)
    first = next(p.graph.operations())
    assert [part.module_path for part in first.location.parts] == ["block", "other"]


def place(path):
    return Location(path, "torch.nn.Module", "user.py", 9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda b, x: b.call("aten.add.Scalar", x, 1), lambda b, x: b.call("aten.add.Scalar", x, 1.0)),
        (lambda b, x: b.call("aten.add.Scalar", x, 1), lambda b, x: b.call("aten.add.Scalar", x, True)),
        (lambda b, x: b.call("aten.mul.Scalar", x, 0.0), lambda b, x: b.call("aten.mul.Scalar", x, -0.0)),
        (lambda b, x: b.softmax(x, 0), lambda b, x: b.softmax(x, 1)),
        (lambda b, x: b.call("aten.rand_like", x), lambda b, x: b.call("aten.rand_like", x)),
        (lambda b, x: b.call("aten.dropout", x, 0.5, True), lambda b, x: b.call("aten.dropout", x, 0.5, True)),
        (lambda b, x: b.call("aten.dropout", x, 0.5, False), lambda b, x: b.call("aten.dropout", x, 0.5, False)),
    ],
)
def test_different_or_random_operations_stay_two(first, second):
    p = program([X], lambda b, x: b.call("aten.div.Tensor", first(b, x), second(b, x)))
    assert eliminate_common_subexpressions(p) == 0


def test_equal_nan_attributes_are_equal():
    nan = float("nan")

    def build(b, x):
        return b.call("aten.mul.Tensor", b.call("aten.add.Scalar", x, nan), b.call("aten.add.Scalar", x, nan))

    assert len(names(check([X], build))) == 2


def test_outputs_stay_two_tensors():
    assert names(check([X], lambda b, x: (b.exp(x), b.exp(x)))) == ["aten.exp", "aten.exp"]
    views = check([X], lambda b, x: (b.transpose(b.exp(x), 0, 1), b.reshape(b.exp(x), [3, 2])))
    assert names(views).count("aten.exp") == 2
    one = check([X], lambda b, x: (b.exp(x), b.neg(b.exp(x))))
    assert names(one) == ["aten.exp", "aten.neg"]


def test_batch_norms_that_train_stay_two():
    def build(b, x, mean, var, **mode):
        return b.call("aten.mul.Tensor", batch_norm(b, x, mean, var, **mode), batch_norm(b, x, mean, var, **mode))

    weights = {"mean": f32(3), "var": f32(3)}
    assert eliminate_common_subexpressions(program([X], build, weights)) == 0
    literal = program([X], lambda b, *values: build(b, *values, follows_mode=False), weights)
    assert eliminate_common_subexpressions(literal) == 1


def test_attention_whose_dropout_trains_stays_two():
    def build(b, q, **mode):
        call = "aten.scaled_dot_product_attention"
        return b.call("aten.mul.Tensor", b.call(call, q, q, q, **mode), b.call(call, q, q, q, **mode))

    x = f32(1, 2, 3, 4)
    assert eliminate_common_subexpressions(program([x], lambda b, q: build(b, q, train_dropout_p=0.1))) == 0
    assert eliminate_common_subexpressions(program([x], build)) == 1


def test_reads_of_a_written_buffer_stay_two():
    p = program([X], lambda b, x: x)
    buffer = constant(p, "count", torch.ones(3), WeightKind.BUFFER, is_mutated=True)
    b = Builder(p.graph)
    p.graph.set_outputs([b.call("aten.mul.Tensor", b.neg(buffer), b.neg(buffer))])
    assert eliminate_common_subexpressions(p) == 0


def test_dead_code_goes():
    def build(b, x):
        b.sigmoid(b.exp(x))
        return b.relu(x)

    assert names(check([X], build)) == ["aten.relu"]


def test_unused_random_numbers_are_drawn():
    def build(b, x):
        b.call("aten.rand_like", x)
        return b.relu(x)

    assert names(canonicalize(program([X], build))) == ["aten.rand_like", "aten.relu"]
