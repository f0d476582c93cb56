"""Quantization comes early: before what only moves elements, and not at all where integers are there."""

from __future__ import annotations

import torch
from typing_extensions import override

from ir.core import Value
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


class QuantizeBeforeMove(Rule):
    """quantize(move(x), s, z) = move(quantize(x, s, z))

    For one scale. A value that is moved several ways is quantized once then.
    """

    examples = (
        _MOVE,
        _MOVE.changed((_PERMUTED, "aten.reshape(%x) {shape=[n*a, b]}")),
        _MOVE.changed((_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"), ("return %q", _READ)),
        _MOVE.changed((_PERMUTED, "aten.slice.Tensor(%x) {dim=2, start=1}"), refused="strides of what is moved"),
        _MOVE.changed(("return %q", "return %q, %y"), refused="used elsewhere"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("quant.quantize", p.op(MOVES, p.any("x"), name="move"), p.any("scale"), p.any("zero"), axis=None)

    @override
    def check(self, m: Match) -> str | None:
        """Demand a move with one result that nothing else reads, and that strides stay or do not matter."""
        if len(m.move.results) > 1:
            return "there are several pieces"
        if not m.move.result.has_one_use():
            return "what is moved is used elsewhere"
        return fault_of_move(m.move, m.x, m.root.results)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        integers = b.op("quant.quantize", m.x, m.scale, m.zero, **m.root.attributes).result
        return b.op(m.move.opdef, integers, **m.move.attributes, location=m.move.location).result


QUANTIZATION_RULES = (QuantizeDequantized, QuantizeBeforeMove)
