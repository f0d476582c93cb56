"""Operators of decomposed programs become those that a model was written in, where the bits are the same."""

from __future__ import annotations

import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.memory.strides import is_contiguous
from ir.program import WeightKind, weight_of
from ir.types import dims_equal, product, shapes_equal
from passes.canonicalize.base import (
    Rule,
    first,
    is_floating,
    rank_of,
    shape_of,
    tensor,
)
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_CONVOLUTION = Example("""
    parameter %w : f32[o, c, 3, 3]
    parameter %b : f32[o]
    graph(%x : f32[n, c, 5, 4]) {
      %y = aten.convolution(%x, %w, %b) {stride=[1, 1], padding=[1, 1], dilation=[1, 1], transposed=False,
        output_padding=[0, 0], groups=1}
      return %y
    }
""")


class SpellConvolution(Rule):
    """convolution(x, w, b, …) = conv2d(x, w, b, …), and transposed, and in one or three dimensions"""

    examples = (
        _CONVOLUTION,
        _CONVOLUTION.changed(("[1, 1]", "[2]"), ("[0, 0]", "[0]"), ("3, 3]", "2, 2]")),
        _CONVOLUTION.changed(("f32[o, c,", "f32[c, o,"), ("=False", "=True")),
        _CONVOLUTION.changed((", 3, 3]", ", 3]"), (", 5, 4]", ", 5]"), ("[1, 1]", "[1]"), ("[0, 0]", "[0]")),
        _CONVOLUTION.changed(("f32", "i64"), refused="not of floating point"),
        _CONVOLUTION.changed(refused="not known", unknown="all"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.convolution")

    @override
    def check(self, m: Match) -> str | None:
        """Demand known ranks of one to three dimensions, with a batch."""
        x = first(m.root)
        rank = rank_of(x)
        if rank is None or rank not in (3, 4, 5) or rank_of(m.root.input("weight")) != rank:
            return "the ranks are not known, or not those of maps and their weights"
        return None if is_floating(x) else "the map is not of floating point"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        attributes = dict(m.root.attributes)
        dims = len(first(m.root).tensor_type.shape or ()) - 2
        if attributes.pop("transposed"):
            name = f"aten.conv_transpose{dims}d" + (".input" if dims > 1 else "")
        else:
            name = f"aten.conv{dims}d"
            attributes.pop("output_padding")
        return b.op(name, *m.root.operands, **attributes).result


class SpellNative(Rule):
    """native_layer_norm(x, …)[0] = layer_norm(x, …), and what else computes more than its caller asked for

    Batch, layer and group normalization, pools with indices, softmax. The other results must be unused.
    """

    examples = (
        Example("""
            parameter %w : f32[c]
            graph(%x : f32[n, c]) {
              %y, %m, %r = aten.native_layer_norm(%x, %w, None) {normalized_shape=[c], eps=1e-05}
              return %y
            }
        """),
        Example("""
            parameter %w : f32[c]
            buffer %mean : f32[c]
            buffer %var : f32[c]
            graph(%x : f32[n, c, h]) {
              %y, %m, %r = aten._native_batch_norm_legit_no_training(%x, %w, None, %mean, %var)
                {momentum=0.1, eps=1e-05}
              return %y
            }
        """),
        Example("""
            parameter %w : f32[c]
            graph(%x : f32[n, c, h]) {
              %y, %m, %r = aten.native_group_norm(%x, %w, None) {N=n, C=c, HxW=h, group=1, eps=1e-05}
              return %y
            }
        """),
        Example(
            "graph(%x : f32[n, c, 4, 4]) { %y, %i = aten.max_pool2d_with_indices(%x) {kernel_size=[2]} return %y }"
        ),
        Example("graph(%x : f32[n, c]) { %y = aten._softmax(%x) {dim=1, half_to_float=False} return %y }"),
        Example("graph(%x : f32[n, c]) { %y = aten._log_softmax(%x) {dim=-1, half_to_float=False} return %y }"),
        Example(
            "graph(%x : f32[n, c, 4, 4]) { %y, %i = aten.max_pool2d_with_indices(%x) {kernel_size=[2]} return %y, %i }",
            refused="another result is used",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        native = ("aten.native_layer_norm", "aten.native_group_norm", "aten._native_batch_norm_legit_no_training")
        pools = ("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices")
        return p.op((*native, *pools, "aten._softmax", "aten._log_softmax"), name="op")

    @override
    def check(self, m: Match) -> str | None:
        """Demand that only the first result is used, and sizes that are those of the operand."""
        op: Operation = m.op
        if any(not result.is_unused for result in op.results[1:]):
            return "another result is used"
        attributes = op.attributes
        if attributes.get("half_to_float"):
            return "the dtype changes"
        if op.name == "aten.native_group_norm":
            shape = shape_of(first(op))
            given = (attributes["N"], attributes["C"], attributes["HxW"])
            if shape is None or len(shape) < 2 or 0 in shape:
                return "the shape is not known, or empty"
            if not shapes_equal(given, (shape[0], shape[1], product(shape[2:]))):
                return "the sizes are not those of the operand"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        op: Operation = m.op
        x, attributes = first(op), op.attributes
        if op.name == "aten.native_group_norm":
            new = b.op("aten.group_norm", x, attributes["group"], *op.operands[1:], attributes["eps"])
        elif op.name == "aten._native_batch_norm_legit_no_training":
            new = b.op(
                "aten.batch_norm", *op.operands, training=False, cudnn_enabled=True, follows_mode=False, **attributes
            )
        elif op.name == "aten.native_layer_norm":
            new = b.op("aten.layer_norm", x, attributes["normalized_shape"], *op.operands[1:], attributes["eps"])
        elif op.name in ("aten._softmax", "aten._log_softmax"):
            new = b.op(f"aten.{op.opdef.short_name[1:]}.int", x, attributes["dim"])
        else:
            new = b.op(op.name.removesuffix("_with_indices"), x, **attributes)
        b.replace_value(op.results[0], new.result)
        b.erase(op)


_AFFINE = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%x : f32[n, c]) { %t = aten.permute(%w) {dims=[1, 0]} %y = aten.addmm(%b, %x, %t) return %y }
""")


class SpellAddmm(Rule):
    """addmm(b, x, wᵀ) = linear(x, w, b), and mm(x, wᵀ) = linear(x, w) for a weight w; matmul likewise"""

    examples = (
        _AFFINE,
        _AFFINE.changed(("addmm(%b, %x", "mm(%x")),
        _AFFINE.changed(("addmm(%b, %x", "matmul(%x"), ("%x : f32[n, c]", "%x : f32[n, t, c]")),
        _AFFINE.changed(("addmm(%b, %x", "matmul(%x"), ("%x : f32[n, c]", "%x : f32[c]")),
        _AFFINE.changed(("%x, %t)", "%x, %t) {alpha=2}"), refused="scaled"),
        _AFFINE.changed(("%b : f32[o]", "%b : f32[n, o]"), refused="not one number a column"),
        _AFFINE.changed(
            ("addmm(%b, %x", "mm(%x"), ("(%x :", "(%w2 : f32[o, c], %x :"), ("(%w)", "(%w2)"), refused="no parameter"
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        turned = p.op("aten.permute", p.any("w"), dims=(1, 0))
        x = p.any("x")
        return p.one_of(
            p.op("aten.addmm", p.any("b"), x, turned, name="sum"), p.op(("aten.mm", "aten.matmul"), x, turned)
        )

    @override
    def check(self, m: Match) -> str | None:
        """Demand a plain sum with one number a column, or a weight."""
        if m.get("b") is None:
            weight = weight_of(m.w)
            is_trained = weight is not None and weight.kind is WeightKind.PARAMETER
            return None if is_trained else "the matrix is no parameter"
        if m.sum.attributes["alpha"] != 1 or m.sum.attributes["beta"] != 1:
            return "the product or the sum is scaled"
        rows, bias = shape_of(m.w), shape_of(m.b)
        if rows is None or bias is None or len(bias) != 1 or not dims_equal(bias[0], rows[0]):
            return "the bias is not one number a column"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.linear", m.x, m.w, m.get("b")).result


_ROWS = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%u : f32[n, t, c]) {
      %x = aten.contiguous(%u)
      %rows = aten.reshape(%x) {shape=[n*t, c]}
      %flat = aten.linear(%rows, %w, %b)
      %y = aten.reshape(%flat) {shape=[n, t, o]}
      return %y
    }
""")
_PLAIN_ROWS = _ROWS.changed(("%w, %b)", "%w, None)"))


def rows_of_linear(m: Match) -> str | None:
    """Return why `reshape(linear(reshape(x)))` is not a linear layer over the last dimension of x; None if it is."""
    shape, rows, flat, target = map(shape_of, (m.x, m.rows.result, m.flat.result, m.root.result))
    if shape is None or rows is None or flat is None or target is None or 0 in shape:
        return "a shape is not known, or empty"
    if len(shape) < 3 or len(rows) != 2 or not dims_equal(shape[-1], rows[-1]):
        return "the operand is not reshaped to rows"
    if not shapes_equal(target, (*shape[:-1], flat[-1])):
        return "the result is not reshaped back"
    return None if m.flat.result.has_one_use() else "the rows are used elsewhere"


class LinearOfRows(Rule):
    """reshape(linear(reshape(x, (n * t, c)), w, b), (n, t, o)) = linear(x, w, b), x: f[n, t, c] contiguous"""

    examples = (
        _ROWS,
        _PLAIN_ROWS.changed(("n, t, c]", "n, t, 2, c]"), ("n, t, o]", "n, t, 2, o]"), ("[n*t", "[n*t*2")),
        _ROWS.changed(("contiguous", "relu"), refused="computed in another way"),
        _ROWS.changed(("shape=[n, t, o]", "shape=[t, n, o]"), refused="not reshaped back"),
        _ROWS.changed(("return %y", "return %y, %flat"), refused="used elsewhere"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        rows = _reshaped(p, p.any("x"), "rows")
        flat = p.linear(rows, p.any("w"), p.any("b", optional=True), name="flat")
        return _reshaped(p, flat)

    @override
    def check(self, m: Match) -> str | None:
        """Demand rows that are split back as they were, and an operand of which PyTorch makes rows."""
        reason = rows_of_linear(m)
        if reason is not None:
            return reason
        return None if is_contiguous(m.x) else "with an operand of these strides, it is computed in another way"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.linear", m.x, m.w, m.b).result


def _reshaped(p: PatternBuilder, x: Node, name: str = "") -> Node:
    """Return a pattern for a reshape of `x`, before it is respelled: merged with the next one, it tells less."""
    return p.op(("aten.reshape", "aten.view"), x, name=name)


_BATCHES = Example("""
    graph(%x : f32[n, h, a, b], %y : f32[n, h, b, c]) {
      %u = aten.reshape(%x) {shape=[n*h, a, b]}
      %v = aten.reshape(%y) {shape=[n*h, b, c]}
      %z = aten.bmm(%u, %v)
      %r = aten.reshape(%z) {shape=[n, h, a, c]}
      return %r
    }
""")


class MatmulOfBatches(Rule):
    """reshape(bmm(reshape(x, (n * h, a, b)), reshape(y, (n * h, b, c))), (n, h, a, c)) = matmul(x, y)"""

    examples = (
        _BATCHES,
        _BATCHES.changed(("[n, h, a, c]", "[h, n, a, c]"), refused="not reshaped back"),
        _BATCHES.changed(("%y : f32[n, h, b", "%y : f32[h, n, b"), refused="not batches of matrices"),
        _BATCHES.changed(("return %r", "return %r, %z"), refused="used elsewhere"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        left, right = _reshaped(p, p.any("x"), "left"), _reshaped(p, p.any("y"), "right")
        return _reshaped(p, p.bmm(left, right, name="product"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand batches that are merged, and split back as they were."""
        x, y, left, right, target = map(shape_of, (m.x, m.y, m.left.result, m.right.result, m.root.result))
        if x is None or y is None or left is None or right is None or target is None or 0 in target:
            return "a shape is not known, or empty"
        if len(x) < 4 or len(x) != len(y) or not shapes_equal(x[:-2], y[:-2]):
            return "the operands are not batches of matrices of one shape"
        if not (shapes_equal(x[-2:], left[-2:]) and shapes_equal(y[-2:], right[-2:])):
            return "the matrices are reshaped"
        if not shapes_equal(target, (*x[:-1], y[-1])):
            return "the product is not reshaped back"
        return None if m.product.result.has_one_use() else "the product is used elsewhere"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.matmul", m.x, m.y).result


_CAST = Example("""
    graph(%x : f32[n, a]) { %y = aten._to_copy(%x) {dtype=torch.float64} %z = aten.neg(%y) return %z }
""")


class SpellToCopy(Rule):
    """_to_copy(x, dtype) = to(x, dtype), where x has another dtype"""

    examples = (
        _CAST,
        _CAST.changed(("torch.float64", "torch.float32"), refused="dtype stays"),
        _CAST.changed(("{dtype", "{memory_format=torch.contiguous_format, dtype"), refused="other than a dtype"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten._to_copy", p.any("x"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a cast that copies, and nothing else."""
        attributes, type_ = m.root.attributes, tensor(m.x)
        result = tensor(m.root.result)
        if type_ is None or result is None or type_.dtype is None or type_.device is None:
            return "the dtype is not known"
        if type_.dtype == result.dtype:
            return "the dtype stays"
        if type_.device != result.device or attributes["layout"] not in (None, torch.strided):
            return "other than a dtype is given"
        if attributes["pin_memory"] or attributes["memory_format"] not in (None, torch.preserve_format):
            return "other than a dtype is given"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        attributes = m.root.attributes
        return b.op("aten.to.dtype", m.x, attributes["dtype"], attributes["non_blocking"]).result


RECOMPOSING_RULES = (
    SpellConvolution,
    SpellNative,
    SpellAddmm,
    LinearOfRows,
    MatmulOfBatches,
    SpellToCopy,
)
