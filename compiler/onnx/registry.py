"""The functions of PyTorch's exporter, which are gathered once and not for each file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler.capture.patches import patched
from compiler.prepare import ONE_AT_A_TIME
from ir.caches import Cache

_GATHERED: Cache[int, Any] = Cache()
"""By version of the opset."""


@contextmanager
def gathered_once() -> Iterator[None]:
    """Let `torch.onnx.export` copy a registry of functions that is kept: making one takes most of a small file's time.

    One thread exports at a time. A PyTorch that has no such registry makes its own.
    """
    with ONE_AT_A_TIME:
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            gather = ONNXRegistry.from_torchlib
        except (ImportError, AttributeError):
            yield
            return

        def copied(opset_version: int) -> Any:
            if opset_version not in _GATHERED:
                _GATHERED[opset_version] = gather(opset_version=opset_version)
            registry = copy.copy(_GATHERED[opset_version])
            # an export adds its own translations
            registry.functions = {target: list(found) for target, found in registry.functions.items()}
            return registry

        with patched(ONNXRegistry, from_torchlib=staticmethod(copied)):
            yield
