"""The modes of modules, and the effects of a model's `train()` and `eval()` on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Modes = Mapping[str, bool]
"""Module path -> `training`."""


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return the mode of each module, by path."""
    return {path: module.training for path, module in model.named_modules()}


def set_modes(model: nn.Module, modes: Modes) -> None:
    """Set the mode of each module without a call of `train()`."""
    for path, module in model.named_modules():
        if path not in modes:
            continue
        if isinstance(module, torch.jit.ScriptModule):
            module.training = modes[path]  # it is in C++
        else:
            module.__dict__["training"] = modes[path]


def modes_below(model: nn.Module) -> dict[str, Modes]:
    """Return the effects of switches of those submodules that override `train()` or `eval()`."""
    found: dict[str, Modes] = {}
    for path, module in model.named_modules():
        if path and (type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval):
            after: dict[str, Modes] = {}
            for name in ("eval", "train"):
                getattr(module, name)()
                after[name] = modes_of(module)
            found |= modes_after(module, f"{path}.", after)
    return found


def modes_after(module: nn.Module, prefix: str, after: Mapping[str, Modes]) -> dict[str, Modes]:
    """Return switch -> modules in another mode than a plain switch gives, from all modes after each switch."""
    exceptions = {name: _exceptions(flags, name == "train") for name, flags in after.items()}
    if type(module).eval is not nn.Module.eval:
        module.train()
        module.train(False)
        plain = modes_of(module)
        if plain != after["eval"]:
            # never empty, even without exceptions
            exceptions["train_false"] = {"": plain[""], **_exceptions(plain, False)}
    return {
        f"{prefix}{name}": {f"{prefix}{path}".rstrip("."): flag for path, flag in modes.items()}
        for name, modes in exceptions.items()
        if modes
    }


def _exceptions(modes: Modes, mode: bool) -> dict[str, bool]:
    return {path: flag for path, flag in modes.items() if flag != mode}
