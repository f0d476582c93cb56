"""What is asked of a changed program or module, and what is found."""

from __future__ import annotations

import attrs

from passes.rewrite.bounds.tolerance import Bounds


class Finding(AssertionError):  # noqa: N818 - a result, not a failure
    """A property that does not hold.

    Attributes:
        property: the property: `values`, `types`, `gradients`, …
        message: how it does not hold.
        way: the capture of a module; None for a program.
    """

    def __init__(self, property_: str, message: str, way: str | None = None) -> None:
        self.property = property_
        self.message = message
        self.way = way
        super().__init__(f"{property_}: {message}")


class Unusable(Exception):  # noqa: N818 - control flow: nothing is wrong with the rule
    """The original itself does not run on these inputs, so there is nothing to compare."""


@attrs.frozen
class Properties:
    """The properties to check."""

    exact: bool = False
    """Whether results must have the same bits; otherwise they may differ by rounding."""
    values: bool = True
    """Whether values are compared."""
    strides: bool = True
    """Whether results keep their strides; for rules that are not exact, on contiguous or channels_last inputs only."""
    sharing: bool = True
    """Whether the same tensors share storage."""
    gradients: bool = True
    """Whether gradients of inputs and weights stay."""
    idempotent: bool = False
    """Whether a second application changes nothing."""
    text: bool = True
    """Whether the changed program survives printing and parsing."""
    modes: bool = True
    """Whether all holds after `train()` too, for operations that follow the mode of their module."""
    weights: bool = True
    """Whether all holds for other numbers in weights too: of a checkpoint, after training, after calls that mutate."""
    converted: bool = False
    """Whether all holds after `.to(torch.float64)`, which literals of the code do not follow."""
    canonical: bool = False
    """Whether programs that are equal by construction get the same text, where the case says so."""
    non_finite: bool = True
    """Whether all holds for inputs with NaN or infinity, and for values that overflow."""
    unknown: bool = True
    """Whether all holds for programs with unknown types, as of FX graphs without example inputs."""
    emitted: bool = True
    """Whether the module that a program is emitted as computes what the program does; one program in sixteen runs."""
    explained: bool = True
    """Whether `explain` says of each operation what the matcher of a rule does; a search asks one in sixteen."""
    bounds: Bounds | None = None
    """Where values change on purpose, and are not compared: each rewrite is held to its tolerance instead."""

    @classmethod
    def demands(cls) -> dict[str, bool]:
        """Return the properties that a search may be told to check or to leave out, and which it checks by itself."""
        return {field.name: field.default for field in attrs.fields(cls) if isinstance(field.default, bool)}
