"""Which values are never negative, as far as operators tell."""

from __future__ import annotations

from ir.core import Graph, Value
from ir.opdef import Trait

_NEVER_NEGATIVE = (
    "aten.relu",
    "aten.relu6",
    "aten.sigmoid",
    "aten.hardsigmoid",
    "aten.softmax.int",
    "aten.abs",
    "aten.exp",
)
_AS_OPERANDS = (
    "aten.max_pool2d",
    "aten.avg_pool2d",
    "aten.adaptive_avg_pool2d",
    "aten.mean.dim",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.cat",
)


def never_negative(graph: Graph, known: frozenset[Value] = frozenset()) -> frozenset[Value]:
    """Return the values of a graph that are never negative, given such inputs; NaN counts as none.

    Dropout is taken as it is in eval mode.
    """
    found = set(known)
    for op in graph.operations():
        if op.body is not None:
            entering = zip(op.body.inputs, op.operands, strict=True)
            inner = never_negative(op.body, frozenset([own for own, value in entering if value in found]))
            found.update(result for result, own in zip(op.results, op.body.outputs, strict=True) if own in inner)
        elif op.name in _NEVER_NEGATIVE:
            found.update(op.results)
        elif op.name in _AS_OPERANDS or op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.DROPOUT):
            alpha = op.attributes.get("alpha", 1)
            if isinstance(alpha, (int, float)) and alpha >= 0 and all(value in found for value in op.operand_values):
                found.update(op.results)
    return frozenset(found)
