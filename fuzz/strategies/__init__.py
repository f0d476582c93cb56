"""Hypothesis strategies: typed values, calls of operators, whole programs and small modules."""

from fuzz.strategies.modules import modules
from fuzz.strategies.programs import input_tensors, programs
from fuzz.strategies.types import dtypes, shapes, sizes, tensor_types

__all__ = ["dtypes", "input_tensors", "modules", "programs", "shapes", "sizes", "tensor_types"]
