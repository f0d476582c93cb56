"""Attention whose keys and values are repeated for groups of queries becomes the operator that repeats them itself."""

from __future__ import annotations

from typing_extensions import override

from ir.core import Operation, Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.memory.strides import is_contiguous
from ir.types import Dim, dims_equal, shapes_equal, simplify_dim
from passes.fuse.attention import SDPA
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_EXPANDED = Example("""
    parameter %w : f32[o, 2*h*d]
    graph(%q : f32[n, 2*h, t, d], %k : f32[n, h, 1, s, d], %v : f32[n, h, 1, s, d], %mask : f32[t, s]) {
      %ks = aten.expand(%k) {size=[n, h, 2, s, d]}
      %vs = aten.expand(%v) {size=[n, h, 2, s, d]}
      %kr = aten.reshape(%ks) {shape=[n, 2*h, s, d]}
      %vr = aten.reshape(%vs) {shape=[n, 2*h, s, d]}
      %y = aten.scaled_dot_product_attention(%q, %kr, %vr, %mask)
      %t = aten.permute(%y) {dims=[0, 2, 1, 3]}
      %r = aten.reshape(%t) {shape=[n, t, 2*h*d]}
      %z = aten.linear(%r, %w, None)
      return %z
    }
""")
_REPEATED = _EXPANDED.changed(("expand(%k) {size=[n, h, 2, s, d]}", "repeat(%k) {repeats=[1, 1, 2, 1, 1]}"))
_INTERLEAVED = Example("""
    graph(%q : f32[n, 3*h, t, d], %k : f32[n, h, s, d], %v : f32[n, h, s, d]) {
      %kc = aten.contiguous(%k)
      %vc = aten.contiguous(%v)
      %kr = aten.repeat_interleave.self_int(%kc) {repeats=3, dim=1}
      %vr = aten.repeat_interleave.self_int(%vc) {repeats=3, dim=1}
      %y = aten.scaled_dot_product_attention(%q, %kr, %vr, None) {is_causal=True}
      return %y
    }
""")
_ONE_HEAD = Example("""
    graph(%q : f32[n, 4, t, d], %k : f32[n, 1, s, d], %v : f32[n, 1, s, d]) {
      %kc = aten.contiguous(%k)
      %vc = aten.contiguous(%v)
      %kr = aten.expand(%kc) {size=[n, 4, s, d]}
      %vr = aten.expand(%vc) {size=[n, 4, s, d]}
      %y = aten.scaled_dot_product_attention(%q, %kr, %vr, None)
      return %y
    }
""")


