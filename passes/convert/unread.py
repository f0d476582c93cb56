"""Attention whose weights nobody reads becomes the operator."""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.core import Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.memory.layout import trace_back
from ir.types import Dim, dims_equal
from passes.canonicalize.base import constant_data
from passes.fuse.attention import SDPA
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter

_UNREAD = Example("""
    parameter %w : f32[3*h*d, h*d]
    parameter %o : f32[h*d, h*d]
    graph(%x : f32[t, n, h*d]) {
      %y = aten.linear(%x, %w, None)
      %a, %b, %c = aten.split_with_sizes(%y) {split_sizes=[h*d, h*d, h*d], dim=2}
      %a3 = aten.reshape(%a) {shape=[t, n*h, d]}
      %b3 = aten.reshape(%b) {shape=[t, n*h, d]}
      %c3 = aten.reshape(%c) {shape=[t, n*h, d]}
      %q = aten.permute(%a3) {dims=[1, 0, 2]}
      %k = aten.permute(%b3) {dims=[1, 2, 0]}
      %v = aten.permute(%c3) {dims=[1, 0, 2]}
      %s = aten.mul.Scalar(%q) {other=0.5}
      %scores = aten.bmm(%s, %k)
      %weights = aten.softmax.int(%scores) {dim=2}
      %z = aten.bmm(%weights, %v) loc("attention", "MultiheadAttention")
      %turned = aten.permute(%z) {dims=[1, 0, 2]}
      %rows = aten.reshape(%turned) {shape=[t*n, h*d]}
      %r = aten.linear(%rows, %o, None)
      return %r
    }
""")
_MASKED = _UNREAD.changed(
    ("graph(%x", "graph(%mask : f32[1, t, t], %x"), ("= aten.bmm(%s, %k)", "= aten.baddbmm(%mask, %s, %k)")
)


class RecomposeUnreadAttentionPattern(Pattern):
    """softmax(scale · q kᵀ [+ mask]) v = scaled_dot_product_attention(q, k, v, mask), q: f[B * H, N, D]

    What an `nn.MultiheadAttention` computes that was asked for its weights (`need_weights=True`, the default), where
    nothing reads them. A row of the mask that hides all is NaN here and 0 in the operator: masks are constants without.
    """

    is_conversion = True
    closed = True

    examples = (
        _UNREAD,
        _UNREAD.changed(("{shape=[t*n, h*d]}", "{shape=[t, n, h*d]}")),
        _UNREAD.changed(('loc("attention", "MultiheadAttention")', ""), refused="not part of"),
        _UNREAD.changed(("return %r", "return %r, %z"), refused="strides show"),
        _MASKED.changed(refused="mask is no constant"),
        _MASKED.changed(("graph(%mask : f32[1, t, t], %x", "constant %mask : f32[1, t, t] graph(%x")),
        _UNREAD.changed(
            ("parameter %w : f32[3*h*d, h*d]", ""),
            ("graph(", "graph(%w : f32[t, n, 3*h*d], "),
            ("aten.linear(%x, %w, None)", "aten.neg(%w)"),
            refused="not come from",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        products = ("aten.bmm", "aten.matmul")
        query, key = p.op("aten.mul.Scalar", p.any("query"), other=p.attr("scale")), p.any("key")
        begun = p.op("aten.baddbmm", p.any("mask"), query, key, alpha=1, beta=1)
        weights = p.op("aten.softmax.int", p.one_of(p.op(products, query, key), begun), dim=-1, dtype=None)
        return p.op(products, weights, p.any("value"))

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand heads of a known number, and a mask that leaves each query a key."""
        if m.root.location.class_name != "MultiheadAttention":
            return Refusal("it is not part of an nn.MultiheadAttention", near=False)
        types = [value.tensor_type for value in (m.query, m.key, m.value)]
        if any(type_.rank != 3 or type_.shape is None or 0 in type_.shape for type_ in types):
            return "query, key and value are not known to be of rank 3"
        if len({type_.dtype for type_ in types}) != 1 or types[0].dtype not in (torch.float32, torch.float64):
            return "query, key and value are not float32 or float64"
        if not isinstance(m.scale, float) or m.scale <= 0:
            return f"the query is multiplied by {m.scale}"
        if reaches_output(m.root.result) or reaches_view(m.root.result):
            return "its strides show in an output or decide about a view"
        if _heads(m) is None:
            return "the query does not come from a linear projection to heads of a known number"
        if m.get("mask") is None:
            return None
        data = constant_data(m.mask)
        if data is None or data.dim() != 3 or data.shape[0] != 1 or data.dtype != types[0].dtype:
            return "the mask is no constant of shape (1, tokens, tokens)"
        return "the mask hides all keys from a query" if bool((data == -math.inf).all(-1).any()) else None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        heads = _heads(m)
        assert heads is not None
        query, key, value = (
            b.op("aten.reshape", x, (*heads, *shape[1:])).result
            for x in (m.query, b.permute(m.key, (0, 2, 1)), m.value)
            for shape in (x.tensor_type.shape,)
        )
        size = m.query.tensor_type.shape[2]
        scale = m.scale
        if isinstance(size, int) and math.isclose(scale, 1 / math.sqrt(size), rel_tol=1e-14):
            scale = None
        mask = m.get("mask")
        if mask is not None:
            mask = b.op("aten.reshape", mask, mask.tensor_type.shape[1:]).result
        result = b.op(SDPA, query, key, value, mask, scale=scale).result
        return b.op("aten.reshape", result, m.root.result.tensor_type.shape).result


def _heads(m: Match) -> tuple[Dim, int] | None:
    """Return the sizes of the batch and of the heads, which the first dimension of the query holds."""
    (source, _), (other, _) = trace_back(m.query), trace_back(m.key)
    linear, shape = source.defining_op, source.known_shape
    size = m.query.tensor_type.shape[2]
    if linear is None or linear.name != "aten.linear" or shape is None or len(shape) != 3 or not isinstance(size, int):
        return None
    width = shape[2] if other is not source else shape[2] // 3 if isinstance(shape[2], int) else None
    if not isinstance(width, int) or width % size:
        return None
    batch = next(
        (dim for dim in (shape[1], shape[0]) if dims_equal(dim * (width // size), m.query.tensor_type.shape[0])), None
    )
    return None if batch is None else (batch, width // size)
