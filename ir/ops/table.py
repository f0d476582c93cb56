"""The op table: one row of facts beyond the schema for each operator that has them.

The columns are those of `ir.opdef.Facts`, their values those of `ir.columns`; `ir.opdef` combines row and schema. How
rules must read them:

* `COMMUTATIVE` is about values. For `add.Tensor` it holds where attribute `alpha` is 1. It does not cover strides: an
  elementwise result has the strides of its first operand where both are dense.
* `IDEMPOTENT` means f(f(x)) = f(x) for one set of attributes: a rule compares the attributes of both.
* `unit` is the constant second operand (or scalar) that changes nothing *but* perhaps the dtype, the shape (where it
  broadcasts) and the sign of zero; which of them matter is for the rule to check.
* `strides` is about dense operands, in any memory order; it does not cover size-1 dimensions.
* `follows_mode` (batch_norm, dropouts, and those whose flag is a literal unless it says so: instance_norm, rrelu,
  recurrent networks) tells whether the training flag follows `module.training` in the emitted module, or is a literal
  of the user's code. `counts_batches` (batch_norm) tells whether training counts the batches in
  the buffer `num_batches_tracked`, as `nn.BatchNorm2d` does and `F.batch_norm` does not. `train_dropout_p` (attention)
  is the probability that `train()` switches on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ir.columns import Dims, Layout, StorageRule, StrideRule
from ir.opdef import Facts, InferRule, Param, ParamKind, Trait, add_row
from ir.ops import kernels
from ir.ops.inference import (
    convolution,
    creation,
    data,
    elementwise,
    layout,
    linear,
    normalization,
    pooling,
    reduction,
    slicing,
)
from ir.ops.inference.support import with_fallback

RuleFactory = Callable[[str], InferRule]


def _rows(names: str, rule: RuleFactory | None = None, traits: Trait = Trait.NONE, **facts: Any) -> None:
    """Add one row for each of the ATen operators `names`, separated by blanks."""
    for short in names.split():
        name = f"aten.{short}"
        add_row(name, Facts(traits=traits, infer=None if rule is None else rule(name), **facts))


def _synonyms(names: str, rule: RuleFactory | None = None, traits: Trait = Trait.NONE, **facts: Any) -> None:
    """Add rows for aliases of operators: `names` has pairs `alias=operator`."""
    for pair in names.split():
        name, _, operator = pair.partition("=")
        _rows(name, rule, traits, synonym=f"aten.{operator}", **facts)


def _fast(rule: InferRule) -> RuleFactory:
    return lambda name: with_fallback(name, rule)


def _unary(*scalars: str) -> RuleFactory:
    return lambda name: elementwise.unary(name, *scalars)


def _extra(name: str, default: Any, type_: str) -> Param:
    return Param(name, ParamKind.ATTRIBUTE, default, True, type_, keyword_only=True, extra=True)


_FOLLOWS_MODE = _extra("follows_mode", True, "bool")
_MAY_FOLLOW_MODE = _extra("follows_mode", False, "bool")
_COUNTS_BATCHES = _extra("counts_batches", True, "bool")
_ELEMENTWISE, _IDEMPOTENT, _COMMUTATIVE = Trait.ELEMENTWISE, Trait.IDEMPOTENT, Trait.COMMUTATIVE
_VIEW, _LAYOUT, _RANDOM = Trait.VIEW, Trait.LAYOUT, Trait.RANDOM
_FRESH: dict[str, Any] = {"storage": StorageRule.FRESH}
_EITHER: dict[str, Any] = {"storage": StorageRule.EITHER}
_ALONG: dict[str, Any] = {"dims": Dims.ALONG}
_FIXED: dict[str, Any] = {"strides": StrideRule.FIXED}
_CONTIGUOUS: dict[str, Any] = {"strides": StrideRule.CONTIGUOUS}
_ACTIVATION = Trait.ACTIVATION | Trait.ELEMENTWISE


def _copy(x: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy with a derivative, which the functional kernel lacks."""
    return x.clone().copy_(source, non_blocking)


