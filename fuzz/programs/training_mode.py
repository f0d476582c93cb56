"""The effect of `train()` on a program."""

from __future__ import annotations

from collections.abc import Mapping

from ir.core import Graph, Value
from ir.opdef import Trait
from ir.program import weight_of


def put_in_training(graph: Graph, outside: Mapping[Value, Value] | None = None) -> int:
    """Put the operations of a graph that follow the mode in training; return how many changed.

    In the body of a region, `outside` maps its inputs to the operands of the region.
    """
    outside, count = outside or {}, 0
    for op in graph.operations():
        if op.body is not None:
            values = [outside.get(value, value) if value is not None else None for value in op.operands]
            inner = {a: b for a, b in zip(op.body.inputs, values, strict=True) if b is not None}
            count += put_in_training(op.body, inner)
            continue
        flag, attributes = op.opdef.training, op.attributes
        if flag is None or op.in_training:
            continue
        if "train_dropout_p" in attributes:
            attributes[flag] = attributes["train_dropout_p"]
        elif attributes.get("follows_mode", op.name == "nn.multihead_attention"):
            statistics = [
                op.operand(name) for name in ("running_mean", "running_var") if name in op.opdef.operand_index
            ]
            weights = [weight_of(_behind_views(value, outside)) for value in statistics if value is not None]
            for weight in weights:
                if weight is not None:
                    weight.is_mutated = True
            attributes[flag] = True
        count += op.in_training
    return count


def _behind_views(value: Value, outside: Mapping[Value, Value]) -> Value:
    """Return the value that owns the storage of a view."""
    while True:
        value = outside.get(value, value)
        op = value.defining_op
        if op is None or not op.opdef.has(Trait.VIEW) or op.operands[0] is None:
            return value
        value = op.operands[0]
