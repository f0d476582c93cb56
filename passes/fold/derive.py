"""Expressions of weights that become weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.evaluate import evaluate_graph
from ir.program import CallingConvention, Derivation, Program, Weight, weight_of
from passes.rewrite.effects import is_foldable


def weights_slice(value: Value) -> tuple[list[Operation], list[Weight]] | None:
    """Return the operations that compute `value` from weights, operands first, and these weights.

    None where it depends on anything else: on an input, on random numbers, or on a weight that the model mutates.
    """
    ops: dict[Operation, None] = {}
    weights: dict[str, Weight] = {}
    stack: list[tuple[Value, bool]] = [(value, False)]
    while stack:
        current, expanded = stack.pop()
        op = current.defining_op
        if op is None:
            weight = weight_of(current)
            if weight is None or weight.is_mutated:
                return None
            weights[weight.name] = weight
        elif expanded:
            ops.setdefault(op)
        elif op not in ops:
            if not is_foldable(op):
                return None
            stack.append((current, True))
            stack.extend((v, False) for v in op.operand_values)
    return list(ops), list(weights.values())


def from_originals(weights: Sequence[Weight]) -> tuple[Graph, tuple[str, ...], dict[Value, Value]]:
    """Return a graph that computes weights from original ones, its inputs by name, and the weights' values in it."""
    types: dict[str, Any] = {}
    for weight in weights:
        before = weight.derivation
        if before is None:
            types[weight.name] = weight.type
        else:
            types.update(zip(before.sources, [v.type for v in before.program.graph.inputs], strict=True))
    graph = Graph(list(types.items()))
    inputs = dict(zip(types, graph.inputs, strict=True))
    mapping: dict[Value, Value] = {}
    for weight in weights:
        before = weight.derivation
        if before is None:
            mapping[weight.value] = inputs[weight.name]
            continue
        inner = dict(zip(before.program.graph.inputs, [inputs[name] for name in before.sources], strict=True))
        for op in before.program.graph.operations():
            copy_into(op, graph, inner)
        (result,) = before.program.graph.outputs
        assert result is not None
        mapping[weight.value] = inner[result]
    return graph, tuple(types), mapping


def derive(value: Value) -> tuple[torch.Tensor | None, Derivation | None]:
    """Return the data of an expression of weights, and how it is computed from original ones.

    (None, None) where it is not such an expression, or the weights have no data.
    """
    found = weights_slice(value)
    if found is None:
        return None, None
    ops, weights = found
    data: list[Any] = [weight.data.detach() for weight in weights if weight.data is not None]
    if len(data) < len(weights) or any(tensor.is_meta for tensor in data):
        return None, None
    graph = Graph([(weight.name, weight.type) for weight in weights])
    _append(ops, value, graph, dict(zip([w.value for w in weights], graph.inputs, strict=True)))
    with torch.no_grad():
        (result,) = evaluate_graph(graph, data, {}, {})
    graph, sources, mapping = from_originals(weights)
    _append(ops, value, graph, mapping)
    return result, Derivation(sources, Program("derivation", graph, CallingConvention(None, None)))


def _append(ops: Sequence[Operation], value: Value, graph: Graph, mapping: dict[Value, Value]) -> None:
    """Append copies of operations to a graph, and let it return `value`."""
    for op in ops:
        copy_into(op, graph, mapping)
    graph.set_outputs([mapping[value]])
