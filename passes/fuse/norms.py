"""Fusions of norms, written as one operator or out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from typing_extensions import override

from ir.core import Operation, Value
from ir.program import weight_of
from ir.types import Dim, dims_equal, shapes_equal
from passes.fuse.base import FusionPattern, activation
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import sort_operations

_EXPONENTS = {"aten.rsqrt": -0.5, "aten.sqrt": 0.5, "aten.reciprocal": -1.0}
ROOTS = (*_EXPONENTS, "aten.pow.Tensor_Scalar")
"""The operators that together may raise a mean to the power of -1/2 or 1/2."""


def exponent_of(ops: Sequence[Operation]) -> float:
    """Return the power to which operations from `ROOTS`, and casts, raise a value one after the other."""
    exponent = 1.0
    for op in ops:
        power = 1.0 if op.name == "aten.to.dtype" else _EXPONENTS.get(op.name) or op.attributes["exponent"]
        exponent *= power if isinstance(power, (int, float)) else math.nan
    return exponent


def dims_of(op: Operation, rank: int) -> tuple[int, ...]:
    """Return the dimensions that an operation reduces, in order; all of them where it names none."""
    dims = op.attributes["dim"]
    return tuple(sorted({d % rank for d in dims})) if dims and rank else tuple(range(rank))


def are_last(dims: Sequence[int], rank: int) -> bool:
    """Return whether some dimensions in order are the last ones of a tensor of this rank."""
    return bool(dims) and list(dims) == list(range(rank - len(dims), rank))


def square(p: PatternBuilder, x: Node) -> Node:
    """Return a pattern for x², in its spellings."""
    is_two = p.attr_where(lambda e: e == 2, "2")
    return p.one_of(p.op("aten.pow.Tensor_Scalar", x, exponent=is_two), p.op("aten.square", x), p.mul(x, x))


# --- RMSNorm ------------------------------------------------------------------------------------------------


def rms_formula(p: PatternBuilder) -> Node:
    """Return a pattern for x * rsqrt(mean(x²) [+ eps]), in its spellings."""
    x, squared = p.any("input"), p.any("squared")
    mean = p.op("aten.mean.dim", square(p, squared), keepdim=True, dtype=None, name="mean")
    total = p.optional(lambda y: p.op("aten.add.Scalar", y, other=p.attr("eps"), alpha=1), mean)
    scale = p.chain((*ROOTS, "aten.to.dtype"), total, "scale", minimum=1, maximum=3)
    return p.one_of(p.mul(x, scale), p.op("aten.div.Tensor", x, scale))


def why_no_rms(m: Match) -> str | None:
    """Return why a match of `rms_formula` is not x times the inverse of the root of its mean square; None if it is."""
    exponent = exponent_of(m.scale)
    if exponent != (0.5 if m.root.name == "aten.div.Tensor" else -0.5):
        return f"the mean of squares at `{m.mean.location.where}` is raised to the power {exponent:g} and not to -1/2"
    if m.squared is not m.input:
        cast = m.squared.defining_op
        if cast is None or cast.name != "aten.to.dtype" or cast.operands[0] is not m.input:
            return f"what is squared at `{m.mean.location.where}` is another value"
    shape = m.squared.known_shape
    if shape is None:
        return f"the shape of what is normalized at `{m.mean.location.where}` is not known"
    if not are_last(dims_of(m.mean, len(shape)), len(shape)):
        return f"the mean at `{m.mean.location.where}` is over dimensions {m.mean.attributes['dim']}, not the last ones"
    return None


def normalized_sizes(m: Match) -> tuple[Dim, ...]:
    """Return the sizes over which a match of `rms_formula` normalizes, or one of `rms_norm`."""
    if m.get("norm") is not None:
        return tuple(m.norm.attributes["normalized_shape"])
    shape = m.squared.known_shape
    return tuple(shape[-len(dims_of(m.mean, len(shape))) :])


@attrs.frozen(eq=False)
class Scale:
    """What a norm is multiplied by: a weight, cast or with a number added to it."""

    weight: Value
    ops: tuple[Operation, ...]


def scale_of(value: Value, sizes: Sequence[Dim]) -> Scale | None:
    """Return what a value is as the scale of a norm over `sizes`; None where it is none."""
    ops: list[Operation] = []
    source = value
    while weight_of(source) is None:
        op = source.defining_op
        is_step = op is not None and source.has_one_use() and op.name in ("aten.to.dtype", "aten.add.Scalar")
        if op is None or not is_step or op.attributes.get("alpha", 1) != 1 or len(ops) == 3:
            # computed in another way; one number for each place of the norm is its scale nevertheless
            return Scale(value, ()) if shapes_equal(value.known_shape, tuple(sizes)) else None
        ops.append(op)
        source = op.operand_values[0]
    if len([op for op in ops if op.name == "aten.add.Scalar"]) > 1:
        return None
    shape = source.known_shape
    while shape is not None and len(shape) > len(sizes) and dims_equal(shape[0], 1):
        shape = shape[1:]
    return Scale(source, tuple(ops)) if shapes_equal(shape, tuple(sizes)) else None


_OPERATOR = Example("""
    parameter %w : f32[c]
    graph(%x : f32[n, t, c]) {
      %y = aten.rms_norm(%x, %w) {normalized_shape=[c], eps=1e-06}
      return %y
    }
""")
_RMS = Example("""
    parameter %w : f32[c]
    graph(%x : f32[n, t, c]) {
      %s = aten.pow.Tensor_Scalar(%x) {exponent=2}
      %m = aten.mean.dim(%s) {dim=[2], keepdim=True}
      %v = aten.add.Scalar(%m) {other=1e-06}
      %r = aten.rsqrt(%v)
      %h = aten.mul.Tensor(%x, %r)
      %y = aten.mul.Tensor(%w, %h)
      return %y
    }
