"""Functions of numbers where PyTorch's exporter has formulas that overflow, lose digits, or take another branch.

Each is made of operators whose formula in a file is the plain one. `_log1p` and `_expm1` are the identities
log(1 + x) = 2·artanh(x / (x + 2)) and exp(x) - 1 = tanh(x / 2)·(exp(x) + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from ir.errors import CodegenError


def _expm1(x: Any) -> Any:
    # exp(x) - 1 has no digits left near 0
    return torch.tanh(x / 2) * (torch.exp(x) + 1)


def _log1p(x: Any) -> Any:
    return torch.where(x.abs() < 0.5, 2 * torch.atanh(x / (x + 2)), torch.log(x + 1))


def _log_sigmoid(x: Any) -> Any:
    # the logarithm of the sigmoid is that of 0 from -17 on
    return torch.minimum(x, torch.zeros_like(x)) - _log1p(torch.exp(-x.abs()))


def _binary_cross_entropy(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, *, reduction: int = 1
) -> Any:
    """-(p·t·log σ(x) + (1 - t)·log σ(-x))·w, with log σ(-x) = log σ(x) - x; reduction 0 is none, 1 mean, 2 sum."""
    log = _log_sigmoid(x)
    positive = target if pos_weight is None else target * pos_weight
    loss = (1 - target) * x - (positive + 1 - target) * log
    return _reduced(loss if weight is None else loss * weight, reduction)


def _soft_margin(x: Any, target: Any, *, reduction: int = 1) -> Any:
    return _reduced(_log1p(torch.exp(-target * x)), reduction)


def _reduced(loss: Any, reduction: int) -> Any:
    return loss if reduction == 0 else (loss.mean() if reduction == 1 else loss.sum())


def _xlog1py(x: Any, y: Any) -> Any:
    product = x * _log1p(y)
    return torch.where((x == 0) & ~torch.isnan(y), torch.zeros_like(product), product)


def _log_normal_distribution(x: Any) -> Any:
    raise CodegenError(
        "aten.special_log_ndtr cannot be written: ONNX has no scaled error function",
        remedy="leave that part out of the file",
    )


def _log_add_exp(x: Any, y: Any) -> Any:
    greater = torch.maximum(x, y)
    # equal infinities have no difference
    return torch.where(x == y, greater + math.log(2), greater + _log1p(torch.exp(-(x - y).abs())))


def _log_add_exp2(x: Any, y: Any) -> Any:
    greater = torch.maximum(x, y)
    return torch.where(x == y, greater + 1, greater + _log1p(torch.exp2(-(x - y).abs())) / math.log(2))


def _log_cum_sum_exp(x: Any, *, dim: int) -> Any:
    """Return sums of 1, 2, 4, … terms in turn (the scan of Hillis and Steele): each is as exact as a sum of two."""
    if x.dim() == 0:
        return x
    size = x.shape[dim]
    if type(size) is not int:
        raise CodegenError(
            "aten.logcumsumexp over a dynamic size cannot be written",
            remedy="transform the model with a fixed size in place of the dynamic one",
        )
    step = 1
    while step < size:
        before = torch.full_like(x.narrow(dim, 0, step), -math.inf)
        x = _log_add_exp(x, torch.cat([before, x.narrow(dim, 0, size - step)], dim))
        step *= 2
    return x


def _atan2(y: Any, x: Any) -> Any:
    """Return the angle of (x, y); a zero's sign counts."""
    angle = torch.atan(y.abs() / x.abs())
    angle = torch.where((y == 0) & (x == 0), torch.zeros_like(angle), angle)
    angle = torch.where(torch.isinf(y) & torch.isinf(x), torch.full_like(angle, math.pi / 4), angle)
    angle = torch.where(_is_negative(x), math.pi - angle, angle)
    return torch.where(_is_negative(y), -angle, angle)


def _is_negative(x: Any) -> Any:
    """Return the sign bit: the inverse of -0 is -inf."""
    return (x < 0) | ((x == 0) & (1 / x < 0))


