"""nn.MultiheadAttention becomes an in-projection, a scaled dot product and an output projection."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from typing_extensions import override

from ir.attributes import Attribute
from ir.core import Operation, Value
from ir.memory.aliasing import reaches_output
from ir.memory.layout import LayoutMap
from ir.types import Dim, TensorType
from passes.attention import InProjection, find_in_projection
from passes.fuse.attention import SDPA, SELF_ATTENTION, ScaledDotProductAttentionPattern, fuse_in_projection
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter

MHA = "nn.multihead_attention"


@attrs.frozen(eq=False)
class _OutProjection:
    """The way from the attention's result to the module's: heads merged, a linear, layout operations."""

    linear: Operation
    ops: tuple[Operation, ...]
    result: Value
    """The module's result: (B, N, E), or (N, B, E) when not `batch_first`."""
    batch_first: bool
    inner_batch_first: bool
    """Whether the linear works on (B, N, E), or a reshape of it."""


_LEAF = Example("""
    parameter %w : f32[3*h*d, h*d]
    parameter %o : f32[h*d, h*d]
    graph(%x : f32[n, t, h*d], %mask : f32[t, t]) {
      %y, %weights = nn.multihead_attention(%x, %x, %x, %w, None, %o, None, None, None, None, None, None, None, %mask)
        {num_heads=h, embed_dim=h*d, batch_first=True}
      return %y
    }
""")
_EXPORTED = SELF_ATTENTION.changed(
    ("parameter %w", "parameter %o : f32[h*d, h*d]\nparameter %w"),
    ("%v, None)", '%v, None) loc("attention", "MultiheadAttention")'),
    (
        "return %z",
        """%merged = aten.permute(%z) {dims=[0, 2, 1, 3]}
  %flat = aten.reshape(%merged) {shape=[n, t, h*d]}
  %r = aten.linear(%flat, %o, None)
  return %r""",
    ),
)
_TOKENS_FIRST = _EXPORTED.changed(
    ("[n, t, h", "[t, n, h"),
    ("4) {dims=[0, 2, 1, 3]", "4) {dims=[1, 2, 0, 3]"),
    ("z) {dims=[0, 2, 1, 3]", "z) {dims=[2, 0, 1, 3]"),
)
_TURNED = _TOKENS_FIRST.changed(
    ("graph(%x : f32[t, n, h*d]) {", "graph(%u : f32[n, t, h*d]) {\n  %x = aten.permute(%u) {dims=[1, 0, 2]}"),
    ("return %r", "%turned = aten.transpose.int(%r) {dim0=0, dim1=1} return %turned"),
)
_ROWS = _TURNED.changed(
    ("{shape=[t, n, h*d]}", "{shape=[t*n, h*d]}"),
    ("%r = aten", "%rows = aten"),
    ("%turned = ", "%r = aten.reshape(%rows) {shape=[t, n, h*d]}\n  %turned = "),
)
"""What torch.export makes of a module that is `batch_first`."""


