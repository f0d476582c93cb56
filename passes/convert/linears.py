"""Sibling linears become one: the projections of one input to queries, keys and values, or to a gate and its values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from typing_extensions import override

from ir.core import Operation, Value
from ir.memory.aliasing import aliases_output, is_written, reaches_view
from ir.program import Weight, weight_of
from ir.types import TensorType
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Pattern, PatternBuilder, Tree
from passes.rewrite.rewriter import Rewriter

_SCORES = Example("""
    parameter %attn.q.weight : f32[d, c] requires_grad
    parameter %attn.k.weight : f32[d, c] requires_grad
    graph(%x : f32[n, t, c]) {
      %q = aten.linear(%x, %attn.q.weight, None)
      %k = aten.linear(%x, %attn.k.weight, None)
      %turned = aten.permute(%k) {dims=[0, 2, 1]}
      %y = aten.matmul(%q, %turned)
      return %y
    }
""")
_GATE = Example("""
    parameter %gate.weight : f32[d, c] requires_grad
    parameter %gate.bias : f32[d] requires_grad
    parameter %up.weight : f32[d, c] requires_grad
    parameter %up.bias : f32[d] requires_grad
    parameter %down.weight : f32[c, d] requires_grad
    graph(%x : f32[n, c]) {
      %g = aten.linear(%x, %gate.weight, %gate.bias)
      %s = aten.silu(%g)
      %u = aten.linear(%x, %up.weight, %up.bias)
      %h = aten.mul.Tensor(%s, %u)
      %y = aten.linear(%h, %down.weight, None)
      return %y
    }
""")


_VIEWED = Example("""
    parameter %a : f32[d, c] requires_grad
    parameter %b : f32[d, c] requires_grad
    graph(%x : f32[n, t, c]) {
      %g = aten.linear(%x, %a, None)
      %u = aten.linear(%x, %b, None)
      %rows = aten.view(%g) {size=[n, t*d]}
      %others = aten.view(%u) {size=[n, t*d]}
      %y = aten.mul.Tensor(%rows, %others)
      return %y
    }
""")
_VECTORS = Example("""
    parameter %a : f32[c]
    parameter %b : f32[c]
    graph(%x : f32[n, c]) {
      %g = aten.linear(%x, %a, None)
      %u = aten.linear(%x, %b, None)
      %y = aten.mul.Tensor(%g, %u)
      return %y
    }
