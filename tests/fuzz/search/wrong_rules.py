"""Rules with one mistake each, as people make them in patterns of their own."""

from __future__ import annotations

from typing import Any

import torch

from ir.core import Value
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter


class WrongRule(Pattern):
    """A rule on real tensors in float32 or float64; `wanted` is its condition beside that."""

    is_conversion = True

    def wanted(self, m: Match) -> bool:
        """Return what the rule's author thought of."""
        return True

    def check(self, m: Match) -> str | None:
        """Demand floats, and what is wanted."""
        types = [value.tensor_type for value in m.captures.values() if isinstance(value, Value)]
        if not all(t.is_known for t in types):
            return "the types are not known"
        floats = {t.dtype for t in types if t.dtype is not None and t.dtype.is_floating_point}
        if len(floats) != 1 or not floats <= {torch.float32, torch.float64}:
            return "not of one dtype"
        return None if self.wanted(m) else "not wanted"


def shape_of(value: Value) -> tuple[Any, ...]:
    """Return the shape of a value that has one."""
    shape = value.tensor_type.shape
    assert shape is not None
    return shape


# ---- an attribute that is forgotten ----


class LayerNormOfAnyEps(WrongRule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) = layer_norm(x): with the default eps."""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match the parts."""
        x = p.any("x")
        centre = p.sub(x, p.op("aten.mean.dim", x, dim=(-1,), keepdim=True, dtype=None), alpha=1)
        square = p.op("aten.pow.Tensor_Scalar", centre, exponent=2)
        variance = p.op("aten.mean.dim", square, dim=(-1,), keepdim=True, dtype=None)
        return p.div(centre, p.sqrt(p.op("aten.add.Scalar", variance, alpha=1)))

    def wanted(self, m: Match) -> bool:
        """Demand a dimension."""
        return len(shape_of(m.x)) > 0

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build a layer norm."""
        return b.layer_norm(m.x, [shape_of(m.x)[-1]])


class BatchNormOfAnyEps(WrongRule):
    """batch_norm(x) = x * w / sqrt(var + 1e-5) + (b - mean * w / sqrt(var + 1e-5))"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a batch norm in eval mode."""
        return p.batch_norm(p.any("x"), p.any("w"), p.any("b"), p.any("mean"), p.any("var"), training=False)

    def wanted(self, m: Match) -> bool:
        """Demand an image."""
        return len(shape_of(m.x)) == 4

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build scale and shift."""
        scale = b.mul(m.w, b.rsqrt(b.call("aten.add.Scalar", m.var, 1e-5)))
        shift = b.sub(m.b, b.mul(m.mean, scale))
        return b.add(b.mul(m.x, b.reshape(scale, [-1, 1, 1])), b.reshape(shift, [-1, 1, 1]))


class AttentionOfAnyScale(WrongRule):
    """softmax(q @ k^T * scale) @ v = attention(q, k, v)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match attention written out."""
        scores = p.matmul(p.any("q"), p.transpose(p.any("k"), dim0=-2, dim1=-1))
        scaled = p.op("aten.mul.Scalar", scores, other=p.attr("scale"))
        return p.matmul(p.softmax(scaled, dim=-1, dtype=None), p.any("v"))

    def wanted(self, m: Match) -> bool:
        """Demand four dimensions of equal batches, and tokens."""
        q, k, v = shape_of(m.q), shape_of(m.k), shape_of(m.v)
        return len(q) == len(k) == len(v) == 4 and q[:2] == k[:2] == v[:2] and 0 not in (*q, *k, *v)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the attention."""
        return b.scaled_dot_product_attention(m.q, m.k, m.v)


class AttentionScaledByTokens(AttentionOfAnyScale):
    """As above, for a scale of 1/sqrt(tokens), which is not 1/sqrt(features)."""

    def wanted(self, m: Match) -> bool:
        """Demand the scale, of the wrong size."""
        return super().wanted(m) and bool(abs(m.scale - shape_of(m.q)[-2] ** -0.5) < 1e-6)


class GeluOfAnyKind(WrongRule):
    """gelu(x) = 0.5 x (1 + erf(x / sqrt(2))): of `approximate="tanh"` too."""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a GELU."""
        return p.gelu(p.any("x"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build its definition."""
        erf = b.erf(b.call("aten.mul.Scalar", m.x, 0.5**0.5))
        return b.mul(b.call("aten.mul.Scalar", m.x, 0.5), b.call("aten.add.Scalar", erf, 1))


