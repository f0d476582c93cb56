"""`to_runtime`: a module with the signature of the original, whose computation an engine does."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.fx import GraphModule
from typing_extensions import override

from compiler.codegen import emit
from compiler.onnx.files import onnx_model, save_model, serialized
from compiler.onnx.traced import outputs_of
from compiler.onnx.writer import OnnxModel
from compiler.runtime.engines import MODEL, Engine, EngineError, OnnxFile, checked_threads, engine_class
from compiler.runtime.kernels import saturates
from compiler.runtime.limits import NO_VNNI, check_limits, has_vnni
from ir.attributes import Ref
from ir.core import Graph, Operation, Value
from ir.errors import GraphwrightError, InputError
from ir.expressions import Formula, evaluate_formula, formula_of, linear_solution
from ir.locations import Location
from ir.ops.nn_ops import OPAQUE
from ir.program import Program
from ir.types import TensorType
from passes.rewrite.remarks import GraphwrightWarning

_CALLEE = "engine"
"""Path of the module that holds the engine."""


@attrs.frozen
class _Signature:
    """What an engine needs to know of a call: dtypes, and the sizes of the outputs as far as those of the inputs tell.

    Attributes:
        dtypes: of the inputs.
        binds: where the symbols are found: (input, dimension, symbol, a, b) for a size a*symbol + b.
        outputs: dtype and sizes of each output; the sizes are None where they depend on data.
    """

    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    binds: tuple[tuple[int, int, str, int, int], ...]
    outputs: tuple[tuple[torch.dtype, tuple[Formula, ...] | None], ...]

    def results(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return memory for the outputs of a call, None for those whose sizes depend on data."""
        sizes: dict[str, int] = {}
        for number, dim, symbol, slope, offset in self.binds:
            sizes.setdefault(symbol, (inputs[number].shape[dim] - offset) // slope)
        return [
            None if formulas is None else torch.empty([evaluate_formula(f, sizes) for f in formulas], dtype=dtype)
            for dtype, formulas in self.outputs
        ]


class EngineModule(nn.Module):
    """Runs an ONNX file in an engine: takes the tensors of its inputs, returns those of its outputs.

    The file is part of the module: it is pickled with it, and the engine loads it anew. `state_dict()` is empty, since
    the weights are in the file. A deep copy shares the engine, which nothing changes.
    """

    def __init__(
        self, file: OnnxFile, signature: _Signature, engine: str, threads: int, precision: str, saturates: bool = False
    ) -> None:
        super().__init__()
        self.file = file
        self.signature = signature
        self.engine_name = engine
        self.threads = threads
        self.precision = precision
        self.saturates = saturates
        self._lock = threading.Lock()
        self._loaded: Engine | None = None
        self.training = False

    @property
    def engine(self) -> Engine:
        """The engine, which loads the file at its first use.

        Warns (`GraphwrightWarning`) where the integers of the file are too large for this processor.
        """
        loaded = self._loaded
        if loaded is None:
            with self._lock:
                if self._loaded is None:
                    if self.saturates and not has_vnni():
                        warnings.warn(f"results are inexact: {NO_VNNI}", GraphwrightWarning, stacklevel=3)
                    self._loaded = engine_class(self.engine_name)(self.file, self.threads, self.precision)
                loaded = self._loaded
        return loaded

    @override
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the file.

        Raises:
            InputError: when a tensor is not on the CPU, has another dtype than the file's, requires a gradient, or is
                traced.
            EngineError: the engine fails.
        """
        for number, tensor in enumerate(inputs):
            self._check(number, tensor)
        try:
            return tuple(self.engine.run(inputs, lambda: self.signature.results(inputs)))
        except Exception as error:
            shapes = ", ".join(f"{list(tensor.shape)} of {tensor.dtype}" for tensor in inputs)
            raise EngineError.of(self.engine_name, f"failed on inputs {shapes}", error) from error

    def _check(self, number: int, tensor: torch.Tensor) -> None:
        name, dtype = self.signature.names[number], self.signature.dtypes[number]
        plain = type(tensor) is torch.Tensor or type(tensor) is nn.Parameter
        if plain and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise InputError(
                f"the input `{name}` is a tensor of a transform of torch.func, which an engine cannot look into",
                remedy="transform the module that `transform` returned, `result.model`",
            )
        if not plain or torch._C._get_tracing_state() is not None:
            kind = "a traced tensor" if plain else f"a {type(tensor).__name__}"
            raise InputError(
                f"the input `{name}` is {kind}, and an engine runs on plain tensors: it cannot be traced or exported",
                remedy="trace the module that `transform` returned, `result.model`",
            )
        if tensor.is_meta:
            raise InputError(f"the input `{name}` is on the meta device", remedy="pass a tensor with data on the CPU")
        if tensor.layout is not torch.strided:
            raise InputError(
                f"the input `{name}` is of layout {tensor.layout}", remedy=f"pass a dense tensor: `{name}.to_dense()`"
            )
        if tensor.dtype != dtype or not tensor.is_cpu:
            raise InputError(
                f"the input `{name}` is {tensor.dtype} on {tensor.device}, and the file takes {dtype} on the CPU",
                remedy=f"pass `{name}.to('cpu', {dtype})`",
            )
        narrow = self.engine.narrowed.get(dtype)
        if narrow is not None and tensor.numel():
            low, high = map(int, torch.aminmax(tensor))
            if low < torch.iinfo(narrow).min or high > torch.iinfo(narrow).max:
                raise InputError(
                    f"the input `{name}` has numbers from {low} to {high}, and {self.engine_name} computes {dtype} in "
                    f"{narrow}",
                    remedy='use "onnxruntime" for this model',
                )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"the input `{name}` requires a gradient, and {self.engine_name} has none: it is for inference",
                remedy="call the module under `torch.no_grad()`, and train the module that `transform` returned",
            )

    @override
    def train(self, mode: bool = True) -> EngineModule:
        """Stay in eval mode.

        Raises:
            InputError: when `mode` is True.
        """
        if mode:
            raise InputError(
                f"{self.engine_name} runs inference only, and cannot be trained",
                remedy="train the module that `transform` returned, and call `to_runtime` again",
            )
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> EngineModule:
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise InputError(
                f"{self.engine_name} runs the file as it was made, on the CPU: it cannot be moved to {probe.device} "
                f"or converted to {probe.dtype}",
                remedy="convert the original model, transform it, and call `to_runtime` on that; "
                "`precision=` chooses how an engine computes",
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineModule:
        twin = EngineModule(self.file, self.signature, self.engine_name, self.threads, self.precision, self.saturates)
        twin._loaded = self._loaded
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineModule, (self.file, self.signature, self.engine_name, self.threads, self.precision, self.saturates)

    def extra_repr(self) -> str:
        """Say what runs the file, and how large that is."""
        size = (len(self.file.model) + len(self.file.weights or b"")) / 1e6
        return f"{self.engine_name}, precision={self.precision}, threads={self.threads}, {size:.1f} MB"


def to_runtime(
    program: Program, module: nn.Module, engine: str, *, threads: int | None = None, precision: str = "f32"
) -> GraphModule:
    """Return a module that is called as the original is, and that an engine computes.

    Args:
        program: the program.
        module: the module it was emitted as: its present weights go into the file.
        engine: "onnxruntime" or "openvino".
        threads: how many threads a call uses; by default as many as PyTorch does (`torch.get_num_threads()`).
        precision: "f32"; in OpenVINO also "bf16" and "f16", for what is not quantized.

    Warns:
        GraphwrightWarning: the products of the file's integers overflow in this processor's kernels.

    Raises:
        InputError: there is no such engine or precision, or what an engine runs cannot hold the model.
        MissingPackageError: the extra of the engine is not installed.
        CodegenError: an operation cannot be written in ONNX.
        EngineError: the engine does not load the file.
    """
    cls = engine_class(engine)
    if precision not in cls.precisions:
        raise InputError(
            f"{engine} has no precision {precision!r}", remedy=f"use one of {', '.join(map(repr, cls.precisions))}"
        )
    threads = checked_threads(threads)
    written = onnx_model(program, module)
    check_limits(engine, cls.limits, written.program)
    file, signature = file_of(written), signature_of(written)
    call = EngineModule(file, signature, engine, threads, precision, saturates(written.model))
    try:
        _check_ranks(engine, call.engine.ranks, signature)  # what the engine refuses is refused now
    except GraphwrightError:
        raise
    except Exception as error:
        raise EngineError.of(engine, f"does not load the file of {program.name}", error) from error
    emitted = emit(_around(program, call)).module
    emitted.lock_mode(
        f"{engine} runs inference only",
        remedy="train the module that `transform` returned, and call `to_runtime` again",
    )
    return emitted


def _check_ranks(engine: str, ranks: Sequence[int | None], signature: _Signature) -> None:
    for number, (rank, (_, sizes)) in enumerate(zip(ranks, signature.outputs, strict=False)):
        if rank is not None and sizes is not None and rank != len(sizes):
            found = f"its result {number} has {rank} dimensions there, and {len(sizes)} in the model"
            raise EngineError.of(engine, "misreads the file", ValueError(found))


def file_of(written: OnnxModel) -> OnnxFile:
    """Return a model as the bytes of a file, and of a second one where one cannot hold it."""
    model = serialized(written)
    if model is not None:
        return OnnxFile(model, inputs=written.interface.inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        save_model(written, path, external_data=True)
        weights = (Path(folder) / f"{MODEL}.data").read_bytes()
        return OnnxFile(path.read_bytes(), weights, written.interface.inputs)


def signature_of(written: OnnxModel) -> _Signature:
    """Return what a call of a model's file needs to know."""
    inputs = [value.tensor_type for value in written.program.graph.inputs]
    found: list[tuple[int, tuple[int, int, str, int, int]]] = []
    for number, type_ in enumerate(inputs):
        for place, dim in enumerate(type_.shape or ()):
            solution = None if dim is None or isinstance(dim, int) else linear_solution(dim)
            if solution is not None:
                symbol, slope, offset = solution
                found.append((int(abs(slope) + abs(offset)), (number, place, symbol.name, slope, offset)))
    binds = tuple(bind for _, bind in sorted(found, key=lambda item: item[0]))
    bound = {bind[2] for bind in binds}
    return _Signature(
        written.interface.inputs,
        tuple(_dtype(type_) for type_ in inputs),
        binds,
        tuple((_dtype(v.tensor_type), _sizes(v.tensor_type, bound)) for v in outputs_of(written.program)),
    )


def _dtype(type_: TensorType) -> torch.dtype:
    assert type_.dtype is not None
    return type_.dtype


def _sizes(type_: TensorType, bound: set[str]) -> tuple[Formula, ...] | None:
    """Return the sizes as formulas of the bound symbols; None where they do not tell."""
    formulas = []
    for dim in type_.shape or ():
        if dim is None:
            return None
        if isinstance(dim, int):
            formulas.append(("int", dim))
            continue
        formula = formula_of(dim)
        if formula is None or any(symbol.name not in bound for symbol in dim.free_symbols):
            return None
        formulas.append(formula)
    return None if type_.shape is None else tuple(formulas)


def _around(program: Program, call: EngineModule) -> Program:
    """Return a program with the calling convention of another one, whose graph is one call of an engine."""
    graph = Graph([(value.name, value.type) for value in program.graph.inputs])
    outputs = outputs_of(program)
    types = tuple(str(value.type) for value in outputs)
    attributes: Mapping[str, Any] = {
        "callee": _CALLEE,
        "positional": tuple(Ref(i) for i in range(len(graph.inputs))),
        "keywords": {},
        "training": False,
        "result_types": types,
        "returns": "items",
        "writes": False,
    }
    location = Location(_CALLEE, f"{EngineModule.__module__}.{EngineModule.__qualname__}")
    op = Operation(
        OPAQUE,
        graph.inputs,
        dict(attributes),
        [value.type for value in outputs],
        location=location,
        segments=(len(graph.inputs),),
    )
    graph.append(op)
    results: dict[Value, Value] = dict(zip(outputs, op.results, strict=True))
    # an argument that is returned is that argument
    results.update((old, new) for old, new in zip(program.graph.inputs, graph.inputs, strict=True) if old in results)
    graph.set_outputs([None if value is None else results[value] for value in program.graph.outputs])
    return Program(
        program.name,
        graph,
        attrs.evolve(program.convention, views={}),
        symbols=dict(program.symbols),
        constraints=program.constraints,
        module_modes={"": False, _CALLEE: False},
        location=program.location,
        opaques={_CALLEE: call},
        surroundings=dict(program.surroundings),
    )
