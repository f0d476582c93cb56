"""Operators that public functions compute with the very arguments of the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_FUNCTIONAL = """
linear gelu silu mish hardswish hardsigmoid hardtanh leaky_relu relu6 softplus adaptive_avg_pool2d
max_pool2d avg_pool2d layer_norm pad one_hot scaled_dot_product_attention glu
"""
"""Functions of torch.nn.functional that take the arguments of the operator's schema in the same order."""

_TORCH = """
relu sigmoid tanh softmax.int log_softmax.int selu exp log log2 log1p expm1 sqrt rsqrt square abs sin cos
erf floor ceil round sign reciprocal maximum minimum isnan isinf logical_and logical_or logical_not
logical_xor matmul bmm mm addmm baddbmm outer cat stack chunk unbind.int sum sum.dim_IntList mean mean.dim
amax amin argmax argmin cumsum prod prod.dim_int logsumexp max max.dim max.other min min.dim min.other any
any.dim all all.dim var.correction std.correction clamp clamp.Tensor clamp_min clamp_max where.self
where.ScalarSelf where.ScalarOther where.Scalar pow.Tensor_Tensor pow.Scalar atan2 gather index_select
masked_fill.Scalar masked_fill.Tensor tril triu roll flip sort topk tile movedim.int movedim.intlist
pixel_shuffle pixel_unshuffle channel_shuffle zeros_like ones_like full_like arange arange.start
arange.start_step zeros ones full linspace linspace.Tensor_Tensor linspace.Tensor_Scalar linspace.Scalar_Tensor
logspace logspace.Tensor_Tensor logspace.Tensor_Scalar logspace.Scalar_Tensor
prelu rms_norm group_norm conv1d conv2d conv3d conv1d.padding conv2d.padding
conv3d.padding conv_transpose1d conv_transpose2d.input conv_transpose3d.input embedding dot mv diff
nan_to_num atan tan asin acos sinh cosh trunc frac lerp.Scalar lerp.Tensor addcmul addcdiv scatter.src
scatter.value scatter_add index_add nonzero masked_select where bincount broadcast_to lstm.input gru.input
rnn_tanh.input rnn_relu.input
"""
"""Functions of `torch` that do so; with the overload whose arguments they take."""


GLOBAL_FLAGS = {"aten.layer_norm": "cudnn_enable"}
"""Parameters for which these functions read a global flag of PyTorch's: they do not take them."""


def _functions() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {}
    for name in _TORCH.split():
        function = getattr(torch, name.partition(".")[0], None)
        if function is not None:
            table[f"aten.{name}"] = function
    for name in _FUNCTIONAL.split():
        table[f"aten.{name}"] = getattr(nn.functional, name)
    return table


FUNCTIONS = _functions()
"""Operator -> function."""
