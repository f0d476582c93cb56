"""From the `state_dict` of the original to that of the emitted module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from ir.errors import InputError
from ir.evaluate import evaluate
from ir.program import Derivation


@attrs.frozen(eq=False)
class Entry:
    """Where one tensor of the emitted module comes from."""

    sources: tuple[str, ...]
    """Names in the original."""
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor, where there is one source: a checkpoint may have it under any of them."""
    derivation: Derivation | None = None
    """How it is computed from the sources; None where it is the source itself."""


class ParameterMap(Mapping[str, tuple[str, ...]]):
    """Key of the emitted module's parameter or buffer -> names of the original ones that it comes from.

    Non-persistent buffers are in the map, and in no `state_dict`.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        originals: tuple[str, ...] = (),
        persistent: frozenset[str] | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
        literals: frozenset[str] = frozenset(),
    ) -> None:
        """Make a map.

        Args:
            entries: key -> where the tensor comes from.
            originals: every name that the original's tensors have.
            persistent: the keys that are in the emitted module's `state_dict`; None means all.
            constants: sources that no checkpoint has (constants and non-persistent buffers).
            literals: the keys of tensors that are literals of the original's code.
        """
        self._entries = dict(entries)
        self._originals = dict.fromkeys(originals)
        self._persistent = persistent
        self._constants = dict(constants or {})
        self.literals = literals

    def __getitem__(self, key: str) -> tuple[str, ...]:
        return self._entries[key].sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        changed = sum(self[key] != (key,) for key in self)
        return f"<ParameterMap of {len(self)} tensors, {changed} under a new name or computed>"

    def renamed(self) -> dict[str, tuple[str, ...]]:
        """Return the entries whose key differs from the original's, or that are computed."""
        return {
            key: entry.sources
            for key, entry in self._entries.items()
            if entry.sources != (key,) or entry.derivation is not None
        }

    def convert(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return the emitted module's `state_dict` for a checkpoint of the original.

        Tensors are those of the checkpoint, not copies; computed ones are computed anew. What the original does not
        know passes through, so that `load_state_dict(strict=True)` reports it.

        Raises:
            InputError: when the checkpoint lacks a tensor.
        """
        converted: dict[str, Any] = {}
        for key in self._entries:
            if self._persistent is not None and key not in self._persistent:
                continue
            converted[key] = self.heir(key, state_dict)
        for name, value in state_dict.items():
            if name not in self._originals and name not in converted:
                converted[name] = value
        return converted

    def heir(self, key: str, tensors: Mapping[str, Any]) -> Any:
        """Return what one tensor of the emitted module is, for these tensors of the original.

        Args:
            key: of the emitted module.
            tensors: by their names in the original.

        Raises:
            InputError: when one is missing.
        """
        entry = self._entries[key]
        sources = [self._look_up(tensors, key, entry, source) for source in entry.sources]
        if entry.derivation is None:
            return sources[0]
        with torch.no_grad():
            (result,) = evaluate(entry.derivation.program, sources)
        return result

    def _look_up(self, state_dict: Mapping[str, Any], key: str, entry: Entry, source: str) -> Any:
        names = (source, *entry.aliases) if len(entry.sources) == 1 else (source,)
        for name in names:
            if name in state_dict:
                return state_dict[name]
        if source in self._constants:
            return self._constants[source]
        raise InputError(
            f"the checkpoint has no {source!r}, which {key!r} comes from",
            remedy="pass the state_dict of the original model, as it was when it was transformed",
        )