def _clamp(x: Any, **ends: Any) -> Any:
    low, high = ends["min"], ends["max"]
    if isinstance(low, float) or isinstance(high, float):  # the exporter has no overload for one of each kind
        x = x.to(torch.result_type(x, 0.5))
        low, high = (end if end is None else float(end) for end in (low, high))
    if not x.dtype.is_floating_point or (low is None) == (high is None):
        return torch.clamp(x, _exact(low, x), _exact(high, x))
    # engines put the largest number in the place of an end that is missing, and infinity becomes that
    return torch.minimum(x, _filled(high, x)) if low is None else torch.maximum(x, _filled(low, x))


def _exact(number: Any, x: Any) -> Any:
    """Return a number as a tensor where `x` is in float64: a file has Python's numbers in float32."""
    return number if number is None or x.dtype != torch.float64 else torch.tensor(number, dtype=torch.float64)


def _filled(number: Any, x: Any) -> Any:
    return _exact(number, x) if x.dtype == torch.float64 else torch.full_like(x, number)


def _add(x: Any, *, other: Any, alpha: Any = 1) -> Any:
    # the exporter has no overload for one number of each kind
    return torch.add(x, _exact(other * alpha, x))


def _sub(x: Any, *, other: Any, alpha: Any = 1) -> Any:
    return torch.sub(x, _exact(other * alpha, x))


def _remainder(x: Any, y: Any = None, *, other: Any = None) -> Any:
    """Return x - y·floor(x / y) without the rounding of the quotient: the remainder of the division of magnitudes."""
    y = other if y is None else y
    if not x.dtype.is_floating_point:
        return torch.remainder(x, y)
    y = torch.full_like(x, y) if not isinstance(y, torch.Tensor) else y
    rest = torch.fmod(x, y)
    return torch.where((rest != 0) & ((y < 0) != (rest < 0)), rest + y, rest)


def _divide(x: Any, y: Any = None, *, other: Any = None, rounding_mode: Any = "floor") -> Any:
    y = other if y is None else y
    if rounding_mode == "floor" and x.dtype.is_floating_point:
        return _floor_divide(x, y)
    return torch.div(x, y, rounding_mode=rounding_mode)


def _floor_divide(x: Any, y: Any) -> Any:
    """Return the quotient of floating numbers, rounded down, as PyTorch computes it (`c10::div_floor_floating`).

    The floor of the rounded quotient may be one too large: 2.1 // 0.7 is 2.
    """
    y = torch.full_like(x, y) if not isinstance(y, torch.Tensor) else y
    rest = torch.fmod(x, y)
    quotient = (x - rest) / y
    quotient = torch.where((rest != 0) & ((y < 0) != (rest < 0)), quotient - 1, quotient)
    whole = torch.floor(quotient)
    whole = torch.where(quotient - whole > 0.5, whole + 1, whole)
    whole = torch.where(quotient != 0, whole, x / y * 0)
    return torch.where(y == 0, x / y, whole)


FORMULAS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "aten.expm1": _expm1,
        "aten.log1p": _log1p,
        "aten.log_sigmoid": _log_sigmoid,
        "aten.binary_cross_entropy_with_logits": _binary_cross_entropy,
        "aten.soft_margin_loss": _soft_margin,
        "aten.logaddexp": _log_add_exp,
        "aten.logaddexp2": _log_add_exp2,
        "aten.logcumsumexp": _log_cum_sum_exp,
        "aten.special_xlog1py": _xlog1py,
        "aten.special_log_ndtr": _log_normal_distribution,
        "aten.atan2": _atan2,
        "aten.clamp": _clamp,
        "aten.add.Scalar": _add,
        "aten.sub.Scalar": _sub,
        "aten.remainder.Scalar": _remainder,
        "aten.remainder.Tensor": _remainder,
        "aten.floor_divide": _divide,
        "aten.floor_divide.Scalar": _divide,
        "aten.div.Tensor_mode": _divide,
        "aten.div.Scalar_mode": _divide,
    }
)
"""Operator -> its function of operands and attributes."""
