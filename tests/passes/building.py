"""Small programs built by hand, for the tests of patterns and passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ir.builder import Builder
from ir.core import Graph, Value
from ir.locations import Location
from ir.program import CallingConvention, Program, Weight, WeightKind
from ir.types import Dim, TensorType


def f32(*shape: Dim) -> TensorType:
    return TensorType(tuple(shape), torch.float32)


def program(
    types: Sequence[TensorType], body: Callable[..., Any], weights: dict[str, TensorType] | None = None
) -> Program:
    """Build a program: `body(builder, *inputs, *weights)` returns the output value or a tuple of them."""
    graph = Graph([(f"x{i}", type_) for i, type_ in enumerate(types)])
    result = Program("test", graph, CallingConvention(None, None))
    values: list[Value] = []
    for name, type_ in (weights or {}).items():
        assert type_.shape is not None
        data = torch.randn([int(d) for d in type_.shape], dtype=type_.dtype)
        values.append(result.add_weight(Weight(name, WeightKind.PARAMETER, type_, data, requires_grad=True)))
    builder = Builder(graph, location=Location("block", "torch.nn.Module", "user.py", 7))
    outputs = body(builder, *graph.inputs, *values)
    graph.set_outputs([outputs] if isinstance(outputs, Value) else list(outputs))
    return result


def names(p: Program) -> list[str]:
    """Return the names of a program's operations, in order."""
    return [op.name for op in p.graph.operations()]
