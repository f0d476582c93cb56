"""The targets: what runtimes want, as data.

Attributes:
    CONDITIONS: conditions of rows by name.
    ONNXRUNTIME: ONNX Runtime on CPUs.
    OPENVINO: OpenVINO on CPUs.
    TARGETS: the targets by name.
    TENSORRT: TensorRT.
"""

from compiler.targets import TARGETS, find_target
from compiler.targets.onnxruntime import ONNXRUNTIME
from compiler.targets.openvino import OPENVINO
from compiler.targets.target import Target
from compiler.targets.tensorrt import TENSORRT
from passes.quant.tables import Row, Table, find_table, register_table
from passes.quant.tables.conditions import CONDITIONS, Decisions

__all__ = [
    "CONDITIONS",
    "ONNXRUNTIME",
    "OPENVINO",
    "TARGETS",
    "TENSORRT",
    "Decisions",
    "Row",
    "Table",
    "Target",
    "find_table",
    "find_target",
    "register_table",
]
