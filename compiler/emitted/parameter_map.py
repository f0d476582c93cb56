"""From the `state_dict` of the original to that of the emitted module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.emitted.inversion import Piece, sources_of
from compiler.usercode.tied import find_tied
from ir.errors import InputError
from ir.evaluate import evaluate
from ir.program import Derivation
from ir.text.parser import parse_program
from ir.text.printer import print_program

_COUNTED_SINCE = 2
"""The version of a BatchNorm's state from which on it has a count of batches."""
_EXTRA_STATE = nn.modules.module._EXTRA_STATE_KEY_SUFFIX


@attrs.frozen(eq=False)
class Entry:
    """Where one tensor of the emitted module comes from."""

    sources: tuple[str, ...]
    """Names in the original."""
    derivation: Derivation | None = None
    """How it is computed from the sources; None where it is the source itself."""


@attrs.define(eq=False, repr=False, slots=False)
class ParameterMap(Mapping[str, tuple[str, ...]]):
    """Key of the emitted module's parameter or buffer -> names of the original ones that it comes from.

    Non-persistent buffers are in the map, and in no `state_dict`.
    """

    _entries: dict[str, Entry]
    """Key -> where the tensor comes from."""
    _originals: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    """Every name that the original's tensors have."""
    _persistent: frozenset[str] | None = attrs.field(default=None, kw_only=True)
    """The keys that are in the emitted module's `state_dict`; None means all."""
    _constants: Mapping[str, torch.Tensor] = attrs.field(factory=dict, kw_only=True)
    """Sources that no checkpoint has (constants and non-persistent buffers)."""
    aliases: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, kw_only=True)
    """All names of each tensor that has several: a checkpoint may have it under any of them."""
    _extra_state: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    """What `get_extra_state` returned for the modules that were captured, by its key."""
    literals: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    """The keys of tensors that are literals of the original's code."""
    untrained: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    """The keys of computed tensors that are not trained, whatever they are computed from: they are for inference."""
    _counters: Mapping[str, torch.Tensor] = attrs.field(factory=dict, kw_only=True)
    """The counts of batches of the original's normalizations, which old checkpoints do not have."""

    def __getstate__(self) -> dict[str, Any]:
        # operations refer to PyTorch's operators, which cannot be pickled; their text form says the same
        entries = {
            key: (entry.sources, None if entry.derivation is None else print_program(entry.derivation.program))
            for key, entry in self._entries.items()
        }
        return {**self.__dict__, "_entries": entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._entries = {
            key: Entry(sources, None if text is None else Derivation(sources, parse_program(text)))
            for key, (sources, text) in state["_entries"].items()
        }

    def with_extra_state(self, module: nn.Module | None) -> ParameterMap:
        """Return a map that knows the extra state of the module that was captured."""
        found = {
            f"{path}.{_EXTRA_STATE}".lstrip("."): copy.deepcopy(each.get_extra_state())
            for path, each in (() if module is None else module.named_modules(remove_duplicate=False))
            if type(each).get_extra_state is not nn.Module.get_extra_state
        }
        return attrs.evolve(self, extra_state=found)

    def in_terms_of(
        self, keys: Mapping[str, str], weights: Mapping[str, str], constants: Mapping[str, torch.Tensor]
    ) -> ParameterMap:
        """Return the map from another module that was emitted of the same weights, in place of the original.

        Args:
            keys: name of a weight -> its key in that module.
            weights: key in this map -> name of the weight.
            constants: the weights that module does not have, by name.
        """
        entries = {
            key: Entry((keys[weights[key]],))
            if weights.get(key) in keys
            else Entry(tuple([keys.get(source, source) for source in entry.sources]), entry.derivation)
            for key, entry in self._entries.items()
        }
        aliases = {keys.get(n, n): tuple([keys.get(m, m) for m in group]) for n, group in self.aliases.items()}
        return attrs.evolve(self, entries=entries, aliases=aliases, constants={**self._constants, **constants})

    def __getitem__(self, key: str) -> tuple[str, ...]:
        return self._entries[key].sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        changed = sum(self[key] != (key,) for key in self)
        return f"<ParameterMap of {len(self)} tensors, {changed} under a new name or computed>"

    @property
    def constants(self) -> frozenset[str]:
        """Sources that no checkpoint has: constants and non-persistent buffers."""
        return frozenset(self._constants)

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
        know passes through, so that `load_state_dict(strict=True)` reports it. Extra state (`get_extra_state`) goes
        to opaque modules; of others it is left out: their code is gone, and what it says is in the emitted module as
        constants. Old checkpoints have no counts of batches (`num_batches_tracked`): they
        stay what they were, as in the original.

        Raises:
            InputError: when the checkpoint lacks a tensor, or has different ones under the names of one; when its extra
                state is not that of the captured model.
        """
        _check_mapping(state_dict)
        for names in dict.fromkeys(self.aliases.values()):
            find_tied(names, state_dict)
        converted: OrderedDict[str, Any] = OrderedDict()
        for key in self._entries:
            if self._persistent is not None and key not in self._persistent:
                continue
            converted[key] = self.heir(key, state_dict)
        if hasattr(state_dict, "_metadata"):
            converted._metadata = self._versions(state_dict._metadata)  # type: ignore[attr-defined]
        kept = {source for entry in self._entries.values() for source in entry.sources}
        for name, value in state_dict.items():
            if name in self._extra_state and name not in kept:
                _check_extra_state(name, value, self._extra_state[name])
            elif name not in self._originals and name not in converted:
                converted[name] = value
        return converted

    def revert(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return the original's `state_dict` for a checkpoint of the emitted module: the inverse of `convert`.

        Computed tensors are taken apart: what moves elements (`cat`, `reshape`, `permute`) and a cast to a wider dtype
        exactly, a factor up to rounding. Tied tensors are there under all of their names. What the emitted module does
        not know passes through.

        Raises:
            InputError: when the checkpoint lacks a tensor, or one cannot be taken apart: a folded batch norm, a sum.
        """
        _check_mapping(state_dict)
        kept = {entry.sources[0] for entry in self._entries.values() if entry.derivation is None}
        reverted: OrderedDict[str, Any] = OrderedDict()
        pieces: dict[str, Piece] = {}
        for key, entry in self._entries.items():
            if self._persistent is not None and key not in self._persistent:
                continue
            if key not in state_dict:
                raise InputError(
                    f"the checkpoint has no {key!r}, which the emitted module has",
                    remedy="pass the state_dict of the emitted module; `convert` takes that of the original",
                )
            if entry.derivation is None:
                for name in self.aliases.get(entry.sources[0], entry.sources):
                    reverted[name] = state_dict[key]
            elif not kept.issuperset(set(entry.sources) - self._constants.keys()):
                for name, piece in sources_of(key, entry.derivation, state_dict[key]).items():
                    pieces.setdefault(name, piece).fill(piece)
        for source, piece in pieces.items():
            if source in kept or source in self._constants:
                continue
            missing = int((~piece.known).sum())
            if missing:
                raise InputError(
                    f"{missing} elements of {source!r} are in no tensor of the emitted module",
                    remedy="take them from the checkpoint of the original",
                )
            for name in self.aliases.get(source, (source,)):
                reverted[name] = piece.tensor
        for name, value in self._extra_state.items():
            reverted.setdefault(name, copy.deepcopy(value))
        reverted.update({key: value for key, value in state_dict.items() if key not in self._entries})
        return reverted

    def _versions(self, metadata: Mapping[str, Any]) -> OrderedDict[str, Any]:
        """Return the versions of modules in a checkpoint, for the modules that hold their tensors now."""
        found: OrderedDict[str, Any] = OrderedDict()
        for key, entry in self._entries.items():
            path, _, name = key.rpartition(".")
            source, _, old_name = entry.sources[0].rpartition(".")
            if entry.derivation is None and name == old_name and source in metadata:
                found.setdefault(path, dict(metadata[source]))
        return found

    def heir(self, key: str, tensors: Mapping[str, Any]) -> Any:
        """Return one tensor of the emitted module, computed from tensors of the original.

        Args:
            key: of the emitted module.
            tensors: by their names in the original.

        Raises:
            InputError: when one is missing.
        """
        entry = self._entries[key]
        sources = [self._look_up(tensors, key, source) for source in entry.sources]
        if entry.derivation is None:
            return sources[0]
        with torch.no_grad():
            (result,) = evaluate(entry.derivation.program, sources)
        return result

    def _renamed(self, state_dict: Mapping[str, Any]) -> str:
        others = [name for name in state_dict if name not in self._originals and name not in self._extra_state]
        if not others:
            return ""
        shown = ", ".join(map(repr, others[:3])) + (", …" if len(others) > 3 else "")
        return f"; it has {shown}, which the model has not: a state_dict hook of the model may rename keys"

    def _look_up(self, state_dict: Mapping[str, Any], key: str, source: str) -> Any:
        for name in (source, *self.aliases.get(source, ())):
            if name in state_dict:
                return state_dict[name]
        if source in self._constants:
            return self._constants[source]
        if source in self._counters and _version(state_dict, source) < _COUNTED_SINCE:
            return self._counters[source].clone()
        raise InputError(
            f"the checkpoint has no {source!r}, from which {key!r} is derived{self._renamed(state_dict)}",
            remedy="pass the state_dict of the original model, as it was when it was transformed; where a hook of the "
            "model renames keys or leaves them out, pass `{**dict(model.named_parameters()), "
            "**dict(model.named_buffers())}`",
        )


def _version(state_dict: Mapping[str, Any], name: str) -> int:
    """Return the version of a tensor's module in a checkpoint, or 0."""
    metadata: Mapping[str, Any] = getattr(state_dict, "_metadata", {})
    return metadata.get(name.rpartition(".")[0], {}).get("version") or 0


def _check_mapping(state_dict: Any) -> None:
    if not isinstance(state_dict, Mapping):
        raise InputError(
            f"a checkpoint is given as a {type(state_dict).__qualname__}",
            remedy="give tensors by name: `model.state_dict()`, or what `torch.load` returns of such a file",
        )


def _check_extra_state(name: str, value: Any, captured: Any) -> None:
    """Refuse extra state that is not what the emitted module was made with.

    Raises:
        InputError: when it is something else, or cannot be compared.
    """
    leaves, spec = pytree.tree_flatten(value)
    others, other_spec = pytree.tree_flatten(captured)
    if spec != other_spec or not all(_same(a, b) for a, b in zip(leaves, others, strict=True)):
        raise InputError(
            f"the checkpoint's {name!r} is not what the module had when it was transformed, and the emitted module"
            " holds what it said as constants",
            remedy="load the checkpoint into the original model, and transform that",
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # noqa: BLE001 - whatever the user's class does
        return False
