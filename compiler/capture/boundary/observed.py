"""What real runs of a model showed, as data for the lowering."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import nn

from compiler.capture.boundary.modes import Modes
from compiler.capture.boundary.questions import Record
from compiler.capture.boundary.runs import Outcome
from compiler.capture.opaque import CallRecord
from ir.locations import Location


@attrs.define(eq=False)
class Observed:
    """What real runs of a model showed."""

    model: nn.Module
    """The copy that was run, after a first call: it has the tables and flags that a first call makes."""
    first: Outcome
    records: Mapping[str, list[CallRecord]]
    """Calls of the modules that may become opaque."""
    steps: Record
    """What the first run asked and did."""
    other: Outcome | None = None
    """The run after a switch of the mode; None where there was none."""
    other_steps: Record | None = None
    back: Outcome | None = None
    """The run after the switch back; None where that restores the modes of the first run."""
    back_steps: Record | None = None
    mode_problem: str = ""
    """Why the mode of the emitted module must be locked, as far as the runs show."""
    unlike: dict[str, Outcome] = attrs.field(factory=dict)
    """Surroundings in which the model behaves differently, or may -> its behaviour there."""
    functions: Mapping[type, str] = attrs.field(factory=dict)
    """The user's `torch.autograd.Function`s that were called -> in which way their backward is not the derivative of
    their forward, or an empty text."""
    memos: frozenset[tuple[str, str]] = frozenset()
    """(module path, attribute) of state that calls keep and no other call depends on."""
    modes_after: Mapping[str, Modes] = attrs.field(factory=dict)
    """Switch (of `ir.program.SWITCHES`) -> modes of modules afterwards, where a plain switch would give others."""

    @property
    def questions(self) -> Mapping[str, Location]:
        """Questions to the surroundings in any of the runs -> where."""
        found: dict[str, Location] = {}
        for steps in (self.back_steps, self.other_steps, self.steps):
            found |= steps.questions if steps is not None else {}
        return found

    @property
    def irregular(self) -> frozenset[str]:
        """Paths of the modules whose mode is read or set by code outside of the layer itself."""
        found: set[str] = set()
        for steps in (self.steps, self.other_steps, self.back_steps):
            if steps is not None:
                found |= {*steps.readers, *steps.switched}
        return frozenset(found)
