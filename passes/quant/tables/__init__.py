"""Placement tables: what each target wants in integers, as data."""

from passes.quant.tables.onnxruntime import ONNXRUNTIME
from passes.quant.tables.openvino import OPENVINO
from passes.quant.tables.row import IntegerType, Row, Table, find_table, known_table, register_table, table_names
from passes.quant.tables.tensorrt import TENSORRT

__all__ = [
    "ONNXRUNTIME",
    "OPENVINO",
    "TENSORRT",
    "IntegerType",
    "Row",
    "Table",
    "find_table",
    "known_table",
    "register_table",
    "table_names",
]