def _lift_fresh(x: torch.Tensor) -> torch.Tensor:
    """Give the kernel a tensor object of its own: it marks its operand as having no gradient."""
    result: torch.Tensor = torch.ops.aten.lift_fresh.default(x.view_as(x))
    return result


def _lift(x: torch.Tensor) -> torch.Tensor:
    """As `_lift_fresh`."""
    result: torch.Tensor = torch.ops.aten.lift.default(x.view_as(x))
    return result


def _activations() -> None:
    _rows("relu", _unary(), _ACTIVATION | _IDEMPOTENT)
    _rows("relu6", _unary(), _ACTIVATION | _IDEMPOTENT, **_FRESH)
    _rows("gelu", _unary("approximate"), _ACTIVATION)
    _rows("sigmoid tanh log_sigmoid", _unary(), _ACTIVATION)
    _rows("hardswish hardsigmoid", _unary(), _ACTIVATION | Trait.COARSE_DERIVATIVE)
    _rows("silu mish selu", _unary(), _ACTIVATION, **_FRESH)
    _rows("hardtanh", _unary("min_val", "max_val"), _ACTIVATION | _IDEMPOTENT)
    _rows("threshold", _unary("threshold", "value"), _ACTIVATION | _IDEMPOTENT)
    _rows("hardshrink", _unary("lambd"), _ACTIVATION | _IDEMPOTENT)
    _rows("leaky_relu", _unary("negative_slope"), _ACTIVATION)
    _rows("elu", _unary("alpha", "scale", "input_scale"), _ACTIVATION)
    _rows("softplus", _unary("beta", "threshold"), _ACTIVATION)
    # the kernels refuse an alpha of 0 for celu, and a negative lambda for softshrink
    _rows("celu softshrink", elementwise.nary, _ACTIVATION)
    _rows("prelu", _fast(elementwise.prelu), Trait.ACTIVATION, **_FRESH)
    _rows("_prelu_kernel", elementwise.nary, _ACTIVATION)
    _rows("rrelu", elementwise.nary, _ACTIVATION | _RANDOM, training="training", extra=(_MAY_FOLLOW_MODE,))


