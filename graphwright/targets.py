"""The targets: what runtimes want, as data.

Attributes:
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

__all__ = ["ONNXRUNTIME", "OPENVINO", "TARGETS", "TENSORRT", "Target", "find_target"]
