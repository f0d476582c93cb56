"""Fusions of attention: the in-projection, and the scaled dot product written as one operator or out."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from ir.core import Operation, Value
from ir.types import TensorType, shapes_equal
from passes.attention import InProjection, find_in_projection
from passes.fuse.base import FusionPattern
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter

SDPA = "aten.scaled_dot_product_attention"
FUSED_SDPA = "fused.scaled_dot_product_attention"
_MATMULS = ("aten.matmul", "aten.bmm")
_SCALINGS = ("aten.mul.Scalar", "aten.div.Scalar")
_CASTS = ("aten.to.dtype",)


_ONE_OPERATOR = Example("""
    graph(%q : f32[n, h, t, d], %k : f32[n, h, s, d], %v : f32[n, h, s, d], %mask : f32[t, s]) {
      %y = aten.scaled_dot_product_attention(%q, %k, %v, %mask)
      return %y
    }
""")
_WRITTEN_OUT = Example("""
    graph(%q : f32[n, h, t, d], %k : f32[n, h, s, d], %v : f32[n, h, s, e], %mask : f32[t, s]) {
      %turned = aten.permute(%k) {dims=[0, 1, 3, 2]}
      %scores = aten.matmul(%q, %turned)
      %scaled = aten.mul.Scalar(%scores) {other=0.5}
      %masked = aten.add.Tensor(%scaled, %mask)
      %weights = aten.softmax.int(%masked) {dim=3}
      %dropped = aten.dropout(%weights) {p=0.5, train=False}
      %y = aten.matmul(%dropped, %v)
      return %y
    }
""")
_WINDOWS = Example("""
    graph(%q : f32[n*m, h, t, d], %k : f32[n*m, h, t, d], %bias : f32[t, t], %mask : f32[m, 1, t, t]) {
      %turned = aten.permute(%k) {dims=[0, 1, 3, 2]}
      %scores = aten.matmul(%q, %turned)
      %biased = aten.add.Tensor(%scores, %bias)
      %apart = aten.reshape(%biased) {shape=[n, m, h, t, t]}
      %masked = aten.add.Tensor(%apart, %mask)
      %back = aten.reshape(%masked) {shape=[n*m, h, t, t]}
      %weights = aten.softmax.int(%back) {dim=3}
      %y = aten.matmul(%weights, %k)
      return %y
    }
""")


_HALF = _WRITTEN_OUT.changed(
    ("f32", "bf16"),
    ("softmax.int(%masked) {dim=3}", "softmax.int(%wide) {dim=3}"),
    ("%weights =", "%wide = aten.to.dtype(%masked) {dtype=torch.float32} %weights ="),
    (
        "%dropped = aten.dropout(%weights)",
        "%narrow = aten.to.dtype(%weights) {dtype=torch.bfloat16} %dropped = aten.dropout(%narrow)",
    ),
)
_CAPPED = _WRITTEN_OUT.changed(
    ("(%scores) {other=0.5}", "(%scores) {other=0.0625}"),
    ("%masked = ", "%capped = aten.tanh(%scaled) %wide = aten.mul.Scalar(%capped) {other=4.0} %masked = "),
    ("add.Tensor(%scaled, ", "add.Tensor(%wide, "),
)
_BADDBMM = Example("""
    graph(%q : f32[n, t, d], %k : f32[n, s, d], %v : f32[n, s, e], %mask : f32[n, 1, s]) {
      %turned = aten.permute(%k) {dims=[0, 2, 1]}
      %scaled = aten.mul.Scalar(%q) {other=0.5}
      %masked = aten.baddbmm(%mask, %scaled, %turned)
      %weights = aten.softmax.int(%masked) {dim=2}
      %y = aten.bmm(%weights, %v)
      return %y
    }
