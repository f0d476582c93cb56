"""What the capture of a model hands to the lowering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.capture.boundary.observed import Observed


@attrs.frozen(eq=False)
class Traced:
    """A trace of a module."""

    exported: ExportedProgram
    assigned: tuple[str, ...] = ()
    """Buffers in whose place forward puts new tensors: these are in a tuple behind the result."""
    stride_guards: Mapping[ShapeEnv, Collection[int]] = attrs.field(factory=dict)
    """Numbers of the guards that say whether a fake tensor is contiguous."""


Second = Callable[[], tuple[Traced | None, str]]
"""Captures the model in the opposite mode; returns it, or why that is not possible."""


@attrs.frozen(eq=False)
class Captured:
    """What `lower` makes a program from."""

    module: nn.Module | None = None
    """The user's module: its tensors are the program's weights. None for an ExportedProgram."""
    traced: Traced | None = None
    graph_module: fx.GraphModule | None = None
    """An FX graph that is lowered as it is, without `torch.export`."""
    is_traced: bool = False
    """Whether that graph is our trace of a module, in which every argument was a tensor."""
    symbol_names: Mapping[str, str] = attrs.field(factory=dict)
    """Torch's name of a symbol -> the user's."""
    opaques: Mapping[str, nn.Module] = attrs.field(factory=dict)
    """Modules kept as they are: path -> a copy of the module with the same tensors."""
    writers: frozenset[str] = frozenset()
    """Paths of opaque modules that write to their arguments."""
    irregular: frozenset[str] = frozenset()
    """Paths of the traced modules whose mode is read by other code than that of a layer about itself."""
    second: Second | None = None
    """The capture with those modules in the opposite mode."""
    observed: Observed | None = None
    """What real runs of the model showed; None where there were none."""
    has_example: bool = False
    """Whether `args` and `kwargs` are those of an example call."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    keeps_order: bool = False
    """Whether the order of the keys in mappings among the arguments has a meaning."""
    sharing: tuple[frozenset[int], ...] = ()
    """Groups of tensor arguments that overlapped in memory, by their numbers."""
    training: bool | None = None
    """The mode of an ExportedProgram, where the user says it."""
