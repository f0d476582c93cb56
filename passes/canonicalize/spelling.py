"""One spelling of operators and arguments that mean the same."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from ir.attributes import Attribute, attributes_equal
from ir.columns import Layout
from ir.core import RETURN, Operation, Value
from ir.memory.aliasing import reaches_format
from ir.opdef import ParamKind, operators_with
from ir.types import wrap
from passes.canonicalize.base import Rule, first, is_floating, shape_of, tensor
from passes.rewrite.example import Example
from passes.rewrite.literals import one_form
from passes.rewrite.pattern import Match, Node, PatternBuilder
from passes.rewrite.rewriter import Rewriter


class SpellSynonym(Rule):
    """multiply(x, y) = mul(x, y), and all other synonyms of the operator table"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(operators_with(lambda facts: facts.synonym))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        op = m.root
        operands = iter(op.grouped_operands())
        arguments = [
            op.resolved_attribute(p.name) if p.kind is ParamKind.ATTRIBUTE else next(operands) for p in op.opdef.params
        ]
        synonym = op.opdef.facts.synonym
        assert synonym is not None
        return b.op(synonym, *arguments).result


class SpellRsub(Rule):
    """rsub(x, y) = sub(y, x)"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.rsub.Tensor", p.any("x"), p.any("y"), alpha=p.attr("alpha"))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.sub.Tensor", m.y, m.x, alpha=m.alpha).result


_LIKE = Example("""
    graph(%x : f32[n, c], %y : f64[n]) { %z = aten.type_as(%x, %y) %w = aten.neg(%z) return %w }
""")


class SpellTypeAs(Rule):
    """type_as(x, y) = to(x, dtype of y), y on the device of x"""

    examples = (_LIKE, _LIKE.changed(("f64", "f32")), _LIKE.changed(refused="not known", unknown="all"))

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.type_as", p.any("x"), p.any("y"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known dtype, and one device."""
        x, y = tensor(m.x), tensor(m.y)
        if x is None or y is None or x.dtype is None or y.dtype is None or y.device is None:
            return "the types are not known"
        return None if x.device == y.device else "the devices differ"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.to.dtype", m.x, m.y.tensor_type.dtype).result


class SpellRelu6(Rule):
    """hardtanh(x, 0, 6) = relu6(x)"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.hardtanh(p.any("x"), min_val=p.attr("low"), max_val=p.attr("high"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand these bounds; other ones stay, since clamp has another gradient at its bounds."""
        bounds = (m.low, m.high)
        if any(type(bound) not in (int, float) for bound in bounds) or bounds != (0, 6):
            return "the bounds are not 0 and 6"
        return None if attributes_equal(float(m.low), 0.0) else "the lower bound is -0.0"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.relu6", m.x).result


class SpellClamp(Rule):
    """clamp_min(x, a) = clamp(x, a, None), clamp_max(x, b) = clamp(x, None, b)"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(operators_with(lambda facts: facts.spelled == "aten.clamp"), p.any("x"))

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        op = m.root
        bounds: dict[str, Any] = {name: op.resolved_attribute(name) for name in op.attributes}
        return b.op("aten.clamp", m.x, **bounds).result


_MEAN = Example("""
    graph(%x : f32[n, c, h, 3]) { %y = aten.mean.dim(%x) {dim=[2, 3]} %z = aten.relu(%y) return %z }
""")
_KEPT = ("3]}", "3], keepdim=True}")


class SpatialMeanToPool(Rule):
    """mean(x, (2, 3), keepdim=True) = adaptive_avg_pool2d(x, (1, 1)), x: f[N, C, H, W]; without keepdim, reshaped

    PyTorch computes this pool as this mean, so the bits are the same. For a map in channels_last, the strides of the
    result's dimensions of size 1 differ: a mean that is itself an output stays, and so does one that is converted to
    channels_last later.
    """

    examples = (
        _MEAN,
        _MEAN.changed(("[2, 3]", "[-1, -2]")),
        _MEAN.changed(("[2, 3]", "[-2, -3]"), refused="not over the two spatial dimensions"),
        _MEAN.changed(("[2, 3]", "None"), refused="not over the two spatial dimensions"),
        _MEAN.changed(("f32", "c64"), ("relu", "neg"), refused="is empty or converted"),
        _MEAN.changed(_KEPT, ("return %z", "return %y"), refused="the result is an output"),
        _MEAN.changed(
            _KEPT,
            ("relu(%y)", "to.dtype(%y) {dtype=torch.float32, memory_format=torch.channels_last}"),
            refused="the strides of the result decide whether a conversion copies",
        ),
        _MEAN.changed(("f32", "c64"), ("relu", "neg"), refused="empty or converted"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op("aten.mean.dim", p.any("x"), dim=p.attr("dims"), keepdim=p.attr("keepdim"), dtype=p.attr("dtype"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a floating 4-d map that is not empty, and its last two dimensions."""
        type_, shape = tensor(m.x), shape_of(m.x)
        if type_ is None or shape is None or len(shape) != 4:
            return "the operand is not a 4-d map of a known shape"
        if not isinstance(m.dims, tuple) or {wrap(d, 4) for d in m.dims} != {2, 3} or len(m.dims) != 2:
            return "the mean is not over the two spatial dimensions"
        if 0 in shape or not is_floating(m.x) or m.dtype not in (None, type_.dtype):
            return "the map is empty or converted"
        if m.keepdim and any(user.opdef is RETURN for user in m.root.result.users):
            return "the result is an output"
        if m.keepdim and reaches_format(m.root.result):
            return "the strides of the result decide whether a conversion copies"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        shape = shape_of(m.x)
        assert shape is not None
        pool = b.op("aten.adaptive_avg_pool2d", m.x, (1, 1)).result
        return pool if m.keepdim else b.op("aten.reshape", pool, shape[:2]).result


