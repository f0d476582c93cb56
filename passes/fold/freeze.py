"""Expressions of weights alone become weights: weight norms, scaled, joined and cast weights. For inference only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import attrs
from typing_extensions import override

from ir.core import Operation, Value
from ir.program import Program, Weight, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.types import TensorType
from passes.manager.manager import Pass, PassContext
from passes.rewrite.expressions import Expression, expression_of, is_read_inside, names_shown
from passes.rewrite.remarks import Remark
from passes.rewrite.rewriter import Rewriter
from passes.rewrite.scope import Scope

_MAX_GROWTH = 16 << 20


@attrs.frozen
class FreezeWeights(Pass):
    """Makes weights of what is computed from weights alone: for inference.

    An expression stays where it reads what the model mutates, depends on the mode or on random numbers, is a view of a
    weight that something else reads, is returned as it is, or would take much memory; remarks say which, and why. The
    new weights are not trained, unless they hold the elements of trained ones, each once.
    """

    name: ClassVar[str] = "freeze-weights"
    is_for_inference: ClassVar[bool] = True
    max_growth: int = attrs.field(default=_MAX_GROWTH, validator=attrs.validators.ge(0))
    """How many bytes expressions of the same weights may add to these; of what takes more, a part may be frozen."""

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once over the program; equal expressions should be one by now (`canonicalize`)."""
        found = _Expressions(program, self.scope)
        for remark in found.left:
            context.log.remarks.add(remark)
        rewriter = Rewriter(program)
        for group in found.groups():
            for value in self._chosen(group, context):
                rewriter.weight(value, inference=True)
        for remark in rewriter.settle_weights(self.name):
            context.log.remarks.add(remark)

    def _chosen(self, group: Sequence[Expression], context: PassContext) -> list[Value]:
        """Return what of some expressions becomes weights: all, or as far as each does not take too much memory."""
        if _growth(group) <= self.max_growth:
            return [found.value for found in group]
        chosen: dict[Value, None] = {}
        pending = [found.value for found in group]
        while pending:
            value = pending.pop(0)
            op, found = value.defining_op, expression_of(value)
            if op is None or isinstance(found, str) or not found.weights:
                continue
            growth = _growth([found])
            if growth <= self.max_growth:
                chosen[value] = None
                continue
            reason = f"it would add {growth} bytes to {names_shown([weight.name for weight in found.weights])}"
            message = f"{op.name} stays in forward: {reason}, more than max-growth={self.max_growth}"
            context.log.remarks.add(Remark("missed", self.name, op.location, message, op.name))
            pending.extend(op.operand_values)
        return list(chosen)


class _Expressions:
    """The largest expressions of weights alone in a scope of a program, and remarks on what nearly is one."""

    def __init__(self, program: Program, scope: Scope) -> None:
        self.left: list[Remark] = []
        self._found: list[Expression] = []
        inside: dict[Operation, None] = {}
        for op in program.graph.operations():
            if not all(weight_of(value) or value.defining_op in inside for value in op.operand_values):
                continue
            if not scope.holds(op):
                continue
            reason = _why_not(op)
            if reason is None:
                inside[op] = None
            elif op.operand_values and reason:
                message = f"{op.name} stays in forward: {reason}"
                self.left.append(Remark("missed", FreezeWeights.name, op.location, message, op.name))
        for op in inside:
            for result in op.results:
                if any(user not in inside for user in result.users):
                    found = expression_of(result)
                    if isinstance(found, Expression) and found.weights:
                        self._found.append(found)

    def groups(self) -> list[list[Expression]]:
        """Return the expressions, those that have a weight in common together."""
        groups: list[list[Expression]] = []
        of_weight: dict[Weight, list[Expression]] = {}
        for found in self._found:
            known = {id(of_weight[w]): of_weight[w] for w in found.weights if w in of_weight}
            group = [each for others in known.values() for each in others] + [found]
            groups = [each for each in groups if id(each) not in known] + [group]
            for member in group:
                of_weight.update(dict.fromkeys(member.weights, group))
        return groups


def _why_not(op: Operation) -> str | None:
    """Return why an operation on weights is no part of an expression; empty where that needs no remark."""
    if op.opdef in (QUANTIZE, DEQUANTIZE) or not op.results or op.body is not None:
        return ""
    if not all(isinstance(result.type, TensorType) and result.type.is_static for result in op.results):
        return "its type is not known, or depends on an input"
    found = expression_of(op.results[0])
    return found if isinstance(found, str) else None


def _growth(group: Sequence[Expression]) -> int:
    """Return how many bytes weights take more when some expressions are weights, and nothing reads what they read."""
    inside = {op for found in group for op in found.ops}
    values = {found.value for found in group}
    weights = {weight for found in group for weight in found.weights}
    freed = [weight.value for weight in weights if is_read_inside(weight.value, inside, values)]
    return _size(values) - _size(freed)


def _size(values: Iterable[Value]) -> int:
    """Return how many bytes the elements of some values take; what is an expansion counts as what it shows."""
    size = 0
    for value in values:
        type_ = value.tensor_type
        count = type_.numel
        if isinstance(count, int) and type_.dtype is not None:
            size += count * type_.dtype.itemsize
    return size
