"""Dead code: operations without effect whose results nobody uses, and constants that nobody uses."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

import attrs
from typing_extensions import override

from ir.core import Graph
from ir.program import Program, WeightKind
from passes.manager.manager import Pass, PassContext
from passes.rewrite.effects import is_removable


@attrs.frozen
class EliminateDeadCode(Pass):
    """Erases pure operations that nothing uses, and constants that nothing uses."""

    name: ClassVar[str] = "eliminate-dead-code"
    inference: bool = False
    """Whether the program will never train: what only `train()` would make effective goes too."""

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once, from the end to the start."""
        eliminate_dead_code(program, inference=self.inference)


def eliminate_dead_code(program: Program, *, inference: bool = False, temporary: Container[str] = ()) -> int:
    """Erase dead operations and unused constants; return the number of operations erased.

    Parameters and buffers stay: they belong to the module, used or not. Those named in `temporary` go like constants.
    """
    count = _sweep(program.graph, inference)
    unused = [
        name
        for name, weight in program.weights.items()
        if weight.value.is_unused
        and (weight.kind is WeightKind.CONSTANT or name in temporary)
        and not weight.is_mutated
    ]
    for name in unused:
        del program.weights[name]
    if unused:
        program.graph.revision += 1
    return count


def _sweep(graph: Graph, inference: bool) -> int:
    count = 0
    op = graph.last
    while op is not None:
        before = op.prev
        unused = op is not graph.return_op and all(result.is_unused for result in op.results)
        if unused and (is_removable(op) or (inference and op.is_pure)):
            graph.erase(op)
            count += 1
        op = before
    return count
