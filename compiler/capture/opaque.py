"""Opaque modules, which a traced model calls as one operator.

During tracing, the `forward` of such a module is replaced by a call of `graphwright::opaque`. Its fake kernel returns
results with the shapes of a real run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import attrs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from compiler.capture.errors import check_no_packed
from compiler.usercode.locations import is_inside
from compiler.usercode.state import location_of_module
from ir.caches import cached
from ir.errors import CaptureError, InputError
from ir.ops.nn_ops import encode_call, format_call
from ir.spelling import nearest
from ir.types import DTYPE_NAMES, DTYPES_BY_NAME

_LIBRARY = torch.library.Library("graphwright", "FRAGMENT")
if not hasattr(torch.ops.graphwright, "opaque"):
    _LIBRARY.define("opaque(Tensor[] args, str callee, str spec, str results) -> Tensor[]")

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _fake_opaque(args: Sequence[torch.Tensor], callee: str, spec: str, results: str) -> list[torch.Tensor]:
    made = []
    for item in json.loads(results):
        if item is None:
            continue
        dtype = DTYPES_BY_NAME[item["dtype"]]
        if "like" in item:
            like = args[item["like"]]
            made.append(
                torch.empty_like(like, dtype=dtype) if item["same_strides"] else like.new_empty(like.shape, dtype=dtype)
            )
        else:
            device = torch.device(item["device"])
            made.append(torch.empty_strided(item["shape"], item["strides"], dtype=dtype, device=device))
    return made


torch.library.register_fake("graphwright::opaque", _fake_opaque, lib=_LIBRARY)


@attrs.define(eq=False)
class CallRecord:
    """One call of a module in a real run: arguments and result, with meta tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    writes: bool = False
    """Whether the call mutates a tensor among its arguments, in either mode."""


def _as_meta(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().to("meta") if isinstance(leaf, torch.Tensor) else leaf, tree)


# ---- which modules ----


def chosen_modules(model: nn.Module, leaf_modules: Sequence[Any]) -> dict[str, nn.Module]:
    """Return the modules that `leaf_modules` (instances, classes, paths) names, by path.

    Raises:
        InputError: when an entry is none of these, or names no submodule.
    """
    modules = dict(model.named_modules())
    chosen: dict[str, nn.Module] = {}
    for entry in leaf_modules:
        if isinstance(entry, str):
            named = dict(model.named_modules(remove_duplicate=False)).get(entry)  # a shared module has several paths
            found = {path: module for path, module in modules.items() if module is named}
        elif isinstance(entry, nn.Module):
            found = {path: module for path, module in modules.items() if module is entry}
        elif isinstance(entry, type) and issubclass(entry, nn.Module):
            found = {path: module for path, module in modules.items() if isinstance(module, entry)}
        else:
            raise InputError(
                f"leaf_modules: {entry!r} is not a module, module class or module path",
                remedy="pass modules of the model, classes, or paths as in named_modules()",
            )
        if not found:
            raise InputError(
                f"leaf_modules: {entry!r} is not a submodule of the {type(model).__qualname__}",
                remedy=f"pass modules of the model, classes, or paths as in named_modules(){_similar(entry, modules)}",
            )
        if "" in found:
            raise InputError(
                f"leaf_modules names the model itself, {type(model).__qualname__}, which cannot be opaque as a whole",
                remedy="name submodules, or move what cannot be captured into one",
            )
        chosen.update(found)
    return _outermost(chosen)


def _similar(entry: Any, modules: Mapping[str, nn.Module]) -> str:
    close = nearest(entry, modules) if isinstance(entry, str) else []
    return f"; similar paths: {', '.join(close)}" if close else ""


