"""The end of emitted code: writes to buffers and inputs, and the structure of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from compiler.codegen.convention import native_structure, unknown_constant
from compiler.codegen.functions import literal
from compiler.codegen.program_scope import ProgramScope, is_detached
from compiler.emitted.graphmodule import assign_buffer, before_assignment, write_unless_itself
from ir.attributes import UnknownObject
from ir.core import Operation, Value
from ir.errors import CodegenError
from ir.memory.aliasing import makes_view, may_alias_operands
from ir.opdef import OpDef, Trait
from ir.program import Weight, weight_of


class Results:
    """The results of a program's graph, and what the call leaves in buffers and inputs."""

    def __init__(self, scope: ProgramScope) -> None:
        self.scope = scope
        self.program = scope.program
        self.out_spec: pytree.TreeSpec | None = None
        """The structure of the result, where Python's own containers cannot express it."""
        self._assigned: list[tuple[Weight, Any]] = []
        """Buffers in whose place new tensors are put, and the nodes of these."""

    def emit(self) -> Any:
        """Add the writes to buffers and inputs, and return the structure of the result."""
        convention, outputs = self.program.convention, self.program.graph.outputs
        written: dict[Value, None] = {}
        themselves: dict[int, Any] = {}
        in_place = [mutation for mutation in convention.mutations if not mutation.is_assigned]
        for mutation in in_place:
            target = self._written(mutation.buffer, mutation.input)
            value = outputs[mutation.output]
            if is_detached(value, target):
                continue  # the numbers do not change
            written[target] = None
            if value is not None and _may_be_itself(value, target):
                themselves[mutation.output] = self.scope.value(value)
        nodes = [
            None if v is None else themselves.get(number) or self._before_writes(v, written)
            for number, v in enumerate(outputs)
        ]
        returned: dict[int, Any] = {}
        for mutation in in_place:
            target = self._written(mutation.buffer, mutation.input)
            write: Any = write_unless_itself if mutation.output in themselves else torch.ops.aten.copy_.default
            # an operator, not a method: fx must see that it has an effect; with its gradient, which the next call has
            weight = weight_of(target)
            written_node = self.scope.value(target) if weight is None else self.scope.tensor(weight)
            if is_detached(outputs[mutation.output], target):
                self.scope.call(torch.ops.aten.detach_.default, (written_node,))
            else:
                self.scope.call(write, (written_node, nodes[mutation.output]))
            returned[mutation.output] = written_node
        for number, source in convention.views.items():
            if source in returned:
                view = self._view_again(outputs[number], outputs[source], returned[source])
                if view is not None:
                    returned[number] = view
        # a result that is the output of a write is the written tensor itself
        nodes = [returned.get(number, node) for number, node in enumerate(nodes)]
        assigned = {self._weight(m.buffer).value: None for m in convention.mutations if m.is_assigned}
        sources = {m.output: self._written(m.buffer, m.input) for m in in_place}
        for number, value in enumerate(outputs):
            held = sources.get(convention.views.get(number, number), value)
            if assigned and held is not None and self._may_lie_in(held, assigned):
                nodes[number] = self.scope.call(before_assignment, (nodes[number],))
        for mutation in convention.mutations:
            if mutation.is_assigned:
                self._assigned.append((self._weight(mutation.buffer), nodes[mutation.output]))
        if convention.outputs:
            leaves = [
                self._constant(leaf.constant) if leaf.value is None else nodes[leaf.value]
                for leaf in convention.outputs
            ]
        else:
            leaves = nodes[: len(nodes) - len(convention.mutations)]
        if convention.out_spec is None:
            return leaves[0] if len(leaves) == 1 else tuple(leaves)
        result = native_structure(convention.out_spec, iter(leaves), self.scope.call)
        if result is NotImplemented:
            self.out_spec = convention.out_spec
            spec = self.scope.graph.create_node("get_attr", "_out_spec")
            result = self.scope.call(pytree.tree_unflatten, (leaves, spec))
        return result

    def assign(self, output: fx.Node) -> None:
        """Assign buffers, whose keys are known now."""
        graph = self.scope.graph
        with graph.inserting_before(output):
            for weight, new in self._assigned:
                for key in self.scope.tree.keys_of(weight):
                    holder, _, name = key.rpartition(".")
                    target = f"{holder}._buffers" if holder else "_buffers"
                    buffers = graph.create_node("get_attr", target, name=target.replace(".", "_").lstrip("_"))
                    self.scope.call(assign_buffer, (buffers, name, new))

    def _constant(self, constant: Any) -> Any:
        """Return the node of a result that is not a tensor: a literal, or a size of an input."""
        if isinstance(constant, UnknownObject):
            raise unknown_constant("a result", constant)
        return literal(self.scope, constant)

    def _view_again(self, value: Value | None, source: Value | None, node: Any) -> Any:
        """Return an output as a view of `node`, the tensor that `source` was written to; None where it is none."""
        if value is None or source is None:
            return None
        forward, back = _views(value, makes_view), _views(source, _is_reversible)
        reached = {value: 0} | {op.operands[0]: number for number, (op, _) in enumerate(forward, 1)}
        steps = [source, *(op.operands[0] for op, _ in back)]
        common = next((number for number, each in enumerate(steps) if each in reached), None)
        if common is None:
            return None
        for op, _ in back[:common]:
            node = self._shaped_back(op, node)
        chain = forward[: reached[steps[common]]]
        if not chain and not common:
            return self.scope.call(torch.ops.aten.alias.default, (node,))
        env, given = self.scope.env, steps[common]
        for op, result in reversed(chain):
            assert given is not None
            saved = {each: env.pop(each) for each in (given, *op.results) if each in env}
            env[given] = node
            self.scope.operation(op)
            node = env[result]
            for each in (given, *op.results):
                env.pop(each, None)
            env.update(saved)
            given = result
        return node

    def _shaped_back(self, op: Operation, node: Any) -> Any:
        """Return the node of the operand of a reshape or permute, from that of its result."""
        if op.name == "aten.permute":
            dims: Any = op.attributes["dims"]
            order = [d % len(dims) for d in dims]
            return self.scope.call(torch.permute, (node, [order.index(d) for d in range(len(order))]))
        operand = op.operands[0]
        assert operand is not None
        shape = [self.scope.size(d) if isinstance(d, sympy.Basic) else d for d in operand.tensor_type.shape or ()]
        return self.scope.call(torch.reshape, (node, shape))

    def _before_writes(self, value: Value, written: dict[Value, None]) -> Any:
        """Return the node of an output; a copy where a write at the end of the call would change the value."""
        node = self.scope.value(value)
        return self.scope.method("clone", (node,)) if self._may_lie_in(value, written) else node

    def _may_lie_in(self, value: Value, tensors: Mapping[Value, None]) -> bool:
        """Whether a value may alias some inputs or weights."""
        pending, seen = [value], {value: None}
        while pending and tensors:
            root = pending.pop()
            if root in tensors:
                return True
            op = root.defining_op
            if op is not None and may_alias_operands(op.opdef):
                pending.extend(v for v in op.operand_values if v not in seen)
                seen.update(dict.fromkeys(op.operand_values))
        return False

    def _written(self, buffer: str | None, number: int | None) -> Value:
        if buffer is not None:
            return self._weight(buffer).value
        assert number is not None
        return self.program.graph.inputs[number]

    def _weight(self, name: str | None) -> Weight:
        weight = self.scope.tree.weights.by_name.get(name or "")
        if weight is None:
            raise CodegenError(f"the program writes {name!r}, which is not a weight of it")
        return weight


def _views(value: Value, is_step: Callable[[OpDef], bool]) -> list[tuple[Operation, Value]]:
    """Return the operations by which a value is a view of others, each with its result, the last one first."""
    chain: list[tuple[Operation, Value]] = []
    current: Value | None = value
    while current is not None and current.defining_op is not None and is_step(current.defining_op.opdef):
        op = current.defining_op
        chain.append((op, current))
        current = op.operands[0]
    return chain


def _is_reversible(opdef: OpDef) -> bool:
    return opdef.name in ("aten.reshape", "aten.permute")


def _may_be_itself(value: Value, target: Value) -> bool:
    """Whether a value may be the target itself: some operators return either their operand or a new tensor."""
    op = value.defining_op
    while op is not None and op.opdef.has(Trait.DROPOUT):
        operand = op.operands[0]
        if operand is target:
            return True
        op = None if operand is None else operand.defining_op
    return False