class LogSumExpWithoutKeepdim(WrongRule):
    """log(sum(exp(x), dim)) = logsumexp(x, dim)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match the parts."""
        return p.log(p.op("aten.sum.dim_IntList", p.exp(p.any("x")), dtype=None, dim=p.attr("dim")))

    def wanted(self, m: Match) -> bool:
        """Demand dimensions."""
        return bool(m.dim)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build it without `keepdim`."""
        return b.logsumexp(m.x, m.dim)


# ---- an axis or a place that is taken for another ----


class LogSoftmaxOfLastDim(WrongRule):
    """log(softmax(x, dim)) = log_softmax(x, -1)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match the parts."""
        return p.log(p.softmax(p.any("x"), dtype=None))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build it over the last dimension."""
        return b.log_softmax(m.x, -1)


class PermutesInTheWrongOrder(WrongRule):
    """permute(permute(x, a), b) = permute(x, [b[d] for d in a]), which should be [a[d] for d in b]"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both."""
        return p.permute(p.permute(p.any("x"), dims=p.attr("a")), dims=p.attr("b"))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Compose them."""
        return b.permute(m.x, [m.b[d] for d in m.a])


class TransposesOfLikeDims(WrongRule):
    """transpose(transpose(x, a, b), c, d) = x, where a and b are c and d up to their signs"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both."""
        once = p.transpose(p.any("x"), dim0=p.attr("a"), dim1=p.attr("b"))
        return p.transpose(once, dim0=p.attr("c"), dim1=p.attr("d"))

    def wanted(self, m: Match) -> bool:
        """Compare the numbers."""
        return {abs(m.a), abs(m.b)} == {abs(m.c), abs(m.d)}

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Leave both out."""
        return m.x


class PaddingOfTheWrongSide(WrongRule):
    """conv2d(pad(x, [l, l, t, t])) = conv2d(x, padding=(l, t)), which should be (t, l)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match zeros around an image."""
        padded = p.constant_pad_nd(p.any("x"), pad=p.attr("pad"), value=0)
        return p.conv2d(padded, p.any("w"), p.any("bias", optional=True), padding=(0, 0), name="conv")

    def wanted(self, m: Match) -> bool:
        """Demand as much on both sides."""
        pad = m.pad
        return len(pad) == 4 and pad[0] == pad[1] >= 0 and pad[2] == pad[3] >= 0

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the convolution."""
        attributes = {**m.conv.attributes, "padding": (m.pad[0], m.pad[2])}
        return b.call("aten.conv2d", m.x, m.w, m.bias, **attributes)


class PaddingOfAnyValue(PaddingOfTheWrongSide):
    """conv2d(pad(x, [l, l, t, t], value)) = conv2d(x, padding=(t, l))"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match numbers around an image."""
        padded = p.constant_pad_nd(p.any("x"), pad=p.attr("pad"))
        return p.conv2d(padded, p.any("w"), p.any("bias", optional=True), padding=(0, 0), name="conv")

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the convolution."""
        attributes = {**m.conv.attributes, "padding": (m.pad[2], m.pad[0])}
        return b.call("aten.conv2d", m.x, m.w, m.bias, **attributes)


class SliceOfSlice(WrongRule):
    """slice(slice(x, a, e), b, f) = slice(x, a + b, f)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match two slices of one dimension."""
        inner = p.op("aten.slice.Tensor", p.any("x"), dim=p.attr("dim"), start=p.attr("a"), step=1)
        return p.op("aten.slice.Tensor", inner, dim=p.attr("dim"), start=p.attr("b"), end=p.attr("end"), step=1)

    def wanted(self, m: Match) -> bool:
        """Demand starts from the front."""
        return None not in (m.a, m.b) and min(m.a, m.b) >= 0

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Add the starts."""
        return b.call("aten.slice.Tensor", m.x, m.dim, m.a + m.b, m.end, 1)


