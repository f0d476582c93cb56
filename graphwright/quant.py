"""Quantization after training: from a result of `transform` and calibration data to integers.

`quantize` places quantizers as the target wants them, chooses their ranges, and corrects biases. The result prints
what was quantized, how well and why; it saves an ONNX file with explicit QuantizeLinear and DequantizeLinear, and runs
in ONNX Runtime and OpenVINO.
"""

from compiler.quant.calibration import CalibrationError
from compiler.quant.formats import Int8
from compiler.quant.quantize import quantize
from compiler.quant.report import PlaceReport, QuantizationReport
from compiler.quant.result import Quantized

__all__ = ["CalibrationError", "Int8", "PlaceReport", "QuantizationReport", "Quantized", "quantize"]
