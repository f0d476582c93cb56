"""One reshape, one permute, one split."""

from __future__ import annotations

import pytest
import torch

from ir.memory.layout import LayoutMap
from ir.types import UNKNOWN_TENSOR, TensorType, make_symbol
from tests.passes.building import f32, names, program
from tests.passes.canonical import canonicalize, check, symbolic

N = make_symbol("n")


def ops(p):
    return [(op.name, dict(op.attributes)) for op in p.graph.operations()]


def only(p):
    (op,) = p.graph.operations()
    return op


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.call("aten.view", x, [2, -1]),
        lambda b, x: b.call("aten._unsafe_view", x, [2, 12]),
        lambda b, x: b.call("aten.reshape", x, [-1, 12]),
        lambda b, x: b.call("aten.flatten.using_ints", x, 1),
        lambda b, x: b.call("aten.flatten.using_ints", x, -2, -1),
        lambda b, x: b.call("aten.squeeze", b.call("aten.view", x, [2, 1, 12])),
        lambda b, x: b.call("aten.squeeze.dim", b.call("aten.view", x, [2, 1, 12]), 1),
        lambda b, x: b.call("aten.squeeze.dims", b.call("aten.view", x, [1, 2, 12, 1]), [0, -1]),
        lambda b, x: b.call(
            "aten.squeeze.dim", b.call("aten.unsqueeze", b.call("aten.flatten.using_ints", x, 1), -1), -1
        ),
        lambda b, x: b.call("aten.flatten.using_ints", b.call("aten.unflatten.int", x, 1, [3, 1]), 1),
        lambda b, x: b.call("aten.view_as", x, b.call("aten.flatten.using_ints", x, 1)),
    ],
)
def test_every_spelling_is_one_reshape_with_all_sizes(build):
    p = check([f32(2, 3, 4)], build)
    assert only(p).name == "aten.reshape"
    assert only(p).attributes == {"shape": (2, 12)}


def test_symbolic_sizes_are_written_out():
    p = program([f32(N, 3, 4)], lambda b, x: b.call("aten.view", x, [-1, 4]))
    op = only(canonicalize(symbolic(p)))
    assert op.attributes["shape"] == (3 * N, 4)


def test_unknown_shapes_are_left_alone():
    p = program([UNKNOWN_TENSOR], lambda b, x: b.call("aten.flatten.using_ints", x, 1))
    assert names(canonicalize(p)) == ["aten.flatten.using_ints"]
    p = program([TensorType((None, 3, None), torch.float32)], lambda b, x: b.call("aten.view", x, [-1, 3]))
    assert names(canonicalize(p)) == ["aten.view"]


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 1, 3)])
def test_a_reshape_to_the_same_shape_goes(shape):
    p = check([f32(*shape)], lambda b, x: b.relu(b.call("aten.view", x, list(shape))))
    assert names(p) == ["aten.relu"]


def test_an_unsqueeze_of_a_scalar_is_no_identity():
    p = check([f32()], lambda b, x: b.call("aten.unsqueeze", x, 0))
    assert only(p).attributes == {"shape": (1,)}


def test_reshapes_merge_where_the_first_only_splits_or_both_merge():
    split = check([f32(2, 12)], lambda b, x: b.reshape(b.reshape(x, [2, 3, 4]), [6, 4]))
    assert only(split).attributes == {"shape": (6, 4)}
    merged = check([f32(2, 3, 4)], lambda b, x: b.reshape(b.reshape(x, [6, 4]), [24]))
    assert only(merged).attributes == {"shape": (24,)}
    back = check([f32(2, 12)], lambda b, x: b.relu(b.reshape(b.reshape(x, [2, 3, 4]), [2, 12])))
    assert names(back) == ["aten.relu"]


def test_reshapes_stay_where_the_first_may_make_a_copy_and_one_would_be_a_view():
    # a transposed x is copied by the first reshape; one reshape would hand out x itself
    p = check([f32(3, 4)], lambda b, x: b.reshape(b.reshape(x, [12]), [3, 4]))
    assert names(p) == ["aten.reshape", "aten.reshape"]


def test_reshapes_of_what_is_contiguous_merge():
    def build(b, x, w):
        return b.relu(b.reshape(b.reshape(b.linear(x, w), [12]), [2, 6]))

    p = check([f32(3, 5)], build, {"w": f32(4, 5)})
    assert names(p) == ["aten.linear", "aten.reshape", "aten.relu"]


