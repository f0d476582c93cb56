"""All models of the zoo."""

from __future__ import annotations

from collections.abc import Iterator

from tests.zoo.models import own, timm_models, tiny, vision
from tests.zoo.models.entry import Entry

FAMILIES = ("own", "transformers", "torchvision", "timm")
"""The families, those whose models take the least time first."""


def entries(families: tuple[str, ...] = FAMILIES) -> Iterator[Entry]:
    """Yield the entries of the families; only those of torchvision need a package, to be listed."""
    rooms = {"own": own, "transformers": tiny, "torchvision": vision, "timm": timm_models}
    for family in families:
        yield from rooms[family].entries()


def find(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        KeyError: there is none.
    """
    for entry in entries((name.partition("/")[0],)):
        if entry.name == name:
            return entry
    raise KeyError(name)
