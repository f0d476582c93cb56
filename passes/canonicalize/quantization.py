"""Quantization comes early: before what only moves elements, and not at all where integers are there."""

from __future__ import annotations

import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.quant.kernels import integer_range
from passes.canonicalize.base import Identity, Rule
from passes.canonicalize.dequantization import MOVES, fault_of_move, fault_of_scale
from passes.canonicalize.identity import copy_refusal
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_WIDE = (torch.float32, torch.float64)
"""Dtypes in which a sensible scale times an integer of 8 bits neither overflows nor loses the integer."""

_BACK = Example("""
    buffer %scale : f32[]
    buffer %zero : i8[]
    graph(%v : f32[n, a]) {
      %q = quant.quantize(%v, %scale, %zero)
      %x = quant.dequantize(%q, %scale, %zero)
      %y = quant.quantize(%x, %scale, %zero)
      %z = aten.permute(%y) {dims=[1, 0]}
      return %z
    }
""")
_PER_CHANNEL = (
    ("%scale : f32[]", "%scale : f32[a]"),
    ("%zero : i8[]", "%zero : i8[a]"),
    ("(%v, %scale, %zero)", "(%v, %scale, %zero) {axis=1}"),
    ("(%q, %scale, %zero)", "(%q, %scale, %zero) {axis=1}"),
    ("(%x, %scale, %zero)", "(%x, %scale, %zero) {axis=1}"),
)


