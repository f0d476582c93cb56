"""Shared by inference rules: the fallback to fake tensors, and arithmetic on dimensions.

A rule answers only where it is certain. Else it raises `Undecided`, or `Misfit` if the operands cannot fit. Both fall
back to running the operator on fake tensors, so that a rule may be slow but not wrong. A `Misfit` is final for operands
of partly unknown types, which cannot be run, and of a rule that `knows_misfits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._sympy.functions import FloorDiv

from ir.attributes import Attribute
from ir.errors import InferenceError
from ir.fake import infer_with_fakes, is_unknown
from ir.opdef import InferRule, get_opdef
from ir.types import UNKNOWN_TENSOR, Dim, OpaqueType, ScalarType, TensorType, Type, dims_equal, simplify_dim, wrap

Shape = tuple[Dim | None, ...]
Attributes = Mapping[str, Attribute]

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
FLOATS_OR_UNKNOWN = FLOATS | {None}
INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


class Undecided(Exception):  # noqa: N818 - control flow inside this package, no error
    """The rule falls back to the operator."""


class Misfit(Undecided):
    """The operands cannot fit the operator; the message says why."""


class Refusal(Exception):  # noqa: N818 - becomes an InferenceError that names the operator
    """The operator may take the operands, but its result types cannot be known; the message says why."""


_KNOWING: set[InferRule] = set()


def knows_misfits(rule: InferRule) -> InferRule:
    """Mark a rule whose misfits are all refused by the kernel. It is not asked for its own words, which takes long."""
    _KNOWING.add(rule)
    return rule


def with_fallback(name: str, rule: InferRule) -> InferRule:
    """Return the inference rule of the operator `name`: `rule` where it decides, else the operator on fake tensors."""

    def infer(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        if not all(type(type_) is TensorType or type_ is None for type_ in types):
            types = tuple(map(_as_tensor, types))
        if any(type(type_) is ScalarType for type_ in types):
            return infer_with_fakes(get_opdef(name), types, attributes)
        try:
            return rule(types, attributes)
        except Misfit as misfit:
            if rule in _KNOWING or is_unknown(types):
                shown = ", ".join(str(t) for t in types)
                raise InferenceError(f"{name} does not take operands ({shown}): {misfit}") from None
        except Refusal as refusal:
            shown = ", ".join(str(t) for t in types)
            raise InferenceError(
                f"the result types of {name} for operands ({shown}) are not known: {refusal}"
            ) from None
        except Undecided:
            pass
        return infer_with_fakes(get_opdef(name), types, attributes)

    return infer


def _as_tensor(type_: Any) -> Any:
    """Return the type of an operand, which is a tensor if nothing is known of it, also in a list."""
    if type(type_) is tuple:
        return tuple(map(_as_tensor, type_))
    return UNKNOWN_TENSOR if type(type_) is OpaqueType else type_


def floor_div(a: Dim, b: Dim) -> Dim:
    """Return a // b, with PyTorch's function if it is symbolic."""
    if type(a) is int and type(b) is int:
        return a // b
    return simplify_dim(FloorDiv(a, b))


def total(dims: Sequence[Dim | None]) -> Dim | None:
    """Return the sum of sizes, or None if one is unknown."""
    result: Dim = 0
    for dim in dims:
        if dim is None:
            return None
        result = result + dim
    return simplify_dim(result)


def require_equal(a: Dim | None, b: Dim | None, what: str) -> None:
    """Demand two sizes that are equal or unknown.

    Raises:
        Misfit: when they are different numbers.
        Undecided: when that depends on a symbol.
    """
    if a is b or a is None or b is None:
        return
    if type(a) is int and type(b) is int:
        if a != b:
            raise Misfit(f"{what} is {a}, not {b}")
    elif not dims_equal(a, b):
        raise Undecided


def require(condition: bool) -> None:
    """Fall back to the operator unless a condition holds.

    Raises:
        Undecided: when it does not.
    """
    if not condition:
        raise Undecided


def require_rank(shape: Shape, *ranks: int) -> None:
    """Demand a shape of one of the ranks.

    Raises:
        Misfit: when the rank is another.
    """
    if len(shape) not in ranks:
        raise Misfit(f"a rank of {' or '.join(map(str, ranks))} is needed, not {len(shape)}")


def require_not_empty(shape: Shape) -> None:
    """Fall back to the operator for tensors without elements, which operators treat differently."""
    if 0 in shape:
        raise Undecided


def wrap_dim(dim: Any, rank: int) -> int:
    """Return the number of a dimension, counted from the front; scalars have a dimension 0, as in PyTorch.

    Raises:
        Misfit: when it is out of range.
    """
    wrapped = wrap(dim, rank)
    if wrapped is None:
        if type(dim) is not int:
            raise Undecided
        raise Misfit(f"dimension {dim} is out of range for rank {rank}")
    return wrapped


def wrap_dims(dims: Sequence[Any], rank: int) -> list[int]:
    """Return the numbers of distinct dimensions, counted from the front.

    Raises:
        Misfit: when one is out of range or there twice.
    """
    wrapped = [wrap_dim(dim, rank) for dim in dims]
    if len(set(wrapped)) != len(wrapped):
        raise Misfit(f"dimensions {tuple(dims)} name one twice")
    return wrapped


def float_dtype(types: Sequence[TensorType | None], *others: torch.dtype) -> torch.dtype | None:
    """Return the one floating dtype of the operands, or one of the others; None where no operand's is known.

    Raises:
        Undecided: when the dtypes differ, or are not the usual floating ones.
    """
    found: torch.dtype | None = _one_of([type_.dtype for type_ in types if type_ is not None])
    require(found in FLOATS_OR_UNKNOWN or found in others)
    return found


def require_one_dtype(types: Sequence[TensorType | None]) -> None:
    """Demand dtypes that are equal or unknown.

    Raises:
        Misfit: when they differ.
    """
    found = dict.fromkeys(type_.dtype for type_ in types if type_ is not None and type_.dtype is not None)
    if len(found) > 1:
        raise Misfit(f"the dtypes {', '.join(map(str, found))} differ")


def common_device(types: Sequence[TensorType | None]) -> torch.device | None:
    """Return the one device of the operands, or None where no operand's is known.

    Raises:
        Undecided: when the devices differ.
    """
    found: torch.device | None = _one_of([type_.device for type_ in types if type_ is not None])
    return found


def _one_of(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    require(all(value == known[0] for value in known))
    return known[0] if known else None


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that the shapes broadcast to.

    A symbolic size broadcasts against 1 and against itself only.

    Raises:
        Misfit: when sizes are different numbers, neither of them 1.
        Undecided: when that depends on a symbol.
    """
    first = shapes[0]
    if all(shape == first for shape in shapes[1:]):
        return first
    rank = max(map(len, shapes))
    result: list[Dim | None] = []
    for position in range(-rank, 0):
        size: Dim | None = 1
        for shape in shapes:
            if len(shape) >= -position:
                size = _broadcast_dim(size, shape[position])
        result.append(size)
    return tuple(result)


def _broadcast_dim(a: Dim | None, b: Dim | None) -> Dim | None:
    if type(b) is int and b == 1:
        return a
    if type(a) is int and a == 1:
        return b
    if a is None or b is None:
        # unknown against a number gives the number; against a symbol, which may be 1, it stays unknown
        known = b if a is None else a
        return known if type(known) is int else None
    if type(a) is int and type(b) is int:
        if a != b:
            raise Misfit(f"sizes {a} and {b} do not broadcast")
        return a
    if dims_equal(a, b):
        return a
    raise Undecided
