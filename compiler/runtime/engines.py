"""ONNX Runtime and OpenVINO: a model that is loaded, and calls of it on tensors."""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch

from compiler.extras import import_extra
from compiler.runtime.limits import (
    DIMENSIONS_OF_SCALARS,
    EMPTY_TENSORS,
    FLOAT64_IN_32_BITS,
    INTEGERS_IN_32_BITS,
    INTEGERS_MISREAD,
    LOGICAL_SHIFTS,
    MERGED_QUANTIZATIONS,
    POOLED_PADDING,
    ROUNDED_REMAINDERS,
    SATURATED_BYTES,
    Limit,
)
from ir.errors import GraphwrightError, InputError

MODEL = "model.onnx"
"""The name of the file where it has to be written for an engine to read it."""


@attrs.frozen(eq=False)
class OnnxFile:
    """A model as the bytes of its file, and of the file of its weights where it does not hold them itself."""

    model: bytes = attrs.field(repr=False)
    weights: bytes | None = attrs.field(default=None, repr=False)
    inputs: tuple[str, ...] = ()
    """The names of its inputs; without them, an engine must know all by their places."""

    def read_by(self, load: Callable[[Any], Any]) -> Any:
        """Return what `load` makes of the bytes, or of a path where the weights are in a file of their own."""
        if self.weights is None:
            return load(self.model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL
            path.write_bytes(self.model)
            (Path(folder) / f"{MODEL}.data").write_bytes(self.weights)
            return load(str(path))


class EngineError(GraphwrightError):
    """An engine does not load a file, or fails on a call; the cause is its own error."""

    @classmethod
    def of(cls, engine: str, what: str, error: Exception) -> EngineError:
        """Return the error of an engine, `what` in words, with the line of its own error that says most."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
        return cls(
            f"{engine} {what}: {(told or lines or [type(error).__name__])[-1]}",
            remedy="use another engine, or leave that part of the model out of it: `result.model` computes all of it",
        )


def checked_threads(threads: int | None) -> int:
    """Return how many threads a call uses: as many as PyTorch does, where none are given.

    Raises:
        InputError: when it is not a positive number.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if type(threads) is not int or threads < 1:
        raise InputError(f"threads={threads!r} is not a positive number", remedy="use at least 1")
    return threads


class Engine:
    """A loaded model: `run` may be called by several threads at once.

    Args:
        file: the model.
        threads: how many threads one call uses.
        precision: the precision of the computation, one of `precisions`.
    """

    name = ""
    precisions: tuple[str, ...] = ("f32",)
    limits: tuple[Limit, ...] = ()
    """What it computes otherwise than PyTorch does."""
    narrowed: Mapping[torch.dtype, torch.dtype] = MappingProxyType({})
    """dtype -> the narrower one that it computes in: inputs must fit that."""

    ranks: Sequence[int | None] = ()
    """The number of dimensions of each output; None where it is not known before a call."""

    def __init__(self, file: OnnxFile, threads: int, precision: str) -> None:
        raise NotImplementedError

    @property
    def version(self) -> str:
        """The version of the engine."""
        return str(import_extra(self.name).__version__)

    def run(
        self, inputs: Sequence[torch.Tensor], outputs: Callable[[], Sequence[torch.Tensor | None]]
    ) -> list[torch.Tensor]:
        """Run the model: it reads the memory of contiguous inputs, and no result is copied whose size is known.

        Args:
            inputs: dense tensors on the CPU, in the order of the model's inputs.
            outputs: makes for each output a contiguous tensor that it can be written to, or None where its size is not
                known before the call. An engine that has memory for its results does not call it.
        """
        raise NotImplementedError


class OnnxRuntime(Engine):
    """The CPU provider of ONNX Runtime."""

    name = "onnxruntime"
    limits = (EMPTY_TENSORS,)

    def __init__(self, file: OnnxFile, threads: int, precision: str) -> None:
        self._runtime = import_extra("onnxruntime")
        options = self.options(threads)
        self.session = file.read_by(
            lambda source: self._runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        )
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self._inputs = [each.name for each in inputs]
        self._outputs = [each.name for each in outputs]
        self._bfloat16 = {number for number, each in enumerate(outputs) if each.type == "tensor(bfloat16)"}
        """The outputs whose dtype NumPy does not have."""
        self._has_bfloat16 = bool(self._bfloat16) or any(each.type == "tensor(bfloat16)" for each in inputs)
        self.ranks = [None if each.shape is None else len(each.shape) for each in outputs]

    @staticmethod
    def options(threads: int) -> Any:
        """Return the options of a session."""
        options = import_extra("onnxruntime").SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return options

    def run(
        self, inputs: Sequence[torch.Tensor], outputs: Callable[[], Sequence[torch.Tensor | None]]
    ) -> list[torch.Tensor]:
        """Run the model: the results are memory of the runtime's, which is theirs from then on."""
        # Small models feel each function that a call goes through, whose code the run before has driven out of the
        # caches: binding inputs and outputs takes some 0.3 ms more than this (benchmarks/runtimes.py).
        fed = {name: _array(tensor) for name, tensor in zip(self._inputs, inputs, strict=True)}
        if not self._has_bfloat16:
            return [torch.from_numpy(array) for array in self.session.run(None, fed)]
        binding = self.session.io_binding()
        for (name, array), tensor in zip(fed.items(), inputs, strict=True):
            if tensor.dtype == torch.bfloat16:
                binding.bind_input(name, "cpu", 0, _BFLOAT16, array.shape, array.ctypes.data)
            else:
                binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return [
            _bfloat16_of(value) if number in self._bfloat16 else torch.from_numpy(value.numpy())
            for number, value in enumerate(binding.get_outputs())
        ]


_BFLOAT16 = 16
"""The number of that dtype in ONNX (`TensorProto.DataType`)."""


def _bfloat16_of(value: Any) -> torch.Tensor:
    """Return a copy of a value of the runtime's whose dtype NumPy does not have."""
    shape = value.shape()
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=torch.bfloat16)
    memory = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return torch.frombuffer(memory, dtype=torch.bfloat16).clone().view(shape)


