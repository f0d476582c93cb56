"""Hypothesis strategies: typed values, calls of operators, whole programs and small modules."""

from fuzz.calls.types import dtypes, shapes, sizes, tensor_types
from fuzz.modules.strategy import modules
from fuzz.programs.strategy import input_tensors, programs
from fuzz.rules.instances import instances

inputs = input_tensors
"""The name of `input_tensors` in `graphwright.fuzz`."""

__all__ = ["dtypes", "input_tensors", "inputs", "instances", "modules", "programs", "shapes", "sizes", "tensor_types"]
