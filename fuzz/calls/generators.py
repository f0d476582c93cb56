"""The generators of calls, by operator."""

from __future__ import annotations

from typing import Any

from fuzz.calls import elementwise as element
from fuzz.calls import indexing, layers, layout, quantization
from fuzz.calls.elementwise import Arguments
from fuzz.calls.layers import Generator
from fuzz.calls.source import Source, Unavailable
from ir.core import Value
from ir.opdef import OpDef, ParamKind, get_opdef

GENERATORS: dict[str, Generator] = {}
"""Operator -> generator of its calls."""


def _add(names: str, generator: Generator) -> None:
    for name in names.split():
        GENERATORS[f"aten.{name}"] = generator


def generate_call(source: Source, name: str) -> Arguments:
    """Draw the arguments of a call of the operator `name`."""
    return GENERATORS[name](source, get_opdef(name))


def draw_call(source: Source, opdef: OpDef) -> tuple[list[Any], dict[str, Any]]:
    """Draw the arguments of a call; operators without a generator get tensors and their defaults."""
    if opdef.name in GENERATORS:
        return generate_call(source, opdef.name)
    args: list[Any] = []
    first: Value | None = None
    for param in opdef.params:
        if param.kind is ParamKind.TENSOR:
            first = source.tensor() if first is None or source.flag() else first
            args.append(first)
        elif param.kind is ParamKind.LIST:
            args.append([source.tensor() for _ in range(source.integer(1, 2))])
        elif param.has_default or param.kind is ParamKind.OPTIONAL:
            break
        elif param.type in ("number", "float", "Scalar", "int", "SymInt"):
            args.append(source.one_of((1, 0, 2, -1)))
        else:
            raise Unavailable
    return args, {}


_add(
    "relu sigmoid gelu silu add.Tensor mul.Tensor sub.Tensor div.Tensor add.Scalar mul.Scalar sub.Scalar div.Scalar "
    "relu6 hardswish hardsigmoid tanh mish selu log_sigmoid hardtanh threshold hardshrink leaky_relu elu softplus celu "
    "softshrink rrelu abs floor ceil round trunc sign sgn positive neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt "
    "reciprocal square sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv frac sinc lgamma digamma "
    "deg2rad rad2deg nan_to_num special_erf special_expit logit round.decimals pow.Tensor_Scalar rsub.Scalar "
    "remainder.Scalar fmod.Scalar floor_divide.Scalar div.Scalar_mode pow.Scalar pow.Tensor_Tensor div.Tensor_mode "
    "maximum minimum max.other min.other fmax fmin atan2 hypot remainder.Tensor fmod.Tensor rsub.Tensor floor_divide "
    "copysign.Tensor xlogy.Tensor addcmul addcdiv signbit isinf isfinite isnan "
    "special_expm1 special_log1p special_exp2 arcsin arccos arctan arcsinh arccosh arctanh arctan2",
    element.elementwise,
)
_add(
    "eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar "
    "ge.Scalar logical_and logical_or logical_xor logical_not",
    element.any_elementwise,
)
_add(
    "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar "
    "bitwise_not __and__.Tensor __or__.Tensor __xor__.Tensor",
    element.bitwise,
)
_add("clamp clip clamp_min clamp_max", element.clamp)
_add("clamp.Tensor clamp_min.Tensor clamp_max.Tensor lerp.Scalar lerp.Tensor heaviside", element.same_dtype)
_add("where.self where.ScalarSelf where.ScalarOther where.Scalar", element.where)
_add("masked_fill.Scalar", element.masked_fill)
_add("prelu _prelu_kernel", element.prelu)
for _dims in (1, 2, 3):
    _add(f"conv{_dims}d", layers.conv(_dims))
    _add(f"conv{_dims}d.padding", layers.conv(_dims, padding_text=True))
    _add(f"conv_transpose{_dims}d" + (".input" if _dims > 1 else ""), layers.conv_transpose(_dims))
    _add(f"max_pool{_dims}d avg_pool{_dims}d max_pool{_dims}d_with_indices", layers.pool(_dims))
    _add(f"adaptive_avg_pool{_dims}d adaptive_max_pool{_dims}d", layers.adaptive_pool(_dims))