def test_reshapes_of_a_permuted_result_merge_where_both_ways_copy():
    def build(b, x, w):
        y = b.reshape(b.linear(x, w), [2, 3, 4, 2])
        y = b.permute(y, [0, 2, 1, 3])
        return b.reshape(b.reshape(y, [8, 6]), [2, 4, 6])

    p = check([f32(2, 3, 5)], build, {"w": f32(8, 5)})
    assert names(p) == ["aten.linear", "aten.reshape", "aten.permute", "aten.reshape"]


def test_a_second_user_of_the_first_reshape_keeps_it():
    def build(b, x):
        y = b.reshape(x, [2, 3, 4])
        return b.relu(y), b.reshape(y, [6, 4])

    p = check([f32(2, 12)], build)
    assert names(p) == ["aten.reshape", "aten.relu", "aten.reshape"]


def test_a_copy_that_others_share_stays_one_copy():
    def build(b, x):
        y = b.reshape(x, [6, 4])
        return y, b.reshape(y, [24])

    assert names(check([f32(2, 3, 4)], build)) == ["aten.reshape", "aten.reshape"]

    def copied(b, x, w):
        y = b.call("aten.contiguous", b.permute(b.reshape(b.linear(x, w), [2, 3, 2, 2]), [0, 2, 1, 3]))
        return y, b.reshape(y, [4, 6])

    assert "aten.contiguous" in names(check([f32(2, 3, 5)], copied, {"w": f32(4, 5)}))


@pytest.mark.parametrize(
    ("build", "dims"),
    [
        (lambda b, x: b.call("aten.transpose.int", x, -1, 0), (2, 1, 0)),
        (lambda b, x: b.call("aten.swapaxes", x, 0, 1), (1, 0, 2)),
        (lambda b, x: b.call("aten.swapdims", x, 1, -1), (0, 2, 1)),
        (lambda b, x: b.call("aten.mT", x), (0, 2, 1)),
        (lambda b, x: b.call("aten.numpy_T", x), (2, 1, 0)),
        (lambda b, x: b.call("aten.movedim.int", x, 0, -1), (1, 2, 0)),
        (lambda b, x: b.call("aten.movedim.intlist", x, [0, 1], [2, 0]), (1, 2, 0)),
        (lambda b, x: b.call("aten.permute", x, [0, -1, 1]), (0, 2, 1)),
        (lambda b, x: b.permute(b.permute(x, [1, 2, 0]), [1, 2, 0]), (2, 0, 1)),
    ],
)
def test_every_spelling_is_one_permute(build, dims):
    p = check([f32(2, 3, 4)], build)
    assert only(p).name == "aten.permute"
    assert only(p).attributes == {"dims": dims}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_t_of_every_rank(rank):
    p = check([f32(*range(2, 2 + rank))], lambda b, x: b.relu(b.call("aten.t", x)))
    assert names(p) == (["aten.permute", "aten.relu"] if rank == 2 else ["aten.relu"])


def test_transposes_cancel():
    p = check([f32(2, 3, 4)], lambda b, x: b.relu(b.transpose(b.transpose(x, 1, 2), -1, -2)))
    assert names(p) == ["aten.relu"]


def test_a_permute_of_an_unknown_rank_stays():
    p = program([UNKNOWN_TENSOR], lambda b, x: b.call("aten.transpose.int", x, 1, 2))
    assert names(canonicalize(p)) == ["aten.transpose.int"]


def test_a_permute_of_units_goes_into_the_reshape():
    p = check([f32(2, 1, 3, 1)], lambda b, x: b.reshape(b.permute(x, [1, 0, 3, 2]), [6]))
    assert names(p) == ["aten.reshape"]
    p = check([f32(2, 1, 3, 1)], lambda b, x: b.reshape(b.permute(x, [2, 0, 3, 1]), [6]))
    assert names(p) == ["aten.permute", "aten.reshape"]


def test_the_head_split_of_multihead_attention_is_a_reshape_and_a_permute():
    def build(b, x, w):
        y = b.call("aten.unflatten.int", b.linear(x, w), -1, [3, 4])
        y = b.transpose(b.call("aten.unsqueeze", y, 0), 0, -2)
        return b.call("aten.squeeze.dim", y, -2)

    p = check([f32(5, 2, 4)], build, {"w": f32(12, 4)})
    assert [a for _, a in ops(p)[1:]] == [{"shape": (5, 2, 3, 4)}, {"dims": (2, 0, 1, 3)}]