class CatOfSplit(WrongRule):
    """cat(split(x)) = x, whatever the dimensions and the order"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both halves."""
        x = p.any("x")
        halves = [p.op("aten.split.Tensor", x, name=name, result=i) for i, name in enumerate(("left", "right"))]
        return p.op("aten.cat", halves)

    def wanted(self, m: Match) -> bool:
        """Demand the halves of one split."""
        return m.left is m.right and len(m.left.results) == 2

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Leave both out."""
        return b.clone(m.x)


# ---- broadcasting ----


class BiasThatBroadcasts(WrongRule):
    """linear(x, w) + b = linear(x, w, b): b may make the sum larger than the linear"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a weight that is added."""
        bias = p.any("b", where=lambda value: value.is_weight)
        return p.add(p.linear(p.any("x"), p.any("w"), None), bias, alpha=1)

    def wanted(self, m: Match) -> bool:
        """Demand a vector."""
        return len(shape_of(m.b)) == 1

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the linear."""
        return b.linear(m.x, m.w, m.b)


class ConvBiasOfOne(WrongRule):
    """conv2d(x, w) + b = conv2d(x, w, b), b: f[C, 1, 1]; but C may be 1, or the convolution's channels"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match what is added to a convolution."""
        return p.add(p.conv2d(p.any("x"), p.any("w"), None, name="conv"), p.any("b"), alpha=1)

    def wanted(self, m: Match) -> bool:
        """Demand the shape of the bias, and no more."""
        return len(shape_of(m.b)) == 3 and shape_of(m.b)[1:] == (1, 1)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the convolution."""
        return b.call("aten.conv2d", m.x, m.w, b.reshape(m.b, [-1]), **m.conv.attributes)


class SumOfProducts(WrongRule):
    """sum(x * y, -1) = x @ y, y: f[n]; but x may have a last size of 1, or y"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match the parts."""
        return p.op("aten.sum.dim_IntList", p.mul(p.any("x"), p.any("y")), dim=(-1,), keepdim=False, dtype=None)

    def wanted(self, m: Match) -> bool:
        """Demand a vector."""
        return len(shape_of(m.y)) == 1 and len(shape_of(m.x)) > 0

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Build the product."""
        return b.matmul(m.x, m.y)


class ScaledEmbedding(WrongRule):
    """embedding(w, i) * s = embedding(w * s, i): with padding_idx, a row of w gets no gradient"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match the parts."""
        return p.mul(p.embedding(p.any("w"), p.any("i"), name="embedding"), p.any("s"))

    def wanted(self, m: Match) -> bool:
        """Demand one number, or one for each feature."""
        return shape_of(m.s) in ((), shape_of(m.w)[1:])

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Scale the table."""
        return b.call("aten.embedding", b.mul(m.w, m.s), m.i, **m.embedding.attributes)


# ---- values ----


class ClampTwice(WrongRule):
    """clamp(clamp(x, a, b), c, d) = clamp(x, max(a, c), min(b, d)), unless the intervals do not meet"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both."""
        return p.clamp(p.clamp(p.any("x"), min=p.attr("a"), max=p.attr("b")), min=p.attr("c"), max=p.attr("d"))

    def wanted(self, m: Match) -> bool:
        """Demand all bounds."""
        return None not in (m.a, m.b, m.c, m.d)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Intersect the intervals."""
        return b.clamp(m.x, max(m.a, m.c), min(m.b, m.d))


class RootOfSquare(WrongRule):
    """sqrt(x^2) = x, where it is abs(x)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both."""
        return p.sqrt(p.op("aten.pow.Tensor_Scalar", p.any("x"), exponent=2))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Leave both out."""
        return m.x


class AveragePoolOfRelu(WrongRule):
    """avg_pool2d(relu(x)) = relu(avg_pool2d(x)), as it is of max_pool2d"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match both."""
        return p.op("aten.avg_pool2d", p.relu(p.any("x")), name="pool")

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Swap them."""
        return b.relu(b.call("aten.avg_pool2d", m.x, **m.pool.attributes))


class MaskByProduct(WrongRule):
    """masked_fill(x, c, 0) = x * not(c): infinity times 0 is NaN, and strides differ"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a mask."""
        return p.op("aten.masked_fill.Scalar", p.any("x"), p.any("c"), value=0)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Multiply."""
        return b.mul(m.x, b.logical_not(m.c))


WRONG_RULES: tuple[type[Pattern], ...] = (
    LayerNormOfAnyEps,
    BatchNormOfAnyEps,
    AttentionOfAnyScale,
    AttentionScaledByTokens,
    GeluOfAnyKind,
    LogSumExpWithoutKeepdim,
    LogSoftmaxOfLastDim,
    PermutesInTheWrongOrder,
    TransposesOfLikeDims,
    PaddingOfTheWrongSide,
    PaddingOfAnyValue,
    SliceOfSlice,
    CatOfSplit,
    BiasThatBroadcasts,
    ConvBiasOfOne,
    SumOfProducts,
    ScaledEmbedding,
    ClampTwice,
    RootOfSquare,
    AveragePoolOfRelu,
    MaskByProduct,
)
