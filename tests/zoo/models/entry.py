"""What the zoo is made of: a name, and a function that makes the model and the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import nn

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model in eval mode with random weights, and the positional and keyword arguments of a call."""


@attrs.frozen(eq=False)
class Entry:
    """A model of the zoo."""

    name: str
    """`family/model`."""
    make: Callable[[], Made]

    @property
    def family(self) -> str:
        """The part of the name before the slash: the package that the model comes from, or `own`."""
        return self.name.partition("/")[0]


class UnrunnableError(Exception):
    """No arguments were found with which a model runs."""


def images(model: nn.Module, sizes: Sequence[int], *, batch: int = 2, channels: int = 3) -> torch.Tensor:
    """Return a batch of random images, f32[batch, channels, s, s], of the first size that the model accepts.

    Raises:
        UnrunnableError: it accepts none.
    """
    error: Exception | None = None
    for size in sizes:
        x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(x)
        except Exception as caught:  # noqa: BLE001 - models refuse sizes by all sorts of errors
            error = caught
        else:
            return x
    raise UnrunnableError(f"does not run on images of {', '.join(map(str, sizes))} pixels") from error


def named(family: str, makers: dict[str, Callable[[], Made]]) -> Iterator[Entry]:
    """Yield the entries of a family."""
    for name, make in makers.items():
        yield Entry(f"{family}/{name}", make)
