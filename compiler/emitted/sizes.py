"""What an emitted module calls to check a size that depends on data."""

from __future__ import annotations

import torch
from torch.fx.node import has_side_effect


@has_side_effect
def check_size(holds: bool, text: str, place: str) -> None:
    """Check what the captured graph assumes of a size that depends on data; the original checks it, too.

    `torch.export` turns the check into an assertion of the graph.

    Args:
        holds: whether the assumption holds.
        text: the assumption.
        place: where the original computes the size.

    Raises:
        RuntimeError: when it does not hold.
    """
    at = f" ({place})" if place else ""
    torch._check(holds, lambda: f"the model was captured for `{text}`, a size that depends on data{at}")
