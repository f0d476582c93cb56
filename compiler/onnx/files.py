"""Writing ONNX files."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from compiler.extras import import_extra
from compiler.onnx.inference import inference_program
from compiler.onnx.operators import kernels, translations
from compiler.onnx.writer import OnnxModel, write_model
from compiler.savefiles import SaveError, check_file
from ir.errors import InputError
from ir.paths import checked_path
from ir.program import Program

_MAX_FILE = (1 << 31) - (1 << 20)
"""Bytes that a file holds in itself: protobuf takes less than 2 GB."""
_MIN_EXTERNAL = 1 << 10
"""Bytes of the smallest tensor that is put beside the file."""


def onnx_model(program: Program, module: nn.Module) -> OnnxModel:
    """Return what an emitted module now computes in eval mode, as an ONNX model in memory.

    Args:
        program: the program.
        module: the module that it was emitted as.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        InputError: the module cannot be run by a file: it is in training mode, keeps state, draws random numbers, or
            takes numbers that vary from call to call.
        CodegenError: an operation cannot be written in ONNX.
    """
    import_extra("onnx")
    return write_model(inference_program(program, module), kernels(), translations())


def save_model(written: OnnxModel, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write an ONNX model to a file.

    Args:
        written: the model.
        path: the file. With external data, the weights are in `<path>.data` beside it.
        external_data: whether the weights are in a file of their own; by default if one file cannot hold them.

    Raises:
        InputError: one file cannot hold the model, and `external_data` is False; or the folder does not exist.
        SaveError: the file cannot be written.
    """
    onnx_ir = import_extra("onnx_ir")
    path = checked_path(path, example="net.onnx")
    size = weights_size(written.model)
    if external_data is None:
        external_data = size > _MAX_FILE
    elif not external_data and size > _MAX_FILE:
        raise InputError(
            f"the weights have {size / 1e9:.1f} GB, and one file holds less than 2",
            remedy="leave `external_data` out: the weights then go to a file beside it",
        )
    beside = f"{path.name}.data"
    try:
        check_file(path)
        if external_data:
            (path.parent / beside).unlink(missing_ok=True)
            onnx_ir.save(written.model, path, external_data=beside, size_threshold_bytes=_MIN_EXTERNAL)
        else:
            onnx_ir.save(written.model, path)
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


def serialized(written: OnnxModel) -> bytes | None:
    """Return the bytes of the model as one file; None where that cannot hold it."""
    if weights_size(written.model) > _MAX_FILE:
        return None
    found: bytes = import_extra("onnx_ir").to_proto(written.model).SerializeToString(deterministic=True)
    return found


def weights_size(model: Any) -> int:
    """Return the bytes of a model's weights."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
