"""Capture without example inputs: `torch.fx` traces the module, and nothing is known of its inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx, nn

from compiler.capture_opaque import mode_readers
from ir.errors import CaptureError, InputError

_EXAMPLES = "pass example inputs: `transform(model, (x,))` captures it with torch.export"


class _Tracer(fx.Tracer):
    """Keeps the given modules whole, and records the user's lines."""

    record_stack_traces = True

    def __init__(self, kept: Collection[nn.Module]) -> None:
        super().__init__()
        self.kept = kept

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return any(m is module for module in self.kept) or super().is_leaf_module(m, module_qualified_name)


def trace_symbolically(model: nn.Module, opaques: Collection[nn.Module]) -> fx.GraphModule:
    """Return the FX graph of a module, with all of its submodules; the module itself stays as it is.

    Args:
        model: the module.
        opaques: submodules to keep as calls, besides those of torch and those whose code depends on the mode.

    Raises:
        InputError: when code of a module with parameters depends on `self.training`, which one trace cannot show.
        CaptureError: when the module cannot be traced without example inputs.
    """
    readers = {path: module for path, module in mode_readers(model).items() if not _is_opaque(module, opaques)}
    small = [m for path, m in readers.items() if path and not any(True for _ in m.parameters())]
    large = [path for path, m in readers.items() if m not in small]
    if large:
        raise InputError(
            f"without example_inputs, the module is traced once, but the code of `{large[0] or 'the root module'}` "
            "depends on `self.training`",
            remedy=_EXAMPLES,
        )
    try:
        graph = _Tracer((*opaques, *small)).trace(model)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be traced without example_inputs: {type(error).__name__}: {error}", remedy=_EXAMPLES
        ) from error
    traced = fx.GraphModule(model, graph, type(model).__name__)
    _add_unused(traced, model)
    traced.training = model.training
    return traced


def _is_opaque(module: nn.Module, opaques: Collection[nn.Module]) -> bool:
    return any(module is other for opaque in opaques for other in opaque.modules())


def _add_unused(traced: fx.GraphModule, model: nn.Module) -> None:
    """Add what forward does not use: it belongs to the `state_dict` all the same."""
    for path, module in model.named_modules():
        parent_path, _, name = path.rpartition(".")
        if path and not _has(traced, path):
            traced.get_submodule(parent_path).add_module(name, module)
    held: Any
    for path, held in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)):
        if not hasattr(traced, path):
            setattr(traced, path, held)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
