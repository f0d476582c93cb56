"""What a decomposed program computes in many operators becomes one again, where the numbers are equal up to rounding.

Where the bits are the same, canonicalization does it (`passes/canonicalize/recompose.py`).
"""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.core import Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.program import WeightKind, weight_of
from ir.types import TensorType, dims_equal, shapes_equal
from passes.canonicalize.base import constant_data, filled_with
from passes.canonicalize.recompose import rows_of_linear
from passes.convert.activations import ACTIVATIONS
from passes.convert.grouped import GroupedQueryAttentionPattern
from passes.convert.layer_norms import RecomposeGroupNormPattern, RecomposeLayerNormPattern
from passes.convert.norms import RecomposeRMSNormPattern
from passes.convert.unread import RecomposeUnreadAttentionPattern
from passes.fuse.attention import SDPA
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_BATCHED = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%x : f32[n, t, c]) {
      %turned = aten.permute(%w) {dims=[1, 0]}
      %each = aten.expand(%turned) {size=[n, c, o]}
      %y = aten.bmm(%x, %each)
      %z = aten.add.Tensor(%y, %b)
      return %z
    }
""")
_ROWS = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%x : f32[n, t, c]) {
      %rows = aten.reshape(%x) {shape=[n*t, c]}
      %flat = aten.linear(%rows, %w, %b)
      %y = aten.reshape(%flat) {shape=[n, t, o]}
      return %y
    }
""")
_BIASED = Example("""
    parameter %w : f32[o, c]
    parameter %b : f32[o]
    graph(%x : f32[n, c]) { %y = aten.linear(%x, %w, None) %z = aten.add.Tensor(%y, %b) return %z }
""")


_AFFINE = _ROWS.changed(
    ("%w : f32[o, c]", "%w : f32[c, o]"), ("aten.linear(%rows, %w, %b)", "aten.addmm(%b, %rows, %w)")
)
_PRODUCT = Example("""
    parameter %w : f32[c, o]
    graph(%x : f32[n, t, c]) { %y = aten.matmul(%x, %w) return %y }
""")