""")


class MergeLinearsPattern(Pattern):
    """linear(x, w₁, b₁), …, linear(x, wₙ, bₙ) = split(linear(x, cat(w₁, …, wₙ), cat(b₁, …, bₙ)))

    All read one x, and have weights that nothing else reads; all have a bias, or none. The results are views of one
    tensor, so no output may be one of them or a view of it. Their dimensions lie in the same order as before, and what
    is computed from them has the same strides. The joint weight is trained as its parts were.
    """

    is_conversion = True

    examples = (
        _SCORES,
        _SCORES.changed((" requires_grad", "")),
        _GATE,
        _GATE.changed(
            ("%gate.weight, %gate.bias)", "%gate.weight, None)"), ("%up.weight, %up.bias)", "%up.weight, None)")
        ),
        _GATE.changed((" requires_grad", ""), ("f32", "f64")),
        _GATE.changed(("%up.weight : f32[d, c] requires_grad", "%up.weight : f32[d, c]"), refused="is trained, and"),
        _GATE.changed(("%up.weight, %up.bias)", "%up.weight, None)"), refused="has a bias, and"),
        _GATE.changed(refused="not known rows of features", unknown="all"),
        _VECTORS.changed(refused="not known rows of features"),
        _VIEWED.changed(refused="must be viewed without a copy"),
        _GATE.changed(
            ("parameter %up.weight : f32[d, c] requires_grad", "buffer %up.weight : f32[d, c] mutated"),
            refused="up.weight is mutated by the model",
        ),
        _SCORES.changed(("(%x :", "(%z : f32[n, t, c], %x :"), ("(%x, %attn.k", "(%z, %attn.k"), refused="no other"),
        _SCORES.changed(("%x, %attn.k.weight", "%x, %attn.q.weight"), refused="is read elsewhere too"),
        _SCORES.changed(("return %y", "return %y, %k"), refused="shows in an output"),
        _SCORES.changed(
            ("(%x :", "(%w : f32[d, c], %x :"), ("(%x, %attn.q.weight", "(%x, %w"), refused="is computed, not a weight"
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Tree:
        x = p.any("x")
        linear = p.linear(x, p.any("w"), p.any("b", optional=True), where=_why_apart)
        return p.siblings(linear, x, "linears", alike=lambda a, b: _unlike(a.root, b.root))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Sequence[Value]:
        linears: tuple[Match, ...] = m.linears
        weight = _joined(b, [each.w for each in linears])
        bias = None if m.b is None else _joined(b, [each.b for each in linears])
        y = b.linear(m.x, weight, bias)
        sizes = [each.w.tensor_type.shape[0] for each in linears]
        return b.op("aten.split_with_sizes", y, sizes, y.tensor_type.rank - 1).results


def _joined(b: Rewriter, values: Sequence[Value]) -> Value:
    return b.weight(b.cat(values, 0), joint_name([weight.name for value in values if (weight := weight_of(value))]))


def joint_name(names: Sequence[str]) -> str:
    """Return a name for what several weights become: `attn.q_k.weight` for `attn.q.weight` and `attn.k.weight`."""
    parts = [name.split(".") for name in names]
    start = _alike(parts)
    end = _alike([part[start:][::-1] for part in parts])
    middle = ["_".join(part[start : len(part) - end]) for part in parts]
    first = parts[0]
    return ".".join([*first[:start], "_".join(filter(None, middle)), *first[len(first) - end :]])


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """Return how many first items of some sequences are equal."""
    rows = zip(*parts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda row: len(set(row)) == 1, rows))


def _why_apart(op: Operation) -> str | None:
    """Return why a linear cannot be merged with any other; None where it can."""
    type_ = op.result.type
    if not isinstance(type_, TensorType) or type_.rank is None or op.input("weight").tensor_type.rank != 2:
        return f"its result is {type_}, not known rows of features"
    for value in op.operand_values[1:]:
        weight = weight_of(value)
        if weight is None:
            return f"{value.name or 'an operand'} is computed, not a weight"
        if weight.is_mutated:
            return f"{weight.name} is mutated by the model"
        if weight.aliases or not value.has_one_use():
            return f"{weight.name} is read elsewhere too, or has two names"
    if aliases_output(op.result):
        return "its result shows in an output, and would be a view of a larger tensor there"
    if is_written(op.result) or reaches_view(op.result):
        return "its result is mutated, or must be viewed without a copy"
    return None


def _unlike(a: Operation, b: Operation) -> str | None:
    """Return why two linears cannot be one; None where they can."""
    biases = a.operand("bias"), b.operand("bias")
    if (biases[0] is None) != (biases[1] is None):
        return "one has a bias, and the other has none"
    for mine, theirs in zip(map(weight_of, a.operand_values[1:]), map(weight_of, b.operand_values[1:]), strict=True):
        if mine is not None and theirs is not None:
            reason = _unlike_weights(mine, theirs)
            if reason is not None:
                return reason
    return None


def _unlike_weights(a: Weight, b: Weight) -> str | None:
    if a.requires_grad != b.requires_grad:
        trained, other = (a, b) if a.requires_grad else (b, a)
        return f"{trained.name} is trained, and {other.name} is not"
    if (a.type.dtype, a.type.device) != (b.type.dtype, b.type.device):
        return f"{a.name} is {a.type}, and {b.name} is {b.type}"
    if (a.kind, a.persistent) != (b.kind, b.persistent):
        return f"{a.name} is a {a.kind.value}, and {b.name} is not, or not in the state_dict"
    return None
