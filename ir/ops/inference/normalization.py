"""Inference for normalization, softmax and dropout: the input's type if the rest fits."""

from __future__ import annotations

from typing import Any

from ir.opdef import InferRule
from ir.ops.inference.support import (
    FLOATS,
    FLOATS_OR_UNKNOWN,
    INTEGERS,
    Attributes,
    Misfit,
    Undecided,
    common_device,
    float_dtype,
    knows_misfits,
    require,
    require_equal,
    require_not_empty,
    wrap_dim,
)
from ir.types import Dim, TensorType, Type, product


def _same(x: TensorType, types: tuple[Any, ...]) -> tuple[Type, ...]:
    if x.dtype in INTEGERS and x.shape is not None:
        raise Misfit(f"floats are needed, not {x.dtype}")
    float_dtype(types)
    device = common_device(types)
    # kernels take an input of another dtype than that of the weights: where it is unknown, so is the result's
    return (x,) if x.device == device else (TensorType(x.shape, x.dtype, device),)


def _per_channel(types: tuple[Any, ...], channels: Dim | None) -> None:
    for type_ in types:
        if type_ is not None and type_.shape is not None:
            require(len(type_.shape) == 1)
            require_equal(type_.shape[0], channels, "the number of channels")


@knows_misfits
def batch_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """input, weight?, bias?, running_mean?, running_var? -> the input's type."""
    x = types[0]
    if not attributes["training"] and (types[3] is None or types[4] is None):
        raise Misfit("running statistics are needed outside of training")
    require((types[3] is None) == (types[4] is None))
    if x.shape is not None:
        require(len(x.shape) >= 2)
        require_not_empty(x.shape)
        _per_channel(types[1:], x.shape[1])
    return _same(x, types)


@knows_misfits
def instance_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """input, weight?, bias?, running_mean?, running_var? -> the input's type."""
    x = types[0]
    require((types[3] is None) == (types[4] is None) and (attributes["use_input_stats"] or types[3] is not None))
    if x.shape is not None:
        require(len(x.shape) >= 3)
        require_not_empty(x.shape)
        require(all(d is None or type(d) is int for d in x.shape[:2]))
        require(not attributes["use_input_stats"] or product(x.shape[2:]) != 1)
        _per_channel(types[1:], x.shape[1])
    return _same(x, types)


@knows_misfits
def group_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """input, weight?, bias? -> the input's type."""
    x, groups = types[0], attributes["num_groups"]
    if x.shape is not None:
        require(len(x.shape) >= 2)
        require_not_empty(x.shape)
        channels = x.shape[1]
        require(type(groups) is int and groups > 0)
        require(channels is None or (type(channels) is int and channels % groups == 0))
        _per_channel(types[1:], channels)
    return _same(x, types)


@knows_misfits
def layer_norm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """input, weight?, bias? -> the input's type, with last sizes `normalized_shape`; RMSNorm, too."""
    x, shape = types[0], attributes["normalized_shape"]
    require(isinstance(shape, tuple) and len(shape) > 0)
    for type_ in types[1:]:
        if type_ is not None and type_.shape is not None:
            require(len(type_.shape) == len(shape))
            for have, want in zip(type_.shape, shape, strict=True):
                require_equal(have, want, "a size of the weight")
    if x.shape is not None:
        if len(x.shape) < len(shape):
            raise Misfit(f"the input has fewer dimensions than normalized_shape {shape}")
        require_not_empty(x.shape)
        for have, want in zip(x.shape[-len(shape) :], shape, strict=True):
            require_equal(have, want, "a size that is normalized")
    return _same(x, types)


def softmax(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The input's type; attribute `dtype` converts first."""
    x, dtype = types[0], attributes["dtype"]
    require(x.dtype in FLOATS_OR_UNKNOWN)
    if x.shape is not None:
        wrap_dim(attributes["dim"], len(x.shape))
    if dtype is None or dtype is x.dtype:
        return (x,)
    require(dtype in FLOATS)
    return (TensorType(x.shape, dtype, x.device),)


def dropout(min_training_rank: int = 0) -> InferRule:
    """Return the rule of a dropout: the input's type. Dropping whole channels needs a channel dimension."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x, p = types[0], attributes["p"]
        if x.dtype not in FLOATS_OR_UNKNOWN or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise Undecided
        if attributes["train"] and x.shape is not None and len(x.shape) < min_training_rank:
            raise Undecided
        return (x,)

    return rule
