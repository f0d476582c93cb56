"""Memory that is shared in one mode only: a dropout in eval mode is its operand itself.

Where one of the two is written and the other one is read afterwards, the model computes something else in the other
mode than its graph says; the emitted module must then refuse to change its mode.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from compiler.lower.functional.storage import Handle, Storage
from ir.core import Operation


@attrs.define(eq=False)
class _Memory:
    """What is one piece of memory whatever the mode."""

    links: list[tuple[Operation, _Memory]] = attrs.field(factory=list)
    """(a dropout, the memory that it shares or does not share with this one)."""
    written: list[Operation] = attrs.field(factory=list)
    """The dropouts over which writes to other memory reach this one, in one of the modes."""


class ModeSharing:
    """Follows writes and reads of tensors that dropouts link."""

    def __init__(self) -> None:
        self._of_handles: dict[Handle, _Memory] = {}
        self._of_storages: dict[Storage, _Memory] = {}
        self._conflicts: dict[Operation, None] = {}

    def link(self, operand: Handle, result: Handle, op: Operation) -> None:
        """Note that the result of a dropout is its operand in eval mode, and is not in training."""
        memory, other = self._memory(operand), _Memory()
        memory.links.append((op, other))
        other.links.append((op, memory))
        self._of_handles[result] = other

    def wrote(self, handle: Handle) -> None:
        """Note a write to a tensor."""
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
        """Note a read of a tensor by the model."""
        if self._of_handles:
            self._conflicts.update(dict.fromkeys(self._memory(handle).written))

    def conflicts(self, sources: Iterable[Storage]) -> list[Operation]:
        """Return the dropouts that make what the model computes or writes depend on the mode.

        Args:
            sources: the storages that the caller sees after the call.
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
