"""What of PyTorch's exporter is done in another way: functions are gathered once, and sums stay in half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx import GraphModule, Node

from compiler.capture.patches import patched
from compiler.prepare import ONE_AT_A_TIME
from ir.caches import Cache

_GATHERED: Cache[int, Any] = Cache()
"""By version of the opset."""

_HALVES = (torch.float16, torch.bfloat16)
_WIDENED = tuple(map(torch.ops.aten.__getattr__, ("sum", "prod", "cumsum", "cumprod", "amax", "amin")))
"""The operators whose operands the exporter takes to float32, and whose results it leaves there."""


@contextmanager
def mended_exporter() -> Iterator[None]:
    """Let `torch.onnx.export` copy a registry that is kept, and give sums and the like the dtypes that they have.

    Making a registry takes most of a small file's time. One thread exports at a time. A PyTorch that has no such
    functions runs its own.
    """
    with ONE_AT_A_TIME, ExitStack() as stack:
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            kept = _kept(ONNXRegistry.from_torchlib)
        except (ImportError, AttributeError):
            pass
        else:
            stack.enter_context(patched(ONNXRegistry, from_torchlib=staticmethod(kept)))
        try:
            from torch.onnx._internal.exporter import _fx_passes

            promoted = _narrowing(_fx_passes.insert_type_promotion_nodes)
        except (ImportError, AttributeError):
            pass
        else:
            stack.enter_context(patched(_fx_passes, insert_type_promotion_nodes=promoted))
        yield


def _kept(gather: Callable[..., Any]) -> Callable[[int], Any]:
    def copied(opset_version: int) -> Any:
        if opset_version not in _GATHERED:
            _GATHERED[opset_version] = gather(opset_version=opset_version)
        registry = copy.copy(_GATHERED[opset_version])
        # an export adds its own translations
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    return copied


def _narrowing(promote: Callable[[GraphModule], None]) -> Callable[[GraphModule], None]:
    """Return a pass that does what another one does, and casts back what that widens."""

    def narrowed(graph_module: GraphModule) -> None:
        for module in graph_module.modules():
            for node in list(module.graph.nodes) if isinstance(module, GraphModule) else ():
                if getattr(node.target, "overloadpacket", None) in _WIDENED:
                    _narrow(node)
        outputs = graph_module.graph.output_node()
        before = outputs.all_input_nodes
        promote(graph_module)
        # the exporter finds results by name: a cast that was put behind one has the name of it
        for old, new in zip(before, outputs.all_input_nodes, strict=True):
            old.name, new.name = new.name, old.name

    return narrowed


def _narrow(node: Node) -> None:
    """Compute a sum, or the like, of numbers of half precision in float32, as PyTorch's kernels do."""
    source, result = node.args[0], node.meta["val"]
    assert isinstance(source, Node)
    if not isinstance(result, torch.Tensor) or result.dtype not in _HALVES:
        return
    cast = torch.ops.aten._to_copy.default
    options = {name: value for name, value in node.kwargs.items() if name != "dtype"}
    with node.graph.inserting_before(node):
        wide = node.graph.call_function(cast, (source,), {"dtype": torch.float32})
        inner = node.graph.call_function(node.target, (wide, *node.args[1:]), options)  # type: ignore[arg-type]
    wide.meta = {**node.meta, "val": source.meta["val"].to(torch.float32)}
    inner.meta = {**node.meta, "val": result.to(torch.float32)}
    node.target, node.args, node.kwargs = cast, (inner,), {"dtype": result.dtype}  # it keeps the name of the result