""")


class ScaledDotProductAttentionPattern(FusionPattern):
    """softmax(scale · q kᵀ [· factor] [+ mask]) v = fused.scaled_dot_product_attention(q, k, v, [factor], [mask])

    Also the one operator. The written-out form may scale the query, the key or the product, multiply it by a factor (a
    temperature for each head) or cap it (c · tanh(scores / c), as Gemma 2 does), add up to two masks (one of them under
    another shape, as shifted windows have it), cast for the softmax and back, and drop out; softmax must be over the
    last dimension. Of a key that is permuted in one go into heads and transposed, the part that makes heads stays
    outside.
    """

    kind = "scaled_dot_product_attention"
    parts = ("attention", "drop")
    inputs = ("query", "key", "value", "factor", "mask", "mask2")
    quantization_points = ("query", "key", "value")

    examples = (
        _ONE_OPERATOR,
        _ONE_OPERATOR.changed(("f32[n, h, ", "f32["), refused="without a batch or head dimension"),
        _WRITTEN_OUT,
        _WRITTEN_OUT.changed(("%k : f32[n, h, s, d]", "%k : f32[n, s, h, d]"), ("[0, 1, 3, 2]", "[0, 2, 3, 1]")),
        _WRITTEN_OUT.changed(
            (
                "%q : f32[n, h, t, d], %k : f32[n, h, s, d], %v : f32[n, h, s, e]",
                "%q : f32[n, t, d], %k : f32[s, n, d], %v : f32[n, s, e]",
            ),
            ("[0, 1, 3, 2]", "[1, 2, 0]"),
            ("dim=3", "dim=2"),
        ),
        _WRITTEN_OUT.changed(
            ("mul.Scalar(%scores) {other=0.5}", "mul.Tensor(%scores, %f)"),
            ("%mask : f32", "%f : f32[h, 1, 1], %mask : f32"),
        ),
        _WRITTEN_OUT.changed(
            ("%masked =", "%biased = aten.add.Tensor(%scaled, %bias) %masked ="),
            ("(%scaled, %mask)", "(%biased, %mask)"),
            ("%mask : f32", "%bias : f32[h, t, s], %mask : f32"),
        ),
        _CAPPED,
        _CAPPED.changed(("%wide = aten.mul.Scalar(%capped) {other=4.0}", ""), ("(%wide, ", "(%capped, ")),
        _HALF,
        _BADDBMM,
        _WINDOWS,
        _WINDOWS.changed(("{shape=[n*m, h", "{shape=[1, n*m, h"), ("dim=3", "dim=4"), refused="their shape"),
        _WRITTEN_OUT.changed(
            (
                "%k : f32[n, h, s, d], %v : f32[n, h, s, e], %mask : f32[t, s]",
                "%k : f32[d], %v : f32[t, e], %mask : f32[t]",
            ),
            ("[0, 1, 3, 2]", "[0]"),
            ("dim=3", "dim=2"),
            refused="a rank below 2",
        ),
        _WRITTEN_OUT.changed(
            ("%q : f32", "%q : i64"),
            ("%scores = aten.matmul(%q", "%half = aten.mul.Scalar(%q) {other=0.5}\n  %scores = aten.matmul(%half"),
            ("  %scaled = aten.mul.Scalar(%scores) {other=0.5}\n", ""),
            ("add.Tensor(%scaled", "add.Tensor(%scores"),
        ),
        _WRITTEN_OUT.changed(
            ("%scores = aten.matmul(%q", "%half = aten.mul.Scalar(%q) {other=0.5}\n  %scaled = aten.matmul(%half"),
            ("  %scaled = aten.mul.Scalar(%scores) {other=0.5}\n", ""),
            ("%mask : f32", "%mask : bool"),
            ("add.Tensor(%scaled, %mask)", "masked_fill.Scalar(%scaled, %mask) {value=-inf}"),
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        query, key, value = p.any("query"), p.any("key"), p.any("value")
        one = p.op(SDPA, query, key, value, p.any("mask", optional=True), name="attention")
        scaled_query = p.one_of(p.op(_SCALINGS, query), query)
        transposed = p.permute(key, name="transpose", where=_has_matrices)
        scaled_key = p.one_of(p.op(_SCALINGS, transposed), transposed)
        product = p.op(_MATMULS, scaled_query, scaled_key)
        scaled = p.chain(_SCALINGS, product, maximum=2)
        capped = p.chain(_SCALINGS, p.op("aten.tanh", scaled, name="cap"), maximum=1)
        scores = p.one_of(capped, p.mul(product, p.any("factor")), scaled)
        mask, mask2 = p.any("mask"), p.any("mask2")
        masked = p.op("aten.add.Tensor", scores, mask, alpha=1)
        windows = p.op("aten.add.Tensor", p.reshape(masked, name="apart"), mask2, alpha=1)
        reshaped = p.reshape(windows, name="back")
        both = p.op("aten.add.Tensor", masked, mask2, alpha=1)
        filled = p.op("aten.masked_fill.Scalar", scores, mask)
        begun = p.op("aten.baddbmm", mask, scaled_query, scaled_key, alpha=1, beta=1)
        logits = p.chain(_CASTS, p.one_of(reshaped, both, masked, filled, begun, scores), maximum=1)
        weights = p.op("aten.softmax.int", logits, where=_over_last_dim)
        after = p.chain((*_CASTS, "aten.dropout"), weights, "after", maximum=2)
        return p.one_of(one, p.op(_MATMULS, after, value))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        """Move the attention into a region; a permutation that does more than transpose the key stays outside."""
        transpose: Operation | None = m.get("transpose")
        if transpose is not None:
            rank = len(transpose.attributes["dims"])
            *front, last, before = [d % rank for d in transpose.attributes["dims"]]
            heads = [*front, before, last]
            if heads != sorted(heads):
                with b.at(transpose, transpose.location):
                    m.captures["key"] = b.permute(m.key, heads)
                    swap = (*range(rank - 2), rank - 1, rank - 2)
                    m.captures["transpose"] = inner = b.op("aten.permute", m.key, swap)
                b.replace_value(transpose.result, inner.result)
                b.erase(transpose)
                m.ops[m.ops.index(transpose)] = inner
        super().rewrite(m, b)

    @override
    def check(self, m: Match) -> str | None:
        """Refuse what is not attention over (…, tokens, head_dim)."""
        drops = [op for op in m.get("after") or () if op.name == "aten.dropout"]
        if len(drops) > 1:
            return "it drops out twice"
        for op in m.ops:
            if op.name in _CASTS and not op.attributes["dtype"].is_floating_point:
                return f"it is cast to {op.attributes['dtype']} at `{op.location.where}`"
        if drops:
            m.captures["drop"] = drops[0]
        query = m.query.type
        if isinstance(query, TensorType) and query.rank is not None and query.rank < 3:
            return f"the query is {query}, without a batch or head dimension"
        types = [value.type for value in (m.query, m.key, m.value)]
        dtypes = dict.fromkeys(t.dtype for t in types if isinstance(t, TensorType) and t.dtype is not None)
        if len(dtypes) > 1:
            return f"query, key and value are {', '.join(map(str, dtypes))}, not of one dtype"
        names = [m.get(name) for name in ("factor", "mask", "mask2")]
        inner = {result for op in m.ops for result in op.results}
        if any(value in inner for value in (m.query, m.key, m.value, *names) if value is not None):
            return "an operand of the attention is computed inside of it"
        return _other_shape(m.get("apart"), m.get("back"))


def _other_shape(apart: Operation | None, back: Operation | None) -> str | None:
    """Return why scores reshaped for a mask do not provably get their own shape back."""
    if apart is None or back is None:
        return None
    before, after = apart.operand_values[0].type, back.result.type
    if isinstance(before, TensorType) and isinstance(after, TensorType) and shapes_equal(before.shape, after.shape):
        return None
    return f"reshape at `{back.location.where}` does not provably give the scores their shape {before} back"


def _has_matrices(op: Operation) -> str | None:
    if len(op.attributes["dims"]) >= 2:
        return None
    return f"the key at `{op.location.where}` has a rank below 2"


def _over_last_dim(op: Operation) -> str | None:
    type_ = op.result.type
    rank = type_.rank if isinstance(type_, TensorType) else None
    dim = op.attributes["dim"]
    if dim == -1 or (rank is not None and dim == rank - 1):
        return None
    return f"softmax at `{op.location.where}` is over dimension {dim}, not the last"


SELF_ATTENTION = Example("""
    parameter %w : f32[3*h*d, h*d]
    graph(%x : f32[n, t, h*d]) {
      %y = aten.linear(%x, %w, None)
      %a, %b, %c = aten.split_with_sizes(%y) {split_sizes=[h*d, h*d, h*d], dim=2}
      %a4 = aten.reshape(%a) {shape=[n, t, h, d]}
      %b4 = aten.reshape(%b) {shape=[n, t, h, d]}
      %c4 = aten.reshape(%c) {shape=[n, t, h, d]}
      %q = aten.permute(%a4) {dims=[0, 2, 1, 3]}
      %k = aten.permute(%b4) {dims=[0, 2, 1, 3]}
      %v = aten.permute(%c4) {dims=[0, 2, 1, 3]}
      %z = aten.scaled_dot_product_attention(%q, %k, %v, None)
      return %z
    }
