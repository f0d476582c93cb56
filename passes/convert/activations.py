"""Activations that are written out become the operator, in whatever order their sums and products are written."""

from __future__ import annotations

import math
from typing import ClassVar

from typing_extensions import override

from ir.core import Operation, Value
from passes.algebra import Polynomial, polynomial
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.remarks import Refusal
from passes.rewrite.rewriter import Rewriter, sort_operations

_FAR = Refusal("it is no product with such a function in it", near=False)


class WrittenOutActivation(Pattern):
    """A formula of one value x and one function of it, as polynomials."""

    is_conversion = True
    check_adds: ClassVar[int] = 3
    functions: ClassVar[tuple[str, ...]]
    """The operators that the function is one of."""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Scalar", "aten.add.Tensor"))

    @override
    def check(self, m: Match) -> str | Refusal | None:
        """Demand the formula, and that nothing else uses what is between x and the result."""
        whole = polynomial(m.root.result)
        inner = None if whole is None else self._function(whole)
        if whole is None or inner is None:
            return _FAR
        ops = [*whole.ops, inner]
        x = self.argument(inner, ops)
        if x is None or any(value not in (x, inner.result) for value in whole.values):
            return _FAR
        reason = self.formula(whole, inner, x)
        if reason is not None:
            return f"{inner.name} at `{inner.location.where}`: {reason}"
        if any(user not in ops for op in ops if op is not m.root for user in op.result.users):
            return f"{inner.name} at `{inner.location.where}`, or what is made of it, is used elsewhere"
        m.captures["x"], m.captures["inner"] = x, inner
        m.ops[:] = sort_operations(ops)
        return None

    def _function(self, whole: Polynomial) -> Operation | None:
        for value in whole.values:
            op = value.defining_op
            if op is not None and op.name in self.functions:
                return op
        return None

    def argument(self, inner: Operation, ops: list[Operation]) -> Value | None:
        """Return what the formula is of, and add the operations that lead from there to the function."""
        return inner.operand_values[0]

    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        """Return why the result is another formula of x and the function; None where it is this one."""
        raise NotImplementedError


_SILU = Example("""
    graph(%x : f32[n, c]) { %s = aten.sigmoid(%x) %y = aten.mul.Tensor(%x, %s) return %y }
""")


class WrittenOutSiluPattern(WrittenOutActivation):
    """x * sigmoid(x) = silu(x)"""

    functions = ("aten.sigmoid",)

    examples = (
        _SILU,
        _SILU.changed(("(%x, %s)", "(%s, %x)")),
        _SILU.changed(("return %y", "return %y, %s"), refused="used elsewhere"),
        _SILU.changed(("mul", "add"), refused="not x times"),
    )

    @override
    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        return None if whole.is_sum_of((1.0, (x, inner.result))) else "the result is not x times it"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.silu", m.x).result


_MISH = Example("""
    graph(%x : f32[n, c]) {
      %s = aten.softplus(%x)
      %t = aten.tanh(%s)
      %y = aten.mul.Tensor(%x, %t)
      return %y
    }
""")
_DECOMPOSED_MISH = _MISH.changed(
    (
        "%s = aten.softplus(%x)",
        "%e = aten.exp(%x) %l = aten.log1p(%e) %c = aten.gt.Scalar(%x) {other=20} %s = aten.where.self(%c, %x, %l)",
    )
)


class WrittenOutMishPattern(WrittenOutActivation):
    """x * tanh(softplus(x)) = mish(x)"""

    functions = ("aten.tanh",)

    examples = (
        _MISH,
        _DECOMPOSED_MISH,
        _MISH.changed(("softplus(%x)", "softplus(%x) {beta=2}"), refused="no product"),
    )

    @override
    def argument(self, inner: Operation, ops: list[Operation]) -> Value | None:
        op = inner.operand_values[0].defining_op
        if op is None:
            return None
        if op.name == "aten.softplus" and op.attributes["beta"] == 1 and op.attributes["threshold"] == 20:
            ops.append(op)
            return op.operand_values[0]
        return None if op.name != "aten.where.self" else _of_softplus(op, ops)

    @override
    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        return None if whole.is_sum_of((1.0, (x, inner.result))) else "the result is not x times it"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.mish", m.x).result


def _of_softplus(where: Operation, ops: list[Operation]) -> Value | None:
    """Return x of `where(x > 20, x, log1p(exp(x)))`."""
    condition, x, low = where.operand_values
    asked, log = condition.defining_op, low.defining_op
    if asked is None or log is None or asked.name != "aten.gt.Scalar" or log.name != "aten.log1p":
        return None
    exp = log.operand_values[0].defining_op
    if exp is None or exp.name != "aten.exp" or asked.attributes["other"] != 20:
        return None
    if asked.operand_values[0] is not x or exp.operand_values[0] is not x:
        return None
    ops.extend((where, asked, log, exp))
    return x