class RecomposeLinearPattern(Pattern):
    """bmm(x, expand(wᵀ)) = linear(x, w), reshape(linear(reshape(x), w, b)) = linear(x, w, b), linear(x, w) + b likewise

    Also addmm(b, x, w) = linear(x, wᵀ, b), mm(x, w) = linear(x, wᵀ), and matmul(x, w) for x of any rank. What
    `run_decompositions()` makes of linear layers, and layers that keep their weights the other way round: w and b are
    weights.
    """

    is_conversion = True

    examples = (
        _BATCHED,
        _ROWS,
        _BIASED,
        _BIASED.changed(("(%y, %b)", "(%b, %y)")),
        _BIASED.changed(("%b : f32[o]", "%b : f32[1]"), refused="not one number a column"),
        _BIASED.changed(("return %z", "return %z, %y"), refused="used elsewhere"),
        _AFFINE,
        _AFFINE.changed(("addmm(%b, ", "mm(")),
        _PRODUCT,
        _PRODUCT.changed(("%x : f32[n, t, c]", "%x : f32[c]")),
        _PRODUCT.changed(("%w : f32[c, o]", "%w : f32[n, c, o]"), refused="no parameter of rank 2"),
        _PRODUCT.changed(
            ("f32[n, t, c]", "f32[n, c, c]"),
            ("f32[c, o]", "f32[c, c]"),
            ("(%x, %w)", "(%w, %x)"),
            refused="no parameter of rank 2",
        ),
        _AFFINE.changed(("(%b, %rows, %w)", "(%b, %rows, %w) {alpha=2}"), refused="alpha"),
        _AFFINE.changed(("%b : f32[o]", "%b : f32[1]"), refused="not one number a column"),
        _AFFINE.changed(("parameter %w : f32[c, o]", ""), ("graph(", "graph(%w : f32[c, o], "), refused="no parameter"),
        _AFFINE.changed(("f32", "i64"), refused="not rows of numbers"),
        _BATCHED.changed(("graph(", "graph(%u : f32[c, o], "), ("expand(%turned)", "expand(%u)"), refused="no weight"),
        _ROWS.changed(("shape=[n, t, o]", "shape=[t, n, o]"), refused="not reshaped back"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        x, w, b = p.any("x"), p.any("w"), p.any("b", optional=True)
        each = p.op("aten.expand", w, name="each")
        flat = p.linear(p.reshape(x, name="rows"), w, b, name="flat")
        plain = p.linear(x, w, None, name="plain")
        return p.one_of(
            p.op("aten.bmm", x, each, name="product"),
            p.reshape(flat),
            p.op("aten.add.Tensor", plain, p.any("b"), alpha=1),
            p.op("aten.addmm", p.any("b"), x, p.any("v"), alpha=1, beta=1),
            p.op(("aten.mm", "aten.matmul"), x, p.any("v")),
        )

    @override
    def check(self, m: Match) -> str | None:
        """Demand weights: one matrix for all, and one bias for all rows."""
        if m.get("flat") is not None:
            return rows_of_linear(m)
        if m.get("each") is not None:
            source = m.w.defining_op
            weight = m.w if source is None or source.name != "aten.permute" else source.operands[0]
            if weight_of(weight) is None or m.w.tensor_type.rank != 2:
                return "what is expanded is no weight of rank 2"
            return None if m.x.tensor_type.rank == 3 else "the rank of the operand is not known"
        if m.get("v") is not None:
            return _why_no_rows(m)
        columns, bias = m.w.known_shape, m.b.known_shape
        if weight_of(m.b) is None or columns is None or bias is None or len(columns) != 2:
            return "what is added is no weight of a known shape"
        if len(bias) != 1 or not dims_equal(bias[0], columns[0]) or m.b.tensor_type.dtype != m.w.tensor_type.dtype:
            return "what is added is not one number a column"
        return None if m.plain.result.has_one_use() else "the layer without its bias is used elsewhere"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        if m.get("each") is not None:
            return b.op("aten.linear", m.x, b.permute(m.w, (1, 0)), None).result
        if m.get("v") is not None:
            return b.op("aten.linear", m.x, b.permute(m.v, (1, 0)), m.get("b")).result
        return b.op("aten.linear", m.x, m.w, m.b).result


def _why_no_rows(m: Match) -> str | None:
    """Return why `addmm(b, x, v)` or `matmul(x, v)` is not a linear layer; None where it is."""
    weight, type_ = weight_of(m.v), m.v.tensor_type
    if weight is None or weight.kind is not WeightKind.PARAMETER or type_.rank != 2:
        return "the second factor is no parameter of rank 2"
    rank, dtype = m.x.tensor_type.rank, type_.dtype
    if not rank or dtype is None or not dtype.is_floating_point or m.x.tensor_type.dtype != dtype:
        return "the first factor is not rows of numbers of the dtype of the weight"
    if m.get("b") is not None:
        columns, bias = m.v.known_shape, m.b.known_shape
        if columns is None or bias is None or len(bias) != 1 or not dims_equal(bias[0], columns[1]):
            return "what is added is not one number a column"
        return None if m.b.tensor_type.dtype == dtype else "what is added has another dtype"
    return None


_COPIED = Example("""
    graph(%x : f32[n, h, t, d], %y : f32[n, h, d, s]) {
      %u = aten.clone(%x) {memory_format=torch.contiguous_format}
      %v = aten.clone(%y) {memory_format=torch.contiguous_format}
      %z = aten.matmul(%u, %v)
      return %z
    }
""")


class RecomposeMatmulPattern(Pattern):
    """matmul(contiguous copy of x, contiguous copy of y) = matmul(x, y): it makes the copies that it needs"""

    is_conversion = True

    examples = (
        _COPIED,
        _COPIED.changed(("matmul(%u, %v)", "matmul(%x, %v)")),
        _COPIED.changed(("[n, h, t, d]", "[t, d]"), ("[n, h, d, s]", "[d, s]"), refused="not batches of matrices"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        x, y = (p.op("aten.clone", p.any(name), name=f"copy_of_{name}") for name in ("x", "y"))
        left, right = p.any("x"), p.any("y")
        return p.one_of(p.matmul(x, y), p.matmul(x, right), p.matmul(left, y))

    @override
    def check(self, m: Match) -> str | None:
        """Demand batches of matrices: of other ranks, strides decide how the operator computes."""
        ranks = m.x.tensor_type.rank, m.y.tensor_type.rank
        if ranks[0] != ranks[1] or ranks[0] is None or ranks[0] < 3:
            return "the operands are not batches of matrices of one rank"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.matmul", m.x, m.y).result


_MATH = Example("""
    graph(%q : f32[n, h, t, d], %k : f32[n, h, s, d], %v : f32[n, h, s, e], %mask : f32[t, s]) {
      %turned = aten.permute(%k) {dims=[0, 1, 3, 2]}
      %qs = aten.mul.Scalar(%q) {other=0.75}
      %ks = aten.mul.Scalar(%turned) {other=0.75}
      %scores = aten.matmul(%qs, %ks)
      %masked = aten.add.Tensor(%scores, %mask)
      %weights = aten.softmax.int(%masked) {dim=3}
      %hidden = aten.eq.Scalar(%masked) {other=-inf}
      %seen = aten.logical_not(%hidden)
      %any = aten.any.dim(%seen) {dim=3, keepdim=True}
      %none = aten.logical_not(%any)
      %zeros = aten.full_like(%weights) {fill_value=0}
      %safe = aten.where.self(%none, %zeros, %weights)
      %y = aten.matmul(%safe, %v)
      return %y
    }
""")
_BOOL = _MATH.changed(
    ("%mask : f32", "%seen_by : bool"),
    (
        "%turned =",
        """%zero = aten.full() {size=[], fill_value=0.0}
      %low = aten.full() {size=[], fill_value=-inf}
      %mask = aten.where.self(%seen_by, %zero, %low)
      %turned =""",
    ),
)
_UNMASKED = _MATH.changed(
    (", %mask : f32[t, s]", ""), ("%masked = aten.add.Tensor(%scores, %mask)\n", ""), ("%masked", "%scores")
)


class RecomposeAttentionPattern(Pattern):
    """safe_softmax(√scale · q (√scale · k)ᵀ [+ mask]) v = scaled_dot_product_attention(q, k, v, mask, scale=scale)

    What `run_decompositions()` makes of the operator; rows that are masked wholly are 0 in both.
    """

    is_conversion = True
    closed = True

    examples = (
        _MATH,
        _BOOL,
        _UNMASKED,
        _UNMASKED.changed(("(%turned) {other=0.75}", "(%turned) {other=0.5}"), refused="scaled by different numbers"),
        _UNMASKED.changed(
            ("eq.Scalar(%scores)", "eq.Scalar(%ks2)"),
            ("%weights =", "%ks2 = aten.neg(%scores) %weights ="),
            refused="asked of other scores",
        ),
        _MATH.changed(("%mask : f32[t, s]", "%mask : f32[s]"), refused="rank"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        query = p.op("aten.mul.Scalar", p.any("query"), other=p.attr("scale"))
        key = p.op("aten.mul.Scalar", p.any("turned"), other=p.attr("key_scale"))
        scores = p.matmul(query, key, name="scores")
        masked = p.optional(lambda y: p.op("aten.add.Tensor", y, p.any("mask"), alpha=1, name="masked"), scores)
        weights = p.op("aten.softmax.int", masked, dim=-1, dtype=None, name="weights")
        hidden = p.op("aten.eq.Scalar", p.any("asked"), other=-math.inf)
        seen = p.op("aten.any.dim", p.logical_not(hidden), dim=-1, keepdim=True)
        zeros = p.one_of(p.op("aten.full_like", weights, name="made"), p.any("zeros"))
        safe = p.op("aten.where.self", p.logical_not(seen), zeros, weights)
        return p.matmul(safe, p.any("value"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand one scale, one set of scores, and a mask that the operator takes."""
        types = [value.type for value in (m.query, m.turned, m.value)]
        shapes = [value.known_shape for value in (m.query, m.turned, m.value)]
        query, turned, value = shapes
        if query is None or turned is None or value is None or {len(query), len(turned), len(value)} != {4}:
            return "query, key and value are not known to be of rank 4"
        if 0 in (*query, *turned, *value) or not (
            shapes_equal(query[:2], turned[:2]) and shapes_equal(query[:2], value[:2])
        ):
            return "query, key and value are not of one batch and number of heads"
        dtypes = {type_.dtype for type_ in types if isinstance(type_, TensorType)}
        if len(dtypes) != 1 or dtypes.pop() not in (torch.float32, torch.float64):
            return "query, key and value are not float32 or float64"
        if not isinstance(m.scale, float) or m.scale <= 0 or m.scale != m.key_scale:
            return "query and key are scaled by different numbers"
        if filled_with(m.made.result if m.get("made") else m.zeros) != 0 or m.asked is not m.weights.operands[0]:
            return "what is masked is asked of other scores, or filled with another number"
        return None if m.get("mask") is None else _why_no_mask(m)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        key = b.permute(m.turned, (0, 1, 3, 2))
        size = m.query.tensor_type.shape[3]
        scale = m.scale * m.scale
        if isinstance(size, int) and math.isclose(scale, 1 / math.sqrt(size), rel_tol=1e-14):
            scale = None
        mask = m.get("mask")
        is_causal = mask is not None and _is_causal(mask)
        mask = None if mask is None or is_causal else _as_bool(mask) or mask
        result = b.op(SDPA, m.query, key, m.value, mask, scale=scale, is_causal=is_causal).result
        old = m.root.result
        if reaches_output(old) or reaches_view(old):
            return b.op("aten.contiguous", result).result  # as the product is; the operator's result is not
        return result


def _why_no_mask(m: Match) -> str | None:
    mask, scores = m.mask.known_shape, m.scores.result.known_shape
    if (
        mask is None
        or scores is None
        or not 2 <= len(mask) <= 4
        or m.mask.tensor_type.dtype != m.query.tensor_type.dtype
    ):
        return "the mask is not of the dtype of the query, and of rank 2 to 4"
    if not shapes_equal(m.masked.result.known_shape, scores):
        return "the mask broadcasts the scores"
    return None


def _as_bool(mask: Value) -> Value | None:
    """Return the mask of which `mask` is 0 where it is true, and -inf elsewhere; None where there is none."""
    op = mask.defining_op
    if op is None or op.name != "aten.where.self":
        return None
    condition, true, false = op.operand_values
    is_mask = filled_with(true) == 0 and filled_with(false) == -math.inf and condition.tensor_type.dtype is torch.bool
    return condition if is_mask and shapes_equal(condition.known_shape, mask.known_shape) else None


def _is_causal(mask: Value) -> bool:
    """Return whether a mask is a constant that hides what comes later."""
    data = constant_data(mask)
    return data is not None and data.dim() == 2 and torch.equal(data, torch.full_like(data, -math.inf).triu(1))


RECOMPOSITIONS: tuple[type[Pattern], ...] = (
    RecomposeLinearPattern,
    RecomposeMatmulPattern,
    RecomposeAttentionPattern,
    RecomposeUnreadAttentionPattern,
    GroupedQueryAttentionPattern,
    RecomposeLayerNormPattern,
    RecomposeGroupNormPattern,
    RecomposeRMSNormPattern,
    *ACTIVATIONS,
)
"""What every target wants first: the operators that a decomposed program was made of."""
