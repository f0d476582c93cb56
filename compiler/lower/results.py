"""Results and mutations of a program that is being lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.lower.functional.functionalizer import Functionalizer
from compiler.lower.functional.storage import Handle, Storage
from compiler.lower.weights import WeightTable
from ir.core import Value
from ir.errors import CaptureError
from ir.program import Mutation, OutputLeaf, Program, Weight


class Results:
    """Collects the results of the user's program, and makes them outputs of the graph."""

    def __init__(self, functionalizer: Functionalizer) -> None:
        self.functionalizer = functionalizer
        self.values: list[Value | None] = []
        self.leaves: list[OutputLeaf] = []
        self.mutations: list[Mutation] = []
        self._themselves: dict[Storage, list[int]] = {}
        self._views: dict[Storage, list[int]] = {}
        self._handles: dict[int, Handle] = {}
        """The results by their position."""

    def constant(self, constant: Any) -> None:
        """Add a result that is not a value of the graph."""
        self.leaves.append(OutputLeaf(None, constant))

    def value(self, item: Any) -> None:
        """Add a result: a handle, or the value of a number."""
        if type(item) is not Handle:
            self.leaves.append(OutputLeaf(len(self.values)))
            self.values.append(item)
            return
        storage = item.storage
        self._handles[len(self.leaves)] = item
        is_written = bool(storage.version) and storage.kind in ("input", "buffer", "constant")
        if is_written and storage.owner is item:
            # the mutated tensor itself
            self._themselves.setdefault(storage, []).append(len(self.leaves))
            self.leaves.append(OutputLeaf(None))
            return
        if is_written:
            self._views.setdefault(storage, []).append(len(self.values))
        self.leaves.append(OutputLeaf(len(self.values)))
        self.values.append(self.functionalizer.read_result(item))

    def write(self, value: Value, *, buffer: str | None = None, input: int | None = None) -> None:  # noqa: A002
        """Add a mutation of a buffer or an input at the end of the call."""
        self.mutations.append(Mutation(len(self.values), buffer=buffer, input=input))
        self.values.append(value)

    def finish(self, program: Program, weights: WeightTable, assigned: Sequence[Weight] = ()) -> None:
        """Set the outputs of the graph, and describe them in the calling convention.

        Args:
            program: the program.
            weights: its weights.
            assigned: buffers that are replaced by new tensors: the last results.
        """
        convention = program.convention
        for storage, value in self.functionalizer.written_sources():
            number = len(self.values)
            for place in self._themselves.get(storage, ()):
                self.leaves[place] = OutputLeaf(number)
            convention.views |= dict.fromkeys(self._views.get(storage, ()), number)
            if storage.kind == "input":
                self.write(value, input=storage.number)
            else:
                self.write(value, buffer=storage.name)
        first = len(self.leaves) - len(assigned)
        for place, (weight, leaf) in enumerate(zip(assigned, self.leaves[first:], strict=True), first):
            assert leaf.value is not None
            written = self._handles[place].storage.kernel_writes
            if written is not None:
                raise CaptureError(
                    f"a normalization in training mode updates what forward puts in the place of {weight.name!r}",
                    location=written,
                    remedy="set the statistics outside of forward, or keep the module that sets them and normalizes "
                    "with leaf_modules=",
                )
            self.mutations.append(Mutation(leaf.value, buffer=weight.name, is_assigned=True))
        for mutation in self.mutations:
            if mutation.buffer is not None and mutation.is_assigned:
                program.weights[mutation.buffer].is_mutated = True
            elif mutation.buffer is not None:
                weights.note_written(program.weights[mutation.buffer])
        for storage in self.functionalizer.sources:
            if storage.kernel_writes is not None and storage.kind != "input":
                weights.note_written(program.weights[storage.name])
        convention.outputs = tuple(self.leaves[:first])
        convention.mutations = tuple(self.mutations)
        program.graph.set_outputs(self.values)