_CLIPPED = Example("""
    graph(%x : f32[n, c]) {
      %a = aten.add.Scalar(%x) {other=3}
      %r = aten.relu6(%a)
      %y = aten.div.Scalar(%r) {other=6}
      return %y
    }
""")
_CLAMPED = _CLIPPED.changed(("%r = aten.relu6(%a)", "%l = aten.clamp(%a) {min=0} %r = aten.clamp(%l) {max=6}"))


class _OfClipped(WrittenOutActivation):
    """A formula of x + 3 cut at 0 and 6."""

    @override
    def argument(self, inner: Operation, ops: list[Operation]) -> Value | None:
        value = inner.operand_values[0]
        last = value.defining_op
        if inner.name == "aten.clamp" and last is not None and last.name == "aten.clamp":
            ops.append(last)
            value = last.operand_values[0]
        argument = polynomial(value)
        if argument is None or len(argument.values) != 1:
            return None
        ops.extend(argument.ops)
        return argument.values[0]


class WrittenOutHardsigmoidPattern(_OfClipped):
    """relu6(x + 3) / 6 = hardsigmoid(x)

    The derivative is 0 at -3 and 3, as that of `relu6` is. That of clamps is not: only the two are taken that
    `run_decompositions` makes of the operator.
    """

    functions = ("aten.relu6", "aten.clamp")

    examples = (
        _CLIPPED,
        _CLAMPED,
        _CLAMPED.changed(
            ("%l = aten.clamp(%a) {min=0} %r = aten.clamp(%l) {max=6}", "%r = aten.clamp(%a) {min=0, max=6}"),
            refused="does not cut",
        ),
        _CLAMPED.changed(("max=6", "max=5"), refused="does not cut"),
        _CLIPPED.changed(("other=3", "other=2"), refused="not x + 3"),
    )

    @override
    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        return _clip_of(inner, x) or (
            None if whole.is_sum_of((1 / 6, (inner.result,))) else "the result is not a sixth of it"
        )

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.hardsigmoid", m.x).result


class WrittenOutHardswishPattern(_OfClipped):
    """x * relu6(x + 3) / 6 = x * hardsigmoid(x) = hardswish(x)"""

    functions = ("aten.relu6", "aten.clamp", "aten.hardsigmoid")

    examples = (
        _CLIPPED.changed(
            ("div.Scalar(%r) {other=6}", "mul.Tensor(%x, %r)"),
            ("return %y", "%z = aten.div.Scalar(%y) {other=6} return %z"),
        ),
        _CLAMPED.changed(("return %y", "%z = aten.mul.Tensor(%y, %x) return %z")),
        Example("graph(%x : f32[n, c]) { %s = aten.hardsigmoid(%x) %y = aten.mul.Tensor(%x, %s) return %y }"),
        _CLIPPED.changed(
            ("div.Scalar(%r) {other=6}", "mul.Tensor(%x, %r)"),
            ("return %y", "%z = aten.div.Scalar(%y) {other=5} return %z"),
            refused="not x times a sixth",
        ),
    )

    @override
    def argument(self, inner: Operation, ops: list[Operation]) -> Value | None:
        return inner.operand_values[0] if inner.name == "aten.hardsigmoid" else super().argument(inner, ops)

    @override
    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        if inner.name == "aten.hardsigmoid":
            return None if whole.is_sum_of((1.0, (x, inner.result))) else "the result is not x times it"
        return _clip_of(inner, x) or (
            None if whole.is_sum_of((1 / 6, (x, inner.result))) else "the result is not x times a sixth of it"
        )

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.hardswish", m.x).result


def _clip_of(op: Operation, x: Value) -> str | None:
    """Return why an operation is not x + 3 cut at 0 and 6."""
    low: object = 0
    high: object = 6
    source = op.operand_values[0]
    if op.name == "aten.clamp":
        low, high = None, op.attributes["max"]
        inner = source.defining_op
        if inner is not None and inner.name == "aten.clamp" and inner.attributes["max"] is op.attributes["min"] is None:
            low, source = inner.attributes["min"], inner.operand_values[0]
    if type(low) not in (int, float) or type(high) not in (int, float) or (low, high) != (0, 6):
        return "it does not cut between 0 and 6"
    argument = polynomial(source)
    if argument is None or not argument.is_sum_of((1.0, (x,)), (3.0, ())):
        return "its argument is not x + 3"
    return None


_ERF = Example("""
    graph(%x : f32[n, c]) {
      %a = aten.div.Scalar(%x) {other=1.4142135623730951}
      %e = aten.erf(%a)
      %u = aten.add.Scalar(%e) {other=1.0}
      %h = aten.mul.Scalar(%x) {other=0.5}
      %y = aten.mul.Tensor(%h, %u)
      return %y
    }
""")
_TANH = Example("""
    graph(%x : f32[n, c]) {
      %c = aten.pow.Tensor_Scalar(%x) {exponent=3}
      %d = aten.mul.Scalar(%c) {other=0.044715}
      %s = aten.add.Tensor(%x, %d)
      %a = aten.mul.Scalar(%s) {other=0.7978845608028654}
      %t = aten.tanh(%a)
      %u = aten.add.Scalar(%t) {other=1}
      %h = aten.mul.Scalar(%x) {other=0.5}
      %y = aten.mul.Tensor(%h, %u)
      return %y
    }
""")


