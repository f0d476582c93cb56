"""Locations of operations in the user's model."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

# The number of modules that the text of a merged location names.
_MAX_NAMED = 4


@attrs.frozen(cache_hash=True)
class Location:
    """A place in the user's model: module path, module class, source line.

    `merged` holds the distinct locations of the operations that a rewrite replaced, in order. The other fields are then
    those of the first one in a submodule.

    Attributes:
        file: the user's source file, or the empty string.
        line: line in that file, from 1; 0 where it is not known.
        merged: the locations that this one stands for; see above.
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
        named: dict[str, str] = {}
        for part in self.parts:
            if part.module_path:
                named.setdefault(part.module_path, part.class_name)
        if not named:
            text = f"the root module ({self.class_name})" if self.class_name else "the root module"
        else:
            shown = [f"`{path}`" + (f" ({name})" if name else "") for path, name in list(named.items())[:_MAX_NAMED]]
            text = ", ".join(shown) + (f" and {len(named) - len(shown)} more" if len(named) > len(shown) else "")
        if self.file:
            text += f", {self.file}:{self.line}"
        return text


UNKNOWN_LOCATION = Location()


def merge_locations(locations: Iterable[Location]) -> Location:
    """Return one location for all of `locations`, in order and without repeats."""
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
    # the first in a submodule: "the root" says little
    first = next((part for part in parts if part.module_path), parts[0])
    return attrs.evolve(first, merged=parts)
