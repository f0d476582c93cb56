"""Integers go as far as they can: what moves or chooses elements comes before `quant.dequantize`.

So an integer kernel meets what it reads, and a quantization with equal parameters what it undoes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import override

from ir.columns import Layout
from ir.core import Operation, Value
from ir.memory.aliasing import aliases_output, reaches_output, reaches_view
from ir.memory.strides import is_dense
from ir.opdef import ParamKind, Trait, get_opdef, operators_with
from ir.program import weight_of
from passes.canonicalize.base import Rule
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_DENSE = (Layout.RESHAPE, Layout.PERMUTE)
"""Layouts of operators that keep dense what is dense: an elementwise operation behind them has their strides."""
_MOVED = (*_DENSE, Layout.EXPAND, Layout.SELECT, Layout.SLICE, Layout.SPLIT)
MOVES = operators_with(lambda facts: Trait.LAYOUT in facts.traits and facts.layout in _MOVED and facts.spelled is None)
"""Operators in their canonical spelling that only move elements of one operand."""
CHOOSERS = tuple(
    [
        name
        for name in operators_with(lambda facts: Trait.SELECTS in facts.traits)
        if [param.kind for param in get_opdef(name).operand_params] == [ParamKind.TENSOR]
    ]
)
"""Operators that choose elements of one operand by their order."""


def fault_of_move(move: Operation, x: Value, results: Sequence[Value]) -> str | None:
    """Return why a move of `x` cannot change places with an elementwise operation; None if nobody can tell.

    The results of both together then have other strides, and share memory or do not.
    """
    if len(move.operands) != move.num_schema_operands:
        return "a size is computed"
    if move.opdef.layout in _DENSE and is_dense(x):
        return None
    if any(reaches_output(result) or reaches_view(result) for result in results):
        return "the strides of what is moved are observable"
    if len(results) > 1 and any(map(aliases_output, results)):
        return "the pieces share memory"
    return None


def fault_of_scale(scale: Value) -> str | None:
    """Return why a scale may be zero, negative or not finite; None if it is a weight, as far as its data tells."""
    weight = weight_of(scale)
    if weight is None or weight.is_mutated:
        return "the scale is computed, so that it may not be positive"
    data = weight.data
    if data is not None and not data.is_meta and not bool(((data > 0) & data.isfinite()).all()):
        return "the scale is not positive"
    return None


def _dequantized(p: PatternBuilder, q: str, name: str = "") -> Node:
    return p.op(
        "quant.dequantize", p.any(q), p.any("scale"), p.any("zero"), name=name, axis=None, dtype=p.attr("dtype")
    )


_MOVE = Example("""
    buffer %scale : f32[]
    buffer %zero : u8[]
    graph(%q : u8[n, a, b]) {
      %x = quant.dequantize(%q, %scale, %zero)
      %y = aten.permute(%x) {dims=[1, 2, 0]}
      return %y
    }
""")

_SLICED = "aten.slice.Tensor(%x) {dim=2, start=1}"
_SLICED = "aten.slice.Tensor(%x) {dim=2, start=1}"
_PERMUTED = "aten.permute(%x) {dims=[1, 2, 0]}"


_PIECES = _MOVE.changed(
    ("[n, a, b]", "[n + 1, a, b]"),
    ("%y = aten.permute(%x) {dims=[1, 2, 0]}", "%u, %v = aten.split_with_sizes(%x) {split_sizes=[1, n], dim=0}"),
    ("return %y", "%y = aten.softmax.int(%u) {dim=0} %z = aten.softmax.int(%v) {dim=0} return %y, %z"),
)


class DequantizeBehindMove(Rule):
    """move(dequantize(q, s, z)) = dequantize(move(q), s, z)

    For one scale; with a scale for each index of an axis the move would take the axis elsewhere.
    """

    examples = (
        _MOVE,
        _MOVE.changed((_PERMUTED, "aten.reshape(%x) {shape=[n*a, b]}")),
        _MOVE.changed(
            (_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"),
            ("return %y", "%z = aten.softmax.int(%y) {dim=0} return %z"),
        ),
        _MOVE.changed((_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"), refused="strides of what is moved"),
        _MOVE.changed(("return %y", "return %y, %x"), refused="used elsewhere"),
        _PIECES,
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(MOVES, _dequantized(p, "q", "inner"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand that nothing else reads the numbers, and that strides stay or do not matter."""
        if not m.inner.result.has_one_use():
            return "the numbers are used elsewhere"
        return fault_of_move(m.root, m.q, m.root.results)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Sequence[Value]:
        moved = b.op(m.root.opdef, m.q, **m.root.attributes).results
        return tuple([_dequantize_as(m.inner, piece, b) for piece in moved])


