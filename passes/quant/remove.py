"""Takes quantizers out again."""

from __future__ import annotations

from typing import ClassVar

import attrs
from typing_extensions import override

from ir.core import Value
from ir.errors import PassError
from ir.program import Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from passes.manager.manager import Pass, PassContext
from passes.quant.regions import without_integers
from passes.rewrite.rewriter import Rewriter


def remove_quantizers(program: Program) -> None:
    """Take all Q and DQ of activations and weights out, in place: the program in float again, with the same regions.

    Raises:
        PassError: when something other than a region or a DQ reads integers.
    """
    b = Rewriter(program)
    floats: dict[Value, Value] = {}
    before = {value for value in program.values() if value.is_weight and not value.is_unused}
    for op in list(program.graph.operations()):
        if op.opdef is QUANTIZE:
            floats[op.result] = op.input("x")
        elif op.opdef is DEQUANTIZE and op.input("q") in floats:
            b.replace(op, floats[op.input("q")])
        elif op.body is not None:
            if any(each.opdef in (QUANTIZE, DEQUANTIZE) for each in op.body.operations()):
                without_integers(b, op, floats)
        elif any(value in floats for value in op.operand_values):
            raise PassError(
                f"{op.name} reads integers", location=op.location, remedy="remove quantizers before other passes"
            )
    for q in reversed(floats):
        assert q.defining_op is not None
        b.erase(q.defining_op)
    for value in before:
        if value.is_unused:
            del program.weights[value.name]


@attrs.frozen
class RemoveQuantizers(Pass):
    """Takes all Q and DQ out, and their scales and zero points: the program is in float again."""

    name: ClassVar[str] = "remove-quantizers"
    whole: ClassVar[str] = "integers pass from region to region"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Remove all quantizers."""
        remove_quantizers(program)
