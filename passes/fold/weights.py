"""Reshaped weights become weights: `reshape(%fc.weight)` is replaced by a parameter that views the same storage."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from typing_extensions import override

from ir.builder import make_operation
from ir.columns import Layout
from ir.core import Operation
from ir.program import CallingConvention, Derivation, Program, Weight, WeightKind, weight_of
from passes.manager.manager import Pass, PassContext
from passes.rewrite.expressions import from_originals
from passes.rewrite.rewriter import Rewriter


@attrs.frozen
class FoldParameterViews(Pass):
    """Replaces each weight whose only use is a reshape or permute by that view of itself, under its own name.

    Gradients, training and `state_dict` go on with the new shape; `Weight.derivation` says how to load an original
    checkpoint. Tied and mutated weights stay.
    """

    name: ClassVar[str] = "fold-parameter-views"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once over the program."""
        rewriter = Rewriter(program)
        for op in program.graph.operations():
            is_view = op.opdef.layout in (Layout.RESHAPE, Layout.PERMUTE) and not op.opdef.facts.spelled
            if not is_view or len(op.operands) != 1 or not self.scope.holds(op):
                continue  # with more, sizes are computed at run time
            source = op.operands[0]
            weight = weight_of(source)
            new = _view(weight, op) if weight is not None and _is_replaceable(weight) else None
            if new is None:
                continue
            rewriter.replace_value(op.result, new.value)
            rewriter.erase(op)
            program.weights[new.name] = new
            program.graph.revision += 1


def _is_replaceable(weight: Weight) -> bool:
    return (
        weight.kind is not WeightKind.CONSTANT
        and weight.value.has_one_use()
        and not weight.aliases
        and not weight.is_mutated
    )


def _view(weight: Weight, op: Operation) -> Weight | None:
    """Return the new weight; None where it would be no view of the same storage."""
    data = weight.data
    if data is not None:
        try:
            if op.opdef.layout is Layout.RESHAPE:
                viewed = data.detach().view(op.attributes["shape"])
            else:
                viewed = data.detach().permute(op.attributes["dims"])
        except RuntimeError:
            return None  # the strides do not allow a view: the operation stays
        if isinstance(data, torch.nn.Parameter):
            data = torch.nn.Parameter(viewed, requires_grad=data.requires_grad)
        else:
            data = viewed.requires_grad_(data.requires_grad)
    return attrs.evolve(weight, type=op.result.tensor_type, data=data, derivation=_derive(weight, op))


def _derive(weight: Weight, op: Operation) -> Derivation:
    """Return the derivation of the weight, with one operation more."""
    graph, sources, mapping = from_originals([weight])
    key = "shape" if op.opdef.layout is Layout.RESHAPE else "dims"
    step = graph.append(make_operation(op.opdef, mapping[weight.value], op.attributes[key], location=op.location))
    graph.set_outputs([step.result])
    return Derivation(sources, Program(f"derive {weight.name}", graph, CallingConvention(None, None)))
