"""Operators of decomposed programs are written as those of a fresh export, bit for bit."""

from __future__ import annotations

import pytest
import torch

from ir.types import TensorType, make_symbol
from tests.passes.building import f32, names, program
from tests.passes.canonical import canonicalize, check, symbolic

MAP = f32(2, 4, 6, 5)
N = make_symbol("n")


def convolution(b, x, w, bias=None, *, transposed=False, groups=1, **options):
    dims = x.tensor_type.rank - 2
    given = {"stride": (1,) * dims, "padding": (0,) * dims, "dilation": (1,) * dims, "output_padding": (0,) * dims}
    return b.call("aten.convolution", x, w, bias, transposed=transposed, groups=groups, **(given | options))


@pytest.mark.parametrize(("dims", "name"), [(1, "conv1d"), (2, "conv2d"), (3, "conv3d")])
def test_a_convolution_names_its_dimensions(dims, name):
    shape = (5, 4, 3)[:dims]
    body = lambda b, x, w, bias: convolution(b, x, w, bias, padding=(1,) * dims, stride=(2,) * dims, groups=2)  # noqa: E731
    p = check([f32(2, 4, *shape)], body, {"w": f32(6, 2, *(2,) * dims), "b": f32(6)})
    assert names(p) == [f"aten.{name}"]


def test_a_transposed_convolution_keeps_its_output_padding():
    body = lambda b, x, w: convolution(b, x, w, transposed=True, stride=(2, 3), output_padding=(1, 2))  # noqa: E731
    p = check([MAP], body, {"w": f32(4, 3, 3, 3)})
    assert names(p) == ["aten.conv_transpose2d.input"]
    (op,) = p.graph.operations()
    assert op.attributes["output_padding"] == (1, 2)


NATIVE = {
    "layer_norm": lambda b, x, w, v: b.call("aten.native_layer_norm", x, (5,), None, None, 1e-5)[0],
    "group_norm": lambda b, x, w, v: b.call("aten.native_group_norm", x, w, w, 2, 4, 30, 2, 1e-5)[0],
    "batch_norm": lambda b, x, w, v: b.call("aten._native_batch_norm_legit_no_training", x, w, w, w, v, 0.1, 1e-5)[0],
    "max_pool2d": lambda b, x, w, v: b.call("aten.max_pool2d_with_indices", x, (2, 2))[0],
    "softmax.int": lambda b, x, w, v: b.call("aten._softmax", x, -1, False),
    "log_softmax.int": lambda b, x, w, v: b.call("aten._log_softmax", x, 1, False),
}


@pytest.mark.parametrize("name", NATIVE)
def test_what_computes_more_than_is_asked_for(name):
    body = lambda b, x, w: NATIVE[name](b, x, w, b.abs(w))  # noqa: E731
    p = program([MAP], body, {"w": f32(4)})
    canonicalize(p)
    assert names(p)[-1] == f"aten.{name}"
    if name == "batch_norm":
        assert p.graph.return_op.operands[0].defining_op.attributes["follows_mode"] is False


def test_a_normalization_whose_statistics_are_used_stays():
    p = program([MAP], lambda b, x: tuple(b.call("aten.native_layer_norm", x, (5,), None, None, 1e-5)[:2]))
    assert names(canonicalize(p)) == ["aten.native_layer_norm"]


def test_a_matrix_product_with_a_weight_is_a_linear_layer():
    p = check([f32(3, 4)], lambda b, x, w, v: b.call("aten.addmm", v, x, b.call("aten.t", w)), WEIGHTS)
    assert names(p) == ["aten.linear"]
    p = check([f32(3, 4)], lambda b, x, w, v: b.add(b.call("aten.mm", x, b.call("aten.t", w)), v), WEIGHTS)
    assert names(p) == ["aten.linear", "aten.add.Tensor"]


WEIGHTS = {"w": f32(5, 4), "b": f32(5)}


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 6, 4)])
@pytest.mark.parametrize("splits", [False, True])
def test_rows_of_a_linear_layer_are_what_was_there_before(shape, splits):
    rows = shape[:-1]

    def body(b, x, w, v):
        flat = b.call("aten.addmm", v, b.call("aten.view", b.contiguous(x), (-1, 4)), b.call("aten.t", w))
        y = b.call("aten.view", flat, (*rows, 5))
        return b.call("aten.view", y, (*rows, 5, 1)) if splits else y

    p = check([f32(*shape)], body, WEIGHTS)
    assert [name for name in names(p) if name != "aten.contiguous"] == ["aten.linear", *["aten.reshape"] * splits]


def test_rows_of_what_may_not_be_contiguous_stay():
    body = lambda b, x, w, v: b.reshape(b.linear(b.reshape(x, (6, 4)), w, v), (2, 3, 5))  # noqa: E731
    assert names(check([f32(2, 3, 4)], body, WEIGHTS)) == ["aten.reshape", "aten.linear", "aten.reshape"]


def test_batches_of_matrices_are_one_product():
    def body(b, x, y):
        left, right = b.call("aten.view", x, (N * 3, 4, 5)), b.call("aten.view", y, (N * 3, 5, 2))
        return b.call("aten._unsafe_view", b.call("aten.bmm", left, right), (N, 3, 4, 2))

    p = symbolic(program([f32(N, 3, 4, 5), f32(N, 3, 5, 2)], body))
    assert names(canonicalize(p)) == ["aten.matmul"]


def test_a_copy_to_another_dtype_is_a_cast():
    p = check([f32(3, 4)], lambda b, x: b.neg(b.call("aten._to_copy", x, dtype=torch.float64)))
    assert names(p) == ["aten.to.dtype", "aten.neg"]
    p = check([f32(3, 4)], lambda b, x: b.call("aten._to_copy", x, dtype=torch.float32))
    assert names(p) == ["aten._to_copy"]


def test_integers_are_not_convolved_otherwise():
    integers = TensorType((1, 1, 3), torch.int64)
    p = program([integers, integers], convolution)
    assert names(canonicalize(p)) == ["aten.convolution"]
