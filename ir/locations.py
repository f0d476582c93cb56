"""Where an operation comes from in the user's model."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen(cache_hash=True)
class Location:
    """A place in the user's model: module path, module class, source line.

    `merged` holds the locations of the operations that a rewrite replaced, in their order, when there were several
    different ones; the fields of the location itself are then those of the first.
    """

    module_path: str = ""
    """Path as in `named_modules()`: `layer1.0.conv1`; empty for the root module."""
    module_class: str = ""
    """Qualified name of the module's class: `torch.nn.modules.conv.Conv2d`."""
    file: str = ""
    line: int = 0
    merged: tuple[Location, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """Whether nothing at all is known."""
        return not (self.module_path or self.module_class or self.file)

    @property
    def class_name(self) -> str:
        """The module's class without its package: `Conv2d`."""
        return self.module_class.rpartition(".")[2]

    @property
    def parts(self) -> tuple[Location, ...]:
        """The merged locations, or this one alone."""
        return self.merged or (self,)

    @property
    def source(self) -> str:
        """`file:line`, or the empty string."""
        return f"{self.file}:{self.line}" if self.file else ""

    @property
    def where(self) -> str:
        """A short name for messages: the module path, else the source line, else the root."""
        return (
            self.module_path
            or self.source
            or (f"the root {self.class_name}" if self.class_name else "an unknown place")
        )

    def __str__(self) -> str:
        text = f"`{self.module_path}`" if self.module_path else "the root module"
        if self.class_name:
            text += f" ({self.class_name})"
        if self.file:
            text += f", {self.file}:{self.line}"
        return text


UNKNOWN_LOCATION = Location()


def merge_locations(locations: Iterable[Location]) -> Location:
    """Return one location that stands for all of `locations`, in order and without repeats."""
    distinct: dict[Location, None] = {}
    previous = None
    for location in locations:
        if location is previous:
            continue
        previous = location
        for part in location.parts:
            if not part.is_unknown:
                distinct.setdefault(part)
    if not distinct:
        return UNKNOWN_LOCATION
    parts = tuple(distinct)
    if len(parts) == 1:
        return parts[0]
    return attrs.evolve(parts[0], merged=parts)