def test_heads_are_split_before_the_permute():
    def build(b, x, w):
        y = b.reshape(b.linear(x, w), [5, 6, 4])
        return b.reshape(b.permute(y, [1, 0, 2]), [2, 3, 5, 4])

    p = check([f32(5, 2, 4)], build, {"w": f32(12, 4)})
    assert [a for _, a in ops(p)[1:]] == [{"shape": (5, 2, 3, 4)}, {"dims": (1, 2, 0, 3)}]


def test_heads_are_not_split_early_where_that_would_be_a_view_of_a_strided_input():
    def build(b, x):
        y = b.reshape(x, [5, 6, 4])
        return b.reshape(b.permute(y, [1, 0, 2]), [2, 3, 5, 4])

    p = check([f32(5, 2, 12)], build)
    assert names(p) == ["aten.reshape", "aten.permute", "aten.reshape"]


@pytest.mark.parametrize(
    ("build", "sizes", "dim"),
    [
        (lambda b, x: b.call("aten.chunk", x, 3, -1), (2, 2, 2), 1),
        (lambda b, x: b.call("aten.chunk", x, 4, 1), (2, 2, 2), 1),
        (lambda b, x: b.call("aten.split.Tensor", x, 4, -1), (4, 2), 1),
        (lambda b, x: b.call("aten.split.sizes", x, [1, 5], 1), (1, 5), 1),
        (lambda b, x: b.call("aten.split_with_sizes", x, [1, 5], -1), (1, 5), 1),
        (lambda b, x: b.call("aten.tensor_split.sections", x, 4, 1), (2, 2, 1, 1), 1),
        (lambda b, x: b.call("aten.tensor_split.indices", x, [1, 3], 1), (1, 2, 3), 1),
        (lambda b, x: b.call("aten.chunk", x, 2), (2, 1), 0),
    ],
)
def test_every_spelling_is_one_split(build, sizes, dim):
    p = check([f32(3, 6)], build)
    assert only(p).name == "aten.split_with_sizes"
    assert only(p).attributes == {"split_sizes": sizes, "dim": dim}


def test_overlapping_pieces_are_no_split():
    # tensor_split with indices that go back gives overlapping, or empty, pieces
    p = check([f32(6)], lambda b, x: b.call("aten.tensor_split.indices", x, [4, 2]))
    assert names(p) == ["aten.tensor_split.indices"]


def test_unbind_is_a_split_of_which_each_piece_is_reshaped():
    p = check([f32(2, 3)], lambda b, x: b.call("aten.unbind.int", x, -1))
    assert names(p) == ["aten.split_with_sizes", *["aten.reshape"] * 3]
    p = check([f32(1, 3)], lambda b, x: b.call("aten.unbind.int", x))
    assert names(p) == ["aten.reshape"]


def test_unbind_of_a_symbolic_dimension_elsewhere():
    p = program([f32(N, 2)], lambda b, x: b.call("aten.unbind.int", x, 1))
    assert names(canonicalize(symbolic(p))) == ["aten.split_with_sizes", "aten.reshape", "aten.reshape"]


def test_a_split_into_one_piece_goes():
    p = check([f32(2, 3)], lambda b, x: b.relu(b.call("aten.chunk", x, 1)))
    assert names(p) == ["aten.relu"]


def test_reshape_of_a_contiguous_copy_makes_the_copy_itself():
    def build(b, x, w):
        y = b.permute(b.reshape(b.linear(x, w), [2, 3, 2, 2]), [0, 2, 1, 3])
        return b.reshape(b.call("aten.contiguous", y), [4, 6])

    p = check([f32(2, 3, 5)], build, {"w": f32(4, 5)})
    assert names(p) == ["aten.linear", "aten.reshape", "aten.permute", "aten.reshape"]
    stays = check([f32(2, 3)], lambda b, x: b.reshape(b.call("aten.contiguous", x), [6]))
    assert names(stays) == ["aten.contiguous", "aten.reshape"]


@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 1, 6), (1, 2, 2, 1, 6), (24,), (2, 12)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_strides_of_reshapes_are_pytorchs(shape, order):
    x = torch.empty(2, 3, 4).permute(order)
    y = x.reshape(shape)
    is_view = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    layout = LayoutMap.strided(x.shape, x.stride())
    assert layout.is_view(shape) is is_view
    after = layout.view(shape) if is_view else LayoutMap.identity(shape)
    assert after is not None and after.strides is not None
    for size, ours, real in zip(shape, after.strides, y.stride(), strict=True):
        assert size == 1 or ours == real
