"""Which values are never negative, as far as operators tell."""

from __future__ import annotations

from typing import Any

from ir.core import Graph, Operation, Value
from ir.opdef import Trait
from ir.program import Program
from passes.manager.analysis import Analysis

_NEVER_NEGATIVE = (
    "aten.relu",
    "aten.relu6",
    "aten.sigmoid",
    "aten.hardsigmoid",
    "aten.softmax.int",
    "aten.abs",
    "aten.exp",
)
_BOUNDS = {"aten.hardtanh": ("min_val", "max_val"), "aten.clamp": ("min", "max")}
"""Operator -> the attributes that hold the least and the greatest value it gives."""
_AS_OPERANDS = (
    "aten.max_pool2d",
    "aten.avg_pool2d",
    "aten.adaptive_avg_pool2d",
    "aten.mean.dim",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.cat",
    "aten.pad",
    "aten.constant_pad_nd",
)


class NeverNegative(Analysis):
    """Which values of a program are never negative.

    Attributes:
        values: the values.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.values = never_negative(program.graph)


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
        elif op.name in _NEVER_NEGATIVE or _clips_negative(op):
            found.update(op.results)
        elif op.name in _AS_OPERANDS or op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.DROPOUT):
            # the factor of a sum, and what fills a padding, where it is not of the values themselves
            own = op.attributes.get("alpha", 1), op.attributes.get("value") or 0
            if all(map(_is_positive, own)) and all(value in found for value in op.operand_values):
                found.update(op.results)
    return frozenset(found)


def _clips_negative(op: Operation) -> bool:
    least, greatest = (op.attributes.get(name) for name in _BOUNDS.get(op.name, ("", "")))
    return _is_positive(least) and (greatest is None or _is_positive(greatest))


def _is_positive(number: Any) -> bool:
    """Return whether something is a number, known, and not negative."""
    return isinstance(number, (int, float)) and number >= 0
