"""Common subexpressions: of equal pure operations, the first is kept."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from typing_extensions import override

from ir.attributes import attribute_key
from ir.core import Operation, Value
from ir.locations import merge_locations
from ir.memory.aliasing import aliases_output, is_written
from ir.opdef import Trait
from ir.program import Program
from ir.types import types_agree
from passes.manager.manager import Pass, PassContext
from passes.rewrite.effects import is_mergeable, reads_written
from passes.rewrite.rewriter import Rewriter
from passes.rewrite.scope import EVERYWHERE, Scope


@attrs.frozen
class EliminateCommonSubexpressions(Pass):
    """Of pure operations with the same operator, operands and attributes, keeps the first."""

    name: ClassVar[str] = "eliminate-common-subexpressions"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once over the program: operands are merged before their users."""
        eliminate_common_subexpressions(program, self.scope)


def eliminate_common_subexpressions(program: Program, scope: Scope = EVERYWHERE) -> int:
    """Merge equal pure operations in a scope; return the number of operations removed.

    Two values that escape stay two. What `train()` may change (dropout, BatchNorm) is never merged, and fused regions
    are not either.
    """
    rewriter = Rewriter(program)
    seen: dict[Any, Operation] = {}
    count = 0
    for op in program.graph.operations():
        if not op.results or not is_mergeable(op) or not scope.holds(op):
            continue
        key = operation_key(op)
        earlier = seen.setdefault(key, op)
        if earlier is op or reads_written(op) or not all(map(_may_merge, earlier.results, op.results)):
            continue
        earlier.location = merge_locations((earlier.location, op.location))
        rewriter.replace(op, *earlier.results)
        count += 1
    return count


def operation_key(op: Operation) -> Any:
    """Return a key of operator, operands and attributes: equal keys mean equal operations.

    Operands compare by identity, attributes by value and type: 1, 1.0 and True differ, so do 0.0 and -0.0.
    """
    attributes = op.attributes
    values = tuple([attribute_key(attributes[p.name]) for p in op.opdef.attribute_params])
    return op.opdef, op.operands, op.segments, values, len(op.results)


def _may_merge(kept: Value, gone: Value) -> bool:
    if not types_agree(kept.type, gone.type):
        return False  # a size that depends on data has another name in each
    for user in gone._uses:
        if user.opdef.has(Trait.COMPARES_OPERANDS):
            return False
    if is_written(gone) or is_written(kept):
        return False
    return not (aliases_output(gone) and aliases_output(kept))