def _outermost(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    ordered: dict[str, nn.Module] = {}
    for path in sorted(modules, key=lambda p: (p.count("."), p)):
        if not is_inside(path, ordered):
            ordered[path] = modules[path]
    return ordered


@cached()
def reads_training(class_: type) -> bool:
    """Return whether code of a class outside of `torch.nn.modules` names `training`.

    The modes of PyTorch's layers are known. Parametrizations (the spectral norm's iteration) count as the user's code.
    """
    return any(
        "training" in code_names(function.__code__)
        for base in class_.__mro__
        if not _is_layer(base)
        for function in functions_of(base)
    )


def _is_layer(class_: type) -> bool:
    """Return whether a class is a layer of PyTorch, or a class of Python."""
    home = class_.__module__
    return home == "builtins" or (home.split(".")[0] == "torch" and not home.startswith("torch.nn.utils."))


def functions_of(class_: type) -> Iterator[FunctionType]:
    """Yield the functions that a class itself defines and that a call may run."""
    for name, item in vars(class_).items():
        item = getattr(item, "__func__", getattr(item, "fget", item))
        item = getattr(item, "__wrapped__", item)
        if isinstance(item, FunctionType) and name not in ("__init__", "extra_repr", "train", "eval"):
            yield item


def code_names(code: CodeType) -> Iterator[str]:
    """Yield the names in code and in functions inside it, and "training" where it is a string."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_names(constant)
        elif constant == "training":
            yield constant


def mode_readers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules, by path, whose own code depends on `self.training`."""
    return {path: module for path, module in model.named_modules() if reads_training(type(module))}


def changes_with_mode(module: nn.Module, records: Sequence[CallRecord]) -> bool:
    """Return whether a module without parameters calls other functions in training than in eval mode.

    If only a flag differs (`F.dropout(x, p, self.training)`), the module need not be opaque.
    """
    modes = [(each, each.training) for each in module.modules()]
    try:
        for record in records:
            logs = []
            for mode in (False, True):
                for each, _ in modes:
                    each.training = mode
                before = _versions((record.args, record.kwargs))
                with _FunctionLog() as log, torch.no_grad():
                    module.forward(*record.args, **record.kwargs)
                logs.append(log.names)
                record.writes |= before != _versions((record.args, record.kwargs))
            if logs[0] != logs[1]:
                return True
    except Exception:  # noqa: BLE001 - whatever the user's code raises on meta tensors
        return True
    finally:
        for each, mode in modes:
            each.training = mode
    return not records


class _FunctionLog(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.append(torch.overrides.resolve_name(func) or repr(func))
        return func(*args, **(kwargs or {}))


# ---- the real run ----


@contextmanager
def recorded_calls(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[CallRecord]]]:
    """Record the calls of `modules` inside the `with` block, in order."""
    records: dict[str, list[CallRecord]] = {path: [] for path in modules}
    removed = []
    for path, module in modules.items():
        removed.append((module, module.__dict__.get("forward")))
        original = module.forward

        def recording(*args: Any, _path: str = path, _original: Callable[..., Any] = original, **kwargs: Any) -> Any:
            check_no_packed((args, kwargs), _path, modules[_path])
            before = _as_meta((args, kwargs))
            versions = _versions((args, kwargs))
            result = _original(*args, **kwargs)
            check_no_packed(result, _path, modules[_path])
            writes = versions != _versions((args, kwargs))
            records[_path].append(CallRecord(before[0], before[1], _as_meta(result), writes))
            return result

        module.__dict__["forward"] = recording
    try:
        yield records
    finally:
        for module, forward in removed:
            _put_back(module, forward)


def _versions(tree: Any) -> list[int | None]:
    """Return how often each tensor was mutated; inference mode does not count."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def _put_back(module: nn.Module, forward: Any) -> None:
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = forward


# ---- while tracing ----


@contextmanager
def opaque_calls(modules: Mapping[str, nn.Module], records: Mapping[str, Sequence[CallRecord]]) -> Iterator[None]:
    """Replace the forward methods of `modules` by opaque calls, inside the `with` block."""
    saved: list[tuple[nn.Module, Any, dict[str, Any]]] = []
    try:
        for path, module in modules.items():
            hooks = {name: dict(module.__dict__[name]) for name in _HOOKS}
            saved.append((module, module.__dict__.get("forward"), hooks))
            # the opaque module runs its own hooks
            for name in _HOOKS:
                module.__dict__[name].clear()
            module.__dict__["forward"] = _stub(path, module, iter(records[path]))
        yield
    finally:
        for module, forward, hooks in saved:
            _put_back(module, forward)
            for name, table in hooks.items():
                module.__dict__[name].update(table)


@contextmanager
def script_objects_hidden(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Remove the packed weights of quantized layers, which torch.export would trace without calling them."""
    hidden = []
    for module in modules:
        for each in module.modules():
            found = {name: item for name, item in each.__dict__.items() if isinstance(item, torch.ScriptObject)}
            hidden += [(each, dict(each.__dict__))] if found else []
            for name in found:
                del each.__dict__[name]
    try:
        yield
    finally:
        for each, attributes in hidden:
            each.__dict__.clear()
            each.__dict__.update(attributes)


def _stub(path: str, module: nn.Module, records: Iterator[CallRecord]) -> Callable[..., Any]:
    location = location_of_module(path, module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        record = next(records, None)
        if record is None:
            raise CaptureError(f"`{path}` was called less often in a run of the model", location=location)
        try:
            positional, keywords, tensors = encode_call(args, kwargs, lambda leaf: isinstance(leaf, torch.Tensor))
        except InputError as error:
            raise CaptureError(error.message, location=location, remedy=error.remedy) from None
        recorded = [leaf for leaf in pytree.tree_leaves((record.args, record.kwargs)) if isinstance(leaf, torch.Tensor)]
        leaves, structure = pytree.tree_flatten(record.result)
        descriptions: list[dict[str, Any] | None] = []
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                descriptions.append(_describe(leaf, tensors, recorded, path, module))
            elif leaf is None:
                descriptions.append(None)
            else:
                raise CaptureError(
                    f"the opaque module returns a {type(leaf).__qualname__}: only tensors and None can be",
                    location=location,
                    remedy="choose a module around it whose results are tensors",
                )
        text = format_call(positional, keywords)  # an operator takes no nested arguments
        results = iter(torch.ops.graphwright.opaque(tensors, path, text, json.dumps(descriptions)))
        return pytree.tree_unflatten([None if leaf is None else next(results) for leaf in leaves], structure)

    return forward


def _describe(
    result: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    recorded: Sequence[torch.Tensor],
    path: str,
    module: nn.Module,
) -> dict[str, Any]:
    dtype = DTYPE_NAMES[result.dtype]
    if len(tensors) == len(recorded):
        for i, (now, then) in enumerate(zip(tensors, recorded, strict=True)):
            if then.shape == result.shape and now.dim() == then.dim():
                return {"like": i, "dtype": dtype, "same_strides": then.stride() == result.stride()}
    if any(isinstance(size, torch.SymInt) for tensor in tensors for size in tensor.shape):
        raise CaptureError(
            f"the shape {tuple(result.shape)} of a result of the opaque module `{path}` is not that of an argument, so "
            "it is not known how it depends on the dynamic sizes",
            location=location_of_module(path, module),
            remedy="capture with fixed shapes, or let the module be traced",
        )
    device = str(tensors[0].device) if tensors else "cpu"
    return {"shape": list(result.shape), "strides": list(result.stride()), "dtype": dtype, "device": device}
