"""Regions of `torch.autocast` as casts of operands.

Which operands autocast casts is not listed here: each call is tried on fake tensors inside of autocast, and outside of
it with operands that are cast. Where both run the same kernels on the same dtypes, these casts are what autocast does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ir.errors import CaptureError
from ir.fake import quiet_kernels
from ir.opdef import Trait, opdef_of_overload
from ir.schemas import name_of_overload

_ANY_SIZE = 4
"""What stands for a size that depends on data where a call is tried."""


@attrs.frozen
class AutocastRegion:
    """The arguments of `torch.autocast`."""

    device: str
    dtype: torch.dtype
    is_enabled: bool

    def casts(self, node: fx.Node, target: torch._ops.OpOverload) -> torch.dtype | None:
        """Return the dtype to which the region casts the floating-point operands of a call; None where it casts none.

        Raises:
            CaptureError: when it does something else.
        """
        if not self.is_enabled or _is_unaffected(target, self.device):
            return None
        args, kwargs = (_example(arg) for arg in (node.args, node.kwargs))
        if not any(_is_cast(leaf, self.device) for leaf in pytree.tree_leaves((args, kwargs))):
            return None
        inside = _kernels(target, args, kwargs, self, None)
        if inside is not None:
            outside = attrs.evolve(self, is_enabled=False)
            for dtype in (None, self.dtype, torch.float32):
                if _kernels(target, args, kwargs, outside, dtype) == inside:
                    return dtype
        raise CaptureError(
            f"what torch.autocast does to {name_of_overload(target)} is no cast of its operands",
            remedy="leave the region before it, cast in forward (`x.to(torch.bfloat16)`), or keep the module that "
            "enters the region as is with leaf_modules=",
        )

    def is_cast(self, value: Any) -> bool:
        """Return whether the region may cast a tensor, of which dtype and device are known."""
        return _is_cast(value, self.device)


def _is_cast(leaf: Any, device: str) -> bool:
    dtype, where = getattr(leaf, "dtype", None), getattr(leaf, "device", None)
    if not isinstance(dtype, torch.dtype) or not isinstance(where, torch.device) or where.type != device:
        return False
    return dtype.is_floating_point and dtype is not torch.float64


def _is_unaffected(target: torch._ops.OpOverload, device: str) -> bool:
    """Return whether an operator has no kernel for autocast, and calls no other operator that may have one."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return not any(has(target.name(), key) for key in (f"Autocast{device.upper()}", "CompositeImplicitAutograd"))


def _example(arg: Any) -> Any:
    """Return an argument of a node with real numbers for sizes, and tensors as descriptions of themselves."""

    def leaf(item: Any) -> Any:
        value = item.meta.get("val") if isinstance(item, fx.Node) else item
        return pytree.tree_map(_described, value)

    return fx.node.map_aggregate(arg, leaf)


@attrs.frozen
class _Described:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        sizes, steps = (tuple(map(_described, each)) for each in (value.shape, value.stride()))
        return _Described(sizes, steps, value.dtype, value.device)
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value.node.hint if value.node.has_hint() else _ANY_SIZE
    return value


def _shown(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.OpOverload) and func.namespace != "prim":  # which asks for the device
            opdef = opdef_of_overload(func)
            if opdef.has(Trait.CAST):
                self.calls[f"{func} {args[0].numel()} {args[0].dtype} {args[1:]} {kwargs}"] += 1
            elif not opdef.has(Trait.LAYOUT):  # a cast may stand on either side of what moves elements
                self.calls[f"{func} {pytree.tree_map(_shown, (args, kwargs))}"] += 1
        return func(*args, **(kwargs or {}))


def _kernels(
    target: torch._ops.OpOverload, args: Any, kwargs: Any, region: AutocastRegion, dtype: torch.dtype | None
) -> Counter[str] | None:
    """Return which kernels a call runs, in a region or with operands cast to a dtype; None where it fails."""

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, _Described):
            return leaf
        return torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=leaf.device)

    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if dtype is not None and _is_cast(leaf, region.device) else leaf

    recorder = _Recorder()
    try:
        with FakeTensorMode(), torch.no_grad(), quiet_kernels():
            given, named = pytree.tree_map(made, (args, kwargs))
            with recorder, torch.autocast(region.device, region.dtype, region.is_enabled, cache_enabled=False):
                given, named = pytree.tree_map(cast, (given, named))
                target(*given, **named)
    except Exception:  # noqa: BLE001 - whatever it raises: the call is not tried
        return None
    return recorder.calls
