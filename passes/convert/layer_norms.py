"""Layer norms and group norms that are written out become the operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.memory.aliasing import reaches_output, reaches_view
from ir.memory.strides import is_contiguous
from ir.types import Dim, dims_equal, shapes_equal
from passes.fuse.norms import ROOTS, are_last, dims_of, exponent_of, square
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter

_VARIANCES = ("aten.var.correction", "aten.var.dim")
_LAST = "{memory_format=torch.channels_last}"
_VARIANCES_AND_MEANS = ("aten.var_mean.correction", "aten.var_mean.dim")


def _of_all(op: Operation) -> str | None:
    """Refuse the variance of a sample."""
    is_of_all = op.attributes.get("unbiased") is False or op.attributes.get("correction") == 0
    return None if is_of_all else f"{op.name} at `{op.location.where}` is the variance of a sample"


def _formula(p: PatternBuilder, x: Node) -> Node:
    """Return a pattern for (x - mean(x)) * rsqrt(var(x) + eps), in its spellings."""
    both = [
        p.op(_VARIANCES_AND_MEANS, x, keepdim=True, where=_of_all, name=name, result=i)
        for i, name in enumerate(("var", "mean"))
    ]
    found: list[Node] = []
    for mean in (p.op("aten.mean.dim", x, keepdim=True, dtype=None, name="mean"), both[1]):
        centered = p.op("aten.sub.Tensor", x, mean, alpha=1)
        variance: Node = both[0]
        if mean is not both[1]:
            written = p.op("aten.mean.dim", square(p, centered), keepdim=True, dtype=None, name="var")
            variance = p.one_of(
                written, *(p.op(_VARIANCES, of, keepdim=True, where=_of_all, name="var") for of in (x, centered))
            )
        total = p.op("aten.add.Scalar", variance, other=p.attr("eps"), alpha=1)
        scale = p.chain(ROOTS, total, "scale", minimum=1, maximum=2)
        found += [p.mul(centered, scale), p.op("aten.div.Tensor", centered, scale)]
    return p.one_of(*found)


def _why_no_norm(m: Match, x: Value, root: Operation) -> str | None:
    """Return why a match of `_formula` of `x` is not the operator's formula; None if it is."""
    where = m.var.location.where
    exponent = exponent_of(m.scale)
    if exponent != (0.5 if root.name == "aten.div.Tensor" else -0.5):
        return f"the variance at `{where}` is raised to the power {exponent:g} and not to -1/2"
    if m.var.name in _VARIANCES_AND_MEANS and m.var is not m.mean:
        return f"the mean and the variance at `{where}` are of two operations"
    shape = x.known_shape
    if shape is None or not shapes_equal(root.result.known_shape, shape):
        return f"the shape of what is normalized at `{where}` is not known"
    if dims_of(m.mean, len(shape)) != dims_of(m.var, len(shape)):
        return f"the variance at `{where}` is over other dimensions than the mean"
    return _why_other_numbers(x, m.eps)


def _why_other_numbers(x: Value, eps: object) -> str | None:
    """Return why the operator may compute other numbers; None if it computes the same, up to rounding."""
    dtype = x.tensor_type.dtype
    if dtype not in (torch.float32, torch.float64):
        return f"it is computed in {dtype}"
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not math.isfinite(eps) or eps <= 0:
        return f"eps is {eps}"
    return "the operand is empty, or its shape is not known" if 0 in (x.known_shape or (0,)) else None


def _affine(p: PatternBuilder, bare: Node, scaled: Node) -> tuple[Node, Node]:
    """Return patterns for `bare` times a weight, and for `scaled` plus a bias."""
    return p.mul(bare, p.any("factor")), p.op("aten.add.Tensor", scaled, p.any("summand"), alpha=1)


def _copied(p: PatternBuilder, norm: Node) -> Node:
    """Return a pattern for a contiguous copy; one in channels_last would keep its strides behind the weights."""
    return p.op("aten.contiguous", norm, memory_format=torch.contiguous_format, name="copy")


def _given(m: Match) -> Value | None:
    """Return the weight or the bias that a match of `_affine` has; None of another match."""
    factor: Value | None = m.get("factor")
    return m.get("summand") if factor is None else factor


def _why_not_affine(given: Value, normalized: Value, wanted: Sequence[Dim], m: Match) -> str | None:
    """Return why `given` is not one number for each place that is normalized, of the shape `wanted` in the end."""
    shape, type_ = given.known_shape, given.tensor_type
    while shape is not None and len(shape) > len(wanted) and dims_equal(shape[0], 1):
        shape = shape[1:]
    is_one = shapes_equal(shape, tuple(wanted)) and type_.dtype == normalized.tensor_type.dtype
    if is_one and shapes_equal(m.root.result.known_shape, normalized.known_shape):
        return None
    return f"the norm is combined with {type_}, not one number for each place that is normalized"


