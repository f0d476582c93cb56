"""RMS norms that are written out become the operator."""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.core import Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.memory.strides import is_contiguous
from ir.types import shapes_equal
from passes.fuse.norms import normalized_sizes, rms_formula, why_no_rms
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_FORMULA = Example("""
    parameter %v : f32[o, c]
    parameter %w : f32[c]
    graph(%u : f32[n, t, c]) {
      %x = aten.relu(%u)
      %s = aten.pow.Tensor_Scalar(%x) {exponent=2}
      %m = aten.mean.dim(%s) {dim=[2], keepdim=True}
      %a = aten.add.Scalar(%m) {other=1e-06}
      %r = aten.rsqrt(%a)
      %h = aten.mul.Tensor(%x, %r)
      %y = aten.mul.Tensor(%w, %h)
      %z = aten.linear(%y, %v, None)
      return %z
    }
""")
_SCALED = Example("""
    parameter %w : f32[c]
    graph(%x : f32[n, t, c]) {
      %h = aten.rms_norm(%x, None) {normalized_shape=[c], eps=1e-06}
      %y = aten.mul.Tensor(%h, %w)
      return %y
    }
""")


class RecomposeRMSNormPattern(Pattern):
    """x * rsqrt(mean(x²) + eps) = rms_norm(x, None, eps), and rms_norm(x, None, eps) * w = rms_norm(x, w, eps)

    In float32 and float64, where the operator computes the same bits. Its result is contiguous, or a map in
    channels_last; so is that of the formula for a contiguous operand, and otherwise its strides must not show.
    """

    is_conversion = True
    closed = True

    examples = (
        _FORMULA,
        _FORMULA.changed(("rsqrt", "sqrt"), ("%h = aten.mul", "%h = aten.div")),
        _FORMULA.changed(("%a = aten.add.Scalar(%m) {other=1e-06}", ""), ("%a", "%m")),
        _FORMULA.changed(("return %z", "return %h"), ("relu(%u)", "contiguous(%u)")),
        _SCALED,
        _SCALED.changed(("%h, %w", "%w, %h")),
        _FORMULA.changed(("return %z", "return %h"), refused="its strides show"),
        _FORMULA.changed(("other=1e-06", "other=-1e-06"), refused="eps is -1e-06"),
        _FORMULA.changed(("f32", "bf16"), refused="computed in torch.bfloat16"),
        _SCALED.changed(("%w : f32[c]", "%w : f32[t, c]"), refused="not one number for each"),
        _SCALED.changed(("%w : f32", "%w : f64"), refused="not one number for each"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        norm = p.rms_norm(p.any("input"), None, name="norm")
        return p.one_of(rms_formula(p), p.mul(norm, p.any("weight")))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the operator's formula, or one number for each place that is normalized."""
        if m.get("norm") is not None:
            type_, x = m.weight.tensor_type, m.norm.result.tensor_type
            if not shapes_equal(m.weight.known_shape, normalized_sizes(m)) or type_.dtype != x.dtype:
                return f"the norm is multiplied by {type_}, not one number for each place that is normalized"
            return None
        reason = why_no_rms(m)
        if reason is not None:
            return reason
        x, dtype, eps = m.squared, m.squared.tensor_type.dtype, m.get("eps") or 0
        if dtype not in (torch.float32, torch.float64) or m.root.result.tensor_type.dtype != dtype:
            return f"it is computed in {dtype}, and multiplied in {m.root.result.tensor_type.dtype}"
        if any(op.name == "aten.to.dtype" for op in m.scale):
            return "the scale is cast"
        if type(eps) not in (int, float) or not math.isfinite(eps) or eps < 0:
            return f"eps is {eps}"
        if 0 in (x.known_shape or ()) or not all(type(size) is int for size in normalized_sizes(m)):
            return "the operand is empty, or its last sizes are not static"
        old = m.root.result
        if (reaches_output(old) or reaches_view(old)) and not is_contiguous(x):
            return "its strides show in an output or decide about a view, and may be other than contiguous"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        if m.get("norm") is not None:
            attributes = m.norm.attributes
            return b.op("aten.rms_norm", m.input, attributes["normalized_shape"], m.weight, attributes["eps"]).result
        return b.op("aten.rms_norm", m.squared, normalized_sizes(m), None, float(m.get("eps") or 0)).result
