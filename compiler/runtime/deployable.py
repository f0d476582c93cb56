"""What can be done with a result, float or quantized: write it to a file, run it in an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from compiler.onnx.files import onnx_model, save_model
from compiler.runtime.check import CheckReport, check_in_engines
from compiler.runtime.module import to_runtime
from compiler.written.save import save_code
from ir.program import Program


class Deployable:
    """A program and the module it was emitted as."""

    __slots__ = ()

    model: GraphModule
    program: Program

    def save_onnx(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
        """Write what `model` now computes in eval mode to an ONNX file, with operators of version 20.

        Inputs are called as the arguments are, outputs by their place in the result, weights as in the `state_dict`,
        nodes after the modules they come from. Sizes that are dynamic in the program are in the file. The file's
        metadata says (as JSON, under `graphwright`) which arguments were fixed and how the result is made of the
        outputs. The same result gives the same bytes.

        Args:
            path: the file.
            external_data: whether the weights go to a file of their own, `<path>.data`; by default if they have 2 GB
                or more.

        Raises:
            MissingPackageError: the extra `onnx` is not installed.
            InputError: a file cannot hold the model: it is in training mode, each call writes its state or its inputs,
                it draws random numbers, or takes Python numbers that vary from call to call.
            CodegenError: an operation cannot be written in ONNX.
        """
        save_model(onnx_model(self.program, self.model), path, external_data=external_data)

    def save_code(self, path: str | os.PathLike[str]) -> None:
        """Write `model` as a package of Python that can be read and imported: `from net import load`.

        `load()` returns a module that computes the same bits, trains, and has the same `state_dict`. Weights are in a
        file beside the code, which is read without running any. Opaque modules are not written: `load` is given them.
        The package needs graphwright.

        Args:
            path: the folder; its name is that of the package. A package that was written before is replaced.

        Raises:
            InputError: when the folder holds other things, or its name is none that Python can import.
            CodegenError: when a part of the model cannot be written as code.
            SaveError: when a file cannot be written.
        """
        save_code(self.model, path)

    def to_runtime(self, engine: str, *, threads: int | None = None, precision: str = "f32") -> GraphModule:
        """Return a module that is called as the original is, and that an engine computes.

        It holds the ONNX file: it can be pickled and copied, and called by several threads at once. It has no weights
        of its own (`state_dict()` is empty), runs on the CPU, and cannot be trained. Arguments are checked as those of
        `model` are; sizes that are dynamic in the program are dynamic here. The engine reads the inputs where they
        are, and writes the outputs into tensors of PyTorch.

        Args:
            engine: "onnxruntime" or "openvino".
            threads: how many threads a call uses; by default as many as PyTorch does (`torch.get_num_threads()`).
            precision: "f32"; in OpenVINO also "bf16" and "f16", which change the numbers.

        Raises:
            MissingPackageError: the extra of the engine is not installed.
            InputError: there is no such engine or precision, or a file cannot hold the model (`save_onnx`).
            CodegenError: an operation cannot be written in ONNX.
        """
        return to_runtime(self.program, self.model, engine, threads=threads, precision=precision)

    def check(
        self,
        *engines: str,
        inputs: tuple[Any, ...] | torch.Tensor | None = None,
        kwargs: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> CheckReport:
        """Run the file in engines and compare it with `model`: `print(result.check("onnxruntime", "openvino"))`.

        The file of a quantized result is cut at its integers, and each part gets those of the reference: how far its
        own are from the reference's is said in steps of the scale (LSB), and does not add up from layer to layer. The
        report also says which kernels compute in integers where the file promises it, how near the outputs are to
        `model` and to the float result, and what a call takes, in turn with the float result.

        Args:
            engines: "onnxruntime", "openvino".
            inputs: the positional arguments of a call, or its only one; by default those that the result knows, or
                random ones.
            kwargs: its keyword arguments.
            threads: how many threads a call uses; by default as many as PyTorch does.

        Raises:
            MissingPackageError: the extra of an engine is not installed.
            InputError: there is no such engine, the inputs do not fit, or a file cannot hold the model (`save_onnx`).
            CodegenError: an operation cannot be written in ONNX.
        """
        source = self._float_result()
        return check_in_engines(
            self.program,
            self.model,
            engines,
            source=None if source is None else (source.program, source.model),
            example=self._example(),
            inputs=inputs,
            kwargs=kwargs,
            threads=threads,
        )

    def _example(self) -> tuple[torch.Tensor, ...] | None:
        """Return the tensors of a call that the result knows, in the order of the graph's inputs; or None."""
        return None

    def _float_result(self) -> Deployable | None:
        """Return the float result that a quantized one was made of."""
        return None
