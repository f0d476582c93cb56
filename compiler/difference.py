"""How two tensors differ that should be one: in their bits, or by more than rounding explains."""

from __future__ import annotations

from typing import Any

import torch

RELATIVE_BOUND = 1e-9
"""Largest difference of float64 results that counts as rounding, relative to the largest magnitude."""


def tensor_difference(a: Any, b: Any, *, exact: bool, bound: float = 0.0) -> str | None:
    """Return how two results differ in dtype, shape or values, or None.

    Args:
        a: the one expected.
        b: the one to judge.
        exact: whether floats must have the same bits (any NaN equals any NaN).
        bound: an absolute difference that is allowed beside that of `RELATIVE_BOUND`.
    """
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return None if type(a) is type(b) and (a == b or (a != a and b != b)) else f"{a!r} became {b!r}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {tuple(a.shape)} became {b.dtype} {tuple(b.shape)}"
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.is_floating_point() and a.dtype.itemsize == 1:
        a, b = a.float(), b.float()  # eight bits are not computed with
    # most are equal, and found to be so by one operation
    equal = torch.equal(a, b)
    if not a.is_floating_point():
        return None if equal else f"{int((a != b).sum())} of {a.numel()} elements differ"
    if equal and (not exact or torch.equal(torch.signbit(a), torch.signbit(b))):
        return None
    nan = a.isnan()
    if not torch.equal(nan, b.isnan()):
        return f"NaN at {int(nan.sum())} of {a.numel()} places became NaN at {int(b.isnan().sum())}"
    if exact:
        wrong = int((((a != b) | (torch.signbit(a) != torch.signbit(b))) & ~nan).sum())
        return f"{wrong} of {a.numel()} elements differ in their bits" if wrong else None
    finite = a.isfinite()
    if not torch.equal(a[~finite & ~nan], b[~finite & ~nan]) or not torch.equal(finite, b.isfinite()):
        return "infinity sits in other places"
    if not finite.any():
        return None
    scale, error = float(a[finite].abs().max()), float((a[finite] - b[finite]).abs().max())
    return f"values differ by {error:.3g} of {scale:.3g}" if error > RELATIVE_BOUND * scale + bound else None
