"""Dead code: unused operations without effects, and unused constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import sympy
from typing_extensions import override

from ir.core import Operation
from ir.data_sizes import NamedSizes, defining_operations
from ir.program import Program, WeightKind
from passes.manager.analysis import Analysis
from passes.manager.manager import Pass, PassContext
from passes.rewrite.effects import is_effectless
from passes.rewrite.scope import EVERYWHERE, Scope


@attrs.frozen
class EliminateDeadCode(Pass):
    """Erases unused pure operations and unused constants."""

    name: ClassVar[str] = "eliminate-dead-code"
    inference: bool = False
    """Whether the program will never train: what has effects only after `train()` is erased too."""

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once, from the end to the start."""
        definers = context.analysis(SizeDefiners, program).operations
        eliminate_dead_code(program, inference=self.inference, scope=self.scope, definers=definers)


class SizeDefiners(Analysis):
    """Which operations define sizes that depend on data.

    Attributes:
        operations: symbol -> the operation that first has it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.operations = defining_operations(program)


def eliminate_dead_code(
    program: Program,
    *,
    inference: bool = False,
    scope: Scope = EVERYWHERE,
    definers: Mapping[sympy.Symbol, Operation] | None = None,
) -> None:
    """Erase dead operations in a scope, unused constants and what folding made in vain.

    The module's own parameters and buffers stay, used or not.
    """
    _sweep(program, inference, scope, NamedSizes(program, definers))
    if not scope.holds_placeless:
        return
    derived = [weight.derivation for weight in program.weights.values() if weight.derivation is not None]
    sources = {name for derivation in derived for name in derivation.sources}
    unused = [
        name
        for name, weight in program.weights.items()
        if weight.value.is_unused
        and (weight.kind is WeightKind.CONSTANT or weight.is_folded)
        and not (weight.is_mutated or name in sources)
    ]
    for name in unused:
        del program.weights[name]
    if unused:
        program.graph.revision += 1


def _sweep(program: Program, inference: bool, scope: Scope, sizes: NamedSizes) -> None:
    graph = program.graph
    op = graph.last
    while op is not None:
        before = op.prev
        unused = op is not graph.return_op and all(result.is_unused for result in op.results)
        removable = is_effectless(op) or (inference and op.is_pure)
        if unused and removable and not sizes.needs(op) and scope.holds(op):
            graph.erase(op)
        else:
            sizes.keep(op)
        op = before
