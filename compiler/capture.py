"""From a model to a graph of PyTorch's: an exported program, or an FX graph as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.export import ExportedProgram


@attrs.frozen(eq=False)
class Captured:
    """What `lower` makes a program from."""

    module: nn.Module | None = None
    """The user's module: its tensors are the program's weights. None for an ExportedProgram."""
    exported: ExportedProgram | None = None
    graph_module: fx.GraphModule | None = None
    symbol_names: Mapping[str, str] = attrs.field(factory=dict)
    """Torch's name of a symbol -> the user's."""
    opaques: Mapping[str, Any] = attrs.field(factory=dict)


def capture(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] = (),
) -> Captured:
    """Capture a model."""
    if isinstance(model, ExportedProgram):
        return Captured(exported=model)
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs or ())
    exported = torch.export.export(model, args, dict(example_kwargs or {}), dynamic_shapes=dynamic_shapes)
    return Captured(module=model, exported=exported)