class QuantizeDequantized(Identity):
    """quantize(dequantize(q, s, z), s, z) = q, s > 0

    The numbers between must be in float32 or wider, and the range must be that of q.
    """

    examples = (
        _BACK,
        _BACK.changed(*_PER_CHANNEL),
        _BACK.changed(("(%x, %scale, %zero)", "(%x, %scale, %zero) {quant_min=-127}"), refused="narrower range"),
        _BACK.changed(("%scale : f32[]", "%scale : f16[]"), refused="numbers in between are not in float32 or float64"),
        _BACK.changed(("buffer %scale : f32[]", ""), ("(%v :", "(%scale : f32[], %v :"), refused="may not be positive"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        parameters = p.any("scale"), p.any("zero")
        inner = p.op("quant.dequantize", p.any("x"), *parameters, name="inner", axis=p.attr("axis"))
        return p.op("quant.quantize", inner, *parameters, axis=p.attr("axis"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand integers of the same dtype, the whole range, and numbers that keep them."""
        attributes = m.root.attributes
        dtype = attributes["dtype"]
        if m.x.tensor_type.dtype is not dtype:
            return "the integers are of another dtype"
        if integer_range(dtype, attributes["quant_min"], attributes["quant_max"]) != integer_range(dtype):
            return "it has a narrower range"
        wide = (m.inner.result.tensor_type.dtype, m.scale.tensor_type.dtype)
        if not set(wide) <= set(_WIDE):
            return "the numbers in between are not in float32 or float64"
        return fault_of_scale(m.scale) or copy_refusal(m.root.result, m.x)


_MOVE = Example("""
    buffer %scale : f32[]
    buffer %zero : u8[]
    graph(%x : f32[n, a, b]) {
      %y = aten.permute(%x) {dims=[1, 2, 0]}
      %q = quant.quantize(%y, %scale, %zero) {dtype=torch.uint8}
      return %q
    }
""")
_READ = "%d = quant.dequantize(%q, %scale, %zero) %z = aten.softmax.int(%d) {dim=0} return %z"
_SLICED = "aten.slice.Tensor(%x) {dim=2, start=1}"
_PERMUTED = "aten.permute(%x) {dims=[1, 2, 0]}"


_SPLIT = Example("""
    buffer %scale : f32[]
    buffer %zero : u8[]
    graph(%x : f32[n, 6]) {
      %a, %b = aten.split_with_sizes(%x) {split_sizes=[2, 4], dim=1}
      %p = quant.quantize(%a, %scale, %zero) {dtype=torch.uint8}
      %q = quant.quantize(%b, %scale, %zero) {dtype=torch.uint8}
      %d = quant.dequantize(%p, %scale, %zero)
      %e = quant.dequantize(%q, %scale, %zero)
      %y = aten.softmax.int(%d) {dim=0}
      %z = aten.softmax.int(%e) {dim=0}
      return %y, %z
    }
""")


class QuantizeBeforeMove(Rule):
    """quantize(move(x), s, z) = move(quantize(x, s, z))

    For one scale. A value that is moved several ways is quantized once then. Of several pieces, all that are used must
    be quantized alike: common subexpressions make one of their quantizations.
    """

    examples = (
        _MOVE,
        _MOVE.changed((_PERMUTED, "aten.reshape(%x) {shape=[n*a, b]}")),
        _MOVE.changed((_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"), ("return %q", _READ)),
        _MOVE.changed((_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"), refused="strides of what is moved"),
        _MOVE.changed(("return %q", "return %q, %y"), refused="used elsewhere"),
        _SPLIT,
        _SPLIT.changed(("return %y, %z", "return %z")),
        _SPLIT.changed(
            ("%zero : u8[]", "%zero : u8[] buffer %other : f32[]"),
            ("%b, %scale", "%b, %other"),
            ("%q, %scale", "%q, %other"),
            refused="not quantized alike",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("quant.quantize", p.op(MOVES, p.any("x"), name="move"), p.any("scale"), p.any("zero"), axis=None)

    @override
    def check(self, m: Match) -> str | None:
        """Demand that nothing else reads what is moved, and that strides stay or do not matter."""
        if len(m.move.results) == 1 and not m.move.result.has_one_use():
            return "what is moved is used elsewhere"
        readers = [user for piece in m.move.results for user in piece.users]
        if not all(each.opdef is m.root.opdef and _parameters(each) == _parameters(m.root) for each in readers):
            return "the pieces are not quantized alike"
        return fault_of_move(m.move, m.x, [result for each in readers for result in each.results])

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        integers = b.op("quant.quantize", m.x, m.scale, m.zero, **m.root.attributes).result
        moved = b.op(m.move.opdef, integers, **m.move.attributes, location=m.move.location)
        return moved.results[m.root.operand_values[0].index]


def _parameters(op: Operation) -> tuple[object, ...]:
    return (*op.operands[1:], dict(op.attributes))


_CAT = Example("""
    buffer %scale : f32[]
    buffer %zero : u8[]
    graph(%p : u8[n, a], %x : f32[n, b]) {
      %d = quant.dequantize(%p, %scale, %zero)
      %c = aten.cat([%d, %x]) {dim=1}
      %q = quant.quantize(%c, %scale, %zero) {dtype=torch.uint8}
      return %q
    }
""")


class QuantizeBeforeCat(Rule):
    """quantize(cat(dequantize(p, s, z), x), s, z) = cat(p, quantize(x, s, z)), for any number of operands, s > 0

    Where the parameters of an operand are other ones, its numbers are rounded again: it is quantized as x is.
    """

    examples = (
        _CAT,
        _CAT.changed(("[%d, %x]", "[%x, %d, %x]")),
        _CAT.changed(("return %q", "return %q, %c"), refused="used elsewhere"),
        _CAT.changed(("%x : f32[n, b]", "%x : f16[n, b]"), refused="of another dtype"),
        _CAT.changed(
            ("%zero : u8[]", "%zero : u8[] buffer %other : f32[]"),
            ("%p, %scale", "%p, %other"),
            refused="of no operand",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("quant.quantize", p.op("aten.cat", name="cat"), p.any("scale"), p.any("zero"), axis=None)

    @override
    def check(self, m: Match) -> str | None:
        """Demand an operand that was dequantized with these parameters, and that nothing else reads the numbers."""
        if not m.cat.result.has_one_use():
            return "the numbers are used elsewhere"
        if any(value.tensor_type.dtype is not m.cat.result.tensor_type.dtype for value in m.cat.operand_values):
            return "an operand is of another dtype"
        if not any(_undoes(m.root, value) for value in m.cat.operand_values):
            return "its parameters are those of no operand"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        quantized = {
            value: b.op("quant.quantize", value, m.scale, m.zero, **m.root.attributes).result
            for value in dict.fromkeys(m.cat.operand_values)
        }
        operands = [quantized[value] for value in m.cat.operand_values]
        return b.op("aten.cat", operands, **m.cat.attributes, location=m.cat.location).result


def _undoes(quantize: Operation, value: Value) -> bool:
    """Return whether a quantization of a value gives the integers that it was dequantized from."""
    op = value.defining_op
    if op is None or op.name != "quant.dequantize" or op.operands[1:] != quantize.operands[1:]:
        return False
    return op.attributes["axis"] is None and op.operand_values[0].tensor_type.dtype is quantize.attributes["dtype"]


QUANTIZATION_RULES = (QuantizeDequantized, QuantizeBeforeMove, QuantizeBeforeCat)
