"""Runs of modules in float64 whose code names other precisions: `x.float()`, `zeros(3, dtype=torch.float32)`."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from compiler.emitted.parameter_map import ParameterMap
from compiler.usercode.state import plain_tensors
from compiler.usercode.tensors import map_tensors

_GET_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_DEEP_COPY = torch.Tensor.__deepcopy__
_CASTS = {
    torch.Tensor.float: torch.float32,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
    torch.Tensor.cfloat: torch.complex64,  # type: ignore[attr-defined]
    torch.Tensor.chalf: torch.complex32,
}
_TYPES = {"FloatTensor": torch.float32, "HalfTensor": torch.float16, "BFloat16Tensor": torch.bfloat16}
_WRITES = re.compile(
    r"__setitem__|__set__|setitem|__i(add|sub|mul|truediv|floordiv|mod|pow|matmul|and|or|xor|lshift|rshift)__|\w+[^_]_"
)
_MARK = "_dtype_of_constant"
"""Attribute of a tensor that depends only on literals: its dtype in the module itself."""


def is_float(dtype: torch.dtype) -> bool:
    """Return whether a dtype is real or complex floating point."""
    return dtype.is_floating_point or dtype.is_complex


def widest(dtype: torch.dtype) -> torch.dtype:
    """Return float64 or complex128."""
    return torch.complex128 if dtype.is_complex else torch.float64


class Widened(TorchFunctionMode):
    """Makes the code of a module that was converted to float64 compute in float64 throughout.

    Dtypes that the code names become float64, and so do tensors that are not weights of the module. Code that asks for
    a dtype gets that of the module itself, so that it takes the same branch. Values that depend only on literals are
    rounded as in the module itself, as constant folding does.

    Args:
        narrow: the dtypes that become float64; others are rounding on purpose, and stay.
        spoken: the dtype that float64 tensors have in the module itself.
    """

    def __init__(self, narrow: frozenset[torch.dtype], spoken: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.narrow = narrow
        self.spoken = spoken
        self.has_kept = False
        """Whether a result had a dtype that stays."""
        self.met_autocast = False
        """Whether a function was called in a region of autocast, which leaves float64 as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch with other dtypes."""
        kwargs = dict(kwargs or {})
        self.met_autocast = self.met_autocast or torch.is_autocast_enabled("cpu")
        if func == _GET_DTYPE:
            return self._spoken(args[0])
        if func == _DEEP_COPY:  # its other argument holds all that was copied before: the rest of a model
            return self._noted(func(*args, **kwargs))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        constant = all(_mark(t) is not None for t in tensors)
        if getattr(func, "__name__", "") == "__get__":
            return _marked(func(*args, **kwargs), tensors) if constant else func(*args, **kwargs)
        if _writes(func, kwargs):
            return self._write(func, args, kwargs, constant=constant)
        if constant:
            found = self._constant(func, args, kwargs, tensors)
            if found is not _UNKNOWN:
                return found
        if func in _CASTS and _CASTS[func] in self.narrow:
            func = torch.Tensor.cdouble if _CASTS[func].is_complex else torch.Tensor.double  # type: ignore[attr-defined]
        result = func(*pytree.tree_map(self._wide, args), **pytree.tree_map(self._wide, kwargs))
        return pytree.tree_map_only(torch.Tensor, self._noted, result)

    def _spoken(self, tensor: torch.Tensor) -> torch.dtype:
        found = _mark(tensor)
        if found is None:
            found = _GET_DTYPE(tensor)
            if found is torch.float64:
                return self.spoken
            if found is torch.complex128 and self.spoken is not torch.float64:
                return torch.complex64
        return found

    def _wide(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return widest(leaf) if leaf in self.narrow else leaf
        if isinstance(leaf, torch.Tensor):
            return leaf.to(widest(leaf.dtype)) if leaf.dtype in self.narrow else leaf
        name = leaf if isinstance(leaf, str) else getattr(leaf, "__name__", "") if isinstance(leaf, type) else ""
        if name.rpartition(".")[2] in _TYPES and _TYPES[name.rpartition(".")[2]] in self.narrow:
            return "torch.DoubleTensor"
        return leaf

    def _noted(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = tensor.dtype
        if dtype in self.narrow:
            return tensor.to(widest(dtype))
        self.has_kept |= is_float(dtype) and dtype is not widest(dtype)
        return tensor

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, constant: bool) -> Any:
        others = pytree.tree_map(self._wide, args[1:])
        result = func(*args[:1], *others, **{k: v if k == "out" else self._wide(v) for k, v in kwargs.items()})
        for written in (*args[:1], kwargs.get("out")):
            dtype = _mark(written) if isinstance(written, torch.Tensor) else None
            if dtype is None:
                continue
            if constant:
                written.copy_(written.to(dtype))
            else:
                setattr(written, _MARK, None)
        return result

    def _constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        """Call a function of literals in their dtypes in the module, and widen the results."""
        narrowed: dict[int, torch.Tensor] = {}
        for tensor in tensors:
            dtype = _mark(tensor)
            own = tensor.to(dtype)
            if not torch.equal(own.to(tensor.dtype).nan_to_num(), tensor.nan_to_num()):
                return _UNKNOWN  # it was mutated
            narrowed[id(tensor)] = own
        given = pytree.tree_map_only(torch.Tensor, lambda t: narrowed[id(t)], (args, kwargs))
        try:
            result = func(*given[0], **given[1])
        except (RuntimeError, TypeError):
            return _UNKNOWN
        memory = {t.untyped_storage()._cdata for t in narrowed.values()}
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not all(leaf.layout is torch.strided for leaf in leaves):
            return _UNKNOWN
        if any(leaf.untyped_storage()._cdata in memory for leaf in leaves):
            return _marked(func(*args, **kwargs), tensors)  # a view
        return pytree.tree_map_only(torch.Tensor, self._widened_constant, result)

    def _widened_constant(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = tensor.dtype
        if dtype in self.narrow:
            tensor = tensor.to(widest(dtype))
        setattr(tensor, _MARK, dtype)
        return tensor


_UNKNOWN = object()


def mark_constant(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Mark a tensor as a literal of the code, with its dtype in the module itself."""
    setattr(tensor, _MARK, dtype)


