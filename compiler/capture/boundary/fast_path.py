"""The fast path of PyTorch's transformer layers, which is taken when gradients are off.

It computes the same as the ordinary path, with three exceptions. An `nn.TransformerEncoder` that makes nested tensors
of a padding mask returns zeros at padded positions. A mask row that excludes everything gives NaN. In a mask of
numbers, all but zeros exclude, where the ordinary path adds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compiler.capture.patches import patched

_ENCODER = nn.TransformerEncoder.forward.__code__
_LAYERS = frozenset({nn.TransformerEncoderLayer.forward.__code__, nn.MultiheadAttention.forward.__code__})
_MASKS = ("src_key_padding_mask", "key_padding_mask", "src_mask", "attn_mask")


def questions_of(code: Any, local: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the questions to the surroundings on which a method's choice of the fast path depends.

    The method of PyTorch is given by its code and its local variables.
    """
    if code is _ENCODER:
        encoder, src = local["self"], local["src"]
        if not makes_nested(encoder, src, local["mask"], local["src_key_padding_mask"]):
            return ()
        layer = encoder.layers[0]
        parts = (layer.self_attn, layer.self_attn.out_proj, layer.norm1, layer.norm2, layer.linear1, layer.linear2)
        tensors = [src, *(p for part in parts for p in part.parameters(recurse=False))]
        return ("nested",) if any(tensor.requires_grad for tensor in tensors) else ("nested", "always nested")
    if code not in _LAYERS or local["self"].__dict__["training"]:
        return ()
    return ("grad",) if any(_is_read_otherwise(local.get(name)) for name in _MASKS) else ()


def is_fast(code: Any) -> bool:
    """Return whether a method of PyTorch's may take the fast path."""
    return code is _ENCODER or code in _LAYERS


def makes_nested(encoder: Any, src: torch.Tensor, mask: Any, padding: Any) -> bool:
    """Return whether an encoder makes nested tensors of some padding mask of this type when gradients are off."""
    if not isinstance(padding, torch.Tensor) or mask is not None or src.dim() != 3 or src.is_nested:
        return False
    return bool(getattr(encoder, "use_nested_tensor", False)) and not encoder.layers[0].__dict__["training"]


def _is_read_otherwise(mask: Any) -> bool:
    """Return whether a mask may mean something else on the fast path."""
    if not isinstance(mask, torch.Tensor):
        return False
    excluded = mask if mask.dtype == torch.bool else torch.isneginf(mask)
    return bool(excluded.all(-1).any()) or bool(((mask != 0) & ~excluded).any())


@contextmanager
def slow_path() -> Iterator[None]:
    """Turn the fast path off inside the `with` block."""
    known = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(known)


@contextmanager
def ordinary_call() -> Iterator[None]:
    """Turn gradients on, and inference mode and the fast path off, inside the `with` block."""
    with slow_path(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def padding_tried(*, zeros: bool) -> Iterator[None]:
    """Give encoders that may make nested tensors a mask that pads, on the ordinary path.

    A mask that pads already stays. In another one, the last position of each row is padded.

    Args:
        zeros: whether to return zeros at padded positions, as the fast path does. Where that is observable, so is the
            fast path.
    """
    original = nn.TransformerEncoder.forward

    def forward(
        self: nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        padding = src_key_padding_mask
        if padding is None or not makes_nested(self, src, mask, padding) or src.shape[1] < 2:
            return original(self, src, mask, padding, is_causal)
        if not _pads(src, padding):
            padding = torch.zeros_like(padding)
            padding[:, -1] = True if padding.dtype == torch.bool else float("-inf")
        found = original(self, src, mask, padding, is_causal)
        return found.masked_fill((padding != 0).unsqueeze(-1), 0.0) if zeros else found

    with patched(nn.TransformerEncoder, forward=forward), slow_path():
        yield


def _pads(src: torch.Tensor, padding: torch.Tensor) -> bool:
    kept = padding == 0
    return not bool(kept.all()) and bool(torch._nested_tensor_from_mask_left_aligned(src, kept))