class WriteOutConvPadding(Rule):
    """conv(x, w, padding="same") = conv(x, w, padding=d * (k - 1) / 2), and "valid" = 0

    Padding that is not the same on both sides stays.
    """

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding"))

    @override
    def check(self, m: Match) -> str | None:
        """Demand padding that can be written as numbers."""
        return None if _padding(m.root) is not None else "the padding cannot be written as one number a dimension"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        op = m.root
        attributes = dict(op.attributes) | {"padding": _padding(op)}
        return b.op(op.name.removesuffix(".padding"), *op.operands, **attributes).result


def _padding(op: Operation) -> tuple[int, ...] | None:
    dims = int(op.name[len("aten.conv")])
    if op.attributes["padding"] == "valid":
        return (0,) * dims
    shape = shape_of(op.input("weight"))
    if op.attributes["padding"] != "same" or shape is None or len(shape) != dims + 2:
        return None
    padding: list[int] = []
    dilations = op.attributes["dilation"]
    if len(dilations) == 1:
        dilations *= dims
    for kernel, dilation in zip(shape[2:], dilations, strict=True):
        if type(kernel) is not int or type(dilation) is not int or dilation * (kernel - 1) % 2:
            return None
        padding.append(dilation * (kernel - 1) // 2)
    return tuple(padding)


class SpellExpand(Rule):
    """broadcast_to(x, s) = expand_as(x, y) = expand(x, shape of the result)"""

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        return p.op(operators_with(lambda facts: facts.layout is Layout.EXPAND))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a known shape that is written differently."""
        shape = shape_of(m.root.result)
        if shape is None:
            return "the shape of the result is not known"
        if m.root.opdef.facts.spelled is None and attributes_equal(m.root.attributes["size"], shape):
            return "all sizes are written out"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        return b.op("aten.expand", first(m.root), shape_of(m.root.result)).result


_POOLS = tuple(
    f"aten.{family}{rank}d{suffix}"
    for family, suffix in (("max_pool", ""), ("avg_pool", ""), ("max_pool", "_with_indices"))
    for rank in (1, 2, 3)
)


class WriteOneForm(Rule):
    """softmax(x, -1) = softmax(x, rank - 1), select(x, d, -1) = select(x, d, n - 1), max_pool(x, k) = max_pool(x, k, k)

    Dimensions and indices are counted from the front, those of a reduction are sorted, strides are written out.
    """

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        dims = operators_with(lambda facts: facts.dims)
        return p.op((*dims, "aten.split_with_sizes", "aten.select.int", *_POOLS))

    @override
    def check(self, m: Match) -> str | None:
        """Demand another form."""
        return None if _other_forms(m.root) else "all attributes have their one form, or it is not known"

    @override
    def rewrite(self, m: Match, b: Rewriter) -> None:
        for name, form in _other_forms(m.root).items():
            b.set_attribute(m.root, name, form)


def _other_forms(op: Operation) -> dict[str, Attribute]:
    """Return the one form of each attribute that has another."""
    given = {name: op.attributes[name] for name in ("dim", "index", "stride") if name in op.attributes}
    forms = {name: one_form(op, name, value) for name, value in given.items()}
    return {name: form for name, form in forms.items() if not attributes_equal(form, given[name])}


SPELLING_RULES = (
    SpellSynonym,
    SpellRsub,
    SpellTypeAs,
    SpellRelu6,
    SpellClamp,
    SpatialMeanToPool,
    WriteOutConvPadding,
    SpellExpand,
    WriteOneForm,
)