def _arithmetic() -> None:
    _rows("abs floor ceil round trunc sign sgn", _unary(), _IDEMPOTENT)
    _rows("positive", _unary(), _IDEMPOTENT | _VIEW, layout=Layout.SAME)
    _rows("neg", _unary(), inverse="aten.neg")
    _rows("square", _unary(), **_FRESH)
    _rows(
        "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh "
        "asinh acosh atanh erf erfc erfinv frac sinc lgamma digamma deg2rad rad2deg nan_to_num",
        _unary(),
    )
    _synonyms("special_erf=erf special_expit=sigmoid", _unary(), _ELEMENTWISE)
    _synonyms("special_expm1=expm1 special_log1p=log1p special_exp2=exp2", _unary(), _ELEMENTWISE)
    _synonyms("arcsin=asin arccos=acos arctan=atan arcsinh=asinh arccosh=acosh arctanh=atanh", _unary(), _ELEMENTWISE)
    _synonyms("negative=neg absolute=abs fix=trunc")
    _rows("logit round.decimals", elementwise.nary)
    _rows("bitwise_not", elementwise.nary, inverse="aten.bitwise_not")
    _rows("logical_not isnan isinf isfinite signbit", elementwise.boolean, _ELEMENTWISE)
    _rows("add.Scalar sub.Scalar", _unary("other", "alpha"), unit=0)
    _rows("mul.Scalar div.Scalar", _unary("other"), unit=1)
    _rows("pow.Tensor_Scalar", _unary("exponent"), unit=1)
    _rows("rsub.Scalar", _unary("other", "alpha"), **_FRESH)
    _rows("remainder.Scalar fmod.Scalar", _unary("other"))
    _rows("floor_divide.Scalar", _unary("other"), _ELEMENTWISE)
    _rows("div.Scalar_mode pow.Scalar", elementwise.nary)
    _rows("clamp", elementwise.nary, _IDEMPOTENT)
    _rows("clamp_min clamp_max", elementwise.nary, _IDEMPOTENT, spelled="aten.clamp")
    _synonyms("clip=clamp", elementwise.nary, _IDEMPOTENT)
    _synonyms("clip.Tensor=clamp.Tensor")
    _rows("clamp.Tensor clamp_min.Tensor clamp_max.Tensor", elementwise.nary, _IDEMPOTENT)
    _rows("add.Tensor", elementwise.binary, _COMMUTATIVE, unit=0)
    _rows("sub.Tensor", elementwise.binary, unit=0)
    _rows("mul.Tensor", elementwise.binary, _COMMUTATIVE, unit=1)
    _rows("div.Tensor pow.Tensor_Tensor", elementwise.binary, unit=1)
    _rows("div.Tensor_mode", elementwise.nary)
    _synonyms("multiply.Tensor=mul.Tensor multiply.Scalar=mul.Scalar subtract.Tensor=sub.Tensor")
    _synonyms("subtract.Scalar=sub.Scalar divide.Tensor=div.Tensor divide.Scalar=div.Scalar")
    _synonyms("true_divide.Tensor=div.Tensor true_divide.Scalar=div.Scalar")
    # not commutative: of 0.0 and -0.0 they return one by its position
    _rows("maximum minimum max.other min.other fmax fmin", elementwise.binary)
    _rows("atan2 hypot remainder.Tensor fmod.Tensor", elementwise.binary)
    _synonyms("arctan2=atan2", elementwise.binary, _ELEMENTWISE)
    _rows("rsub.Tensor", elementwise.binary, _ELEMENTWISE, spelled="aten.sub.Tensor", **_FRESH)
    _rows("floor_divide", elementwise.binary, _ELEMENTWISE)
    _rows("copysign.Tensor xlogy.Tensor heaviside lerp.Scalar lerp.Tensor addcmul addcdiv", elementwise.nary)
    _rows("eq.Tensor ne.Tensor logical_and logical_or logical_xor", elementwise.boolean, _COMMUTATIVE)
    _rows("lt.Tensor le.Tensor gt.Tensor ge.Tensor", elementwise.boolean)
    _rows("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", elementwise.boolean)
    _synonyms("greater.Tensor=gt.Tensor greater.Scalar=gt.Scalar greater_equal.Tensor=ge.Tensor")
    _synonyms("greater_equal.Scalar=ge.Scalar less.Tensor=lt.Tensor less.Scalar=lt.Scalar")
    _synonyms("less_equal.Tensor=le.Tensor less_equal.Scalar=le.Scalar")
    _synonyms("not_equal.Tensor=ne.Tensor not_equal.Scalar=ne.Scalar")
    _rows("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor", elementwise.nary, _COMMUTATIVE)
    _rows("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", elementwise.nary)
    _rows("__and__.Tensor __or__.Tensor __xor__.Tensor", elementwise.nary, _COMMUTATIVE | _ELEMENTWISE)
    _rows("where.self", elementwise.nary, **_FRESH)
    _rows("where.ScalarSelf where.ScalarOther where.Scalar", elementwise.nary, _ELEMENTWISE)
    _rows("masked_fill.Scalar", elementwise.masked, _IDEMPOTENT, **_CONTIGUOUS)
    _rows("masked_fill.Tensor", **_CONTIGUOUS)
    _rows("bernoulli.p normal_functional", None, Trait.OVERWRITES)
    _rows("normal_", functional="aten.normal_functional")