_add("upsample_linear1d.vec upsample_nearest1d.vec _upsample_nearest_exact1d.vec", layers.upsample(1))
_add(
    "upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec _upsample_nearest_exact2d.vec "
    "_upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec",
    layers.upsample(2),
)
_add("upsample_nearest3d.vec upsample_trilinear3d.vec", layers.upsample(3))
_add("pixel_shuffle pixel_unshuffle", layers.pixel_shuffle)
_add("linear", layers.linear)
_add("matmul", layers.matmul)
_add("mm", layers.mm)
_add("bmm", layers.bmm)
_add("addmm baddbmm", layers.addmm)
_add("scaled_dot_product_attention", layers.attention)
GENERATORS["nn.multihead_attention"] = layers.multihead_attention
_add("embedding", layers.embedding)
_add("batch_norm instance_norm", layers.batch_norm)
_add("group_norm", layers.group_norm)
_add("layer_norm rms_norm", layers.layer_norm)
_add("softmax.int log_softmax.int", layers.softmax)
_add("dropout alpha_dropout feature_dropout feature_alpha_dropout", layers.dropout)
_add("view reshape _unsafe_view", layout.reshape)
_add("flatten.using_ints", layout.flatten)
_add("unflatten.int", layout.unflatten)
_add("squeeze squeeze.dim squeeze.dims", layout.squeeze)
_add("unsqueeze", layout.unsqueeze)
_add("permute", layout.permute)
_add("transpose.int swapdims swapaxes", layout.transpose)
_add("t", layout.matrix)
_add("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", layout.movedim)
_add("expand broadcast_to", layout.expand)
_add("repeat tile", layout.repeat)
_add("flip", layout.flip)
_add("roll", layout.roll)
_add("select.int", layout.select)
_add("slice.Tensor", layout.slice_)
_add("narrow", layout.narrow)
_add("split.Tensor", layout.split)
_add("split_with_sizes split.sizes", layout.split_with_sizes)
_add("chunk", layout.chunk)
_add("unbind.int", layout.unbind)
_add("alias detach lift lift_fresh lift_fresh_copy", layout.alone)
_add("pad constant_pad_nd", layout.pad)
_add("tril triu", layout.triangle)
_add("cat", layout.cat)
_add("stack", layout.stack)
_add("index_select", layout.index_select)
_add("gather", layout.gather)
_add("topk", layout.topk)
_add("glu", layout.glu)
_add(
    "sum sum.dim_IntList mean mean.dim prod prod.dim_int amax amin max min logsumexp var var.dim var.correction std "
    "std.dim std.correction var_mean.correction std_mean.correction argmax argmin any any.dim all all.dim max.dim "
    "min.dim linalg_vector_norm norm.ScalarOpt_dim norm.Scalar",
    element.reduction,
)
_add("cumsum cumprod", element.cumulative)
_add("clone contiguous to.dtype to.device to.dtype_layout _to_copy", element.convert)
_add("zeros_like ones_like full_like empty_like rand_like randn_like", element.convert)
_add("type_as", element.type_as)
_add("zeros ones empty.memory_format full rand randn new_zeros new_ones new_full new_empty", element.shaped)
_add("arange arange.start arange.start_step", element.arange)
_add("index.Tensor", indexing.index)
_add("expand_as reshape_as view_as", indexing.like_another)
_add("unfold", indexing.unfold)
_add("repeat_interleave.self_int", indexing.repeat_interleave)
_add("einsum", indexing.einsum)
_add("meshgrid.indexing", indexing.meshgrid)
_add("fill.Scalar fill.Tensor", indexing.fill)
_add("copy", indexing.copy)
_add("slice_scatter", indexing.slice_scatter)
_add("select_scatter", indexing.select_scatter)
_add("diagonal diagonal_scatter", indexing.diagonal)
_add("scatter.src scatter.value scatter_add", indexing.scatter)
_add("index_put", indexing.index_put)
_add("index_add", indexing.index_add)
_add("sort argsort", indexing.sort)
_add("one_hot", indexing.one_hot)
_add("outer dot mv", indexing.vectors)
_add("lstm.input", indexing.lstm)
GENERATORS["quant.quantize"] = quantization.quantize
GENERATORS["quant.dequantize"] = quantization.dequantize
