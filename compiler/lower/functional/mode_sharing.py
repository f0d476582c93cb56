"""Aliasing that depends on the mode: the result of a dropout in eval mode is its operand.

If one of the two is mutated and the other is read afterwards, the graph is wrong in the other mode; the emitted module
must then refuse to change its mode.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from compiler.lower.functional.storage import Handle, Storage
from ir.core import Operation


@attrs.define(eq=False)
class _Memory:
    """Memory that is one piece in both modes."""

    links: list[tuple[Operation, _Memory]] = attrs.field(factory=list)
    """(a dropout, the memory that it joins with this one in eval mode)."""
    written: list[Operation] = attrs.field(factory=list)
    """Dropouts through which writes to other memory reach this one, in one of the modes."""


class ModeSharing:
    """Follows writes and reads of tensors that dropouts link."""

    def __init__(self) -> None:
        self._of_handles: dict[Handle, _Memory] = {}
        self._of_storages: dict[Storage, _Memory] = {}
        self._conflicts: dict[Operation, None] = {}

    def link(self, operand: Handle, result: Handle, op: Operation) -> None:
        """Record that the result of a dropout is its operand in eval mode only."""
        memory, other = self._memory(operand), _Memory()
        memory.links.append((op, other))
        other.links.append((op, memory))
        self._of_handles[result] = other

    def wrote(self, handle: Handle) -> None:
        """Record a write to a tensor."""
        if not self._of_handles:
            return
        start = self._memory(handle)
        seen, ways = {id(start)}, [(op, memory) for op, memory in start.links]
        while ways:
            op, memory = ways.pop()
            if id(memory) not in seen:
                seen.add(id(memory))
                memory.written.append(op)
                ways.extend(memory.links)

    def read(self, handle: Handle) -> None:
        """Record a read of a tensor by the model."""
        if self._of_handles:
            self._conflicts.update(dict.fromkeys(self._memory(handle).written))

    def conflicts(self, sources: Iterable[Storage]) -> list[Operation]:
        """Return the dropouts that make results or mutations depend on the mode.

        Args:
            sources: storages that the caller observes after the call.
        """
        for storage in sources:
            if storage.owner is not None:
                self.read(storage.owner)
        return [op for op in self._conflicts if op.attributes.get("follows_mode", True)]

    def _memory(self, handle: Handle) -> _Memory:
        current: Handle | None = handle
        while current is not None:
            if current in self._of_handles:
                return self._of_handles[current]
            current = current.parent
        return self._of_storages.setdefault(handle.storage, _Memory())