def _layers() -> None:
    formatted: dict[str, Any] = {"strides": StrideRule.FORMAT}
    for dims in (1, 2, 3):
        _rows(f"conv{dims}d conv{dims}d.padding", _fast(convolution.conv(dims)), Trait.CONV, **_FRESH, **formatted)
        of_maps: dict[str, Any] = formatted if dims == 2 else {}
        own: dict[str, Any] = {} if dims == 3 else _FRESH
        chosen = Trait.NONE if dims == 1 else Trait.SELECTS  # of vectors, there is no kernel for integers
        _rows(f"max_pool{dims}d", _fast(pooling.pool(dims)), chosen, **_FRESH, **of_maps)
        _rows(f"avg_pool{dims}d", _fast(pooling.pool(dims, covered=dims == 3)), **own, **of_maps)
        of_maps = {"strides": StrideRule.PASSED} if dims == 2 else {}
        _rows(f"adaptive_avg_pool{dims}d", _fast(pooling.adaptive_pool(dims)), **_FRESH, **of_maps)
        _rows(f"adaptive_max_pool{dims}d", _fast(pooling.adaptive_pool(dims, indices=True)))
        _rows(f"max_pool{dims}d_with_indices", _fast(pooling.pool(dims, indices=True)))
    for dims, overload in ((1, ""), (2, ".input"), (3, ".input")):
        infer = _fast(convolution.conv_transpose(dims))
        _rows(f"conv_transpose{dims}d{overload}", infer, Trait.CONV_TRANSPOSE, **_FRESH)
    _rows("convolution conv_tbc", **_FRESH)
    _rows("upsample_linear1d.vec upsample_nearest1d.vec _upsample_nearest_exact1d.vec", _fast(pooling.upsample(1)))
    _rows("upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec", _fast(pooling.upsample(2)), **_FRESH)
    _rows("_upsample_nearest_exact2d.vec _upsample_bilinear2d_aa.vec", _fast(pooling.upsample(2)))
    _rows("_upsample_bicubic2d_aa.vec", _fast(pooling.upsample(2)))
    _rows("upsample_nearest3d.vec upsample_trilinear3d.vec", _fast(pooling.upsample(3)))
    _rows("pixel_shuffle", _fast(pooling.pixel_shuffle()))
    _rows("pixel_unshuffle", _fast(pooling.pixel_shuffle(back=True)))

    _rows("linear", _fast(linear.linear), **_CONTIGUOUS, **_FRESH)
    _rows("matmul", _fast(linear.matmul), **_FIXED, **_FRESH)
    _rows("mm", _fast(linear.mm), **_CONTIGUOUS)
    _rows("bmm", _fast(linear.bmm), **_CONTIGUOUS)
    _rows("addmm", _fast(linear.addmm), **_CONTIGUOUS)
    _rows("baddbmm", _fast(linear.baddbmm), **_FIXED)
    _rows("embedding", _fast(linear.embedding), **_CONTIGUOUS, **_FRESH)
    _rows("embedding_bag embedding_bag.padding_idx", None, Trait.FOR_BACKWARD)
    _rows(
        "scaled_dot_product_attention",
        _fast(linear.attention),
        _RANDOM,
        training="dropout_p",
        evaluate=kernels.attention,
        extra=(_extra("train_dropout_p", 0.0, "float"),),
        **_FRESH,
    )
    _rows(
        "batch_norm",
        _fast(normalization.batch_norm),
        Trait.NORMALIZES,
        training="training",
        evaluate=kernels.batch_norm,
        extra=(_FOLLOWS_MODE, _COUNTS_BATCHES),
        strides=StrideRule.PASSED,
        **_FRESH,
    )
    norm = _fast(normalization.instance_norm)
    followed: dict[str, Any] = {"extra": (_MAY_FOLLOW_MODE,)}
    _rows("instance_norm", norm, Trait.NORMALIZES, training="use_input_stats", **followed, **_FRESH)
    _rows("group_norm", _fast(normalization.group_norm), evaluate=kernels.group_norm, **_FRESH)
    _rows("layer_norm", _fast(normalization.layer_norm), **_CONTIGUOUS, **_FRESH)
    _rows("native_layer_norm", **_FIXED)
    _rows("rms_norm", _fast(normalization.layer_norm), strides=StrideRule.FORMAT, **_FRESH)
    _rows("softmax.int log_softmax.int", _fast(normalization.softmax), **_CONTIGUOUS, **_FRESH, **_ALONG)
    drops = _RANDOM | _VIEW | Trait.DROPOUT
    dropout: dict[str, Any] = {"training": "train", "extra": (_FOLLOWS_MODE,)}
    _rows("dropout", _fast(normalization.dropout()), drops, strides=StrideRule.PASSED, **dropout)
    _rows("feature_dropout", _fast(normalization.dropout(2)), drops, **dropout)
    _rows("alpha_dropout", _fast(normalization.dropout()), drops, **dropout)
    _rows("feature_alpha_dropout", _fast(normalization.dropout(2)), drops, **dropout)
    _rows("native_dropout", None, _RANDOM, training="train")
    _rows("lstm.input gru.input rnn_tanh.input rnn_relu.input", None, _RANDOM, training="train", **followed)
    _rows("lstm.data gru.data rnn_tanh.data rnn_relu.data", None, _RANDOM, training="train", **followed)