def _mark(tensor: torch.Tensor) -> torch.dtype | None:
    return getattr(tensor, _MARK, None)


def _marked(result: Any, sources: list[torch.Tensor]) -> Any:
    dtypes: dict[torch.dtype, torch.dtype | None] = {_GET_DTYPE(t): _mark(t) for t in sources}
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, torch.Tensor) and _mark(leaf) is None:
            setattr(leaf, _MARK, dtypes.get(leaf.dtype, leaf.dtype))
    return result


def _writes(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    name = getattr(func, "__name__", "")
    return _WRITES.fullmatch(name) is not None or kwargs.get("out") is not None


# ---- the module ----


@attrs.frozen
class Precision:
    """The dtypes of a module and its arguments."""

    narrow: frozenset[torch.dtype]
    """The dtypes that become float64."""
    spoken: torch.dtype
    """The dtype of most elements."""

    def mode(self) -> Widened:
        """Return the mode for a module that was converted to float64."""
        return Widened(self.narrow, self.spoken)

    def attempts(self) -> Iterator[tuple[Precision, Widened, Widened]]:
        """Yield this precision with modes for two modules, then one that widens all dtypes.

        The second is for code that cannot mix the two precisions, and for regions of autocast: they leave float64 as it
        is, and the casts that stand for them in the emitted module do not.
        """
        for narrow in (self.narrow, ALL_FLOATS):
            precision = attrs.evolve(self, narrow=narrow)
            yield precision, precision.mode(), precision.mode()


ALL_FLOATS = frozenset(
    dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and is_float(dtype)
) - {torch.float64, torch.complex128}


def precision_of(arguments: Any, module: nn.Module | None = None) -> Precision:
    """Return the precision of the tensors in some arguments, and of a module."""
    sizes: Counter[torch.dtype] = Counter()
    given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    own = () if module is None else (*module.parameters(), *module.buffers())
    for tensor in (*own, *given):
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.numel()
    found = frozenset(sizes) | {torch.float32, torch.complex64} | {t.dtype for t in given if t.is_complex()}
    spoken = sizes.most_common(1)[0][0] if sizes else torch.float32
    return Precision(found & ALL_FLOATS, torch.float64 if torch.float64 in sizes else spoken)


def double_twin(
    module: nn.Module,
    precision: Precision,
    original: nn.Module | None = None,
    parameter_map: ParameterMap | None = None,
) -> nn.Module:
    """Return a copy of a module in float64, to be run in the mode of a precision.

    Of an emitted module, derived weights are computed anew from those of the original in float64, since rounding them
    is not a fault of the algebra.
    """
    twin = copied_module(module)
    literals = {name: b.dtype for name, b in twin.named_buffers() if parameter_map and name in parameter_map.literals}
    twin = twin.double()
    for name, dtype in literals.items():
        mark_constant(twin.get_buffer(name), dtype)
    for tensor in plain_tensors(twin):
        mark_constant(tensor, tensor.dtype)
    if original is not None and parameter_map is not None:
        wide = _WideState(original)
        state = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        with torch.no_grad(), precision.mode():
            for key in parameter_map.renamed():
                if key in state:
                    state[key].copy_(parameter_map.heir(key, wide))
    return twin


def copied_module(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module."""
    with warnings.catch_warnings():
        # The specs inside an exported module warn of their own class when they are copied.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)


class _WideState(Mapping[str, torch.Tensor]):
    """Parameters and buffers of a module, converted to float64 on access."""

    def __init__(self, module: nn.Module) -> None:
        self.state: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.state |= module.named_buffers(remove_duplicate=False)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = widened(self.state[name].detach())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def widened(tree: Any) -> Any:
    """Return arguments in float64; one tensor stays one tensor."""

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        if not is_float(tensor.dtype) or tensor.dtype is widest(tensor.dtype):
            return tensor
        return tensor.detach().to(widest(tensor.dtype)).requires_grad_(tensor.requires_grad)

    return widen(tree) if isinstance(tree, torch.Tensor) else map_tensors(tree, widen)
