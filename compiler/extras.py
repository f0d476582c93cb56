"""Packages that only some uses need: imported when one is used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ir.errors import MissingPackageError

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "onnx": "onnx",
        "onnx_ir": "onnx",
        "onnxscript": "onnx",
        "onnxruntime": "onnxruntime",
        "openvino": "openvino",
        "netron": "report",
        "safetensors": "safetensors",
    }
)
"""Package -> the extra of graphwright that installs it."""


def import_extra(module: str) -> Any:
    """Import a module of an optional package and return it.

    Args:
        module: its full name, as in `openvino` or `onnx.checker`.

    Raises:
        MissingPackageError: the package cannot be imported; the error names the extra that installs it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{package} is needed here and cannot be imported: {error}",
            remedy=f"pip install 'graphwright[{EXTRAS[package]}]'",
        ) from error
