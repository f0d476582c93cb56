"""Operators that change nothing, and casts and copies that are unobservable.

Some operators return their operand itself, or a view of all of it: without them, sharing and strides are the same.
Others return a new tensor: they are removed only where strides stay the same, and no output starts to share storage
with an input, a weight or another output.
"""

from __future__ import annotations

import math

import torch
from typing_extensions import override

from ir.attributes import attributes_equal
from ir.core import Operation, Value
from ir.memory.aliasing import may_alias_operands, may_alias_roots, may_replace, reaches_format
from ir.memory.strides import has_standard_format, is_contiguous, is_dense
from ir.opdef import Trait, get_opdef, operators_with
from ir.program import weight_of
from ir.types import shapes_equal
from passes.canonicalize.base import Identity, Rule, first, is_floating, is_integral, same_dtype, shape_of
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_SCALAR_ARITHMETIC = tuple(
    name for name in operators_with(lambda facts: facts.unit is not None) if len(get_opdef(name).operand_params) == 1
)
_PRESERVE = (None, torch.preserve_format)
_DROPOUTS = operators_with(lambda facts: Trait.DROPOUT in facts.traits)
_CASTS = operators_with(lambda facts: Trait.CAST in facts.traits)


def copy_refusal(old: Value, x: Value) -> str | None:
    """Return why `old`, a copy of `x` in the same memory format, may not become `x` itself; None when it may."""
    if not is_dense(x):
        return "the operand may have gaps or overlaps, which a copy closes"
    return sharing_refusal(old, x)


def sharing_refusal(old: Value, x: Value) -> str | None:
    """Return why it is observable that `old`, a new tensor, becomes `x` itself; None where it is not."""
    for source in may_alias_roots(x):
        weight = weight_of(source)
        if weight is not None and weight.is_mutated:
            return f"the copied weight `{weight.name}` is mutated by the program"
    if not may_replace(old, x):
        return (
            "an output would share storage with an input, a weight or another output, or statistics with another value"
        )
    return None


class NoDropout(Identity):
    """dropout(x, p=0) = x: it returns its operand and draws no random numbers, in training too"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(_DROPOUTS, p=0.0)


class NoDropoutInEval(Identity):
    """dropout(x, p, train=False) = x, for a program that will never train"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(_DROPOUTS, train=False)


class NoCast(Identity):
    """to(x, dtype of x) = x"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(_CASTS)

    @override
    def check(self, m: Match) -> str | None:
        """Demand the operand's own dtype, device and format; a copy must be unobservable."""
        op = m.root
        x = first(op)
        if not same_dtype(x, op.result):
            return "the dtype or device changes, or is not known"
        attributes = op.attributes
        if attributes.get("memory_format") not in _PRESERVE or attributes.get("layout") not in (None, torch.strided):
            return "the memory format or layout is given"
        if op.name == "aten._to_copy" or attributes.get("copy", False):
            return copy_refusal(op.result, x)
        return None


class NoAlias(Identity):
    """alias(x) = positive(x) = x"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.alias", "aten.positive"))


_VIEW = Example("""constant %c : f32[n, a]
    graph(%x : f32[n, a]) { %v = aten.view_as(%c, %x) %y = aten.detach(%v) %z = aten.neg(%y) return %z }""")


_STATISTICS = Example("""buffer %mean : f32[c] buffer %var : f32[c] graph(%x : f32[n, c]) { %copy = aten.clone(%var)
    %y = aten.batch_norm(%x, None, None, %mean, %copy) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False}
    %z = aten.add.Tensor(%y, %copy) return %z }""")


class NoDetach(Identity):
    """detach(x) = lift(x) = x, where no gradient can flow: x is an integer tensor or comes from constants"""

    examples = (
        Example("graph(%x : i64[n, a]) { %y = aten.detach(%x) %z = aten.neg(%y) return %z }"),
        Example("constant %x : f32[n, a] graph() { %y = aten.detach(%x) %z = aten.neg(%y) return %z }"),
        _VIEW,
        _VIEW.changed(("%v = aten.view_as(%c", "%u, %v = aten.broadcast_tensors([%c"), ("x) ", "x]) "), refused="flow"),
        # what is written to y is written to x
        _STATISTICS.changed(
            ("buffer", "constant"),
            ("clone", "detach"),
            ("training=False", "training=True"),
            ("add.Tensor(%y, %copy)", "neg(%y)"),
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.detach", "aten.lift_fresh", "aten.lift"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand that x has no gradient."""
        x = first(m.root)
        if is_integral(x):
            return None
        for source in may_alias_roots(x):
            weight = weight_of(source)
            if weight is None or not weight.is_constant:
                return "gradients may flow through the operand"
        return None