""")
_HALF = Example("""
    parameter %w : bf16[c]
    graph(%u : bf16[n, t, c]) {
      %x = aten.to.dtype(%u) {dtype=torch.float32}
      %s = aten.pow.Tensor_Scalar(%x) {exponent=2}
      %m = aten.mean.dim(%s) {dim=[2], keepdim=True}
      %v = aten.add.Scalar(%m) {other=1e-06}
      %r = aten.rsqrt(%v)
      %h = aten.mul.Tensor(%x, %r)
      %b = aten.to.dtype(%h) {dtype=torch.bfloat16}
      %y = aten.mul.Tensor(%w, %b)
      return %y
    }
""")
_DIVIDED = _RMS.changed(("rsqrt", "sqrt"), ("%h = aten.mul", "%h = aten.div"))


class RMSNormPattern(FusionPattern):
    """x * rsqrt(mean(x²) + eps) [* w] = fused.rms_norm(x, [w]), or the one operator

    Over the last dimensions. The weight may come first or last, be cast, or have a number added to it; the casts to the
    dtype in which the norm is computed, and back, are part of it.
    """

    kind = "rms_norm"
    parts = ("norm",)
    inputs = ("input", "weight")
    quantization_points = ()
    check_adds = 4

    examples = (
        _OPERATOR,
        _RMS,
        _RMS.changed(("pow.Tensor_Scalar(%x) {exponent=2}", "mul.Tensor(%x, %x)"), ("%w, %h", "%h, %w")),
        _RMS.changed(
            ("pow.Tensor_Scalar(%x) {exponent=2}", "square(%x)"),
            ("%v = aten.add.Scalar(%m) {other=1e-06}", ""),
            ("%v", "%m"),
        ),
        _RMS.changed(("%y = ", "%g = aten.add.Scalar(%w) {other=1.0} %y = "), ("%w, %h", "%h, %g")),
        _RMS.changed(("dim=[2]", "dim=[1, 2]"), ("f32[c]", "f32[t, c]")),
        _DIVIDED,
        _DIVIDED.changed(("%h = aten.div.Tensor(%x, %r)", "%q = aten.reciprocal(%r) %h = aten.mul.Tensor(%q, %x)")),
        _RMS.changed(("rsqrt(%v)", "pow.Tensor_Scalar(%v) {exponent=-0.5}")),
        _HALF,
        _HALF.changed(
            ("%w, %b", "%w, %h"), ("%b = aten.to.dtype(%h) {dtype=torch.bfloat16}", ""), ("%w : bf16", "%w : f32")
        ),
        _RMS.changed(("f32[c]", "f32[t, c]")),  # without its weight
        _RMS.changed(("rsqrt", "sqrt"), refused="raised to the power 0.5"),
        _RMS.changed(
            ("keepdim=True", "keepdim=False"), ("f32[n, t, c]", "f32[t, t, t]"), ("f32[c]", "f32[t]"), refused="keepdim"
        ),
        _RMS.changed(("dim=[2]", "dim=[1]"), refused="not the last ones"),
        _RMS.changed(("exponent=2", "exponent=3"), refused="exponent"),
        _RMS.changed(("(%x) {exp", "(%z) {exp"), ("%s =", "%z = aten.neg(%x) %s ="), refused="another value"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.one_of(rms_formula(p), p.rms_norm(p.any("input"), name="norm"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the formula; take casts and a weight around it into the match."""
        if m.get("norm") is None:
            reason = why_no_rms(m)
            if reason is not None:
                return reason
            m.captures["input"] = m.squared
        ops = dict.fromkeys(m.ops)
        weight = None if m.get("norm") is None else m.norm.operand("weight")
        if weight is not None:
            scale = scale_of(weight, normalized_sizes(m)) or Scale(weight, ())
            m.captures["weight"] = scale.weight
            ops.update(dict.fromkeys(scale.ops))
        x: Value = m.input
        cast = x.defining_op
        if cast is not None and cast.name == "aten.to.dtype" and all(user in ops for user in x.users):
            ops[cast] = None
            m.captures["input"] = cast.operand_values[0]
        self._follow(m, ops)
        m.ops[:] = sort_operations(list(ops))
        return None

    def _follow(self, m: Match, ops: dict[Operation, None]) -> None:
        """Add what follows: a weight, once, and casts back to the dtype of the input."""
        value: Value = m.root.result
        sizes = normalized_sizes(m)
        has_scale = m.get("norm") is not None and m.norm.operand("weight") is not None
        while value.has_one_use():
            user = value.users[0]
            if user.name == "aten.to.dtype" and user.result.tensor_type.dtype == m.input.tensor_type.dtype:
                ops[user] = None
            elif user.name == "aten.mul.Tensor" and not has_scale:
                other = user.operand_values[1 if user.operand_values[0] is value else 0]
                scale = scale_of(other, sizes)
                if scale is None or scale.weight in (m.input, value):
                    return
                ops.update(dict.fromkeys((*scale.ops, user)))
                m.captures["weight"], has_scale = scale.weight, True
            else:
                return
            value = user.result


# --- GroupNorm ----------------------------------------------------------------------------------------------


class GroupNormPattern(FusionPattern):
    """[act](group_norm(x, w, b)) = fused.group_norm(x, w, b)"""

    kind = "group_norm"
    parts = ("norm", "act")
    quantization_points = ()

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.optional(lambda y: activation(p, y), p.group_norm(p.any("input"), name="norm"))
