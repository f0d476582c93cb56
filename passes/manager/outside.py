"""What a scope leaves out, held against what a pass did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ir.core import Operation
from ir.program import Program
from passes.rewrite.scope import Scope


@attrs.frozen(eq=False)
class Outside:
    """The operations that a scope leaves out, as they are before a pass runs.

    Attributes:
        attributes: their attributes.
        bodies: the revisions of the bodies of regions among them.
    """

    attributes: Mapping[Operation, Mapping[str, Any]]
    bodies: Mapping[Operation, int]

    @classmethod
    def of(cls, program: Program, scope: Scope) -> Outside:
        """Take down what a scope leaves out of a program.

        Raises:
            InputError: when a predicate raises or returns no bool.
        """
        if scope.is_everywhere:
            return _NOTHING
        left_out = [op for op in program.graph.operations() if not scope.holds(op)]
        return cls(
            {op: dict(op.attributes) for op in left_out},
            {op: op.body.revision for op in left_out if op.body is not None},
        )

    def touched(self, program: Program) -> str | None:
        """Return which operation was erased or changed since, as in "erased aten.relu at `head`"; None where none was.

        Other operands are no change: what computes them may be in the scope.
        """
        for op, attributes in self.attributes.items():
            where = f"{op.name} at `{op.location.where}`"
            if op.graph is not program.graph:
                return f"erased {where}"
            now = op.attributes
            if now.keys() != attributes.keys() or any(now[name] is not value for name, value in attributes.items()):
                return f"changed {where}"
            if op.body is not None and op.body.revision != self.bodies.get(op):
                return f"changed {where}"
        return None


_NOTHING = Outside({}, {})
