"""Which kernels an engine took for the nodes of a file: integer ones, or float ones."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from compiler.extras import import_extra
from compiler.runtime.engines import OnnxFile, OnnxRuntime, OpenVino

COMPUTES = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Concat"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"),
    }
)
"""The operators of ONNX that runtimes have integer kernels for."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PAIRED = frozenset({"Add", "Sub", "Mul"})
"""Operators whose integer kernels read integers of both operands."""

_INTEGER = re.compile(r"^(QLinear\w+|QGemm|QAttention|ConvInteger|MatMulInteger\w*|DynamicQuantize\w+|NhwcMaxPool)$")
"""Operators that ONNX Runtime puts in the place of float ones between integers."""
_SUFFIX = re.compile(r"_token_\d+$|/MatMulAddFusion$|/MatMulScaleFusion/?$")
"""What ONNX Runtime adds to the name of a node that it replaces."""
_CARRIES = frozenset({"MaxPool", "Concat", "Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Clip"})
"""Operators that compute in whatever type their input has."""


@attrs.frozen
class Kernel:
    """What a node of the file became.

    Attributes:
        node: its name in the file.
        operator: its operator in the file.
        kernel: what the engine runs for it, with the type; empty where that was not found.
        is_integer: whether that computes in integers.
    """

    node: str
    operator: str
    kernel: str
    is_integer: bool


def promised_nodes(model: Any) -> list[Any]:
    """Return the nodes of an `onnx_ir.Model` that read integers only: their kernels are to be integer ones."""
    found = []
    for node in model.graph:
        data = [value for value in node.inputs if value is not None and not _is_constant(value)]
        if node.op_type in _WEIGHTED and len(data) < 2 and _made_by(node.inputs[1]) != "DequantizeLinear":
            continue  # its weight is in float
        if node.op_type in _PAIRED and any(_made_by(value) != "DequantizeLinear" for value in node.inputs):
            continue  # an operand is a number, or weights in float
        if node.op_type in COMPUTES and data and all(_made_by(value) == "DequantizeLinear" for value in data):
            found.append(node)
    return found


def saturates(model: Any) -> bool:
    """Whether kernels that add two products of 8 bits in 16 may overflow: where signed integers have all 8 bits.

    The largest such sum is 2·255·127, and 2·255·64 fits. `Table.without_vnni` gives weights 7 bits for that.

    Args:
        model: an `onnx_ir.Model`.
    """
    factors = [value for node in promised_nodes(model) if node.op_type in _WEIGHTED for value in node.inputs[:2]]
    return any(_has_eight_bits(_integers(value)) for value in factors)


def _integers(value: Any) -> Any:
    """Return the integers that a dequantized value is made of."""
    while value.producer().op_type != "DequantizeLinear":
        value = value.producer().inputs[0]
    return value.producer().inputs[0]


def _has_eight_bits(integers: Any) -> bool:
    known = integers.const_value
    if known is None:  # an activation
        return integers.dtype is not None and integers.dtype.name == "INT8"
    return known.dtype.name == "INT8" and bool(np.abs(known.numpy().astype(np.int16)).max(initial=0) > 2**6)


def _is_constant(value: Any) -> bool:
    """Whether a value is a weight, or integers of a weight that are dequantized."""
    producer = value.producer()
    if producer is None:
        return bool(value.is_initializer())
    return producer.op_type in ("DequantizeLinear", "Transpose", "Reshape") and _is_constant(producer.inputs[0])


def _made_by(value: Any) -> str:
    producer = value.producer()
    return "" if producer is None else str(producer.op_type)


def kernels_of(engine: str, file: OnnxFile, nodes: Iterable[Any]) -> list[Kernel]:
    """Return what an engine runs for nodes of a file.

    Args:
        engine: the name of the engine.
        file: the file.
        nodes: some of its nodes.
    """
    return _in_openvino(file, nodes) if engine == OpenVino.name else _in_onnxruntime(file, nodes)


def _in_onnxruntime(file: OnnxFile, nodes: Iterable[Any]) -> list[Kernel]:
    """Read the optimized graph: nodes keep their names, at least as the beginning of new ones, or their results."""
    runtime, onnx = import_extra("onnxruntime"), import_extra("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = OnnxRuntime.options(1)
        options.optimized_model_filepath = str(path)
        file.read_by(lambda source: runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"]))
        graph = onnx.load(str(path), load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    named: dict[str, Any] = {}
    for node in graph.node:
        named.setdefault(re.sub(_SUFFIX, "", node.name), node)
    found = []
    for node in nodes:
        made = named.get(node.name) or makers.get(node.outputs[0].name)
        reader = next(iter(node.outputs[0].uses()), None)
        if made is None and reader is not None and reader.node.op_type == "QuantizeLinear":
            made = makers.get(reader.node.outputs[0].name)
        kernel = "" if made is None else made.op_type
        found.append(Kernel(node.name, node.op_type, kernel, made is not None and _is_integer(made, makers)))
    return found


def _is_integer(node: Any, makers: Mapping[str, Any]) -> bool:
    if _INTEGER.match(node.op_type):
        return True
    if node.op_type not in _CARRIES:
        return False
    maker = makers.get(node.input[0])
    return maker is not None and (maker.op_type == "QuantizeLinear" or _is_integer(maker, makers))


def _in_openvino(file: OnnxFile, nodes: Iterable[Any]) -> list[Kernel]:
    """Read the runtime model, whose operations name the nodes that they stand for, and their precision."""
    compiled = OpenVino(file, 1, "f32").compiled
    made: dict[str, tuple[str, str]] = {}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
        names = info["originalLayersNames"].astype(str).split(",")
        for name in (*names, op.friendly_name):
            made.setdefault(name.removesuffix("/WithoutBiases"), (kind, precision))
    found = []
    for node in nodes:
        readers = [use.node.name for use in node.outputs[0].uses()]
        names = [node.name, node.outputs[0].name, *readers]
        kind, precision = next((made[name] for name in names if name in made), ("", ""))
        kernel = f"{kind} {precision}".strip()
        found.append(Kernel(node.name, node.op_type, kernel, precision in ("u8", "i8")))
    return found