def _flat(b: Rewriter, value: Value, sizes: Sequence[Dim]) -> Value:
    """Return a weight without the dimensions of 1 that let it broadcast."""
    return value if shapes_equal(value.known_shape, tuple(sizes)) else b.op("aten.reshape", value, sizes).result


def _why_one_number(sizes: Sequence[Dim]) -> str | None:
    """Return why the deviations from a mean may be 0, and all that is computed from them noise; None if not."""
    if 0 in sizes:
        return "what is normalized is empty: PyTorch's gradient of a weight of its group norm is NaN there"
    if any(type(size) is int and size > 1 for size in sizes):
        return None
    return f"what is normalized may be one number: its sizes are {tuple(sizes)}"


def _shows(value: Value) -> bool:
    return reaches_output(value) or reaches_view(value)


_LAYER = Example("""
    parameter %v : f32[o, c]
    graph(%u : f32[n, t, c]) {
      %x = aten.relu(%u)
      %m = aten.mean.dim(%x) {dim=[2], keepdim=True}
      %d = aten.sub.Tensor(%x, %m)
      %q = aten.pow.Tensor_Scalar(%d) {exponent=2}
      %s = aten.mean.dim(%q) {dim=[2], keepdim=True}
      %e = aten.add.Scalar(%s) {other=1e-06}
      %r = aten.sqrt(%e)
      %h = aten.div.Tensor(%d, %r)
      %z = aten.linear(%h, %v, None)
      return %z
    }
""")
_VAR = _LAYER.changed(
    ("%q = aten.pow.Tensor_Scalar(%d) {exponent=2}", ""),
    (
        "%s = aten.mean.dim(%q) {dim=[2], keepdim=True}",
        "%s = aten.var.correction(%x) {dim=[2], correction=0, keepdim=True}",
    ),
)
_VAR_MEAN = _LAYER.changed(
    ("%q = aten.pow.Tensor_Scalar(%d) {exponent=2}", ""),
    ("%s = aten.mean.dim(%q) {dim=[2], keepdim=True}", ""),
    (
        "%m = aten.mean.dim(%x) {dim=[2], keepdim=True}",
        "%s, %m = aten.var_mean.correction(%x) {dim=[2], correction=0, keepdim=True}",
    ),
    ("sqrt", "rsqrt"),
    ("%h = aten.div", "%h = aten.mul"),
)
_CHANNELS = _LAYER.changed(
    ("f32[o, c]", "f32[o, 3]"), ("f32[n, t, c]", "f32[n, c, t, 3]"), ("dim=[2]", "dim=[1]"), ("relu", "contiguous")
)
_LAYER_AFFINE = Example("""
    parameter %w : f32[c]
    parameter %b : f32[c]
    graph(%x : f32[n, t, c]) {
      %h = aten.layer_norm(%x, None, None) {normalized_shape=[c], eps=1e-06}
      %y = aten.mul.Tensor(%w, %h)
      %z = aten.add.Tensor(%y, %b)
      return %z
    }
""")
_TURNED = Example("""
    parameter %w : f32[c, 1, 1]
    graph(%x : f32[n, h, 3, c]) {
      %h = aten.layer_norm(%x, None, None) {normalized_shape=[c], eps=1e-06}
      %t = aten.permute(%h) {dims=[0, 3, 1, 2]}
      %k = aten.contiguous(%t)
      %y = aten.mul.Tensor(%k, %w)
      return %y
    }
""")
_TURNED_BIAS = _TURNED.changed(
    ("parameter %w", "parameter %g : f32[c] parameter %w"),
    ("layer_norm(%x, None", "layer_norm(%x, %g"),
    ("mul.Tensor(%k", "add.Tensor(%k"),
    ("%k = aten.contiguous(%t)", ""),
    ("%k", "%t"),
)