def _layouts() -> None:
    _reshapes()
    _permutes()
    _parts()
    _copies()
    _rows("repeat tile", _fast(layout.repeat), _LAYOUT)
    _rows("flip", _fast(layout.flip), _LAYOUT)
    _rows("roll", _fast(layout.roll), _LAYOUT)
    _rows("rot90 unfold channel_shuffle", None, _LAYOUT)
    _rows("pad constant_pad_nd", _fast(layout.pad))
    _rows("tril triu", _fast(layout.triangle), _IDEMPOTENT)
    _rows("cat", _fast(slicing.cat), Trait.SELECTS, strides=StrideRule.FORMAT, **_FRESH, **_ALONG)
    _synonyms("concat=cat concatenate=cat")
    _rows("stack", _fast(slicing.stack), adds_dim=True, **_FRESH, **_ALONG)
    _rows("diag_embed", adds_dim=True)
    _rows("index_select", _fast(slicing.index_select), **_ALONG)
    _rows("index.Tensor", _fast(data.index_or_mask), most=data.elements_of_mask)
    _rows("nonzero", _fast(data.nonzero), most=data.elements)
    _rows("where", _fast(data.where), most=data.elements)
    _rows("masked_select", _fast(data.masked_select), most=data.elements_of_both)
    _rows("_unique2 unique_dim unique_consecutive", most=data.elements)
    _rows("gather", _fast(slicing.gather), **_ALONG)
    _rows("topk", _fast(slicing.topk), **_ALONG)
    _rows("glu", _fast(slicing.glu), **_ALONG)
    # views that the schema does not show, found by running PyTorch's own samples of operators
    _rows("einsum", _fast(linear.einsum), _VIEW)
    _rows("atleast_1d atleast_2d atleast_3d", None, _VIEW, layout=Layout.RESHAPE, **_EITHER)
    _rows("meshgrid meshgrid.indexing sum_to_size", None, _VIEW)
    _rows("atleast_1d.Sequence atleast_2d.Sequence atleast_3d.Sequence", None, _VIEW)
    _rows("unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk", None, _VIEW)


def _reshapes() -> None:
    reshape: dict[str, Any] = {"layout": Layout.RESHAPE, "spelled": "aten.reshape"}
    demanded: dict[str, Any] = {**reshape, "storage": StorageRule.DEMANDED}
    _rows("reshape", _fast(layout.reshape), _LAYOUT | _VIEW, layout=Layout.RESHAPE, shape="shape", **_EITHER)
    _rows("view", _fast(layout.reshape), _LAYOUT | _VIEW, shape="size", **demanded)
    _rows("_unsafe_view", _fast(layout.reshape), _LAYOUT | _VIEW, **demanded)
    _rows("view_as", None, _LAYOUT, **demanded)
    _rows("reshape_as ravel", None, _LAYOUT, **reshape, **_EITHER)
    _rows("flatten.using_ints", _fast(layout.flatten), _LAYOUT, **reshape, **_EITHER)
    _rows("unflatten.int", _fast(layout.unflatten), _LAYOUT, **reshape)
    _rows("squeeze squeeze.dim squeeze.dims", _fast(layout.squeeze), _LAYOUT, **reshape)
    _rows("unsqueeze", _fast(layout.unsqueeze), _LAYOUT, adds_dim=True, **reshape)
    _rows("unsqueeze_copy", adds_dim=True)


