"""Reduction of a counterexample by its structure, as by `mlir-reduce`.

Hypothesis shrinks draws, and cannot remove an operation in front of a match, since all later draws would change their
meaning. Here whole operations and results are removed from the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from compiler.equality.observation import seeded
from fuzz.programs.case import Case, positional_convention
from fuzz.programs.properties import Finding
from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.errors import GraphwrightError
from ir.evaluate import evaluate
from ir.program import Program
from ir.types import TensorType

_BUDGET = 200
"""The number of smaller cases to try."""


def reduced(case: Case, finding: Finding, recheck: Callable[[Case], object]) -> tuple[Case, Finding]:
    """Return the smallest failing case that removal of results and operations leads to, and its finding.

    A case with an original by construction is returned unchanged. `recheck` raises the `Finding` of a failing case.
    """
    budget = _BUDGET
    smaller: Case | None = case
    while smaller is not None and budget > 0 and not case.original:
        case, smaller = smaller, None
        for candidate in _candidates(case):
            found = _found(candidate, recheck)
            budget -= 1
            if found is not None and found.property == finding.property:
                smaller, finding = candidate, found
            if smaller is not None or budget <= 0:
                break
    return case, finding


def _found(case: Case, recheck: Callable[[Case], object]) -> Finding | None:
    try:
        recheck(case)
    except Finding as finding:
        return finding
    except Exception:  # noqa: BLE001 - another error is not a smaller form of the finding
        return None
    return None


def _candidates(case: Case) -> Iterator[Case]:
    """Yield smaller cases, the smallest first."""
    program = case.build()
    convention = program.convention
    if convention.mutations or convention.in_spec is not None:
        return  # results are not the outputs of the graph
    cut = _Cut(program, case.inputs)
    outputs = program.graph.outputs
    if any(value.is_unused for value in (*program.graph.inputs, *(w.value for w in program.weights.values()))):
        yield cut.case()
    if len(outputs) > 1:
        for kept in outputs:
            yield cut.case(outputs=(kept,))
        for number in range(len(outputs)):
            yield cut.case(outputs=(*outputs[:number], *outputs[number + 1 :]))
    for number, output in enumerate(outputs):
        for operand in () if output is None or output.defining_op is None else output.defining_op.operand_values:
            yield cut.case(outputs=(*outputs[:number], operand, *outputs[number + 1 :]))
    operations = list(program.graph.operations())[::-1]
    for op in operations:
        if all(result.is_unused for result in op.results):
            yield cut.case(dropped=op)
        for operand in dict.fromkeys(op.operand_values):
            if len(op.results) == 1 and operand.type == op.result.type:
                yield cut.case(replaced={op.result: operand})
    values = _values(program, case.inputs)
    for op in operations:
        if any(not result.is_unused for result in op.results) and all(result in values for result in op.results):
            yield cut.case(replaced=dict.fromkeys(op.results), values=values)


def _values(program: Program, inputs: Sequence[Any]) -> dict[Value, torch.Tensor]:
    """Return the tensor of each result of an operation."""
    values: dict[Value, torch.Tensor] = {}

    def watch(op: Operation, results: Sequence[Any]) -> None:
        for value, result in zip(op.results, results, strict=True):
            if isinstance(value.type, TensorType):
                # a clone, since a result may be an expanded view, unlike inputs
                values[value] = result.detach().clone()

    try:
        with torch.no_grad(), seeded(0):
            evaluate(program, inputs, watch=watch)
    except GraphwrightError:
        return {}
    return values


@attrs.frozen(eq=False)
class _Cut:
    """Makes smaller programs of this one."""

    program: Program
    inputs: Sequence[Any]

    def case(
        self,
        *,
        outputs: Sequence[Value | None] | None = None,
        replaced: Mapping[Value, Value | None] | None = None,
        dropped: Operation | None = None,
        values: Mapping[Value, Any] | None = None,
    ) -> Case:
        """Return the case of the smaller program, with the inputs and weights that it needs.

        Args:
            outputs: the outputs; all by default.
            replaced: result -> its replacement, or None for a new input.
            dropped: an operation with unused results.
            values: result -> tensor of the new input.
        """
        graph, instead = self.program.graph, replaced or {}
        returned = graph.outputs if outputs is None else outputs

        def source(value: Value | None) -> Value | None:
            return value if value is None else instead.get(value) or value

        needed = set(map(source, returned))
        kept: list[Operation] = []
        for op in reversed(list(graph.operations())):
            dead = all(result.is_unused for result in op.results)
            used = any(result in needed and result not in instead for result in op.results)
            if (dead or used) and op is not dropped:
                kept.append(op)
                needed |= set(map(source, op.operands))
        smaller, mapping, given = Graph(), dict[Value, Value](), []
        for value, data in zip(graph.inputs, self.inputs, strict=True):
            if value in needed:
                mapping[value] = smaller.add_input(value.type, value.name)
                given.append(data)
        for value, other in instead.items():
            if other is None and value in needed:
                mapping[value] = smaller.add_input(value.type, value.name)
                given.append((values or {})[value])
        weights = {}
        for name, weight in self.program.weights.items():
            if weight.value in needed:
                twin = weights[name] = attrs.evolve(weight)
                mapping[weight.value] = twin.value
        for op in reversed(kept):
            operands = [None if (v := source(operand)) is None else mapping[v] for operand in op.operands]
            copy_into(op, smaller, mapping, operands)
        smaller.set_outputs([None if (v := source(value)) is None else mapping[v] for value in returned])
        program = attrs.evolve(self.program, graph=smaller, weights=weights, convention=positional_convention(smaller))
        return Case.of(program, given)
