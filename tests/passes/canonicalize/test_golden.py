"""Whole blocks before and after canonicalization, as text."""

from __future__ import annotations

import torch

from tests.golden.check import check_golden
from tests.passes.building import f32, program
from tests.passes.canonical import canonicalize, check_program


def golden(name, p):
    check_golden(p, f"passes/{name}_before")
    check_golden(check_program(p), f"passes/{name}_after")


def test_classifier_head():
    def build(b, x, weight):
        y = b.call("aten.hardtanh", x, 0.0, 6.0)
        y = b.call("aten.dropout", b.call("aten.mean.dim", y, [-1, -2]), 0.0, True)
        y = b.linear(b.call("aten.view", y, [2, -1]), weight)
        return b.softmax(b.call("aten.to.dtype", y, torch.float32), -1)

    golden("classifier_head", program([f32(2, 8, 4, 4)], build, {"fc.weight": f32(5, 8)}))


def test_attention():
    """The joint projection of `nn.MultiheadAttention`, as `torch.export` captures it, and its way back."""

    def build(b, x, weight):
        y = b.linear(b.transpose(b.layer_norm(x, [8]), 1, 0), weight)
        y = b.call("aten.unsqueeze", b.call("aten.unflatten.int", y, -1, [3, 8]), 0)
        y = b.call("aten.contiguous", b.call("aten.squeeze.dim", b.transpose(y, 0, -2), -2))
        heads = []
        for i in range(3):
            part = b.transpose(b.call("aten.view", b.call("aten.select.int", y, 0, i), [5, 4, 4]), 0, 1)
            heads.append(b.call("aten.view", part, [2, 2, 5, 4]))
        y = b.scaled_dot_product_attention(*heads)
        y = b.call("aten.contiguous", b.permute(y, [2, 0, 1, 3]))
        return b.transpose(b.call("aten.view", b.call("aten.view", y, [10, 8]), [5, 2, 8]), 1, 0)

    golden("attention", program([f32(2, 5, 8)], build, {"in_proj_weight": f32(24, 8)}))


def test_window_mask():
    """The mask of a shifted window is made of constants alone, though in the dtype of an operand."""

    def build(b, x):
        rows = b.cat([b.call("aten.new_zeros", x, [2]), b.call("aten.new_ones", x, [2])])
        gaps = b.call("aten.sub.Tensor", b.call("aten.unsqueeze", rows, 0), b.call("aten.unsqueeze", rows, 1))
        mask = b.call("aten.masked_fill.Scalar", gaps, b.call("aten.ne.Scalar", gaps, 0), -100.0)
        return b.softmax(b.call("aten.add.Tensor", x, b.call("aten.expand", mask, [3, 4, 4])), -1)

    golden("window_mask", program([f32(3, 4, 4)], build))


def test_inference():
    def build(b, x):
        y = b.call("aten.dropout", b.relu(x), 0.5, False)
        b.call("aten.dropout", y, 0.5, False)
        return b.call("aten.feature_dropout", b.relu(y), 0.5, False)

    p = program([f32(2, 3)], build)
    check_golden(canonicalize(p), "passes/dropout_training")
    check_golden(check_program(program([f32(2, 3)], build), inference=True), "passes/dropout_inference")