class WrittenOutGeluPattern(WrittenOutActivation):
    """x / 2 * (1 + erf(x / √2)) = gelu(x), x / 2 * (1 + tanh(√(2/π) * (x + 0.044715 * x³))) = gelu(x, "tanh")"""

    functions = ("aten.erf", "aten.tanh")

    examples = (
        _ERF,
        _TANH,
        _TANH.changed(
            (
                "%c = aten.pow.Tensor_Scalar(%x) {exponent=3}",
                "%q = aten.mul.Tensor(%x, %x) %c = aten.mul.Tensor(%q, %x)",
            ),
            ("%y = aten.mul.Tensor(%h, %u)", "%g = aten.mul.Tensor(%x, %u) %y = aten.mul.Scalar(%g) {other=0.5}"),
            ("%h = aten.mul.Scalar(%x) {other=0.5}", ""),
        ),
        _TANH.changed(("other=0.044715", "other=0.0447"), refused="its argument is not"),
        _ERF.changed(("other=0.5", "other=0.25"), refused="the result is not"),
    )

    @override
    def argument(self, inner: Operation, ops: list[Operation]) -> Value | None:
        argument = polynomial(inner.operand_values[0])
        if argument is None or len(argument.values) != 1:
            return None
        ops.extend(argument.ops)
        return argument.values[0]

    @override
    def formula(self, whole: Polynomial, inner: Operation, x: Value) -> str | None:
        if not whole.is_sum_of((0.5, (x,)), (0.5, (x, inner.result))):
            return "the result is not x / 2 * (1 + it)"
        argument = polynomial(inner.operand_values[0])
        assert argument is not None
        if inner.name == "aten.erf":
            return None if argument.is_sum_of((math.sqrt(0.5), (x,))) else "its argument is not x / √2"
        slope = math.sqrt(2 / math.pi)
        if not argument.is_sum_of((slope, (x,)), (0.044715 * slope, (x, x, x))):
            return "its argument is not √(2/π) * (x + 0.044715 * x³)"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.gelu", m.x, approximate="none" if m.inner.name == "aten.erf" else "tanh").result


_PRELU = Example("""
    parameter %w : f32[c]
    graph(%x : f32[n, c, h]) {
      %v = aten.reshape(%w) {shape=[1, c, 1]}
      %p = aten.gt.Scalar(%x) {other=0}
      %s = aten.mul.Tensor(%v, %x)
      %y = aten.where.self(%p, %x, %s)
      return %y
    }
""")


class WrittenOutPreluPattern(Pattern):
    """where(x > 0, x, reshape(w, (1, c, 1, …)) * x) = prelu(x, w)"""

    is_conversion = True
    closed = True

    examples = (
        _PRELU,
        _PRELU.changed(("[1, c, 1]", "[c, 1]")),
        _PRELU.changed(("[1, c, 1]", "[1, 1, c]"), ("c, h]", "c, c]"), refused="not one number a channel"),
        _PRELU.changed(("(%p, %x, %s)", "(%p, %z, %s)"), ("%y =", "%z = aten.neg(%x) %y ="), refused="other values"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        x, v = p.any("x"), p.reshape(p.any("w"), name="v")
        return p.op("aten.where.self", p.op("aten.gt.Scalar", x, other=0), p.any("kept"), p.mul(v, x))

    @override
    def check(self, m: Match) -> str | None:
        """Demand one number a channel, the second dimension."""
        shape, weight, view = m.x.known_shape, m.w.known_shape, m.v.result.known_shape
        if m.kept is not m.x:
            return "other values are kept"
        if shape is None or weight is None or view is None or len(shape) < 2 or len(weight) != 1:
            return "the shapes are not known, or those of channels"
        channels = (shape[1], *[1] * (len(shape) - 2))
        if weight[0] != shape[1] or view not in (channels, (1, *channels)):
            return "there is not one number a channel"
        dtype = m.x.tensor_type.dtype
        return None if dtype == m.w.tensor_type.dtype and dtype.is_floating_point else "the dtypes differ"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.prelu", m.x, m.w).result


ACTIVATIONS: tuple[type[Pattern], ...] = (
    WrittenOutSiluPattern,
    WrittenOutMishPattern,
    WrittenOutHardsigmoidPattern,
    WrittenOutHardswishPattern,
    WrittenOutGeluPattern,
    WrittenOutPreluPattern,
)
"""Activations that are written out."""
