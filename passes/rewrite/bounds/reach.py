"""Which results of a program a change of numbers can reach: by data flow, in the call or in a later one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from typing_extensions import override

from ir.attributes import attribute_key
from ir.core import RETURN, Graph, Operation, Value
from ir.data_sizes import data_symbols_of_attributes, defining_operations
from ir.memory.aliasing import is_written, may_alias_roots, writes_operand
from ir.opdef import Trait
from ir.program import Program, Weight, weight_of
from passes.rewrite.bounds.tolerance import ARGUMENTS, Approximation, Bounds, Place
from passes.rewrite.rewriter import Events, Listener

_Node: TypeAlias = "Operation | Weight | None"
"""What passes numbers on: an operation, a weight that a call changes for the next one; None for the state of opaque
calls, which nobody sees."""


class Places:
    """The places where a program leaves numbers, each with its bit in a mask.

    Bit `n` below the number of the graph's outputs is that output, which may be several places: a result that is the
    buffer itself. The bits above are buffers that kernels write: statistics of a normalization.
    """

    def __init__(self, program: Program) -> None:
        convention = program.convention
        self._of_outputs: dict[int, list[Place]] = {}
        written = {mutation.output for mutation in convention.mutations}
        plain = [n for n in range(len(program.graph.outputs)) if n not in written]
        results = [leaf.value for leaf in convention.outputs] or plain
        self.results = len(results)
        """The number of leaves of the result."""
        for number, output in enumerate(results):
            if output is not None:
                self._of_outputs.setdefault(output, []).append(("result", number))
        self.writes: dict[int, Weight] = {}
        """Number of an output -> the buffer that it is written to."""
        for mutation in convention.mutations:
            place = ARGUMENTS if mutation.buffer is None else ("buffer", mutation.buffer)
            self._of_outputs.setdefault(mutation.output, []).append(place)
            if mutation.buffer is not None:
                self.writes[mutation.output] = program.weights[mutation.buffer]
        self.outputs = len(program.graph.outputs)
        present = sum(1 << number for number, value in enumerate(program.graph.outputs) if value is not None)
        buffers = {weight.name for weight in self.writes.values()}
        names = [n for n, w in program.weights.items() if n not in buffers and is_written(w.value)]
        self.bits = {name: 1 << self.outputs + number for number, name in enumerate(names)}
        self._everywhere = present | sum(self.bits.values())

    @property
    def all(self) -> frozenset[Place]:
        """All places."""
        return frozenset(self._listed(self._everywhere))

    def listed(self, mask: int) -> frozenset[Place] | None:
        """Return the places of a mask; None for all."""
        return None if mask == self._everywhere else frozenset(self._listed(mask))

    def _listed(self, mask: int) -> list[Place]:
        found: list[Place] = [("buffer", name) for name, bit in self.bits.items() if mask & bit]
        for number, places in self._of_outputs.items():
            if mask >> number & 1:
                found.extend(places)
        return found


class Reach(Listener):
    """The places that each operation of a program can reach, kept up to date while it is rewritten.

    What is reached once stays so: rewrites do not change what depends on what, whatever operations they do it by. So a
    mask only grows, at most once for each place, and following a whole run takes time linear in its edits.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.places = Places(program)
        self._masks: dict[_Node, int] = {}
        self._opaque: list[Operation] = []
        self._definers = defining_operations(program)
        for op in reversed(list(program.graph.operations())):
            mask = 0
            for result in op.results:
                mask |= self.of_value(result)
            self._masks[op] = self._masks.get(op, 0) | mask
            if op.opdef.has(Trait.OPAQUE):
                self._opaque.append(op)
        for op in program.graph.operations():
            mask = 0
            for weight in _written_weights(op):
                mask |= self.places.bits.get(weight.name, 0)
            if mask:
                self._grow(op, mask)
        for weight in program.weights.values():
            if weight.is_mutated or weight.name in self.places.bits:
                self._grow(weight, self.of_value(weight.value))
        for op in self._opaque:
            self._grow(None, self._masks[op])
        for op in set(self._definers.values()):
            self._grow(op, self._masks[op])
        if self._definers:
            for op in program.graph.operations():
                self._pass_on(op)

    def of_value(self, value: Value) -> int:
        """Return the mask of what a value reaches."""
        mask = 0
        for user in value._uses:
            mask |= self._of_return(value) if user.opdef is RETURN else self._masks.get(user, 0)
        return mask

    def of_edits(self, events: Events) -> frozenset[Place] | None:
        """Return the places that edits of the program reach; None for all."""
        mask = 0
        for _, new in events.replacements:
            mask |= self.of_value(new)
        for op in (*events.created, *events.touched):
            mask |= self._masks.get(op, 0)
        return self.places.listed(mask)

    def later(self, mask: int) -> int:
        """Return a mask with what later calls read of the buffers in it."""
        for number, weight in self.places.writes.items():
            if mask >> number & 1:
                mask |= self._masks.get(weight, 0)
        for name, bit in self.places.bits.items():
            if mask & bit:
                mask |= self._masks.get(self.program.weights[name], 0)
        return mask

    @override
    def modified(self, op: Operation) -> None:
        """Let what an operation reads reach what it reaches."""
        if op.opdef is not RETURN:
            self._pass_on(op)
            return
        for number, value in enumerate(self.program.graph.outputs):
            if value is not None:
                self._grow(_owner(value), self._of_output(number))

    @override
    def inserted(self, op: Operation) -> None:
        """An operation reaches nothing yet, unless it is a copy of what has an effect."""
        if op.opdef.has(Trait.OPAQUE):
            self._opaque.append(op)
            self._grow(op, self._masks.get(None, 0))

    def _of_return(self, value: Value) -> int:
        outputs = self.program.graph.outputs
        mask = 0
        for number, output in enumerate(outputs):
            if output is value:
                mask |= self._of_output(number)
        return mask

    def _of_output(self, number: int) -> int:
        weight = self.places.writes.get(number)
        return 1 << number | (0 if weight is None else self._masks.get(weight, 0))

    def _pass_on(self, op: Operation) -> None:
        mask = self._masks.get(op, 0)
        if mask:
            for source in self._sources(op):
                self._grow(source, mask)

    def _grow(self, node: _Node | Graph, mask: int) -> None:
        worklist = [(node, mask)]
        while worklist:
            current, more = worklist.pop()
            if isinstance(current, Graph):
                continue
            old = self._masks.get(current, 0)
            if old | more != old:
                self._masks[current] = old | more
                worklist.extend([(source, old | more) for source in self._sources(current)])

    def _sources(self, node: _Node) -> Iterator[_Node | Graph]:
        """Yield what an operation, or a buffer in a later call, has its numbers from."""
        if node is None:
            yield from self._opaque
        elif isinstance(node, Operation):
            for value in node.operand_values:
                yield _owner(value)
            if node.opdef.has(Trait.OPAQUE):
                yield None
            if self._definers:
                yield from (self._definers[s] for s in data_symbols_of_attributes(node) if s in self._definers)
        else:
            for number, weight in self.places.writes.items():
                output = self.program.graph.outputs[number]
                if weight is node and output is not None:
                    yield _owner(output)
            for user in node.value.users:
                if any(weight is node for weight in _written_weights(user)):
                    yield user


