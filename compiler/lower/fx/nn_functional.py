"""`torch.nn.functional`: the functions that are written in Python, as ATen operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from compiler.lower.fx.calls import Calls
from compiler.lower.fx.indexing import Size
from compiler.lower.fx.overloads import UnknownCallError
from ir.caches import Cache

Lowering = Callable[..., Any]
"""(calls, arguments of the function by name) -> result."""


def _activation(name: str, *parameters: str) -> Lowering:
    """An activation with an in-place form: `aten.<name>`, or `aten.<name>_`."""

    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        operator = f"{name}_" if arguments.get("inplace") else name
        return calls.aten(operator, arguments["input"], *(arguments[p] for p in parameters))

    return lower


def _dropout(name: str) -> Lowering:
    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        operator = f"{name}_" if arguments.get("inplace") else name
        return calls.aten(operator, arguments["input"], float(arguments["p"]), bool(arguments["training"]))

    return lower


def _direct(name: str, *parameters: str) -> Lowering:
    """`aten.<name>` with these arguments, in this order."""

    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        return calls.aten(name, *(arguments[p] for p in parameters))

    return lower


def _softmax(name: str) -> Lowering:
    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        x, dim = arguments["input"], arguments["dim"]
        if dim is None:
            rank = calls.rank(x)
            if rank is None:
                raise UnknownCallError("softmax over a dimension that depends on the rank")
            dim = 0 if rank in (0, 1, 3) else 1
        return calls.operator(f"aten.{name}.int", (x, dim, arguments["dtype"]))

    return lower


def _adaptive(name: str, dims: int, result: int | None = None) -> Lowering:
    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        x, size = arguments["input"], arguments["output_size"]
        if isinstance(size, (tuple, list)):
            size = [calls.dim(x, i - len(size)) if n is None else n for i, n in enumerate(size)]
        else:
            size = [size] * dims
        found = calls.operator(f"aten.{name}", (x, size))
        return found if result is None or arguments.get("return_indices") else found[result]

    return lower


def _max_pool(dims: int) -> Lowering:
    def lower(calls: Calls, arguments: Mapping[str, Any]) -> Any:
        stride = arguments["stride"]
        return calls.operator(
            f"aten.max_pool{dims}d_with_indices" if arguments.get("return_indices") else f"aten.max_pool{dims}d",
            (
                arguments["input"],
                arguments["kernel_size"],
                [] if stride is None else stride,
                arguments["padding"],
                arguments["dilation"],
                arguments["ceil_mode"],
            ),
        )

    return lower


def _layer_norm(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    shape = a["normalized_shape"]
    shape = list(calls.dims(shape) if type(shape) is Size else shape)
    return calls.operator(
        "aten.layer_norm", (a["input"], shape, a["weight"], a["bias"], a["eps"], torch.backends.cudnn.enabled)
    )


def _rms_norm(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    return calls.operator("aten.rms_norm", (a["input"], list(a["normalized_shape"]), a["weight"], a["eps"]))


def _group_norm(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    return calls.operator(
        "aten.group_norm", (a["input"], a["num_groups"], a["weight"], a["bias"], a["eps"], torch.backends.cudnn.enabled)
    )


def _batch_norm(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    return calls.operator(
        "aten.batch_norm",
        (
            a["input"],
            a["weight"],
            a["bias"],
            a["running_mean"],
            a["running_var"],
            a["training"],
            a["momentum"],
            a["eps"],
            torch.backends.cudnn.enabled,
        ),
    )


def _instance_norm(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    return calls.operator(
        "aten.instance_norm",
        (
            a["input"],
            a["weight"],
            a["bias"],
            a["running_mean"],
            a["running_var"],
            a["use_input_stats"],
            a["momentum"],
            a["eps"],
            torch.backends.cudnn.enabled,
        ),
    )


def _embedding(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    if a["max_norm"] is not None:
        raise UnknownCallError("an embedding that renormalizes its weight in place")
    padding = a["padding_idx"]
    if padding is None:
        padding = -1
    elif padding < 0:
        padding = calls.dim(a["weight"], 0) + padding
    return calls.operator("aten.embedding", (a["weight"], a["input"], padding, a["scale_grad_by_freq"], a["sparse"]))


def _pad(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    value = a["value"]
    return calls.operator(
        "aten.pad", (a["input"], list(calls.plain(a["pad"])), a["mode"], None if value is None else float(value))
    )


_UPSAMPLING = {
    "nearest": ("upsample_nearest", (1, 2, 3), False),
    "nearest-exact": ("_upsample_nearest_exact", (1, 2, 3), False),
    "linear": ("upsample_linear", (1,), True),
    "bilinear": ("upsample_bilinear", (2,), True),
    "bicubic": ("upsample_bicubic", (2,), True),
    "trilinear": ("upsample_trilinear", (3,), True),
}


def _interpolate(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    mode, size, scale = a["mode"], calls.plain(a["size"]), a["scale_factor"]
    if mode not in _UPSAMPLING or a["recompute_scale_factor"] or a["antialias"]:
        raise UnknownCallError(f"interpolation of mode {mode} with these options")
    name, ranks, aligns = _UPSAMPLING[mode]
    rank = calls.rank(a["input"])
    if rank is not None:
        dims = rank - 2
    elif len(ranks) == 1:
        dims = ranks[0]
    elif isinstance(size or scale, (list, tuple)):
        dims = len(size or scale)
    else:
        raise UnknownCallError("interpolation of a tensor of unknown rank")
    if dims not in ranks:
        raise UnknownCallError(f"interpolation of mode {mode} over {dims} dimensions")
    if size is not None and not isinstance(size, (list, tuple)):
        size = [size] * dims
    if scale is not None:
        scale = [float(s) for s in scale] if isinstance(scale, (list, tuple)) else [float(scale)] * dims
    flags = (bool(a["align_corners"]),) if aligns else ()
    return calls.operator(f"aten.{name}{dims}d.vec", (a["input"], size, *flags, scale))


def _normalize(calls: Calls, arguments: Mapping[str, Any]) -> Any:
    a = arguments
    if a["out"] is not None:
        raise UnknownCallError("normalize with out=")
    x = a["input"]
    norm = calls.operator("aten.norm.ScalarOpt_dim", (x, a["p"], [a["dim"]], True))
    bound = calls.operator("aten.clamp_min", (norm, a["eps"]))
    return calls.aten("div", x, calls.operator("aten.expand_as", (bound, x)))


FUNCTIONS: dict[Any, Lowering] = {
    F.relu: _activation("relu"),
    F.relu6: _activation("relu6"),
    F.hardtanh: _activation("hardtanh", "min_val", "max_val"),
    F.hardswish: _activation("hardswish"),
    F.hardsigmoid: _activation("hardsigmoid"),
    F.silu: _activation("silu"),
    F.mish: _activation("mish"),
    F.elu: _activation("elu", "alpha"),
    F.selu: _activation("selu"),
    F.celu: _activation("celu", "alpha"),
    F.leaky_relu: _activation("leaky_relu", "negative_slope"),
    F.threshold: _activation("threshold", "threshold", "value"),
    F.rrelu: _activation("rrelu", "lower", "upper", "training"),
    F.sigmoid: _direct("sigmoid", "input"),
    F.tanh: _direct("tanh", "input"),
    F.glu: _direct("glu", "input", "dim"),
    F.dropout: _dropout("dropout"),
    F.dropout1d: _dropout("feature_dropout"),
    F.dropout2d: _dropout("feature_dropout"),
    F.dropout3d: _dropout("feature_dropout"),
    F.alpha_dropout: _dropout("alpha_dropout"),
    F.feature_alpha_dropout: _dropout("feature_alpha_dropout"),
    F.softmax: _softmax("softmax"),
    F.log_softmax: _softmax("log_softmax"),
    F.adaptive_avg_pool2d: _adaptive("adaptive_avg_pool2d", 2),
    F.adaptive_avg_pool3d: _adaptive("adaptive_avg_pool3d", 3),
    F.adaptive_max_pool1d: _adaptive("adaptive_max_pool1d", 1, 0),
    F.adaptive_max_pool2d: _adaptive("adaptive_max_pool2d", 2, 0),
    F.adaptive_max_pool3d: _adaptive("adaptive_max_pool3d", 3, 0),
    F.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    F.max_pool3d: _max_pool(3),
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.embedding: _embedding,
    F.pad: _pad,
    F.interpolate: _interpolate,
    F.upsample: _interpolate,
    F.normalize: _normalize,
}

_SIGNATURES: Cache[Any, inspect.Signature] = Cache()
_POOL_SIGNATURES: dict[Any, Any] = {
    F.max_pool1d: F.max_pool1d_with_indices,
    F.max_pool2d: F.max_pool2d_with_indices,
    F.max_pool3d: F.max_pool3d_with_indices,
    F.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
}


def lower_functional(calls: Calls, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Lower a call of a function of `torch.nn.functional`.

    Raises:
        UnknownCallError: when no operator stands for it.
    """
    lowering = FUNCTIONS[function]
    signature = _SIGNATURES.get(function)
    if signature is None:
        # the pooling functions are dispatchers without a signature of their own
        signature = _SIGNATURES[function] = inspect.signature(_POOL_SIGNATURES.get(function, function))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UnknownCallError(str(error)) from None
    bound.apply_defaults()
    return lowering(calls, bound.arguments)
