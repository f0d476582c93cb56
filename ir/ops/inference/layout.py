"""Inference for operators that reshape and permute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from ir.columns import Layout, permutation
from ir.opdef import InferRule
from ir.ops.inference.support import (
    Attributes,
    Misfit,
    Shape,
    Undecided,
    floor_div,
    require,
    require_equal,
    wrap_dim,
    wrap_dims,
)
from ir.types import Dim, TensorType, Type, dims_equal, product, simplify_dim


def _with_shape(x: TensorType, shape: Sequence[Dim | None] | None) -> tuple[Type, ...]:
    return (TensorType(None if shape is None else tuple(shape), x.dtype, x.device),)


def reshape(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """view, reshape and _unsafe_view: the sizes of the attribute, of which one may be -1."""
    x = types[0]
    sizes = attributes["size"] if "size" in attributes else attributes["shape"]
    return _with_shape(x, fill_in(x.shape, sizes))


def fill_in(shape: Shape | None, sizes: tuple[Any, ...]) -> Shape:
    """Return `sizes` with -1 replaced by the size that keeps the number of elements of `shape`.

    Raises:
        Misfit: when there is none.
        Undecided: when that depends on a symbol, or there are no elements.
    """
    if any(type(size) is int and size < -1 for size in sizes):
        raise Misfit(f"a size in {sizes} is negative")
    places = [i for i, size in enumerate(sizes) if type(size) is int and size == -1]
    if len(places) > 1:
        raise Misfit(f"more than one size in {sizes} is -1")
    count = None if shape is None else product(shape)
    if not places:
        if count is not None:
            require_equal(count, product(sizes), "the number of elements")
        return sizes
    place = places[0]
    rest = product([size for i, size in enumerate(sizes) if i != place])
    assert rest is not None
    size = None if count is None else _divide(count, rest)
    return (*sizes[:place], size, *sizes[place + 1 :])


def _divide(count: Dim, rest: Dim) -> Dim:
    if rest == 0 or count == 0:
        raise Undecided
    if type(count) is int and type(rest) is int:
        if count % rest:
            raise Misfit(f"{count} elements do not divide by {rest}")
        return count // rest
    quotient = floor_div(count, rest)
    if not dims_equal(simplify_dim(quotient * rest), count):
        # PyTorch's function leaves powers as they are: n**3 // n**2
        quotient = sympy.cancel(sympy.sympify(count) / rest)
        coefficients = sympy.expand(quotient).as_coefficients_dict().values()
        require(sympy.fraction(quotient)[1] == 1 and all(each.is_Integer for each in coefficients))
    return simplify_dim(quotient)


def flatten(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Merge the dimensions from `start_dim` to `end_dim`."""
    x = types[0]
    if x.shape is None:
        return (x,)
    rank = len(x.shape)
    if rank == 0:
        wrap_dim(attributes["start_dim"], 0)
        wrap_dim(attributes["end_dim"], 0)
        return _with_shape(x, (1,))
    start, end = wrap_dim(attributes["start_dim"], rank), wrap_dim(attributes["end_dim"], rank)
    if start > end:
        raise Misfit("start_dim comes after end_dim")
    return _with_shape(x, (*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def unflatten(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Split one dimension into `sizes`, of which one may be -1."""
    x, sizes = types[0], attributes["sizes"]
    if x.shape is None:
        return (x,)
    require(len(x.shape) > 0 and len(sizes) > 0)
    dim = wrap_dim(attributes["dim"], len(x.shape))
    if x.shape[dim] is None:
        inner: Shape = tuple([None if type(s) is int and s == -1 else s for s in sizes])
    else:
        inner = fill_in((x.shape[dim],), sizes)
    return _with_shape(x, (*x.shape[:dim], *inner, *x.shape[dim + 1 :]))


def reorder(layout: Layout) -> InferRule:
    """Return the rule of an operator that permutes dimensions."""

    def rule(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
        x = types[0]
        if x.shape is None:
            return _with_shape(x, (None,) * len(attributes["dims"]) if layout is Layout.PERMUTE else None)
        require(len(x.shape) > 0)
        order = permutation(layout, attributes, len(x.shape))
        if order is None:
            raise Misfit(f"the dimensions do not fit a tensor of rank {len(x.shape)}")
        return _with_shape(x, [x.shape[dim] for dim in order])

    return rule


def matrix_transpose(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """aten.t: a matrix transposed, anything smaller unchanged."""
    if types[0].shape is not None and len(types[0].shape) > 2:
        raise Misfit("a matrix is needed")
    return reorder(Layout.REVERSE)(types, attributes)


def squeeze(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Drop the dimensions of size 1: all, or those in attribute `dim`."""
    x, dims = types[0], attributes.get("dim")
    if x.shape is None:
        return (x,)
    rank = len(x.shape)
    if dims is None:
        chosen = list(range(rank))
    else:
        chosen = wrap_dims(dims if isinstance(dims, tuple) else (dims,), rank)
    if rank == 0:
        return (x,)
    if any(x.shape[d] is None for d in chosen):
        return _with_shape(x, None)
    require(all(type(x.shape[d]) is int for d in chosen))
    return _with_shape(x, [size for d, size in enumerate(x.shape) if d not in chosen or size != 1])


def unsqueeze(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Insert a dimension of size 1."""
    x = types[0]
    if x.shape is None:
        return (x,)
    dim = wrap_dim(attributes["dim"], len(x.shape) + 1)
    return _with_shape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


def expand(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Repeat dimensions of size 1, and add leading ones; -1 keeps a size."""
    x, sizes = types[0], attributes["size"]
    if x.shape is None:
        return _with_shape(x, [None if type(s) is int and s == -1 else s for s in sizes])
    added = len(sizes) - len(x.shape)
    if added < 0:
        raise Misfit(f"{len(sizes)} sizes for a tensor of rank {len(x.shape)}")
    result: list[Dim | None] = []
    for i, size in enumerate(sizes):
        have = x.shape[i - added] if i >= added else 1
        if type(size) is int and size < 0:
            if size != -1 or i < added:
                raise Misfit(f"size {size} of dimension {i} is negative")
            result.append(have)
            continue
        if not (type(have) is int and have == 1):
            require_equal(have, size, f"the size of dimension {i}")
        result.append(size)
    return _with_shape(x, result)


def repeat(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """aten.repeat and aten.tile: each dimension several times."""
    x = types[0]
    repeats = attributes["repeats"] if "repeats" in attributes else attributes["dims"]
    if x.shape is None:
        return _with_shape(x, None)
    if "dims" in attributes:
        repeats = (1,) * (len(x.shape) - len(repeats)) + repeats
    missing = len(repeats) - len(x.shape)
    if missing < 0:
        raise Misfit(f"{len(repeats)} repeats for a tensor of rank {len(x.shape)}")
    require(all(type(n) is not int or n >= 0 for n in repeats))
    shape = (1,) * missing + x.shape
    return _with_shape(x, [product((size, n)) for size, n in zip(shape, repeats, strict=True)])


def same(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The operand's type, whatever it is."""
    return (types[0],)


def flip(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The operand's type."""
    x = types[0]
    if x.shape is not None:
        require(len(x.shape) > 0)
        wrap_dims(attributes["dims"], len(x.shape))
    return (x,)


def roll(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The operand's type."""
    x, shifts, dims = types[0], attributes["shifts"], attributes["dims"]
    require(len(shifts) == (len(dims) or 1))
    if x.shape is not None:
        require(len(x.shape) > 0)
        for dim in dims:
            wrap_dim(dim, len(x.shape))
    return (x,)


def triangle(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """tril and triu: the operand's type."""
    x = types[0]
    require(x.shape is None or len(x.shape) >= 2)
    return (x,)


def pad(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """aten.pad and aten.constant_pad_nd: (before, after) for the last dimension first."""
    x, amounts, mode = types[0], attributes["pad"], attributes.get("mode", "constant")
    if x.shape is None:
        return (x,)
    require(len(amounts) % 2 == 0 and all(type(n) is int and n >= 0 for n in amounts))
    count = len(amounts) // 2
    require(count <= len(x.shape))
    if mode != "constant":
        require(mode in ("reflect", "replicate", "circular"))
        require(1 <= count <= 3 and len(x.shape) in (count + 1, count + 2) and 0 not in x.shape)
        require(attributes.get("value") is None)
    shape = list(x.shape)
    for i in range(count):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        size = shape[-1 - i]
        if mode == "reflect":
            require(size is None or (type(size) is int and max(before, after) < size))
        elif mode == "circular":
            require(size is None or (type(size) is int and max(before, after) <= size))
        if size is not None:
            shape[-1 - i] = simplify_dim(size + before + after)
    return _with_shape(x, shape)
