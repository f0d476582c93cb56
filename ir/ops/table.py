"""The op table: one row for each operator of which more is known than its schema says.

A row's columns are traits, unit, training flag, extra attributes and the inference rule; `ir.opdef` lays them over the
schema. How rules must read the columns:

* `COMMUTATIVE` speaks of the values. Of `add.Tensor` it holds where attribute `alpha` is 1, and nowhere does it speak
  of strides: an elementwise result takes after the strides of its first operand where both are dense.
* `IDEMPOTENT` means f(f(x)) = f(x) for one set of attributes: a rule compares the attributes of both.
* `unit` is the constant second operand (or scalar) that changes nothing *but* perhaps the dtype, the shape (where it
  broadcasts) and the sign of zero; which of them matter is for the rule to check.
* `STRIDES_FIXED` was measured (`tests/ir/ops/test_table.py`): dense operands in any order of dimensions give one
  layout.
* `follows_mode` (batch_norm, dropouts) tells whether the training flag follows `module.training` in the emitted
  module, or is a literal of the user's code. `counts_batches` (batch_norm) tells whether training counts the batches in
  the buffer `num_batches_tracked`, as `nn.BatchNorm2d` does and `F.batch_norm` does not. `train_dropout_p` (attention)
  is the probability that `train()` switches on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ir.opdef import InferRule, Param, ParamKind, Trait, add_row
from ir.ops.inference import (
    convolution,
    creation,
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
    """Add one row for each of the ATen operators `names` (a text, separated by blanks)."""
    for short in names.split():
        name = f"aten.{short}"
        add_row(name, traits=traits, infer=None if rule is None else rule(name), **facts)


def _fast(rule: InferRule) -> RuleFactory:
    return lambda name: with_fallback(name, rule)


def _unary(*scalars: str) -> RuleFactory:
    return lambda name: elementwise.unary(name, *scalars)


def _extra(name: str, default: Any, type_: str) -> Param:
    return Param(name, ParamKind.ATTRIBUTE, default, True, type_, keyword_only=True, extra=True)


_FOLLOWS_MODE = _extra("follows_mode", True, "bool")
_COUNTS_BATCHES = _extra("counts_batches", True, "bool")
_ELEMENTWISE, _IDEMPOTENT, _COMMUTATIVE = Trait.ELEMENTWISE, Trait.IDEMPOTENT, Trait.COMMUTATIVE
_VIEW, _LAYOUT, _RANDOM, _FIXED = Trait.VIEW, Trait.LAYOUT, Trait.RANDOM, Trait.STRIDES_FIXED
_ACTIVATION = Trait.ACTIVATION | Trait.ELEMENTWISE


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    cudnn_enabled: bool,
    *,
    follows_mode: bool = True,
    counts_batches: bool = True,
) -> torch.Tensor:
    """The kernel takes no momentum of None (a cumulative average, whose factor the module's own counter gives).

    Outside of training momentum is not read. In training it is how much of the batch goes into the running statistics,
    which the module accounts for, like its counter: here they then stay as they are. The result depends on neither.
    """
    result: torch.Tensor = torch.ops.aten.batch_norm.default(
        x, weight, bias, running_mean, running_var, training, momentum or 0.0, eps, cudnn_enabled
    )
    return result


def _copy(x: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """The functional kernel has no derivative."""
    return x.clone().copy_(source, non_blocking)


def _lift_fresh(x: torch.Tensor) -> torch.Tensor:
    """The kernel writes into its operand that no gradient is known for it: it gets a tensor object of its own."""
    result: torch.Tensor = torch.ops.aten.lift_fresh.default(x.view_as(x))
    return result


def _lift(x: torch.Tensor) -> torch.Tensor:
    """As `_lift_fresh`."""
    result: torch.Tensor = torch.ops.aten.lift.default(x.view_as(x))
    return result


def _activations() -> None:
    _rows("relu relu6", _unary(), _ACTIVATION | _IDEMPOTENT)
    _rows("gelu silu hardswish hardsigmoid sigmoid tanh mish selu log_sigmoid", _unary(), _ACTIVATION)
    _rows("hardtanh", _unary("min_val", "max_val"), _ACTIVATION | _IDEMPOTENT)
    _rows("threshold", _unary("threshold", "value"), _ACTIVATION | _IDEMPOTENT)
    _rows("hardshrink", _unary("lambd"), _ACTIVATION | _IDEMPOTENT)
    _rows("leaky_relu", _unary("negative_slope"), _ACTIVATION)
    _rows("elu", _unary("alpha", "scale", "input_scale"), _ACTIVATION)
    _rows("softplus", _unary("beta", "threshold"), _ACTIVATION)
    # celu's alpha may not be 0, nor softshrink's lambda negative, so the operator is asked
    _rows("celu softshrink", elementwise.nary, _ACTIVATION)
    _rows("prelu", _fast(elementwise.prelu), Trait.ACTIVATION)
    _rows("_prelu_kernel", elementwise.nary, _ACTIVATION)
    _rows("rrelu", elementwise.nary, _ACTIVATION | _RANDOM, training="training")


def _arithmetic() -> None:
    _rows("abs floor ceil round trunc sign sgn", _unary(), _IDEMPOTENT)
    _rows("positive", _fast(layout.same), _IDEMPOTENT | _VIEW)
    _rows(
        "neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square sin cos tan asin acos atan sinh cosh "
        "asinh acosh atanh erf erfc erfinv frac sinc lgamma digamma deg2rad rad2deg nan_to_num",
        _unary(),
    )
    _rows("special_erf special_expit", _unary(), _ELEMENTWISE)
    _rows("logit round.decimals", elementwise.nary)
    _rows("bitwise_not", elementwise.nary)
    _rows("logical_not isnan isinf isfinite signbit", elementwise.boolean, _ELEMENTWISE)
    _rows("add.Scalar sub.Scalar", _unary("other", "alpha"), unit=0)
    _rows("mul.Scalar div.Scalar", _unary("other"), unit=1)
    _rows("pow.Tensor_Scalar", _unary("exponent"), unit=1)
    _rows("rsub.Scalar", _unary("other", "alpha"))
    _rows("remainder.Scalar fmod.Scalar", _unary("other"))
    _rows("floor_divide.Scalar", _unary("other"), _ELEMENTWISE)
    _rows("div.Scalar_mode pow.Scalar", elementwise.nary)
    _rows("clamp clip clamp_min clamp_max", elementwise.nary, _IDEMPOTENT)
    _rows("clamp.Tensor clamp_min.Tensor clamp_max.Tensor", elementwise.nary, _IDEMPOTENT)
    _rows("add.Tensor", elementwise.binary, _COMMUTATIVE, unit=0)
    _rows("sub.Tensor", elementwise.binary, unit=0)
    _rows("mul.Tensor", elementwise.binary, _COMMUTATIVE, unit=1)
    _rows("div.Tensor pow.Tensor_Tensor", elementwise.binary, unit=1)
    _rows("div.Tensor_mode", elementwise.nary)
    # not commutative: of 0.0 and -0.0 they return one by position
    _rows("maximum minimum max.other min.other fmax fmin", elementwise.binary)
    _rows("atan2 hypot remainder.Tensor fmod.Tensor", elementwise.binary)
    _rows("rsub.Tensor floor_divide", elementwise.binary, _ELEMENTWISE)
    _rows("copysign.Tensor xlogy.Tensor heaviside lerp.Scalar lerp.Tensor addcmul addcdiv", elementwise.nary)
    _rows("eq.Tensor ne.Tensor logical_and logical_or logical_xor", elementwise.boolean, _COMMUTATIVE)
    _rows("lt.Tensor le.Tensor gt.Tensor ge.Tensor", elementwise.boolean)
    _rows("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", elementwise.boolean)
    _rows("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor", elementwise.nary, _COMMUTATIVE)
    _rows("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", elementwise.nary)
    _rows("__and__.Tensor __or__.Tensor __xor__.Tensor", elementwise.nary, _COMMUTATIVE | _ELEMENTWISE)
    _rows("where.self", elementwise.nary)
    _rows("where.ScalarSelf where.ScalarOther where.Scalar", elementwise.nary, _ELEMENTWISE)
    _rows("masked_fill.Scalar", elementwise.masked, _IDEMPOTENT)


def _layers() -> None:
    for dims in (1, 2, 3):
        _rows(f"conv{dims}d conv{dims}d.padding", _fast(convolution.conv(dims)), Trait.CONV)
        _rows(f"max_pool{dims}d", _fast(pooling.pool(dims)))
        _rows(f"avg_pool{dims}d", _fast(pooling.pool(dims, covered=dims == 3)))
        _rows(f"adaptive_avg_pool{dims}d", _fast(pooling.adaptive_pool(dims)))
        _rows(f"adaptive_max_pool{dims}d", _fast(pooling.adaptive_pool(dims, indices=True)))
        _rows(f"max_pool{dims}d_with_indices", _fast(pooling.pool(dims, indices=True)))
    _rows("conv_transpose1d", _fast(convolution.conv_transpose(1)))
    _rows("conv_transpose2d.input", _fast(convolution.conv_transpose(2)))
    _rows("conv_transpose3d.input", _fast(convolution.conv_transpose(3)))
    _rows("upsample_linear1d.vec upsample_nearest1d.vec _upsample_nearest_exact1d.vec", _fast(pooling.upsample(1)))
    _rows(
        "upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec _upsample_nearest_exact2d.vec "
        "_upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec",
        _fast(pooling.upsample(2)),
    )
    _rows("upsample_nearest3d.vec upsample_trilinear3d.vec", _fast(pooling.upsample(3)))
    _rows("pixel_shuffle", _fast(pooling.pixel_shuffle))
    _rows("pixel_unshuffle", _fast(pooling.pixel_unshuffle))

    _rows("linear", _fast(linear.linear), _FIXED)
    _rows("matmul", _fast(linear.matmul), _FIXED)
    _rows("mm", _fast(linear.mm), _FIXED)
    _rows("bmm", _fast(linear.bmm), _FIXED)
    _rows("addmm", _fast(linear.addmm), _FIXED)
    _rows("baddbmm", _fast(linear.baddbmm), _FIXED)
    _rows("embedding", _fast(linear.embedding), _FIXED)
    _rows(
        "scaled_dot_product_attention",
        _fast(linear.attention),
        _RANDOM,
        training="dropout_p",
        extra=(_extra("train_dropout_p", 0.0, "float"),),
    )
    _rows(
        "batch_norm",
        _fast(normalization.batch_norm),
        training="training",
        evaluate=_batch_norm,
        extra=(_FOLLOWS_MODE, _COUNTS_BATCHES),
    )
    _rows("instance_norm", _fast(normalization.instance_norm), training="use_input_stats")
    _rows("group_norm", _fast(normalization.group_norm))
    _rows("layer_norm", _fast(normalization.layer_norm), _FIXED)
    _rows("native_layer_norm", None, _FIXED)
    _rows("rms_norm", _fast(normalization.layer_norm))
    _rows("softmax.int log_softmax.int", _fast(normalization.softmax), _FIXED)
    dropout: dict[str, Any] = {"training": "train", "extra": (_FOLLOWS_MODE,)}
    _rows("dropout alpha_dropout", _fast(normalization.dropout()), _RANDOM | _VIEW, **dropout)
    _rows("feature_dropout feature_alpha_dropout", _fast(normalization.dropout(2)), _RANDOM | _VIEW, **dropout)
    _rows("native_dropout", None, _RANDOM, training="train")
    _rows("lstm.input gru.input rnn_tanh.input rnn_relu.input", None, _RANDOM, training="train")
    _rows("lstm.data gru.data rnn_tanh.data rnn_relu.data", None, _RANDOM, training="train")


def _layouts() -> None:
    _rows("view reshape _unsafe_view", _fast(layout.reshape), _LAYOUT | _VIEW)
    _rows("flatten.using_ints", _fast(layout.flatten), _LAYOUT)
    _rows("unflatten.int", _fast(layout.unflatten), _LAYOUT)
    _rows("squeeze squeeze.dim squeeze.dims", _fast(layout.squeeze), _LAYOUT)
    _rows("unsqueeze", _fast(layout.unsqueeze), _LAYOUT)
    _rows("permute", _fast(layout.permute), _LAYOUT)
    _rows("transpose.int swapdims", _fast(layout.transpose()), _LAYOUT)
    _rows("swapaxes", _fast(layout.transpose("axis0", "axis1")), _LAYOUT)
    _rows("t", _fast(layout.matrix_transpose), _LAYOUT)
    _rows("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", _fast(layout.movedim), _LAYOUT)
    _rows("expand broadcast_to", _fast(layout.expand), _LAYOUT)
    _rows("repeat tile", _fast(layout.repeat), _LAYOUT)
    _rows("flip", _fast(layout.flip), _LAYOUT)
    _rows("roll", _fast(layout.roll), _LAYOUT)
    _rows("select.int", _fast(slicing.select), _LAYOUT)
    _rows("slice.Tensor", _fast(slicing.slice_), _LAYOUT)
    _rows("narrow", _fast(slicing.narrow), _LAYOUT)
    _rows("split.Tensor", _fast(slicing.split), _LAYOUT)
    _rows("split_with_sizes split.sizes", _fast(slicing.split_with_sizes), _LAYOUT)
    _rows("chunk", _fast(slicing.chunk), _LAYOUT)
    _rows("unbind.int", _fast(slicing.unbind), _LAYOUT)
    _rows("view_as reshape_as expand_as ravel numpy_T mT adjoint rot90 diagonal", None, _LAYOUT)
    _rows("unfold tensor_split.sections tensor_split.indices channel_shuffle", None, _LAYOUT)
    _rows("alias", _fast(layout.same), _LAYOUT | _IDEMPOTENT)
    _rows("clone contiguous", _fast(creation.copy), _LAYOUT | _IDEMPOTENT)
    _rows("copy", None, evaluate=_copy)
    # No LAYOUT: it cuts gradients, so it does not move past other operators.
    _rows("detach lift_fresh_copy", _fast(layout.same), _IDEMPOTENT)
    _rows("lift_fresh", None, evaluate=_lift_fresh)
    _rows("lift", None, Trait.VIEW, evaluate=_lift)  # it returns its operand, which its schema does not say
    _rows("pad constant_pad_nd", _fast(layout.pad))
    _rows("tril triu", _fast(layout.triangle), _IDEMPOTENT)
    _rows("cat", _fast(slicing.cat))
    _rows("stack", _fast(slicing.stack))
    _rows("index_select", _fast(slicing.index_select))
    _rows("index.Tensor", _fast(slicing.index))
    _rows("gather", _fast(slicing.gather))
    _rows("topk", _fast(slicing.topk))
    _rows("glu", _fast(slicing.glu))
    # views that the schema does not tell of (all others were looked for by running PyTorch's own samples of operators)
    _rows("einsum", _fast(linear.einsum), _VIEW)
    _rows("atleast_1d atleast_2d atleast_3d meshgrid meshgrid.indexing sum_to_size", None, _VIEW)
    _rows("atleast_1d.Sequence atleast_2d.Sequence atleast_3d.Sequence", None, _VIEW)
    _rows("unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk", None, _VIEW)


def _reductions() -> None:
    _rows("sum sum.dim_IntList mean mean.dim prod prod.dim_int", _fast(reduction.reduce()))
    _rows("amax amin max min logsumexp", _fast(reduction.reduce(empty=False)))
    _rows("var var.dim var.correction std std.dim std.correction", _fast(reduction.moments(1)))
    _rows("var_mean.correction std_mean.correction", _fast(reduction.moments(2)))
    _rows("argmax argmin", _fast(reduction.typed(torch.int64)))
    _rows("any any.dim all all.dim", _fast(reduction.typed(torch.bool)))
    _rows("max.dim min.dim", _fast(reduction.with_indices))
    _rows("cumsum cumprod", _fast(reduction.cumulative))
    _rows("linalg_vector_norm norm.ScalarOpt_dim norm.Scalar", _fast(reduction.vector_norm))


def _creation() -> None:
    _rows("to.dtype to.device to.dtype_layout", _fast(creation.copy), _IDEMPOTENT)
    _rows("_to_copy", _fast(creation.copy), _IDEMPOTENT)
    _rows("type_as", _fast(creation.typed_as), _VIEW)
    _rows("zeros_like ones_like full_like empty_like", _fast(creation.copy))
    _rows("rand_like randn_like", _fast(creation.random(creation.copy)), _RANDOM)
    _rows("zeros ones empty.memory_format", _fast(creation.shaped()))
    _rows("rand randn", _fast(creation.random(creation.shaped())), _RANDOM)
    _rows("full", _fast(creation.shaped(fill="fill_value")))
    _rows("new_zeros new_ones new_full new_empty", _fast(creation.shaped()))
    _rows("arange arange.start arange.start_step", _fast(creation.arange))


_activations()
_arithmetic()
_layers()
_layouts()
_reductions()
_creation()
