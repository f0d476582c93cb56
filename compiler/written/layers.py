"""The call that makes a layer again: the arguments of its class, read from its attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from compiler.emitted.graphmodule import SwitchedLayer
from compiler.emitted.quantization import Quantizer
from compiler.written.literals import Imports, literal
from ir.errors import CodegenError

_OTHERS: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    Quantizer: {"channels": lambda m: None if m.axis is None else m.scale.numel()},
    nn.MultiheadAttention: {
        "bias": lambda m: m.in_proj_bias is not None,
        "add_bias_kv": lambda m: m.bias_k is not None,
        "kdim": lambda m: None if m._qkv_same_embed_dim else m.kdim,
        "vdim": lambda m: None if m._qkv_same_embed_dim else m.vdim,
    },
}
"""Class -> arguments that no attribute has under their name."""
_NOT_ARGUMENTS = ("self", "device")
_ABSENT = object()
OF_MODULES = frozenset(vars(nn.Module()))
"""The attributes that every module has."""


def layer_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a layer, without the switches that it was given."""
    return module._layer if isinstance(module, SwitchedLayer) else type(module)


def layer_call(module: nn.Module, path: str, imports: Imports) -> tuple[str, nn.Module]:
    """Return the call that makes a layer again, and the layer that it makes, without numbers.

    Raises:
        CodegenError: when it would make another one.
    """
    class_ = layer_class(module)
    arguments = _arguments(class_, module, path)
    with torch.device("meta"):
        made = class_(**arguments)
    fault = next(_differences(module, made), None)
    if fault is not None:
        raise CodegenError(
            f"the {class_.__qualname__} at `{path}` cannot be written as code: {fault}",
            remedy="save the module by `torch.save`",
        )
    return f"{name_of(class_, imports)}({_written(class_, arguments, imports)})", made


def name_of(class_: type[nn.Module], imports: Imports) -> str:
    """Return the name of a class in code."""
    if getattr(nn, class_.__name__, None) is class_:
        imports.module("nn", "torch.nn")
        return f"nn.{class_.__name__}"
    return imports.of(class_)


def _arguments(class_: type[nn.Module], module: nn.Module, path: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    others = _OTHERS.get(class_, {})
    for name, parameter in inspect.signature(class_.__init__).parameters.items():
        if name in _NOT_ARGUMENTS or name.startswith("_") or (name == "dtype" and "dtype" not in vars(module)):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # those of `nn.Module.__init__`, which takes none; a class that takes some makes another layer
        if name in others:
            value = others[name](module)
        elif name in module._parameters or name in module._buffers:
            value = getattr(module, name) is not None
        else:
            value = getattr(module, name, _ABSENT)
        if value is _ABSENT:
            if parameter.default is parameter.empty:
                raise CodegenError(
                    f"the {class_.__qualname__} at `{path}` cannot be written as code: nothing tells its argument "
                    f"{name!r}",
                    remedy="save the module by `torch.save`",
                )
            continue
        given[name] = value
    return given


def _written(class_: type[nn.Module], arguments: Mapping[str, Any], imports: Imports) -> str:
    """Return arguments as a person writes them: those without a default by position, the others where they differ."""
    words: list[str] = []
    by_position = True
    for name, parameter in inspect.signature(class_.__init__).parameters.items():
        if name not in arguments:
            by_position = by_position and name == "self"
            continue
        value = arguments[name]
        is_default = type(value) is type(parameter.default) and value == parameter.default
        if parameter.default is not parameter.empty and (is_default or _is_short_for(parameter.default, value)):
            by_position = False
            continue
        by_position = (
            by_position and parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
        )
        text = literal(value, imports)
        words.append(text if by_position else f"{name}={text}")
    return ", ".join(words)


def _is_short_for(default: Any, value: Any) -> bool:
    """Return whether a layer makes this value of the default: `stride=1` is (1, 1)."""
    return type(default) is int and type(value) is tuple and len(value) > 0 and all(each == default for each in value)


def _differences(module: nn.Module, made: nn.Module) -> Iterator[str]:
    """Yield how a layer differs from one that was made anew, its tensors excepted."""
    plain, new = (
        {name: value for name, value in vars(each).items() if name not in OF_MODULES and name not in OF_SWITCHES}
        for each in (module, made)
    )
    for name in plain.keys() | new.keys():
        if not alike(plain.get(name, _ABSENT), new.get(name, _ABSENT)):
            yield f"its attribute {name!r} is not what its class makes of its arguments"
    if list(module._modules) != list(made._modules):
        yield f"it holds {list(module._modules)}, and its class makes {list(made._modules)}"
        return
    for name, child in module._modules.items():
        other = made._modules[name]
        if child is None or other is None or layer_class(child) is not type(other):
            yield f"its part {name!r} is another one"
        else:
            yield from _differences(child, other)


def held(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return which tensors a module holds itself, and how: the arguments of `hold`."""
    found = {
        "parameters": tuple(module._parameters),
        "buffers": tuple(module._buffers),
        "absent": tuple(n for n, t in {**module._parameters, **module._buffers}.items() if t is None),
        "not_persistent": tuple(sorted(module._non_persistent_buffers_set)),
    }
    return {name: names for name, names in found.items() if names}


OF_SWITCHES = ("_modes_after", "_unlike_after", "_mode_locked", "_mode_unknown", "_mode_remedy")
"""The attributes that tell a module what `train()` and `eval()` do."""


def alike(a: Any, b: Any) -> bool:
    """Return whether two values have the same types and values at every depth; NaN is like NaN."""
    if a is b:
        return True
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(each, b[key]) for key, each in a.items())
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    if attrs.has(type(a)):
        names = [field.name for field in attrs.fields(type(a)) if field.eq]
        return all(alike(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, complex):
        return alike((a.real, a.imag), (b.real, b.imag))
    return bool(a == b or (a != a and b != b))