class GroupedQueryAttentionPattern(Pattern):
    """attention(q, repeat(k), repeat(v)) = attention(q, k, v, enable_gqa=True), each head repeated for its queries

    Repeated by `repeat_interleave`, or by expanding a new dimension, or repeating along it, and merging it with that of
    the heads. The strides of the result may depend on those of keys and values, so they must not show, or keys and
    values be contiguous.
    """

    is_conversion = True

    examples = (
        _EXPANDED,
        _EXPANDED.changed(("%kr = aten.reshape(%ks)", "%kx = aten.contiguous(%ks) %kr = aten.reshape(%kx)")),
        _REPEATED,
        _INTERLEAVED,
        _INTERLEAVED.changed(("None) {is_causal=True}", "None) {dropout_p=0.5}")),
        _ONE_HEAD,
        _EXPANDED.changed(
            ("%k : f32[n, h, 1, s, d]", "%k : f32[n, 1, h, s, d]"),
            ("%ks = aten.expand(%k) {size=[n, h, 2", "%ks = aten.expand(%k) {size=[n, 2, h"),
            refused="not repeated head by head",
        ),
        _INTERLEAVED.changed(
            ("(%vc) {repeats=3", "(%vc) {repeats=1"),
            ("%v : f32[n, h", "%v : f32[n, 3*h"),
            refused="not repeated for those of the query",
        ),
        _INTERLEAVED.changed(("[n, h, s", "[n, 0, s"), ("3*h", "0"), refused="not repeated for those of the query"),
        _INTERLEAVED.changed(("%kc = aten.contiguous(%k)", ""), ("%kc", "%k"), refused="its strides show"),
        _INTERLEAVED.changed(
            ("f32[n, h, s, d]", "f32[n, h, s, 1]"),
            ("f32[n, 3*h, t, d]", "f32[n, h, t, 3]"),
            ("dim=1", "dim=3"),
            refused="not repeated head by head",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        def repeated(name: str) -> Node:
            value = p.any(name)
            expanded = p.op("aten.expand", value, name=f"{name}_repeat")
            tiled = p.op("aten.repeat", value, name=f"{name}_repeat")
            interleaved = p.op("aten.repeat_interleave.self_int", value, name=f"{name}_repeat")
            apart = p.one_of(expanded, p.op("aten.contiguous", expanded), tiled)
            return p.one_of(p.reshape(apart), interleaved, expanded)

        query, mask = p.any("query"), p.any("mask", optional=True)
        return p.op(SDPA, query, repeated("key"), repeated("value"), mask, enable_gqa=False)

    @override
    def check(self, m: Match) -> str | None:
        """Demand keys and values whose heads are repeated alike, each for the queries next to each other."""
        query = m.query.known_shape
        if query is None or len(query) != 4:
            return f"the query is {m.query.type}, not of rank 4 and a known shape"
        for name, operand in (("key", m.root.input("key")), ("value", m.root.input("value"))):
            repeat: Operation = m[f"{name}_repeat"]
            shape = _unrepeated(repeat, operand)
            if shape is None:
                return f"the {name} is not repeated head by head at `{repeat.location.where}`"
            times = _times(operand.known_shape, shape)
            if times is None or times < 2 or not dims_equal(query[1], simplify_dim(shape[1] * times)):
                return f"the heads of the {name} are not repeated for those of the query at `{repeat.location.where}`"
            m.captures[f"{name}_shape"] = shape
        if not dims_equal(m.key_shape[1], m.value_shape[1]):
            return "key and value have other numbers of heads"
        old = m.root.result
        if (reaches_output(old) or reaches_view(old)) and not (is_contiguous(m.key) and is_contiguous(m.value)):
            return "its strides show in an output or decide about a view, and may depend on those of key and value"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        key, value = (
            each if shapes_equal(each.known_shape, shape) else b.op("aten.reshape", each, shape).result
            for each, shape in ((m.key, m.key_shape), (m.value, m.value_shape))
        )
        attributes = {**m.root.attributes, "enable_gqa": True}
        return b.op(SDPA, m.query, key, value, m.get("mask"), **attributes).result


def _unrepeated(repeat: Operation, result: Value) -> tuple[Dim, ...] | None:
    """Return the shape (batch, heads, tokens, size) of what is repeated to `result`; None where it is not so."""
    before, spread, after = repeat.operand_values[0].known_shape, repeat.result.known_shape, result.known_shape
    if before is None or spread is None or after is None or len(after) != 4:
        return None
    if repeat.name == "aten.repeat_interleave.self_int":
        dim = repeat.attributes["dim"]
        is_heads = len(before) == 4 and dim is not None and dim % 4 == 1
        return before if is_heads else None
    if repeat.result is result:  # of one head: all are next to each other
        is_one = len(before) == 4 and dims_equal(before[1], 1)
        return before if is_one and repeat.name == "aten.expand" and _alike(before, after, 1) else None
    if len(before) != 5 or len(spread) != 5 or not dims_equal(before[2], 1) or not _alike(before, spread, 2):
        return None
    shape = (*before[:2], *before[3:])
    return shape if _alike(shape, after, 1) else None


def _alike(a: tuple[Dim, ...], b: tuple[Dim, ...], dim: int) -> bool:
    """Return whether two shapes differ in one dimension at most."""
    return len(a) == len(b) and all(dims_equal(x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if i != dim)


def _times(after: tuple[Dim, ...] | None, before: tuple[Dim, ...]) -> int | None:
    """Return how often each head is there."""
    if after is None or before[1] == 0:
        return None
    times = simplify_dim(after[1] // before[1])
    return times if isinstance(times, int) and dims_equal(after[1], simplify_dim(before[1] * times)) else None
