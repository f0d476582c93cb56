"""Hypothesis strategies: typed values, calls of operators, whole programs and small modules."""

from fuzz.strategies.instances import instances
from fuzz.strategies.modules import modules
from fuzz.strategies.programs import input_tensors, programs
from fuzz.strategies.types import dtypes, shapes, sizes, tensor_types

inputs = input_tensors
"""The name of `input_tensors` in `graphwright.fuzz`."""

__all__ = ["dtypes", "input_tensors", "inputs", "instances", "modules", "programs", "shapes", "sizes", "tensor_types"]