def _dequantize_as(old: Operation, q: Value, b: Rewriter) -> Value:
    """Return what integers stand for with the parameters of another dequantization."""
    return b.op("quant.dequantize", q, *old.operands[1:], **old.attributes, location=old.location).result


_POOL = Example("""
    buffer %scale : f32[]
    buffer %zero : i8[]
    graph(%q : i8[2, 3, 6, 6]) {
      %x = quant.dequantize(%q, %scale, %zero)
      %y = aten.max_pool2d(%x) {kernel_size=[3, 3], stride=[2, 2], padding=[1, 1]}
      return %y
    }
""")


class DequantizeBehindMaxPool(Rule):
    """max_pool(dequantize(q, s, z)) = dequantize(max_pool(q), s, z), s > 0

    A positive scale keeps the order. An average is no element: average pooling stays where it is.
    """

    examples = (
        _POOL,
        _POOL.changed(("return %y", "return %y, %x"), refused="used elsewhere"),
        _POOL.changed(("buffer %scale : f32[]", ""), ("(%q :", "(%scale : f32[], %q :"), refused="may not be positive"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(CHOOSERS, _dequantized(p, "q", "inner"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a positive scale, and that nothing else reads the numbers."""
        if not m.inner.result.has_one_use():
            return "the numbers are used elsewhere"
        return fault_of_scale(m.scale)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return _dequantize_as(m.inner, b.op(m.root.opdef, m.q, **m.root.attributes).result, b)


_CAT = Example("""
    buffer %scale : f32[]
    buffer %zero : u8[]
    graph(%p : u8[n, a], %q : u8[n, b]) {
      %x = quant.dequantize(%p, %scale, %zero)
      %y = quant.dequantize(%q, %scale, %zero)
      %z = aten.cat([%x, %y]) {dim=1}
      return %z
    }
""")


class DequantizeBehindCat(Rule):
    """cat(dequantize(p, s, z), dequantize(q, s, z)) = dequantize(cat(p, q), s, z), for any number of them

    All must have the same parameters.
    """

    examples = (
        _CAT,
        _CAT.changed(("[%x, %y]", "[%x, %y, %x]")),
        _CAT.changed(
            ("%scale : f32[]", "%scale : f32[] buffer %other : f32[]"),
            ("(%q, %scale", "(%q, %other"),
            refused="different parameters",
        ),
        _CAT.changed(("return %z", "return %z, %y"), refused="used elsewhere"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        two, three = ([_dequantized(p, "") for _ in range(count)] for count in (2, 3))
        return p.one_of(p.cat(two), p.cat(three), p.op("aten.cat"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand dequantizations of one dtype with the same parameters, whose numbers nothing else reads."""
        sources = _sources(m.root)
        if not sources:
            return "it is not of dequantized values"
        attributes = [(op.operands[1:], op.attributes["dtype"]) for op in sources]
        if any(op.attributes["axis"] is not None for op in sources):
            return "there is a scale for each index of an axis"
        if any(each != attributes[0] for each in attributes) or len({_dtype(op) for op in sources}) > 1:
            return "they have different parameters"
        if any(any(user is not m.root for user in op.result.users) for op in sources):
            return "the numbers are used elsewhere"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        sources = _sources(m.root)
        integers = b.op("aten.cat", [op.operands[0] for op in sources], **m.root.attributes).result
        return _dequantize_as(sources[0], integers, b)


def _sources(cat: Operation) -> list[Operation]:
    """Return the dequantizations that all operands of a concatenation are results of; or none."""
    found = [None if value is None else value.defining_op for value in cat.operands]
    sources = [op for op in found if op is not None and op.name == "quant.dequantize"]
    return sources if len(sources) == len(found) else []


def _dtype(op: Operation) -> torch.dtype | None:
    return op.operand_values[0].tensor_type.dtype


DEQUANTIZATION_RULES = (DequantizeBehindMove, DequantizeBehindMaxPool, DequantizeBehindCat)
