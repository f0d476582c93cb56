"""Modules that compute operations, before they are built and placed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compiler.codegen.weights import names_of
from ir.caches import cached
from ir.core import Operation, Value
from ir.locations import Location
from ir.program import Weight


@attrs.frozen
class ModuleForm:
    """A module that computes one operation, before it has a path."""

    cls: type[nn.Module]
    options: tuple[tuple[str, Any], ...]
    """Keyword arguments of the constructor."""
    slots: tuple[tuple[str, Weight], ...] = ()
    """Its weights: name inside the module -> weight."""
    inputs: tuple[Value | None, ...] = ()
    """Positional arguments of the call."""
    keywords: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments of the call: values of the program, or constants."""
    training: bool | None = None
    """The mode the module is in, where the operation says."""
    counter: bool = False
    """Whether it has a buffer `num_batches_tracked` beside its running statistics."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two forms that one module can serve."""
        slots = tuple((name, id(weight)) for name, weight in self.slots)
        return self.cls, repr(self.options), slots, self.training


class AnyBatchNorm(_BatchNorm):
    """Batch normalization of inputs of any rank: for graphs that came without shapes."""

    def _check_input_dim(self, input: Any) -> None:  # noqa: A002 - PyTorch's name
        pass


def own_location(op: Operation, form: ModuleForm) -> Location | None:
    """Return the location of the module in the user's model that is this form, or None where `op` was a function."""
    for location in op.location.parts:
        if location.module_path and _is_class_of(location, form.cls):
            return location
    return None


def _is_class_of(location: Location, cls: type[nn.Module]) -> bool:
    if not location.module_class.startswith("torch.nn."):
        return False
    # the bases count too: ReLU6 is a Hardtanh, and InstanceNorm2d may be computed as its base's op
    return any(location.class_name == c.__name__ for c in cls.__mro__) and location.class_name != "Module"


def build(form: ModuleForm) -> nn.Module:
    """Return a new module for `form`, without data: on the meta device and never initialized."""
    prototype = _prototype(_Call(form.cls, form.options))
    module = _twin(prototype)
    for name, child in prototype._modules.items():
        module._modules[name] = None if child is None else _twin(child)
    return module


def _twin(module: nn.Module) -> nn.Module:
    """Return a module with the attributes of another, in containers of its own."""
    twin = module.__class__.__new__(module.__class__)
    for name, value in module.__dict__.items():
        twin.__dict__[name] = value.copy() if isinstance(value, (dict, set)) else value
    return twin


def declared_names(form: ModuleForm) -> tuple[str, ...]:
    """Return the names of all parameters and buffers that the class knows, absent ones too."""
    prototype = _prototype(_Call(form.cls, form.options))
    return (*prototype._parameters, *prototype._buffers)


@attrs.frozen
class _Call:
    """A call of a constructor. Options compare as they are written: 0.0 is not -0.0, and 1 is not 1.0."""

    cls: type[nn.Module]
    options: tuple[tuple[str, Any], ...] = attrs.field(eq=repr)


@cached(1024)
def _prototype(call: _Call) -> nn.Module:
    """Return what a call makes, on the meta device.

    Making a convolution takes 0.2 ms, most of it to initialize nothing; so it is done once.
    """
    return call.cls(**dict(call.options))


def homes(form: ModuleForm, locations: tuple[Location, ...]) -> Iterator[str]:
    """Yield the paths at which a form could stand, judged by the names of its weights; the op's own path first."""
    for location in locations:
        if location.module_path:
            yield location.module_path
    for slot, weight in form.slots:
        for name in names_of(weight):
            if name.endswith(f".{slot}"):
                yield name[: -len(slot) - 1]
