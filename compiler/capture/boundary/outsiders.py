"""Participants of a call that are not part of the model: modules in plain lists, global hooks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn

from compiler.capture.boundary.questions import Record
from compiler.capture.patches import place_of_hook
from compiler.usercode.copies import held_modules
from compiler.usercode.locations import is_inside
from compiler.usercode.state import location_of_module
from ir.errors import CaptureError


@attrs.frozen(eq=False)
class ActingHook:
    """A global hook that replaced the arguments or the result of a module."""

    hook: Callable[..., Any]
    module: nn.Module
    register: str
    """The function of PyTorch that registered it."""


@contextmanager
def hooks_of_all_modules_watched() -> Iterator[list[ActingHook]]:
    """Collect the global hooks that act inside the `with` block, except those registered there."""
    found: list[ActingHook] = []
    tables = {
        "register_module_forward_pre_hook": torch.nn.modules.module._global_forward_pre_hooks,
        "register_module_forward_hook": torch.nn.modules.module._global_forward_hooks,
    }
    known = {name: dict(table) for name, table in tables.items()}

    def watched(hook: Any, register: str) -> Any:
        @functools.wraps(hook)
        def call(module: nn.Module, *args: Any) -> Any:
            result = hook(module, *args)
            if result is not None and not any(result is each for each in args):
                found.append(ActingHook(hook, module, register))
            return result

        return call

    try:
        for name, table in tables.items():
            table.update({key: watched(hook, name) for key, hook in known[name].items()})
        yield found
    finally:
        for name, table in tables.items():
            table.update({key: hook for key, hook in known[name].items() if key in table})


def check_hooks_of_all_modules(acting: Sequence[ActingHook], model: nn.Module) -> None:
    """Refuse global hooks that change results of modules: they would act on the emitted modules too.

    Raises:
        CaptureError: when there is one.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    for each in acting:
        place = place_of_hook(each.hook, location_of_module(paths.get(id(each.module), ""), each.module))
        name = getattr(each.hook, "__qualname__", type(each.hook).__qualname__)
        raise CaptureError(
            f"a hook of all modules ({name}, registered with {each.register}) changes what modules compute; it would "
            "act on the modules of the result as well, which are others",
            location=place,
            remedy="remove it before the capture (the handle's remove()), and register it on the modules that it is "
            f"for ({each.register.replace('_module', '')}): such a hook becomes a part of the result",
        )


def check_members(record: Record, model: nn.Module, kept: Sequence[str]) -> None:
    """Refuse calls of trainable modules that the model holds but does not register: a graph would not train them.

    Raises:
        CaptureError: when there was such a call.
    """
    called = [item for item in record.strangers.values() if not is_inside(item[1].module_path, kept)]
    if not called:
        return
    held = {id(module) for module in held_modules(model)}
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for module, place in called:
        tensors = [*module.parameters(), *(module.buffers() if module.training else ())]
        learns = any(id(t) not in known and (t.requires_grad or not isinstance(t, nn.Parameter)) for t in tensors)
        if id(module) in held and learns:
            where, name = _holder(module, model)
            inside = f" in {where} (a plain list, dict or attribute)" if where else ""
            raise CaptureError(
                f"forward calls a {type(module).__qualname__}{inside} that is not a submodule of the model: train(), "
                "parameters() and state_dict() do not reach it, and a graph would not train it",
                location=place,
                remedy=f"make {f'`self.{name}`' if name else 'what holds it'} an nn.ModuleList or nn.ModuleDict; or "
                "freeze it (eval() and requires_grad_(False)), so that its weights are constants",
            )


def _holder(module: nn.Module, model: nn.Module) -> tuple[str, str]:
    """Return path and name of the attribute whose value contains a module."""
    for path, owner in model.named_modules():
        for name, value in owner.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules") and _contains(value, module):
                return (f"`{path}.{name}`" if path else f"`{name}`"), name
    return "", ""


def _contains(value: Any, module: nn.Module) -> bool:
    if value is module:
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
    return any(_contains(item, module) for item in items)
