"""Overlap of tensors in memory."""

from __future__ import annotations

import torch


def may_overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors may share an element: their spans in one piece of memory overlap.

    Disjoint parts of one piece of memory do not overlap; a tensor without memory overlaps with none.
    """
    if not share_memory(a, b):
        return False
    (a_first, a_end), (b_first, b_end) = _span(a), _span(b)
    return a_first < b_end and b_first < a_end


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors share a piece of memory, perhaps as disjoint parts."""
    memory = memory_of(a)
    return memory is not None and memory == memory_of(b)


def memory_of(tensor: torch.Tensor) -> tuple[torch.device, int] | None:
    """Return the piece of memory that a tensor lies in, or None where it has none."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    # not the storage object: two may wrap one numpy array
    return tensor.device, tensor.untyped_storage().data_ptr()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor uses in its storage, and the one after the last."""
    size = tensor.element_size()
    reach = sum((int(n) - 1) * int(stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset()) * size
    return first, first + (reach + 1) * size
