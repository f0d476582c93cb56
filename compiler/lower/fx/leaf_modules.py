"""Leaf modules of `torch.nn` in an FX graph: their own forward methods run on proxies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from compiler.lower.functional.storage import Handle
from compiler.lower.fx.calls import Calls
from compiler.lower.fx.nn_functional import FUNCTIONS, lower_functional
from compiler.lower.fx.overloads import UnknownCallError
from ir.attributes import map_leaves
from ir.opdef import get_opdef
from ir.types import OpaqueType

_TRACED = "torch.nn.modules."


class TensorProxy:
    """Stands for a tensor while a forward method of `torch.nn` runs; functions that take it become operators."""

    def __init__(self, leaves: LeafModules, handle: Handle) -> None:
        self._leaves = leaves
        self._handle = handle

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Lower the call of a function of torch."""
        proxy = next(leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, TensorProxy))
        return proxy._leaves.call(func, args, kwargs or {})

    def dim(self) -> int:
        """Return the rank."""
        rank = self._leaves.calls.rank(self._handle)
        if rank is None:
            raise UnknownCallError("the module asks for the rank of its input")
        return rank

    def __getattr__(self, name: str) -> Any:
        leaves = self._leaves
        calls = leaves.calls
        if name == "is_nested":
            return False
        if name in ("shape", "ndim", "dtype", "device", "T", "mT"):
            return leaves.wrap(calls.plain(calls.attribute(self._handle, name)))

        def method(*args: Any, **kwargs: Any) -> Any:
            found = calls.method(name, [self._handle, *leaves.unwrap(args)], leaves.unwrap(kwargs))
            return leaves.wrap(calls.plain(found))

        return method

    # Python's defaults would answer without the values, and the module would take one branch
    def __bool__(self) -> bool:
        raise UnknownCallError("the module asks for the values of a tensor")

    def __eq__(self, other: object) -> bool:
        raise UnknownCallError("the module compares a tensor")

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Any:
        return self._leaves.call(torch.add, (self, other), {})

    def __mul__(self, other: Any) -> Any:
        return self._leaves.call(torch.mul, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return self._leaves.call(torch.sub, (self, other), {})

    def __truediv__(self, other: Any) -> Any:
        return self._leaves.call(torch.div, (self, other), {})


class LeafModules:
    """Lowers calls of leaf modules."""

    def __init__(self, calls: Calls, weight: Callable[[torch.Tensor], Handle]) -> None:
        self.calls = calls
        self.weight = weight

    def wrap(self, item: Any) -> Any:
        """Return handles as proxies."""
        return map_leaves(item, lambda leaf: TensorProxy(self, leaf) if type(leaf) is Handle else leaf)

    def unwrap(self, item: Any) -> Any:
        """Return proxies and weights as handles."""
        return map_leaves(item, self._unwrap)

    def _unwrap(self, leaf: Any) -> Any:
        if isinstance(leaf, TensorProxy):
            return leaf._handle
        return self.weight(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def call(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Lower a call that a forward method makes."""
        return self.wrap(self.function(function, self.unwrap(tuple(args)), self.unwrap(dict(kwargs))))

    def function(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Lower a call of a function on handles.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        try:
            known = function in FUNCTIONS
        except TypeError:
            known = False
        if known:
            return lower_functional(self.calls, function, args, kwargs)
        return self.calls.function(function, args, kwargs)

    def module(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Lower the call of a leaf module on handles.

        Raises:
            UnknownCallError: when it is not a module of `torch.nn`, or asks for something unknown.
        """
        class_ = type(module)
        if not class_.__module__.startswith(_TRACED) or has_hooks(module) or "forward" in module.__dict__:
            raise UnknownCallError(f"{class_.__qualname__} is not a plain module of torch.nn")
        if isinstance(module, _BatchNorm):
            return self._batch_norm(module, *args, **kwargs)
        if isinstance(module, _InstanceNorm):
            return self._instance_norm(module, *args, **kwargs)
        if isinstance(module, nn.MultiheadAttention):
            return self._attention(module, args, kwargs)
        if isinstance(module, nn.Softmax2d):
            return self._softmax2d(*args, **kwargs)
        if next(module.children(), None) is not None:
            raise UnknownCallError(f"{class_.__qualname__} has submodules")
        try:
            found = module.forward(*self.wrap(list(args)), **{k: self.wrap(v) for k, v in kwargs.items()})
        except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
            raise UnknownCallError(f"{class_.__qualname__}: {error}") from error
        return self.unwrap(found)

    def _optional(self, tensor: torch.Tensor | None) -> Handle | None:
        return None if tensor is None else self.weight(tensor)

    def _softmax2d(self, input: Handle) -> Any:  # noqa: A002 - the name in torch
        return self.function(F.softmax, (input, -3), {})

    def _batch_norm(self, module: _BatchNorm, input: Handle) -> Any:  # noqa: A002 - the name in torch
        training = module.training or (module.running_mean is None and module.running_var is None)
        use_statistics = not module.training or module.track_running_stats
        statistics = (module.running_mean, module.running_var) if use_statistics else (None, None)
        return self._normalization(F.batch_norm, module, input, statistics, training)

    def _instance_norm(self, module: _InstanceNorm, input: Handle) -> Any:  # noqa: A002 - the name in torch
        rank = self.calls.rank(input)
        batched = {"InstanceNorm1d": 3, "InstanceNorm2d": 4, "InstanceNorm3d": 5}.get(type(module).__name__)
        if batched is None or rank != batched:
            # without a batch, the first dimension is the channels
            raise UnknownCallError("instance norm without a batch, of an unknown rank, or lazy")
        if module.track_running_stats and module.training:
            raise UnknownCallError("instance norm that updates its statistics")
        statistics = (module.running_mean, module.running_var)
        return self._normalization(F.instance_norm, module, input, statistics, not module.track_running_stats)

    def _normalization(
        self,
        function: Callable[..., Any],
        module: _NormBase,
        input: Handle,  # noqa: A002 - the name in torch
        statistics: Sequence[torch.Tensor | None],
        of_input: bool,
    ) -> Any:
        tensors = map(self._optional, (*statistics, module.weight, module.bias))
        momentum = 0.0 if module.momentum is None else module.momentum
        return self.function(function, (input, *tensors, of_input, momentum, module.eps), {})

    def _attention(self, module: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = inspect.signature(module.forward).bind(*args, **kwargs)
        call.apply_defaults()
        a = call.arguments
        same = module._qkv_same_embed_dim
        separate = (None,) * 3 if same else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        optional = self._optional
        operands = (
            a["query"],
            a["key"],
            a["value"],
            optional(module.in_proj_weight) if same else None,
            optional(module.in_proj_bias),
            self.weight(module.out_proj.weight),
            optional(module.out_proj.bias),
            *map(optional, separate),
            optional(module.bias_k),
            optional(module.bias_v),
            a["key_padding_mask"],
            a["attn_mask"],
        )
        found = self.calls.operator(
            get_opdef("nn.multihead_attention"),
            operands,
            {
                "num_heads": module.num_heads,
                "embed_dim": module.embed_dim,
                "dropout": float(module.dropout),
                "batch_first": module.batch_first,
                "add_zero_attn": module.add_zero_attn,
                "need_weights": bool(a["need_weights"]),
                "average_attn_weights": bool(a["average_attn_weights"]),
                "is_causal": bool(a["is_causal"]),
                "training": module.training,
            },
            # without weights, the result has the query's type; inference would run the module on fake tensors for 10 ms
            types=None if a["need_weights"] else (a["query"].value.type, OpaqueType()),
        )
        return found if a["need_weights"] else (found[0], None)


def has_hooks(module: nn.Module) -> bool:
    """Return whether calls of a module run hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))
