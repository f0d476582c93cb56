"""The weights that the emitted module holds, and their tensors."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from compiler.usercode.overlap import may_overlap
from ir.program import Program, Weight, WeightKind
from ir.types import Dim


class Weights:
    """The weights of a program, as the emitter sees them.

    A weight that was computed at compile time (it has a `derivation`) takes the place of its sources: those that
    nothing else uses are dropped. Where a source is still needed and both are trained, the two have to stay one
    parameter: then the derivation is emitted as operations in `forward` (`inlined`) and only the source is kept.
    """

    def __init__(self, program: Program) -> None:
        self.by_name: dict[str, Weight] = {}
        for weight in program.weights.values():
            for name in names_of(weight):
                self.by_name.setdefault(name, weight)
        self.originals = _originals(program)
        """Every name that a tensor of the original has, with its shape and the weight that is that tensor still."""
        self._tensors: dict[Weight, torch.Tensor] = {}
        used = {w: None for w in program.weights.values() if not w.value.is_unused}
        derived = [w for w in program.weights.values() if w.derivation is not None]
        self.inlined: dict[Weight, None] = {}
        self._inline(derived, used)
        for weight in self.inlined:
            used.update(dict.fromkeys(self.sources(weight)))
        self.dropped: dict[Weight, None] = dict.fromkeys(self.inlined)
        taken_over = [s for w in derived for s in self.sources(w) if s not in used]
        self.dropped.update(dict.fromkeys(taken_over))
        self.dropped.update(dict.fromkeys(w for w in derived if w not in used))
        for source in taken_over:
            counter = self.by_name.get(f"{source.name.rpartition('.')[0]}.num_batches_tracked".lstrip("."))
            statistics = source.name.endswith(("running_mean", "running_var"))
            if statistics and counter is not None and counter not in used:
                self.dropped[counter] = None
        self.live = tuple(w for w in program.weights.values() if w not in self.dropped)
        self.live_names: dict[str, Weight] = {n: w for w in self.live for n in names_of(w)}

    def sources(self, weight: Weight) -> tuple[Weight, ...]:
        """Return the weights that a derived one was computed from, except one whose name it has."""
        if weight.derivation is None:
            return ()
        found = (self.by_name.get(name) for name in weight.derivation.sources)
        return tuple(source for source in found if source is not None and source is not weight)

    def is_mistakable(self, key: str, weight: Weight) -> bool:
        """Whether a checkpoint of the original has another tensor under `key` that would load all the same.

        Where the shapes differ, loading fails, so the key may be the same.
        """
        original = self.originals.get(key)
        if original is None or original.weight is weight:
            return False
        # load_state_dict takes the first element of a vector for a tensor of rank 0
        shape, had = weight.type.shape, original.shape
        return shape == had or (shape == () and had is not None and len(had) == 1)

    def _inline(self, derived: list[Weight], used: dict[Weight, None]) -> None:
        taken: dict[Weight, list[Weight]] = {}
        for weight in derived:
            if weight not in used or not weight.requires_grad:
                continue
            for source in self.sources(weight):
                others = taken.setdefault(source, [])
                if source in used or any(_share_elements(weight, other) for other in others):
                    self.inlined[weight] = None
                    # one parameter, then: what took the source before is computed from it too
                    self.inlined.update(dict.fromkeys(others))
                    used[source] = None
                others.append(weight)

    def tensor(self, weight: Weight) -> torch.Tensor:
        """Return the one parameter or buffer that the emitted module has for a weight: same storage, new object."""
        found = self._tensors.get(weight)
        if found is None:
            data = weight.data
            if data is None:
                sizes = [d if isinstance(d, int) else 1 for d in weight.type.shape or ()]
                data = torch.empty(sizes, dtype=weight.type.dtype, device="meta")
            is_parameter = weight.kind is WeightKind.PARAMETER
            found = share(data, is_parameter=is_parameter, requires_grad=weight.requires_grad)
            self._tensors[weight] = found
        return found


@attrs.frozen(eq=False)
class Original:
    """One tensor of the original."""

    shape: tuple[Dim | None, ...] | None
    weight: Weight | None
    """The weight that is this tensor; None where another one was computed from it and took its place."""


def _originals(program: Program) -> dict[str, Original]:
    found: dict[str, Original] = {}
    for weight in program.weights.values():
        if weight.derivation is None:
            found.update(dict.fromkeys(names_of(weight), Original(weight.type.shape, weight)))
    for weight in program.weights.values():
        if weight.derivation is not None:
            for name, value in zip(weight.derivation.sources, weight.derivation.program.graph.inputs, strict=True):
                found.setdefault(name, Original(value.tensor_type.shape, None))
    return found


def names_of(weight: Weight) -> tuple[str, ...]:
    """Return all names that the weight has in the original."""
    return (weight.name, *weight.aliases)


def share(tensor: torch.Tensor, *, is_parameter: bool | None = None, requires_grad: bool | None = None) -> torch.Tensor:
    """Return a new parameter or tensor over the same storage; by default of the same kind."""
    shared = tensor.detach()
    needs_grad = tensor.requires_grad if requires_grad is None else requires_grad
    if isinstance(tensor, nn.Parameter) if is_parameter is None else is_parameter:
        return nn.Parameter(shared, requires_grad=needs_grad)
    return shared.requires_grad_() if needs_grad else shared


def _share_elements(a: Weight, b: Weight) -> bool:
    """Whether two weights may share elements, which is unknown of tensors without data."""
    if a.data is None or b.data is None or a.data.is_meta or b.data.is_meta:
        return True
    return may_overlap(a.data, b.data)