""")
"""Attention over one joint projection that is split into heads."""
_SPLIT = "%a, %b, %c = aten.split_with_sizes(%y) {split_sizes=[h*d, h*d, h*d], dim=2}"
_SLICES = """%a = aten.slice.Tensor(%y) {dim=2, start=0, end=h*d}
%b = aten.slice.Tensor(%y) {dim=2, start=h*d, end=2*h*d}
%c = aten.slice.Tensor(%y) {dim=2, start=2*h*d, end=3*h*d}"""
_FUSED = SELF_ATTENTION.changed(
    (
        "%z = aten.scaled_dot_product_attention(%q, %k, %v, None)",
        """%z = fused.scaled_dot_product_attention(%q, %k, %v)
    {kind="scaled_dot_product_attention", parts=["attention"], quantization_points=["query", "key", "value"]}
    body(%query : f32[n, h, t, d], %key : f32[n, h, t, d], %value : f32[n, h, t, d]) {
      %y = aten.scaled_dot_product_attention(%query, %key, %value, None)
      return %y
    }""",
    )
)
_SEPARATE = SELF_ATTENTION.changed(
    ("parameter %w : f32[3*h*d", "parameter %u : f32[h*d, h*d]\nparameter %w : f32[h*d"),
    ("%y = aten.linear(%x, %w, None)", "%a = aten.linear(%x, %w, None)"),
    (_SPLIT, "%b = aten.linear(%x, %u, None)\n%c = aten.linear(%x, %w, None)"),
)


class MHAInProjectionPattern(Pattern):
    """(heads(q), heads(k), heads(v)) with q, k, v = linear(x) = fused.mha_in_projection(x, w, b, ...)

    One joint projection, or three of one input; whatever layout operations lead to (B, H, N, D) are accepted when they
    provably split into heads. Anchored at the attention that uses query, key and value.
    """

    is_fusion = True
    exact = True
    check_adds: ClassVar[int] = 3
    kind = "mha_in_projection"
    quantization_points = ("input",)

    examples = (
        SELF_ATTENTION,
        _FUSED,
        _SEPARATE,
        _SEPARATE.changed(("h*d", "1"), ("h, d", "1, 1")),
        SELF_ATTENTION.changed((_SPLIT, _SLICES), ("[n, t, h", "[t, n, h"), ("[0, 2, 1, 3]", "[1, 2, 0, 3]")),
        _SEPARATE.changed(
            ("graph(", "graph(%other : f32[n, t, h*d], "),
            ("linear(%x, %u", "linear(%other, %u"),
            refused="projections of different inputs",
        ),
        SELF_ATTENTION.changed(("(%q, %k,", "(%k, %q,"), refused="not split into heads in the order"),
        SELF_ATTENTION.changed(  # of all tokens but the first
            (
                "%y = aten.linear(%x, %w, None)",
                "%all = aten.linear(%x, %w, None)\n%y = aten.slice.Tensor(%all) {dim=1, start=1}",
            ),
            ("[n, t, h, d]", "[n, t - 1, h, d]"),
            refused="not split into heads in the order",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        """Match the attention as context; the check finds the projection behind its operands."""
        return p.op((SDPA, FUSED_SDPA), name="attention", context=True)

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand projections of one input that nothing else uses."""
        attention: Operation = m.attention
        if not {"query", "key", "value"} <= _operand_names(attention):
            return "the attention has no separate query, key and value"
        source = attention.input("query").defining_op
        if source is not None and source.name == "fused.mha_in_projection":
            return Refusal("it is done", near=False)
        found = find_in_projection(*(attention.input(name) for name in ("query", "key", "value")))
        if isinstance(found, str):
            return f"attention at `{attention.location.where}`: {found}"
        if found.shared:
            owner = found.shared[0].defining_op
            assert owner is not None
            return f"the output of {owner.name} at `{owner.location.where}` has users besides the attention"
        m.captures["projection"] = found
        m.ops[:] = found.ops
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        """Move the projections and the split into a region with results query, key and value."""
        found: InProjection = m.projection
        fuse_in_projection(
            b, found.ops, found.x, found.linears, [m.attention.input(n) for n in ("query", "key", "value")]
        )


def _operand_names(op: Operation) -> set[str]:
    return set(op.opdef.operand_index) if op.body is None else {value.name for value in op.body.inputs}


def fuse_in_projection(
    b: Rewriter, ops: tuple[Operation, ...], x: Value, linears: tuple[Operation, ...], outputs: list[Value]
) -> Operation:
    """Make `ops` the region of an in-projection with results query, key and value."""
    names = ("in_proj",) if len(linears) == 1 else ("q_proj", "k_proj", "v_proj")
    return b.fuse(
        MHAInProjectionPattern.kind,
        ops,
        parts=dict(zip(linears, names, strict=True)),
        inputs={x: "input"},
        quantization_points=MHAInProjectionPattern.quantization_points,
        outputs=outputs,
    )