def _owner(value: Value) -> Operation | Weight | Graph:
    return value.owner


def _written_weights(op: Operation) -> Iterator[Weight]:
    """Yield the weights that an operation may write by itself, as normalizations do in training."""
    if op.body is not None and not any(inner.opdef.training for inner in op.body.operations()):
        return
    for index, value in enumerate(op.operands):
        if value is None or not (writes_operand(op, index) if op.body is None else is_written(op.body.inputs[index])):
            continue
        for root in may_alias_roots(value):
            weight = weight_of(root)
            if weight is not None:
                yield weight


class Computations:
    """What each place of a program is computed by, to tell later which of these computations were changed."""

    def __init__(self, program: Program) -> None:
        self._numbers: dict[Any, int] = {}
        self._data = [weight.data for weight in program.weights.values()]  # which so keep their ids
        self._before = self._shown(program)

    def changed(self, program: Program) -> frozenset[Place] | None:
        """Return the places whose computation is another one now, with those that read them later; None for all."""
        reach = Reach(program)
        before, now = self._before, self._shown(program)
        mask = 0
        for key, number in now.items():
            if before.get(key) != number:
                mask |= 1 << key if isinstance(key, int) else reach.places.bits.get(key, 0)
        return reach.places.listed(reach.later(mask))

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _shown(self, program: Program) -> dict[int | str, int]:
        """Return the number of what computes each output, and each buffer that kernels write."""
        values: dict[Value, int] = {}
        for name, weight in program.weights.items():
            derivation = weight.derivation
            sources = None if derivation is None else (derivation.sources, str(derivation.program))
            values[weight.value] = self._number(("weight", name, id(weight.data), weight.type, sources))
        written: dict[str, list[int]] = {}
        outputs = self._graph(program.graph, values, written)
        found: dict[int | str, int] = dict(enumerate(outputs))
        return found | {name: self._number(("written", *numbers)) for name, numbers in written.items()}

    def _graph(self, graph: Graph, values: dict[Value, int], written: dict[str, list[int]]) -> list[int]:
        effects = 0
        for index, value in enumerate(graph.inputs):
            values[value] = self._number(("input", index, value.type))
        for op in graph.operations():
            effects += not op.is_pure
            body = None if op.body is None else tuple(self._graph(op.body, {}, {}))
            number = self._number(
                (
                    op.opdef,
                    tuple([None if v is None else values[v] for v in op.operands]),
                    op.segments,
                    tuple([(name, attribute_key(each)) for name, each in op.attributes.items()]),
                    body,
                    None if op.is_pure else effects,
                )
            )
            for result in op.results:
                values[result] = self._number((number, result.index))
            for weight in _written_weights(op):
                written.setdefault(weight.name, []).append(number)
        return [-1 if value is None else values[value] for value in graph.outputs]


def bounds_of(program: Program, approximations: tuple[Approximation, ...]) -> Bounds | None:
    """Return how far each result of a program may differ by these approximations; None without any."""
    if not approximations:
        return None
    places = Places(program)
    return Bounds(approximations, places.results, places.all)
