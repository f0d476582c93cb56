"""Patches that are active while tracing, for calls whose meaning tracing would lose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.usercode.locations import is_inside, is_user_file
from compiler.usercode.state import location_of_module
from ir.errors import CaptureError
from ir.locations import Location

_RETURN_THEIR_INPUT = frozenset(
    {F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
    | {torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout}
)
"""In eval mode they return their argument itself, which confuses the tracer: after `y = dropout2d(x)`, each use of `x`
would be one of `y`."""

_GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_MISTAKEN = _RETURN_THEIR_INPUT | {_GET_DATA, _SET_DATA, torch.Tensor.register_hook}


class TracedFunctions(TorchFunctionMode):
    """Replaces functions that the tracer confuses."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch.

        Raises:
            CaptureError: when the storage of a tensor is replaced, or a hook registered.
        """
        if func not in _MISTAKEN:  # nearly always: PyTorch itself asks for sizes and strides by the thousand
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if func in _RETURN_THEIR_INPUT and not kwargs.get("inplace") and True not in args[3:]:
            if args:
                args = (torch.ops.aten.alias(args[0]), *args[1:])
            else:
                kwargs["input"] = torch.ops.aten.alias(kwargs["input"])
        if func == _GET_DATA:
            return args[0].detach()
        if func == _SET_DATA:
            raise CaptureError(
                "forward assigns to `.data` of a tensor, which no graph can express",
                remedy="write into the tensor with copy_() if it is a buffer, or update it outside of forward",
            )
        if func is torch.Tensor.register_hook:
            raise CaptureError(
                "forward registers a backward hook on a tensor, which the emitted module would not run",
                remedy="register it outside of forward, or keep the module with leaf_modules=",
            )
        return func(*args, **kwargs)


@contextmanager
def patched(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of a class or a module inside the `with` block."""
    known = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    try:
        for name, item in attributes.items():
            setattr(owner, name, item)
        yield
    finally:
        for name in attributes:
            if name in known:
                setattr(owner, name, known[name])
            else:
                delattr(owner, name)


@contextmanager
def inference_mode_as_no_grad() -> Iterator[None]:
    """Trace `torch.inference_mode` as `torch.no_grad`, which the tracer records."""
    open_: list[ExitStack] = []

    def start(self: Any) -> None:
        stack = ExitStack()
        stack.enter_context(torch.set_grad_enabled(not self.mode))
        open_.append(stack)

    def stop(self: Any, *exception: Any) -> None:
        open_.pop().close()

    with patched(torch.inference_mode, __enter__=start, __exit__=stop):
        yield


