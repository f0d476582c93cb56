"""Python functions of `torch.nn.functional`, as ATen operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn import functional as F

from compiler.lower.fx.calls import Calls
from compiler.lower.fx.overloads import UnknownCallError
from ir.caches import cached
from ir.opdef import get_opdef

Arguments = Mapping[str, Any]
Lowering = Callable[[Calls, Arguments], Any]
"""(calls, arguments of a function by name) -> the result, or one argument of the operator."""

_NAMES = {"self": "input", "indices": "input", "train": "training"}
"""Parameter of an operator -> its name in functions."""


def _operator(name: str, **changed: Lowering) -> Lowering:
    """The operator `aten.<name>`, or `aten.<name>_` for `inplace=True`, with the arguments of the same names.

    Args:
        name: of the operator.
        changed: parameters of the function -> what makes the operator's argument.
    """

    def lower(calls: Calls, arguments: Arguments) -> Any:
        operator = f"{name}_" if arguments.get("inplace") else name
        known = {**arguments, **dict.fromkeys(("cudnn_enabled", "cudnn_enable"), torch.backends.cudnn.enabled)}
        names = [_NAMES.get(p.name, p.name) for p in get_opdef(f"aten.{operator}").params]
        given = takewhile(known.__contains__, names)
        return calls.aten(operator, *(changed[n](calls, known) if n in changed else known[n] for n in given))

    return lower


def _float(name: str) -> Lowering:
    return lambda _, arguments: None if arguments[name] is None else float(arguments[name])


def _dropout(name: str) -> Lowering:
    return _operator(name, p=_float("p"), training=lambda _, arguments: bool(arguments["training"]))


def _softmax(name: str) -> Lowering:
    def lower(calls: Calls, arguments: Arguments) -> Any:
        x, dim = arguments["input"], arguments["dim"]
        if dim is None:
            rank = calls.rank(x)
            if rank is None:
                raise UnknownCallError("softmax over a dimension that depends on the rank")
            dim = 0 if rank in (0, 1, 3) else 1
        return calls.operator(f"aten.{name}.int", (x, dim, arguments["dtype"]))

    return lower


def _adaptive(name: str, dims: int) -> Lowering:
    def output_size(calls: Calls, arguments: Arguments) -> Any:
        x, size = arguments["input"], arguments["output_size"]
        if isinstance(size, (tuple, list)):
            return [calls.dim(x, i - len(size)) if n is None else n for i, n in enumerate(size)]
        return [size] * dims

    pool = _operator(name, output_size=output_size)

    def lower(calls: Calls, arguments: Arguments) -> Any:
        found = pool(calls, arguments)
        return found[0] if isinstance(found, tuple) and not arguments["return_indices"] else found

    return lower


def _max_pool(name: str) -> Lowering:
    def stride(_: Calls, arguments: Arguments) -> Any:
        return [] if arguments["stride"] is None else arguments["stride"]

    pool, with_indices = (_operator(each, stride=stride) for each in (name, f"{name}_with_indices"))
    return lambda calls, arguments: (with_indices if arguments["return_indices"] else pool)(calls, arguments)


def _normalized_shape(calls: Calls, arguments: Arguments) -> Any:
    return list(calls.plain(arguments["normalized_shape"]))


def _embedding(calls: Calls, arguments: Arguments) -> Any:
    if arguments["max_norm"] is not None:
        raise UnknownCallError("an embedding that renormalizes its weight in place")
    padding = arguments["padding_idx"]
    if padding is None:
        padding = -1
    elif padding < 0:
        padding = calls.dim(arguments["weight"], 0) + padding
    return _operator("embedding")(calls, {**arguments, "padding_idx": padding})


_UPSAMPLING = {
    "nearest": ("upsample_nearest", (1, 2, 3), False),
    "nearest-exact": ("_upsample_nearest_exact", (1, 2, 3), False),
    "linear": ("upsample_linear", (1,), True),
    "bilinear": ("upsample_bilinear", (2,), True),
    "bicubic": ("upsample_bicubic", (2,), True),
    "trilinear": ("upsample_trilinear", (3,), True),
}


def _interpolate(calls: Calls, arguments: Arguments) -> Any:
    a = arguments
    mode, size, scale = a["mode"], calls.plain(a["size"]), a["scale_factor"]
    if mode not in _UPSAMPLING or a.get("recompute_scale_factor") or a.get("antialias"):
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


def _normalize(calls: Calls, arguments: Arguments) -> Any:
    a = arguments
    if a["out"] is not None:
        raise UnknownCallError("normalize with out=")
    x = a["input"]
    norm = calls.operator("aten.norm.ScalarOpt_dim", (x, a["p"], [a["dim"]], True))
    bound = calls.operator("aten.clamp_min", (norm, a["eps"]))
    return calls.aten("div", x, calls.operator("aten.expand_as", (bound, x)))


_PLAIN = (
    *(F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu),
    *(F.rrelu, F.sigmoid, F.tanh, F.glu, F.group_norm, F.batch_norm, F.instance_norm),
)
"""Functions that are one operator of the same name."""

FUNCTIONS: dict[Any, Lowering] = {
    **{function: _operator(function.__name__) for function in _PLAIN},
    F.threshold: _operator("threshold"),
    F.dropout: _dropout("dropout"),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _dropout("feature_dropout")),
    F.alpha_dropout: _dropout("alpha_dropout"),
    F.feature_alpha_dropout: _dropout("feature_alpha_dropout"),
    F.softmax: _softmax("softmax"),
    F.log_softmax: _softmax("log_softmax"),
    F.adaptive_avg_pool2d: _adaptive("adaptive_avg_pool2d", 2),
    F.adaptive_avg_pool3d: _adaptive("adaptive_avg_pool3d", 3),
    F.adaptive_max_pool1d: _adaptive("adaptive_max_pool1d", 1),
    F.adaptive_max_pool2d: _adaptive("adaptive_max_pool2d", 2),
    F.adaptive_max_pool3d: _adaptive("adaptive_max_pool3d", 3),
    **{function: _max_pool(function.__name__) for function in (F.max_pool1d, F.max_pool2d, F.max_pool3d)},
    F.layer_norm: _operator("layer_norm", normalized_shape=_normalized_shape),
    F.rms_norm: _operator("rms_norm", normalized_shape=_normalized_shape),
    F.embedding: _embedding,
    F.pad: _operator("pad", pad=lambda calls, arguments: list(calls.plain(arguments["pad"])), value=_float("value")),
    F.interpolate: _interpolate,
    F.upsample: _interpolate,
    F.normalize: _normalize,
}


@cached()
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    # pooling functions are dispatchers without a signature of their own
    return inspect.signature(getattr(F, f"{function.__name__}_with_indices", function))


def lower_functional(calls: Calls, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Lower a call of a function of `torch.nn.functional`.

    Raises:
        UnknownCallError: when no operator stands for it.
    """
    try:
        bound = _signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise UnknownCallError(str(error)) from None
    bound.apply_defaults()
    return FUNCTIONS[function](calls, bound.arguments)