def _permutes() -> None:
    permute: dict[str, Any] = {"spelled": "aten.permute"}
    _rows("permute", _fast(layout.reorder(Layout.PERMUTE)), _LAYOUT, layout=Layout.PERMUTE)
    swap = _fast(layout.reorder(Layout.SWAP))
    _rows("transpose.int swapdims swapaxes", swap, _LAYOUT, layout=Layout.SWAP, **permute)
    _rows("t", _fast(layout.matrix_transpose), _LAYOUT, layout=Layout.REVERSE, inverse="aten.t", **permute)
    _rows("numpy_T", None, _LAYOUT, layout=Layout.REVERSE, inverse="aten.numpy_T", **permute)
    _rows("mT", None, _LAYOUT, layout=Layout.SWAP_LAST, inverse="aten.mT", **permute)
    _rows("adjoint", None, _LAYOUT)
    moves = "movedim.int movedim.intlist moveaxis.int moveaxis.intlist"
    _rows(moves, _fast(layout.reorder(Layout.MOVE)), _LAYOUT, layout=Layout.MOVE, **permute)


def _parts() -> None:
    _rows("select.int", _fast(slicing.select), _LAYOUT, layout=Layout.SELECT, **_ALONG)
    _rows("slice.Tensor", _fast(slicing.slice_), _LAYOUT, layout=Layout.SLICE, **_ALONG)
    _rows("narrow", _fast(slicing.narrow), _LAYOUT, layout=Layout.NARROW, **_ALONG)
    split: dict[str, Any] = {"layout": Layout.SPLIT, "spelled": "aten.split_with_sizes"}
    _rows("split_with_sizes", _fast(slicing.split_with_sizes), _LAYOUT, layout=Layout.SPLIT)
    _rows("split.Tensor", _fast(slicing.split), _LAYOUT, **split)
    _rows("split.sizes", _fast(slicing.split_with_sizes), _LAYOUT, **split)
    _rows("chunk", _fast(slicing.chunk), _LAYOUT, **split)
    _rows("tensor_split.sections tensor_split.indices", None, _LAYOUT, **split)
    _rows("unbind.int", _fast(slicing.unbind), _LAYOUT, layout=Layout.UNBIND, spelled="aten.split_with_sizes")
    _rows("diagonal", None, _LAYOUT, layout=Layout.DIAGONAL)
    _rows("as_strided", layout=Layout.STRIDED)
    _rows("expand", _fast(layout.expand), _LAYOUT, layout=Layout.EXPAND, shape="size")
    _rows("broadcast_to", _fast(layout.expand), _LAYOUT, layout=Layout.EXPAND, spelled="aten.expand")
    _rows("expand_as", None, _LAYOUT, layout=Layout.EXPAND, spelled="aten.expand", **_EITHER)
    _rows("view_as_real", inverse="aten.view_as_complex")
    _rows("view_as_complex", inverse="aten.view_as_real")


def _copies() -> None:
    _rows("alias", _fast(layout.same), _LAYOUT | _IDEMPOTENT, layout=Layout.SAME)
    _rows("clone", _fast(creation.copy), _LAYOUT | _IDEMPOTENT, layout=Layout.SAME)
    _rows("contiguous", _fast(creation.copy), _LAYOUT | _IDEMPOTENT, layout=Layout.SAME, **_EITHER)
    _rows("copy", None, evaluate=_copy)
    # No LAYOUT: it cuts gradients, so it does not move past other operators.
    _rows("detach", _fast(layout.same), _IDEMPOTENT, layout=Layout.DETACHED)
    _rows("detach_", functional="aten.detach")
    _rows("lift_fresh_copy", _fast(layout.same), _IDEMPOTENT, **_FRESH)
    _rows("lift_fresh", None, evaluate=_lift_fresh)
    _rows("lift", None, Trait.VIEW, evaluate=_lift)  # it returns its operand, which the schema does not show
    _rows("resolve_conj resolve_neg", **_EITHER)
    _rows("to.dtype to.device to.dtype_layout", _fast(creation.copy), _IDEMPOTENT | Trait.CAST, **_EITHER)
    _rows("_to_copy", _fast(creation.copy), _IDEMPOTENT | Trait.CAST)
    _rows("to.other", None, Trait.CAST, **_EITHER)
    _rows("type_as", _fast(creation.typed_as), _VIEW | Trait.CAST, **_EITHER)