class _GradientModes(TorchFunctionMode):
    """Refuses switches of the gradient mode inside of regions of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.regions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch.

        Raises:
            CaptureError: when it switches the mode.
        """
        if func is torch._C._set_grad_enabled and self.regions and args[0] != torch.is_grad_enabled():
            raise CaptureError(
                "the gradient mode changes inside of a region of torch.autocast, which torch.export loses",
                remedy="enter torch.no_grad() around the region, or keep the module that enters the region as is with "
                "leaf_modules=",
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def gradient_modes_refused() -> Iterator[None]:
    """Refuse `torch.no_grad` inside of regions of `torch.autocast`, whose graphs do not say where it was.

    Raises:
        CaptureError: when the gradient mode changes there.
    """
    modes = _GradientModes()
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def start(self: Any) -> Any:
        modes.regions += 1
        return enter(self)  # type: ignore[no-untyped-call]

    def stop(self: Any, *exception: Any) -> Any:
        modes.regions -= 1
        return leave(self, *exception)

    with modes, patched(torch.autocast, __enter__=start, __exit__=stop):
        yield


@contextmanager
def stacks_of_leaves(model: nn.Module) -> Iterator[None]:
    """Show the tracer the submodules of a module that an FX graph calls as a leaf.

    `torch.export` runs an FX graph node by node, and uses a node's module stack for everything that the node calls. A
    dropout inside a leaf would belong to no module, and follow no mode.
    """
    graphs = [module.graph for module in model.modules() if isinstance(module, fx.GraphModule)]
    leaves = [node for graph in graphs for node in graph.nodes if node.op == "call_module"]
    saved = [(node, dict(node.meta)) for node in leaves if "nn_module_stack" in node.meta]
    try:
        for node, _ in saved:
            del node.meta["nn_module_stack"]
        yield
    finally:
        for node, meta in saved:
            node.meta.clear()
            node.meta.update(meta)


class _WatchedMode:
    """A descriptor in the place of `module.training`."""

    def __init__(self, read: Callable[[nn.Module, FrameType], None], set_: Callable[[nn.Module], None]) -> None:
        self.read = read
        self.set = set_

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        try:
            mode = module.__dict__["training"]
        except KeyError:
            raise AttributeError("training") from None
        self.read(module, sys._getframe(1))
        return mode

    def __set__(self, module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode
        self.set(module)


def mode_watched(
    read: Callable[[nn.Module, FrameType], None], set_: Callable[[nn.Module], None] = lambda _: None
) -> AbstractContextManager[None]:
    """Watch the modes of all modules.

    `read` is called when a mode is read, with the module and the reading frame; `set_` after a mode is set.
    """
    return patched(nn.Module, training=_WatchedMode(read, set_))


@contextmanager
def mode_reads() -> Iterator[Mapping[int, nn.Module]]:
    """Collect the modules, by id, whose mode is read by code outside of PyTorch: `module.training` in a helper."""
    read_of: dict[int, nn.Module] = {}

    def note(module: nn.Module, frame: FrameType) -> None:
        if is_user_file(frame.f_code.co_filename):
            read_of[id(module)] = module

    with mode_watched(note):
        yield read_of


class ParametersKept(TorchDispatchMode):
    """Restores mutated parameters of a model, and other given tensors, at the end; only mutated ones are copied."""

    def __init__(self, model: nn.Module, others: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        kept = [t for t in (*model.parameters(), *others) if t.layout is torch.strided]
        self._storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in kept}
        self._copies: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Copy the parameters that an operator mutates before it does."""
        kwargs = dict(kwargs or {})
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for number, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(args[number] if number < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _keep(self, given: Any) -> None:
        for tensor in given if isinstance(given, (list, tuple)) else (given,):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                key = tensor.untyped_storage()._cdata
                if key in self._storages and key not in self._copies:
                    self._copies[key] = self._storages[key].clone()

    def written(self) -> frozenset[int]:
        """Return the storages (`_cdata`) that were mutated."""
        return frozenset(self._copies)

    def restore(self) -> bool:
        """Restore what was mutated; return whether anything was."""
        for key, copy in self._copies.items():
            self._storages[key].copy_(copy)
        return bool(self._copies)


def with_parameters_kept(model: nn.Module, action: Callable[[], Any]) -> Any:
    """Run an action that calls the model, and undo its mutations of parameters."""
    kept = ParametersKept(model)
    try:
        with kept:
            return action()
    finally:
        kept.restore()


def place_of_hook(hook: Any, location: Location) -> Location:
    """Return the location of a module with the file and line of a hook that runs for it."""
    code = getattr(hook, "__code__", None)
    return location if code is None else attrs.evolve(location, file=code.co_filename, line=code.co_firstlineno)


def check_hooks(model: nn.Module, opaque: Mapping[str, nn.Module]) -> None:
    """Refuse hooks of the backward pass, which a graph does not have.

    Raises:
        CaptureError: when a module that is traced has one.
    """
    everywhere = [*nn.modules.module._global_backward_pre_hooks.values()]
    everywhere += nn.modules.module._global_backward_hooks.values()
    if everywhere:
        name = getattr(everywhere[0], "__qualname__", "a hook")
        raise CaptureError(
            f"all modules have a backward hook ({name}, registered for all modules), which the emitted module would "
            "not run for those that are traced",
            location=place_of_hook(everywhere[0], location_of_module("", model)),
            remedy="remove it before the capture (the handle's remove()), and register it on the result's modules",
        )
    for path, module in model.named_modules():
        hooks = {**module._backward_hooks, **getattr(module, "_backward_pre_hooks", {})}
        if hooks and not is_inside(path, opaque):
            name = getattr(next(iter(hooks.values())), "__qualname__", "a hook")
            where = f"`{path}`" if path else "the model itself"
            raise CaptureError(
                f"{where} ({type(module).__qualname__}) has a backward hook ({name}), which the emitted module would "
                "not run",
                remedy="remove it before the capture (the handle's remove()), or keep the module with leaf_modules=",
            )
    for name, parameter in model.named_parameters():
        hooks = {**(parameter._backward_hooks or {}), **(getattr(parameter, "_post_accumulate_grad_hooks", None) or {})}
        if hooks and not is_inside(name, opaque):
            raise CaptureError(
                f"parameter {name!r} has a hook on its gradient, which the emitted module would not run",
                remedy="remove it before the capture (the handle's remove()), and register it on the emitted module",
            )
