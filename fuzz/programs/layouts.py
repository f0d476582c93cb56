"""Equal tensors in other memory layouts."""

from __future__ import annotations

from typing import Any

import torch


def is_standard(x: Any) -> bool:
    """Return whether a tensor is contiguous or channels_last."""
    if not isinstance(x, torch.Tensor) or x.is_contiguous():
        return True
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def transposed(x: Any) -> Any:
    """Return an equal tensor whose memory runs through the dimensions in the reverse order."""
    if not isinstance(x, torch.Tensor) or x.dim() < 2:
        return x
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channels_last(x: Any) -> Any:
    """Return an equal tensor in channels_last, where it has four dimensions."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last)
