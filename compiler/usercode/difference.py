"""Differences of results: in bits, or beyond rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from ir.attributes import attributes_equal

RELATIVE_BOUND = 1e-9
"""Largest difference of float64 results that counts as rounding, relative to the largest magnitude."""

OF_VALUES = "values differ by"
"""How the message begins where two tensors differ in nothing but finite values, so that it may be rounding."""


def precision_floor(dtype: torch.dtype) -> float:
    """Return the relative difference that is always allowed: eight units in the last place, at least 1e-6."""
    if not dtype.is_floating_point and not dtype.is_complex:
        return 1e-6
    return 1e-6 * max(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)


def allowed_error(own: float, scale: float, floor: float) -> float:
    """Return the distance from a reference that is allowed: twice that of the original, and the floor of the scale.

    Args:
        own: the original's own distance.
        scale: the largest magnitude in the reference.
        floor: what is allowed in any case, relative to the scale.
    """
    return 2 * own + floor * scale


def tensor_difference(a: Any, b: Any, *, exact: bool, bound: float = 0.0) -> str | None:
    """Return how two results differ in dtype, shape or values, or None.

    Args:
        a: the expected result.
        b: the result to judge.
        exact: whether floats must have the same bits (any NaN equals any NaN).
        bound: an absolute difference that is allowed in addition to `RELATIVE_BOUND`.
    """
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return None if _are_equal(a, b) else f"{a!r} became {b!r}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {tuple(a.shape)} became {b.dtype} {tuple(b.shape)}"
    if a.layout is not b.layout or a.device != b.device:
        return f"{a.layout} on {a.device} became {b.layout} on {b.device}"
    if a.device.type == "meta":
        return None  # it has no values
    a, b = dense(a), dense(b)
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.is_floating_point() and a.dtype.itemsize == 1:
        a, b = a.float(), b.float()  # there is no arithmetic on eight bits
    # the common case takes one operation
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
    return f"{OF_VALUES} {error:.3g} of {scale:.3g}" if error > RELATIVE_BOUND * scale + bound else None


_PLAIN = (torch.Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def is_plain(value: Any) -> bool:
    """Return whether a value is compared as a whole: a tensor, number or text."""
    return isinstance(value, _PLAIN) or _is_array(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "tobytes") and hasattr(value, "shape")


def _are_equal(a: Any, b: Any) -> bool:
    """Return whether two objects other than tensors are equal, as far as they show it; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if _is_array(a):
        return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())
    equality: Any = type(a).__eq__
    if equality is object.__eq__ and not isinstance(a, type):
        return True  # each call makes a new one
    return bool(a == b) or bool(a != a and b != b)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a layout and dtype that support comparison."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    small = tensor.is_floating_point() and tensor.element_size() == 1  # float8 has few operators
    return tensor.float() if small else tensor


def scale_of(tensor: torch.Tensor) -> float:
    """Return the largest finite magnitude of a floating-point tensor; 0 of others."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return 0.0
    magnitudes = dense(tensor.detach()).abs()
    finite = magnitudes[magnitudes.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def structures_equal(a: Any, b: Any) -> bool:
    """Return whether two structures of results are the same: specs, or tuples of these and classes.

    Keys of several classes may be equal (1, True and 1.0), and are told apart.
    """
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(structures_equal, a, b))
    if not isinstance(a, pytree.TreeSpec) or not isinstance(b, pytree.TreeSpec):
        return bool(a == b)
    if a != b or not attributes_equal(a.context, b.context):
        return False
    return all(map(structures_equal, a.children(), b.children()))