class RecomposeLayerNormPattern(Pattern):
    """(x - mean(x)) * rsqrt(var(x) + eps) = layer_norm(x, eps), layer_norm(x) * w + b = layer_norm(x, w, b)

    In float32 and float64, over the last dimensions; over the channels of a map they are permuted to the end and back.
    The result is contiguous; so is that of the formula for a contiguous operand, and otherwise its strides must not
    show.
    """

    is_conversion = True
    closed = True

    examples = (
        _LAYER,
        _LAYER.changed(("pow.Tensor_Scalar(%d) {exponent=2}", "mul.Tensor(%d, %d)")),
        _LAYER.changed(("sqrt(%e)", "rsqrt(%e)"), ("%h = aten.div", "%h = aten.mul")),
        _LAYER.changed(("dim=[2]", "dim=[1, 2]")),
        _VAR,
        _VAR.changed(("correction(%x)", "dim(%x)"), ("correction=0", "unbiased=False")),
        _VAR.changed(("correction(%x)", "correction(%d)")),
        _VAR_MEAN,
        _CHANNELS,
        _CHANNELS.changed(("return %z", "return %h")),
        _LAYER_AFFINE,
        _LAYER_AFFINE.changed(("%w : f32[c]", "%w : f32[1, 1, c]"), ("%w, %h", "%h, %w"), ("return %z", "return %y")),
        _TURNED,
        _TURNED_BIAS,
        _TURNED.changed(("contiguous(%t)", f"contiguous(%t) {_LAST}"), refused="memory_format"),
        _LAYER.changed(("return %z", "return %h"), refused="its strides show"),
        _LAYER.changed(("sqrt", "rsqrt"), refused="raised to the power -0.5"),
        _LAYER.changed(("other=1e-06", "other=0.0"), refused="eps is 0.0"),
        _LAYER.changed(("f32", "bf16"), refused="computed in torch.bfloat16"),
        _LAYER.changed(("f32[n, t, c]", "f32[n, t, 1]"), ("f32[o, c]", "f32[o, 1]"), refused="may be one number"),
        _LAYER.changed(
            ("(%q) {dim=[2], keepdim=True}", "(%q) {dim=[2], keepdim=False}"),
            ("f32[n, t, c]", "f32[t, t, t]"),
            ("f32[o, c]", "f32[o, t]"),
            refused="keepdim",
        ),
        _VAR.changed(("correction=0", "correction=1"), refused="of a sample"),
        _VAR.changed(("(%x) {dim=[2], corr", "(%x) {dim=[1], corr"), refused="over other dimensions"),
        _CHANNELS.changed(("dim=[1]", "dim=[2]"), refused="neither the last dimensions nor the channels"),
        _LAYER_AFFINE.changed(("%w : f32[c]", "%w : f32[t, c]"), refused="not one number for each"),
        _LAYER_AFFINE.changed(("%w : f32", "%w : f64"), refused="not one number for each"),
        _TURNED.changed(("%w : f32[c, 1, 1]", "%w : f32[c]"), ("3, c]", "c, c]"), refused="not one number for each"),
        _TURNED.changed(("[0, 3, 1, 2]", "[0, 2, 1, 3]"), ("c, 1, 1]", "3, 1, 1]"), refused="not moved to dimension 1"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        x = p.any("input")

        def placed(norm: Node) -> Node:
            turned = p.permute(norm, name="turned")
            return p.one_of(norm, turned, _copied(p, turned))

        bare, scaled = (p.layer_norm(x, weight, None, name="norm") for weight in (None, p.any("weight")))
        return p.one_of(_formula(p, x), *_affine(p, placed(bare), placed(scaled)))

    @override
    def check(self, m: Match) -> str | None:
        """Demand the operator's formula, or one number for each place that is normalized."""
        given = _given(m)
        if given is not None:
            return self._why_not_affine(m, given)
        reason = _why_no_norm(m, m.input, m.root)
        if reason is not None:
            return reason
        rank = m.input.tensor_type.rank
        dims = dims_of(m.mean, rank)
        if are_last(dims, rank):
            m.captures["sizes"] = m.input.known_shape[-len(dims) :]
        elif dims == (1,):
            m.captures["sizes"] = m.input.known_shape[1:2]
        else:
            return f"the mean at `{m.mean.location.where}` is over neither the last dimensions nor the channels"
        if not all(type(size) is int for size in m.sizes):
            return f"the sizes {m.sizes} over which is normalized are not static"
        reason = _why_one_number(m.sizes)
        if reason is not None:
            return reason
        if _shows(m.root.result) and not is_contiguous(m.input):
            return "its strides show in an output or decide about a view, and may be other than contiguous"
        return None

    def _why_not_affine(self, m: Match, given: Value) -> str | None:
        sizes, turned = m.norm.attributes["normalized_shape"], m.get("turned")
        reason = _why_one_number(sizes)
        if reason is not None:
            return reason
        if turned is None:
            return _why_not_affine(given, m.norm.result, sizes, m)
        rank = len(turned.attributes["dims"])
        if len(sizes) != 1 or rank < 3 or turned.attributes["dims"][1] % rank != rank - 1:
            return f"what is normalized is not moved to dimension 1 at `{turned.location.where}`"
        return _why_not_affine(given, turned.result, (*sizes, *[1] * (rank - 2)), m)

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        given = _given(m)
        if given is not None:
            return self._with_affine(m, b, _flat(b, given, m.norm.attributes["normalized_shape"]))
        rank = m.input.tensor_type.rank
        if dims_of(m.mean, rank)[-1] == rank - 1:
            return b.op("aten.layer_norm", m.input, m.sizes, None, None, float(m.eps)).result
        last = b.permute(m.input, (0, *range(2, rank), 1))
        norm = b.op("aten.layer_norm", last, m.sizes, None, None, float(m.eps)).result
        back = b.permute(norm, (0, rank - 1, *range(1, rank - 1)))
        return b.op("aten.contiguous", back).result if _shows(m.root.result) else back

    def _with_affine(self, m: Match, b: Rewriter, given: Value) -> Value:
        norm: Operation = m.norm
        weights = (given, None) if norm.operand("weight") is None else (norm.operand("weight"), given)
        value: Value = b.op(
            "aten.layer_norm", m.input, norm.attributes["normalized_shape"], *weights, norm.attributes["eps"]
        ).result
        if m.get("turned") is not None:
            value = b.permute(value, m.turned.attributes["dims"])
        return value if m.get("copy") is None else b.op("aten.contiguous", value).result


_GROUPS = Example("""
    graph(%x : f32[n, 4*c, h, 3]) {
      %s = aten.reshape(%x) {shape=[n, 2, 6*c*h]}
      %h = aten.layer_norm(%s, None, None) {normalized_shape=[6*c*h], eps=1e-05}
      %y = aten.reshape(%h) {shape=[n, 4*c, h, 3]}
      return %y
    }
""")
_GROUPS_WRITTEN = Example("""
    graph(%x : f32[n, 4*c, h, 3]) {
      %k = aten.contiguous(%x)
      %s = aten.reshape(%k) {shape=[n, 2, 2*c, h, 3]}
      %v, %m = aten.var_mean.correction(%s) {dim=[2, 3, 4], correction=0, keepdim=True}
      %d = aten.sub.Tensor(%s, %m)
      %e = aten.add.Scalar(%v) {other=1e-05}
      %r = aten.rsqrt(%e)
      %h = aten.mul.Tensor(%d, %r)
      %y = aten.reshape(%h) {shape=[n, 4*c, h, 3]}
      return %y
    }
""")
_GROUPS_AFFINE = Example("""
    parameter %w : f32[2*c, 1, 1]
    parameter %b : f32[1, 2*c, 1, 1]
    graph(%x : f32[n, 2*c, h, 3]) {
      %h = aten.group_norm(%x, None, None) {num_groups=2}
      %y = aten.mul.Tensor(%h, %w)
      %z = aten.add.Tensor(%y, %b)
      return %z
    }
""")
_GROUPS_AFFINE_COPY = _GROUPS_AFFINE.changed(("%y =", "%k = aten.contiguous(%h) %y ="), ("%h, %w", "%k, %w"))


class RecomposeGroupNormPattern(Pattern):
    """reshape(norm(reshape(x, (n, g, -1)))) = group_norm(x, g), group_norm(x) * w + b = group_norm(x, w, b)

    Of a norm over all that is in a group, in float32 and float64, as a layer norm without weights or written out; w and
    b have one number for each channel. The result is contiguous where its strides show.
    """

    is_conversion = True
    closed = True

    examples = (
        _GROUPS,
        _GROUPS_WRITTEN,
        _GROUPS_WRITTEN.changed(("rsqrt", "sqrt"), ("%h = aten.mul", "%h = aten.div")),
        _GROUPS_AFFINE,
        _GROUPS_AFFINE.changed(("return %z", "return %y"), ("%h, %w", "%w, %h")),
        _GROUPS_AFFINE_COPY,
        _GROUPS_AFFINE_COPY.changed(("(%h) ", f"(%h) {_LAST} "), refused="memory_format"),
        _GROUPS_AFFINE.changed(
            ("%w : f32[2*c, 1, 1]", "%w : f32[2*c]"),
            ("(%x, None", "(%x, %w"),
            ("%y = aten.mul.Tensor(%h, %w)", ""),
            ("%y, %b", "%h, %b"),
        ),
        _GROUPS.changed(
            ("f32[n, 4*c, h, 3]", "f32[4, 4, h, 3]"),
            ("[n, 2, 6*c*h]", "[2, 4, 6*h]"),
            ("[6*c*h]", "[6*h]"),
            ("shape=[n, 4*c", "shape=[4, 4"),
            refused="not split into groups of channels",
        ),
        _GROUPS.changed(("shape=[n, 4*c, h, 3]", "shape=[n, h, 4*c, 3]"), refused="not reshaped back"),
        _GROUPS.changed(
            ("[n, 2, 6*c*h]", "[n, 2, 3, 2*c*h]"), ("[6*c*h]", "[2*c*h]"), refused="over all that is in a group"
        ),
        _GROUPS.changed(("f32", "bf16"), refused="computed in torch.bfloat16"),
        _GROUPS_WRITTEN.changed(("correction=0", "correction=1"), refused="of a sample"),
        _GROUPS_WRITTEN.changed(("dim=[2, 3, 4]", "dim=[2, 3]"), refused="over all that is in a group"),
        _GROUPS_WRITTEN.changed(("%k = aten.contiguous(%x)", ""), ("%k", "%x"), refused="its strides show"),
        _GROUPS_AFFINE.changed(("%w : f32[2*c, 1, 1]", "%w : f32[3]"), refused="not one number for each"),
        _GROUPS_AFFINE.changed(("2*c, h, 3]", "2*c, 0, 3]"), refused="what is normalized is empty"),
    )

    @override
    def pattern(self, p: PatternBuilder) -> Node:
        x = p.any("input")
        split = p.reshape(x, name="split")
        inner = p.one_of(p.layer_norm(split, None, None, name="layer"), _formula(p, split))

        def placed(norm: Node) -> Node:
            return p.one_of(norm, _copied(p, norm))

        bare, scaled = (p.group_norm(x, weight, None, name="norm") for weight in (None, p.any("weight")))
        return p.one_of(p.reshape(inner), *_affine(p, placed(bare), placed(scaled)))

    @override
    def check(self, m: Match) -> str | None:
        """Demand a norm of groups of channels, or one number for each channel."""
        given = _given(m)
        shape = m.input.known_shape
        if given is not None:
            if shape is None:
                return "the shape of what is normalized is not known"
            wanted = (shape[1], *[1] * (len(shape) - 2))
            in_a_group = (shape[1] // m.norm.attributes["num_groups"], *shape[2:])
            return _why_one_number(in_a_group) or _why_not_affine(given, m.norm.result, wanted, m)
        layer, split = m.get("layer"), m.split.result.known_shape
        inner = m.root.operand_values[0].defining_op
        assert inner is not None
        if layer is None:
            reason = _why_no_norm(m, m.split.result, inner)
        else:
            reason = _why_other_numbers(m.input, layer.attributes["eps"])
        if reason is not None:
            return reason
        if shape is None or not shapes_equal(m.root.result.known_shape, shape):
            return f"what is normalized at `{inner.location.where}` is not reshaped back"
        if len(shape) < 2 or len(split) < 3 or not dims_equal(shape[0], split[0]) or not _divides(split[1], shape[1]):
            return f"at `{m.split.location.where}` is not split into groups of channels"
        if layer is None:
            count = len(dims_of(m.mean, len(split))) if are_last(dims_of(m.mean, len(split)), len(split)) else 0
        else:
            count = len(layer.attributes["normalized_shape"])
        if count != len(split) - 2:
            return f"the norm at `{inner.location.where}` is not over all that is in a group"
        reason = _why_one_number(split[2:])
        if reason is not None:
            return reason
        if layer is None and _shows(m.root.result) and not is_contiguous(m.input):
            return "its strides show in an output or decide about a view, and may be other than contiguous"
        return None

    @override
    def rewrite(self, m: Match, b: Rewriter) -> Value:
        given = _given(m)
        if given is None:
            eps = float(m.eps if m.get("layer") is None else m.layer.attributes["eps"])
            groups = m.split.result.known_shape[1]
            value: Value = b.op("aten.group_norm", m.input, groups, None, None, eps).result
            copies = _shows(m.root.result) and not is_contiguous(m.input)
            return b.op("aten.contiguous", value).result if copies else value
        norm: Operation = m.norm
        given = _flat(b, given, m.input.known_shape[1:2])
        weights = (given, None) if norm.operand("weight") is None else (norm.operand("weight"), given)
        value = b.op("aten.group_norm", m.input, norm.attributes["num_groups"], *weights, norm.attributes["eps"]).result
        return value if m.get("copy") is None else b.op("aten.contiguous", value).result


def _divides(groups: Dim, channels: Dim) -> bool:
    return type(groups) is int and type(channels) is int and groups > 0 and channels % groups == 0