def _reductions() -> None:
    reduced: dict[str, Any] = {"dims": Dims.REDUCED}
    _rows("mean.dim sum.dim_IntList", _fast(reduction.reduce(empty=True)), **reduced)
    _rows("prod.dim_int", _fast(reduction.reduce(empty=True)), **_ALONG)
    _rows("sum mean prod", _fast(reduction.reduce(empty=True)))
    _rows("amax amin", _fast(reduction.reduce()), **reduced)
    _rows("logsumexp", _fast(reduction.logsumexp), **reduced)
    _rows("max min", _fast(reduction.reduce()))
    _rows("var.dim var.correction std.dim std.correction", _fast(reduction.reduce()), **reduced)
    _rows("var std", _fast(reduction.reduce()))
    _rows("var_mean.correction", _fast(reduction.reduce(results=2)), **reduced)
    _rows("std_mean.correction", _fast(reduction.reduce(results=2)))
    _rows("argmax argmin", _fast(reduction.typed(torch.int64)), **_ALONG)
    _rows("any.dim all.dim", _fast(reduction.typed(torch.bool)), **_ALONG)
    _rows("any all", _fast(reduction.typed(torch.bool)))
    _rows("max.dim min.dim", _fast(reduction.with_indices), **_ALONG)
    _rows("cumsum cumprod", _fast(reduction.cumulative), **_ALONG)
    _rows("linalg_vector_norm", _fast(reduction.vector_norm), **reduced)
    _rows("norm.ScalarOpt_dim norm.Scalar", _fast(reduction.vector_norm))


def _creation() -> None:
    created: dict[str, Any] = {"creates": True, **_CONTIGUOUS}
    _rows("zeros", _fast(creation.shaped()), fill=0, **created)
    _rows("ones", _fast(creation.shaped()), fill=1, **created)
    _rows("full", _fast(creation.shaped(fill="fill_value")), fill="fill_value", **created)
    _rows("arange arange.start arange.start_step", _fast(creation.arange), **created)
    _rows("scalar_tensor", fill="s", creates=True)
    _rows("linspace eye eye.m tril_indices triu_indices", creates=True)
    _rows("zeros_like", _fast(creation.copy), fill=0)
    _rows("ones_like", _fast(creation.copy), fill=1)
    _rows("full_like", _fast(creation.copy), fill="fill_value")
    _rows("new_zeros", _fast(creation.shaped()), fill=0)
    _rows("new_ones", _fast(creation.shaped()), fill=1)
    _rows("new_full", _fast(creation.shaped()), fill="fill_value")
    _rows("empty_like", _fast(creation.copy), Trait.UNINITIALIZED)
    _rows("empty.memory_format new_empty", _fast(creation.shaped()), Trait.UNINITIALIZED)
    _rows("empty_strided", None, Trait.UNINITIALIZED)
    _rows("rand_like randn_like", _fast(creation.random(creation.copy)), _RANDOM)
    _rows("rand randn", _fast(creation.random(creation.shaped())), _RANDOM)
    _rows("_assert_async _assert_async.msg _assert_scalar _assert_tensor_metadata", None, Trait.ASSERTION)
    _rows("sym_constrain_range sym_constrain_range_for_size", None, Trait.ASSERTION)


_activations()
_arithmetic()
_layers()
_layouts()
_reductions()
_creation()