_COPIED = Example("""
    graph(%x : f32[n, a]) { %y = aten.linear(%x, %x, None) %copy = aten.clone(%y) return %copy }
""")


class NoCopy(Identity):
    """clone(x) = x, where the copy is unobservable"""

    examples = (
        _COPIED,
        _COPIED.changed(
            ("%copy =", "%part = aten.slice.Tensor(%y) {dim=1, start=0, end=1} %copy ="),
            ("clone(%y)", "clone(%part) {memory_format=torch.preserve_format}"),
            refused="gaps or overlaps",
        ),
        _COPIED.changed(("%copy =", "%part = aten.permute(%y) {dims=[1, 0]} %copy ="), ("clone(%y)", "clone(%part)")),
        _COPIED.changed(
            (
                "%copy =",
                "%t = aten.permute(%y) {dims=[1, 0]} %u = aten.relu(%t) %v = aten.permute(%u) {dims=[1, 0]} %copy =",
            ),
            ("clone(%y)", "clone(%v) {memory_format=torch.contiguous_format}"),
        ),
        _STATISTICS.changed(refused="statistics with another value"),
        # a region mutates what it is given
        _STATISTICS.changed(
            (
                "%y = aten.batch_norm(%x, None, None, %mean, %copy) {training=False,",
                """%y = fused.normed(%x, %mean, %copy) {kind="normed", parts=["norm"], quantization_points=[]}
                body(%x : f32[n, c], %m : f32[c], %v : f32[c]) {
                  %y = aten.batch_norm(%x, None, None, %m, %v) {training=True,""",
            ),
            ("add.Tensor(%y, %copy)", "neg(%y)"),
            ("%z =", "return %y } %z ="),
            refused="statistics with another value",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.clone", "aten.lift_fresh_copy"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the same strides and unobservable sharing."""
        op = m.root
        x = first(op)
        memory_format = op.attributes.get("memory_format", torch.contiguous_format)
        if memory_format in _PRESERVE:
            return copy_refusal(op.result, x)
        if memory_format is torch.contiguous_format and is_contiguous(x):
            return sharing_refusal(op.result, x)
        return "the strides may change"


class NoContiguous(Identity):
    """contiguous(x) = x, where x is contiguous"""

    examples = (
        _COPIED.changed(
            ("%copy = aten.clone(%y)", "%part = aten.permute(%y) {dims=[0, 1]} %copy = aten.contiguous(%part)")
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        """Match contiguous; it returns its operand where that is contiguous already."""
        return p.op("aten.contiguous", memory_format=torch.contiguous_format)

    @override
    def check(self, m: Match) -> str | None:
        """Demand an operand that is certainly contiguous."""
        return None if is_contiguous(first(m.root)) else "the operand may have other strides"


_WHOLE = Example("""
    graph(%x : f32[n, a, h, w]) { %y = aten.slice.Tensor(%x) {dim=1, start=0, end=9} %z = aten.neg(%y) return %z }
""")


class NoExpand(Identity):
    """expand(x, shape of x) = slice(x, all) = x"""

    examples = (
        _WHOLE,
        _WHOLE.changed(("slice.Tensor(%x) {dim=1, start=0, end=9}", "expand(%x) {size=[n, -1, h, w]}")),
        _WHOLE.changed(
            ("a, h, w]", "1, 1, 1]"),
            ("end=9", "end=9, step=2"),
            ("aten.neg(%y)", "aten.to.dtype(%y) {dtype=torch.float32, memory_format=torch.channels_last}"),
            refused="the strides of the slice decide whether a conversion copies",
        ),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.slice.Tensor", "aten.narrow"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand an equal shape, in steps of 1."""
        op = m.root
        if not shapes_equal(shape_of(first(op)), shape_of(op.result)):
            return "the shape changes, or is not known"
        if op.attributes.get("step", 1) != 1 and reaches_format(op.result):
            # x[::2] of a dimension of size 1 has another stride, which says nothing elsewhere
            return "the strides of the slice decide whether a conversion copies"
        return None


class NoPad(Identity):
    """pad(x, zeros) = repeat(x, ones) = x, where the copy is unobservable"""

    examples = (
        _COPIED.changed(("clone(%y)", "constant_pad_nd(%y) {pad=[0, 0]}")),
        _COPIED.changed(("clone(%y)", "repeat(%y) {repeats=[1, 1]}")),
        _COPIED.changed(("clone(%y)", "repeat(%y) {repeats=[1, 2]}"), refused="something is added"),
        _COPIED.changed(("clone(%y)", "repeat(%y) {repeats=[1, 1, 1]}"), refused="the rank changes"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.pad", "aten.constant_pad_nd", "aten.repeat", "aten.tile"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand that nothing is added."""
        op = m.root
        x = first(op)
        if op.name in ("aten.pad", "aten.constant_pad_nd"):
            if any(type(n) is not int or n != 0 for n in op.attributes["pad"]):
                return "something is added"
            if op.attributes.get("mode", "constant") != "constant":
                return "the mode is not constant"
            return copy_refusal(op.result, x)
        repeats = op.attributes["repeats" if op.name == "aten.repeat" else "dims"]
        if any(type(n) is not int or n != 1 for n in repeats):
            return "something is added"
        if not shapes_equal(shape_of(x), shape_of(op.result)):
            return "the rank changes, or is not known"
        return sharing_refusal(op.result, x) if is_contiguous(x) else "the strides may change"


class CatOfOne(Identity):
    """cat([x], d) = x, where the copy is unobservable"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.cat", (p.any("x"),))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the same strides and unobservable sharing."""
        if not has_standard_format(m.x):
            return "the strides may change"
        return sharing_refusal(m.root.result, m.x)


_PRODUCT = Example("""
    graph(%x : f32[n, a]) { %copy = aten.clone(%x) %y = aten.mul.Scalar(%copy) {other=1} %z = aten.neg(%y) return %z }
""")
_SUM = _PRODUCT.changed(("f32", "i64"), ("mul.Scalar(%copy) {other=1}", "add.Scalar(%copy) {other=0}"))


class NoArithmetic(Identity):
    """x * 1 = x / 1 = x - 0 = x ** 1 = x, and x + 0 = x for integers, the dtype unchanged

    For floating x, x + 0 turns -0.0 into 0.0, so only x + (-0.0) is removed.
    """

    examples = (
        _PRODUCT,
        _SUM,
        _SUM.changed(("i64", "f32"), ("=0", "=-0.0"), ("clone(%x)", "mul.Scalar(%x) {other=0.0}")),
        _PRODUCT.changed(("f32", "i64"), ("=1", "=1.0"), refused="the dtype changes"),
        _SUM.changed(("i64", "f32"), ("=0", "=-0.0, alpha=-1"), refused="the scalar is not the unit"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(_SCALAR_ARITHMETIC)

    @override
    def check(self, m: Match) -> str | None:
        """Demand the unit, an unchanged dtype, and an unobservable copy."""
        op = m.root
        x = first(op)
        if not _is_unit(op, x):
            return "the scalar is not the unit"
        if not same_dtype(x, op.result):
            return "the dtype changes, or is not known"
        return copy_refusal(op.result, x)


def _is_unit(op: Operation, x: Value) -> bool:
    attributes = op.attributes
    scalar = attributes["exponent"] if "exponent" in attributes else attributes["other"]
    unit = op.opdef.facts.unit
    if unit is None or not isinstance(scalar, (bool, int, float)) or scalar != unit:
        return False
    if not attributes_equal(attributes.get("alpha", 1), 1):
        return False
    if is_integral(x):
        return True
    if not is_floating(x):
        return False
    if unit == 0:
        negative = math.copysign(1.0, scalar) < 0
        return negative == op.opdef.name.startswith("aten.add.")
    return True


class Idempotent(Rule):
    """f(f(x)) = f(x), for every f of which the op table says so"""

    examples = (
        Example("graph(%x : f32[n]) { %y = aten.clamp(%x) {min=0.5} %z = aten.clamp(%y) {min=0.5} return %z }"),
        Example("""
            graph(%x : f32[n, a]) {
              %y = aten.to.dtype(%x) {dtype=torch.float64}
              %z = aten.to.dtype(%y) {dtype=torch.float64}
              %u = aten.neg(%z)
              return %u
            }
        """),
        Example("""
            graph(%x : f32[n], %least : f32[n]) {
              %y = aten.clamp_min.Tensor(%x, %least)
              %z = aten.clamp_min.Tensor(%y, %least)
              return %z
            }
        """),
        Example(
            """
            graph(%x : f32[n]) {
              %y = aten.to.dtype(%x) {dtype=torch.float64, copy=True}
              %z = aten.to.dtype(%y) {dtype=torch.float64, copy=True}
              return %y, %z
            }
            """,
            refused="an output would share storage",
        ),
        # a call returns its operand the second time, where an output may share storage
        Example("graph(%x : f32[n, a]) { %y = aten.contiguous(%x) %z = aten.contiguous(%y) return %z }"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(Trait.IDEMPOTENT, p.op(Trait.IDEMPOTENT, name="inner"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the same operator and arguments; where it returns a new tensor, that must be unobservable."""
        outer, inner = m.root, m.inner
        if outer.opdef is not inner.opdef or len(outer.results) != 1:
            return "the operators differ"
        if outer.operands[1:] != inner.operands[1:] or outer.result.type != inner.result.type:
            return "the operands or types differ"
        if not all(attributes_equal(value, inner.attributes[name]) for name, value in outer.attributes.items()):
            return "the attributes differ"
        if may_alias_operands(outer.opdef) and not outer.attributes.get("copy", False):
            return None  # applied once more, it returns its operand
        return sharing_refusal(outer.result, inner.result)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        inner: Operation = m.inner
        return inner.result


_INVOLUTIONS = tuple(
    name
    for name in operators_with(lambda facts: facts.inverse is not None and facts.layout is None)
    if get_opdef(name).facts.inverse == name
)


class Involution(Identity):
    """neg(neg(x)) = bitwise_not(bitwise_not(x)) = x"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.one_of(*(p.op(name, p.op(name, p.any("x"))) for name in _INVOLUTIONS))

    @override
    def check(self, m: Match) -> str | None:
        """Demand an unobservable copy."""
        return copy_refusal(m.root.result, m.x)


IDENTITY_RULES = (
    NoDropout,
    NoCast,
    NoAlias,
    NoDetach,
    NoCopy,
    NoContiguous,
    NoExpand,
    NoPad,
    CatOfOne,
    NoArithmetic,
    Idempotent,
    Involution,
)
INFERENCE_RULES = (NoDropoutInEval,)