class DecomposeMultiheadAttentionPattern(Pattern):
    """mha(x, x, x) = linear(merge(attention(*in_projection(x)))), x: f[B, N, E]

    From a leaf module in an FX graph, or from what torch.export made of the module: both give the same three parts.
    """

    is_conversion = True

    examples = (
        _LEAF,
        _LEAF.changed(("f32[n, t,", "f32[t, n,"), ("=True", "=False"), ("%mask)\n", "None)\n")),
        _LEAF.changed(("f32[n, t,", "f32[t,")),
        _LEAF.changed(("first=True", "first=True, training=True, dropout=0.5")),
        _LEAF.changed(("f32[n, t,", "f32[t, n,"), ("first=True", "first=False, dropout=0.5")),
        _EXPORTED,
        _EXPORTED.changed((", None) loc(", ", None) {dropout_p=0.5} loc(")),
        _TOKENS_FIRST,
        _TURNED,
        _TURNED.changed(("return %turned", "return %turned, %r")),
        _ROWS,
        _LEAF.changed(("%x, %x, %x", "%x, %x, %u"), ("graph(", "graph(%u : f32[n, t, h*d], "), refused="(cross-"),
        _LEAF.changed(("%mask : f32", "%mask : bool"), refused="not floating point of shape (tokens, tokens)"),
        _LEAF.changed(refused="not floating point of shape (tokens, tokens)", unknown="all"),
        _EXPORTED.changed(("(%z) {dims=[0, 2, 1, 3]", "(%z) {dims=[0, 2, 3, 1]"), refused="not merged in the order"),
        _EXPORTED.changed(
            ("%merged = aten.permute(%z)", "%act = aten.relu(%z)\n  %merged = aten.permute(%act)"),
            refused="not merged by layout operations",
        ),
        _ROWS.changed(
            ("%r = aten.reshape(%rows) {shape=[t, n, h*d]}\n  %turned = aten.transpose.int(%r) {dim0=0, dim1=1} ", ""),
            ("return %turned", "return %rows"),
            refused="does not get the shape of its input back",
        ),
        _LEAF.changed(("=True}", "=True, is_causal=True}"), refused="it is called with is_causal=True"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op((MHA, SDPA), name="attention")

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Refuse cross-attention, masks that the module treats in its own way, and averaged weights that are used."""
        if m.attention.name == MHA:
            return _check_module(m.attention)
        return _check_exported(m)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        if m.attention.name == MHA:
            _rewrite_module(m.attention, b)
        else:
            _rewrite_exported(m, b)


# --- a leaf module ------------------------------------------------------------------------------------------


def _left(op: Operation, reason: str) -> str:
    return f"MultiheadAttention at `{op.location.where}` is left as it is: {reason}"


def _check_module(op: Operation) -> Refusal | None:
    def refuse(reason: str) -> Refusal:
        return Refusal(_left(op, reason), warn=True)

    query, key, value = op.operand("query"), op.operand("key"), op.operand("value")
    attributes = op.attributes
    if not (query is key is value):
        return refuse("query, key and value are not the same (cross-attention)")
    if op.operand("in_proj_weight") is None:
        return refuse("it has separate weights for query, key and value")
    if op.operand("bias_k") is not None or op.operand("bias_v") is not None:
        return refuse("it has add_bias_kv=True")
    if attributes["add_zero_attn"]:
        return refuse("it has add_zero_attn=True")
    if not op.results[1].is_unused:
        return refuse("its attention weights are used (need_weights=True)")
    if op.operand("key_padding_mask") is not None:
        return refuse("it is called with a key_padding_mask")
    if attributes["is_causal"]:
        return refuse("it is called with is_causal=True")
    mask = op.operand("attn_mask")
    if mask is not None:
        type_ = mask.type
        known = isinstance(type_, TensorType) and type_.shape is not None and type_.dtype is not None
        if not known or not type_.dtype.is_floating_point or len(type_.shape) != 2:  # type: ignore[union-attr,arg-type]
            return refuse(f"its attn_mask is {type_}, not floating point of shape (tokens, tokens)")
    if not attributes["batch_first"] and (query is None or query.tensor_type.rank not in (2, 3)):
        return refuse("it has batch_first=False and the rank of its input is unknown")
    return None


def _rewrite_module(op: Operation, b: Rewriter) -> None:
    x, batch_first = op.input("query"), bool(op.attributes["batch_first"])
    alone = x.tensor_type.rank == 2
    if alone:
        # The module makes a batch of one of it, and so must this: the kernels of attention for rank 3 and for rank 4
        # put NaN in other places.
        x, batch_first = b.op("aten.unsqueeze", x, 0).result, True
    elif not batch_first:
        x = b.permute(x, (1, 0, 2))
    training, dropout = bool(op.attributes["training"]), float(op.attributes["dropout"])
    heads, embed = int(op.attributes["num_heads"]), int(op.attributes["embed_dim"])
    query, key, value = _in_projection(
        b, x, op.input("in_proj_weight"), op.operand("in_proj_bias"), heads, embed // heads
    )
    attended = _attention(
        b,
        query,
        key,
        value,
        op.operand("attn_mask"),
        {"dropout_p": dropout if training else 0.0, "train_dropout_p": dropout},
    )
    old = op.results[0]
    weight, bias = op.input("out_proj_weight"), op.operand("out_proj_bias")
    result = _merge_heads(b, attended, weight, bias, batch_first=batch_first, keep_strides=_shows(old))
    if alone:
        result = b.op("aten.squeeze.dim", result, 0).result
    b.replace_value(old, result)
    b.erase(op)  # in training it draws numbers, as its parts do now: dead code with an effect would stay


# --- what torch.export makes of the module ------------------------------------------------------------------


def _check_exported(m: Match) -> str | Refusal | None:
    op: Operation = m.attention
    if op.location.class_name != "MultiheadAttention":
        return Refusal("it is not part of an nn.MultiheadAttention", near=False)
    found = find_in_projection(op.input("query"), op.input("key"), op.input("value"))
    if isinstance(found, str):
        return _left(op, found)
    if len(found.linears) != 1:
        return _left(op, "it has separate weights for query, key and value")
    out = _find_out_projection(op)
    if isinstance(out, str):
        return _left(op, out)
    if found.shared:
        return _left(op, "its projections have other users")
    m.captures["projection"], m.captures["out"] = found, out
    m.ops[:] = [*found.ops, op, *out.ops]
    return None


def _find_out_projection(attention: Operation) -> _OutProjection | str:
    type_ = attention.result.tensor_type
    if not type_.is_known or type_.rank != 4:
        return f"the attention's result is {type_}"
    batch, heads, tokens, size = type_.shape  # type: ignore[misc]
    ops: list[Operation] = []
    current: LayoutMap | None = LayoutMap.identity((batch, heads, tokens, size))
    value = attention.result
    while True:
        if len(value.users) != 1:
            return "the attention's result has several users"
        user = value.users[0]
        if user.name == "aten.linear" and user.operands[0] is value:
            break
        current = current.step(user) if current is not None and len(user.results) == 1 else None
        if current is None:
            return f"the heads are not merged by layout operations, but used by {user.name}"
        ops.append(user)
        value = user.result
    linear, shape = user, value.tensor_type.shape
    out_shape = linear.result.tensor_type.shape
    assert shape is not None and out_shape is not None and current is not None
    for batch_first, order in ((True, (0, 2, 1, 3)), (False, (2, 0, 1, 3))):
        merged = LayoutMap.identity((batch, heads, tokens, size)).permute(order).reshape(shape)
        if merged is not None and current.same_as(merged):
            return _follow_result(linear, [*ops, linear], (batch, tokens, out_shape[-1]), batch_first)
    return "the heads are not merged in the order of multi-head attention"


def _follow_result(
    linear: Operation, ops: list[Operation], shape: tuple[Dim, Dim, Dim], batch_first: bool
) -> _OutProjection | str:
    """Walk on to where the result has the shape (B, N, E), or else (N, B, E)."""
    whole = LayoutMap.identity(shape)
    swapped = whole.permute((1, 0, 2))
    value = linear.result
    current = (whole if batch_first else swapped).reshape(value.tensor_type.shape or ())
    best: _OutProjection | None = None
    while current is not None:
        if current.same_as(whole):
            return _OutProjection(linear, tuple(ops), value, True, batch_first)
        if current.same_as(swapped) and best is None:
            best = _OutProjection(linear, tuple(ops), value, False, batch_first)
        if len(value.users) != 1:
            break
        user = value.users[0]
        current = current.step(user) if len(user.results) == 1 and len(user.operand_values) == 1 else None
        ops.append(user)
        if current is not None:
            value = user.result
    return best or "its result does not get the shape of its input back"


def _rewrite_exported(m: Match, b: Rewriter) -> None:
    found: InProjection = m.projection
    out: _OutProjection = m.out
    x, linear = found.x, found.linears[0]
    b.location = linear.location
    if not found.batch_first:
        x = b.permute(x, (1, 0, 2))
    query, key, value = _in_projection(
        b, x, linear.input("weight"), linear.operand("bias"), found.heads, found.head_dim
    )
    attention: Operation = m.attention
    attended = _attention(b, query, key, value, attention.operand("attn_mask"), attention.attributes)
    weight, bias = out.linear.input("weight"), out.linear.operand("bias")
    keep = not out.inner_batch_first and _shows(out.result)
    with b.at(out.linear, linear.location):  # its weight may be computed, below the root
        result = _merge_heads(b, attended, weight, bias, batch_first=out.batch_first, keep_strides=keep)
    b.replace_value(out.result, result)


# --- the three parts ----------------------------------------------------------------------------------------


def _in_projection(
    b: Rewriter, x: Value, weight: Value, bias: Value | None, heads: int, head_dim: int
) -> tuple[Value, Value, Value]:
    width = heads * head_dim
    linear = b.op("aten.linear", x, weight, bias)
    split = b.op("aten.split_with_sizes", linear.result, (width, width, width), -1)
    ops, outputs = [linear, split], []
    for part, name in zip(split.results, ("query", "key", "value"), strict=True):
        unflattened = b.op("aten.unflatten.int", part, -1, (heads, head_dim))
        moved = b.op("aten.transpose.int", unflattened.result, -3, -2, names=(name,))
        ops += [unflattened, moved]
        outputs.append(moved.result)
    region = fuse_in_projection(b, tuple(ops), x, (linear,), outputs)
    query, key, value = region.results
    return query, key, value


def _attention(
    b: Rewriter, query: Value, key: Value, value: Value, mask: Value | None, attributes: Mapping[str, Attribute]
) -> Value:
    op = b.op(SDPA, query, key, value, mask, **attributes)
    inputs = {query: "query", key: "key", value: "value"}
    if mask is not None:
        inputs[mask] = "mask"
    rule = ScaledDotProductAttentionPattern
    points, outputs = rule.quantization_points, [op.result]
    region = b.fuse(
        rule.kind, [op], parts={op: "attention"}, inputs=inputs, quantization_points=points, outputs=outputs
    )
    return region.result


def _shows(value: Value) -> bool:
    """Whether the strides of a result of rank 3, or of unknown rank, are observable."""
    type_ = value.type
    return isinstance(type_, TensorType) and type_.rank in (3, None) and reaches_output(value)


def _merge_heads(
    b: Rewriter, attended: Value, weight: Value, bias: Value | None, *, batch_first: bool, keep_strides: bool
) -> Value:
    """Merge the heads and project.

    The module computes its result as (N, B, E) and transposes it where it is `batch_first`; so does this where a caller
    sees the strides (`keep_strides`), and computes (B, N, E) elsewhere.
    """
    if keep_strides:
        merged = b.op("aten.movedim.int", attended, -2, 0).result
    else:
        merged = b.op("aten.transpose.int", attended, -3, -2).result
    flat = b.op("aten.flatten.using_ints", merged, -2, -1).result
    result: Value = b.op("aten.linear", flat, weight, bias).result
    return b.op("aten.movedim.int", result, 0, -2).result if batch_first == keep_strides else result
