"""The result of a capture, which is the input of the lowering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.capture.boundary.observed import Observed
from ir.program import Program


@attrs.frozen(eq=False)
class Traced:
    """A trace of a module."""

    exported: ExportedProgram
    assigned: tuple[str, ...] = ()
    """Buffers that forward replaces; their new tensors are in a tuple after the result."""
    stride_guards: Mapping[ShapeEnv, Collection[int]] = attrs.field(factory=dict)
    """Numbers of the guards on whether a fake tensor is contiguous."""


Second = Callable[[], tuple[Traced | None, str]]
"""Captures the model in the opposite mode; returns the trace, or why that is not possible."""


@attrs.frozen(eq=False)
class Captured:
    """The input of `lower`."""

    module: nn.Module | None = None
    """The module whose tensors are the weights of the program. None for an ExportedProgram."""
    traced: Traced | None = None
    graph_module: fx.GraphModule | None = None
    """An FX graph that is lowered without `torch.export`."""
    program: Program | None = None
    """A program that was given instead of a model."""
    is_traced: bool = False
    """Whether that graph is our own trace of a module, with a tensor for every argument."""
    symbol_names: Mapping[str, str] = attrs.field(factory=dict)
    """PyTorch's name of a symbol -> the user's name."""
    opaques: Mapping[str, nn.Module] = attrs.field(factory=dict)
    """Path of an opaque module -> a copy of it with the same tensors."""
    writers: frozenset[str] = frozenset()
    """Paths of opaque modules that mutate their arguments."""
    irregular: frozenset[str] = frozenset()
    """Paths of the traced modules whose mode is read by code outside of the layer itself."""
    second: Second | None = None
    """The capture with those modules in the opposite mode."""
    observed: Observed | None = None
    """What real runs of the model showed, if there were any."""
    has_example: bool = False
    """Whether `args` and `kwargs` come from an example call."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    keeps_order: bool = False
    """Whether the model depends on the order of keys in mappings among the arguments."""
    sharing: tuple[frozenset[int], ...] = ()
    """Groups of tensor arguments that overlap in memory, by number."""
    training: bool | None = None
    """The mode of an ExportedProgram, if the user gives it."""