def _array(tensor: torch.Tensor) -> Any:
    """Return the numbers of a tensor as a contiguous array of NumPy: its memory, where it is contiguous."""
    if tensor.dtype == torch.bfloat16:
        return _array(tensor.view(torch.uint16)).view(import_extra("ml_dtypes").bfloat16)
    array = tensor.numpy(force=True)
    return array if array.flags.c_contiguous else array.copy()


class OpenVino(Engine):
    """The CPU plugin of OpenVINO."""

    name = "openvino"
    precisions = ("f32", "bf16", "f16")
    limits = (
        FLOAT64_IN_32_BITS,
        SATURATED_BYTES,
        ROUNDED_REMAINDERS,
        LOGICAL_SHIFTS,
        INTEGERS_IN_32_BITS,
        INTEGERS_MISREAD,
        MERGED_QUANTIZATIONS,
        POOLED_PADDING,
        EMPTY_TENSORS,
        DIMENSIONS_OF_SCALARS,
    )
    narrowed = MappingProxyType({torch.int64: torch.int32, torch.uint64: torch.int32})

    def __init__(self, file: OnnxFile, threads: int, precision: str) -> None:
        self._openvino = import_extra("openvino")
        core = self._openvino.Core()
        self.model = file.read_by(core.read_model)
        self.compiled = core.compile_model(self.model, "CPU", self.options(threads, precision))
        places = {name: place for place, port in enumerate(self.compiled.inputs) for name in port.get_names()}
        self._places = [places.get(name) for name in file.inputs] or list(places.values())
        """The place of each input; None for one that no result depends on, which the plugin drops."""
        shapes = [port.get_partial_shape() for port in self.compiled.outputs]
        self.ranks = [None if shape.rank.is_dynamic else len(shape) for shape in shapes]
        self._free: deque[Any] = deque()
        """Requests that no thread uses."""

    @staticmethod
    def options(threads: int, precision: str) -> dict[str, Any]:
        """Return the properties a model is compiled with: the precision is the one asked for, on any host."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }

    def run(
        self, inputs: Sequence[torch.Tensor], outputs: Callable[[], Sequence[torch.Tensor | None]]
    ) -> list[torch.Tensor]:
        """Run the model: it reads and writes the memory of the tensors."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        bound: list[Any] = []  # arrays, whose memory tensors of the plugin do not keep
        for place, tensor in zip(self._places, inputs, strict=True):
            if place is not None:
                bound.append(_array(tensor))
                request.set_input_tensor(place, self._tensor(bound[-1], tensor.dtype))
        results = outputs()
        for number, given in enumerate(results):
            if given is not None:
                bound.append(_array(given))
                request.set_output_tensor(number, self._tensor(bound[-1], given.dtype))
        request.infer()
        found = [
            torch.from_numpy(request.get_output_tensor(number).data.copy()) if given is None else given
            for number, given in enumerate(results)
        ]
        self._free.append(request)
        return found

    def _tensor(self, array: Any, dtype: torch.dtype) -> Any:
        """Return the memory of an array as a tensor of the plugin's."""
        if dtype == torch.bfloat16:  # which NumPy does not have
            short = array.view("uint16")
            return self._openvino.Tensor(short, self._openvino.Shape([*array.shape]), self._openvino.Type.bf16)
        return self._openvino.Tensor(array, shared_memory=True)


ENGINES: Mapping[str, type[Engine]] = MappingProxyType({each.name: each for each in (OnnxRuntime, OpenVino)})
"""Name -> the engine."""


def engine_class(name: str) -> type[Engine]:
    """Return an engine by its name.

    Raises:
        InputError: there is no such engine.
        MissingPackageError: its extra is not installed.
    """
    if not isinstance(name, str) or name not in ENGINES:
        raise InputError(f"no engine is called {name!r}", remedy=f"use one of {', '.join(map(repr, ENGINES))}")
    import_extra(name)
    return ENGINES[name]
