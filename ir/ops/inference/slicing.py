"""Inference for operators that take parts of tensors and put tensors together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from ir.ops.inference.support import (
    Attributes,
    Misfit,
    Refusal,
    Shape,
    Undecided,
    broadcast,
    common_device,
    floor_div,
    require,
    require_equal,
    total,
    wrap_dim,
)
from ir.types import Dim, TensorType, Type, data_symbols_in, dims_equal, simplify_dim


def _at(x: TensorType, dim: int, size: Dim | None) -> TensorType:
    assert x.shape is not None
    return TensorType((*x.shape[:dim], size, *x.shape[dim + 1 :]), x.dtype, x.device)


def _ranked(x: TensorType) -> Shape:
    """Return the shape of a tensor, which must be known and not a scalar's."""
    if x.shape is None:
        raise Undecided
    if not x.shape:
        raise Misfit("a scalar has no dimension")
    return x.shape


def _along(x: TensorType, attributes: Attributes) -> tuple[int, Dim | None]:
    """Return the number of the dimension in attribute `dim`, and its size."""
    shape = _ranked(x)
    dim = wrap_dim(attributes["dim"], len(shape))
    return dim, shape[dim]


def _without(x: TensorType, dim: int) -> TensorType:
    assert x.shape is not None
    return TensorType((*x.shape[:dim], *x.shape[dim + 1 :]), x.dtype, x.device)


def select(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """select.int: one index of a dimension, which is dropped."""
    x, index = types[0], attributes["index"]
    if x.shape is None:
        return (x,)
    dim, size = _along(x, attributes)
    # an index that depends on data is checked by the kernel
    if size is not None and not data_symbols_in(index):
        require(type(size) is int and type(index) is int)
        if not -size <= index < size:
            raise Misfit(f"index {index} is out of range for size {size}")
    return (_without(x, dim),)


def slice_(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """slice.Tensor: start to end by step in one dimension, clipped as in Python."""
    x = types[0]
    if x.shape is None:
        return (x,)
    dim, size = _along(x, attributes)
    start, end, step = attributes["start"], attributes["end"], attributes["step"]
    require(type(step) is not int or step > 0)
    require(all(type(n) is not int or -(2**63) <= n < 2**63 for n in (start, end)))
    if step == 1 and start in (None, 0) and end in (None, 2**63 - 1):
        return (x,)
    if size is None:
        return (_at(x, dim, None),)
    if type(size) is int and (isinstance(start, sympy.Expr) or isinstance(end, sympy.Expr)):
        # fake tensors would take the symbols for numbers beyond the dimension
        length = _symbolic_slice(size, start, end)
        return (_at(x, dim, length if step == 1 else floor_div(length + step - 1, step)),)
    require(type(size) is int and all(n is None or type(n) is int for n in (start, end, step)))
    return (_at(x, dim, len(range(*slice(start, end, step).indices(size)))),)


def _symbolic_slice(size: int, start: Dim | None, end: Dim | None) -> Dim:
    """Return the length of a slice with symbolic bounds, which are within the dimension.

    It occurs as `positions[:, :length]` of a table, with `length` bounded by the capture.
    """
    first = 0 if start is None else start
    last = size if end is None or (type(end) is int and end >= size) else end
    for bound in (first, last):
        if isinstance(bound, sympy.Expr):
            # counted from the front; that of `length - 1` is assumed for a `length` of 0, too
            require(bool(bound.subs(dict.fromkeys(bound.free_symbols, 64)) > 0))
        else:
            require(0 <= bound <= size)
    return simplify_dim(last - first)


def narrow(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """`length` elements of one dimension from `start`."""
    x, start, length = types[0], attributes["start"], attributes["length"]
    if x.shape is None:
        return (x,)
    dim, size = _along(x, attributes)
    if size is None:
        return (_at(x, dim, length),)
    require(type(size) is int and type(start) is int and type(length) is int and length >= 0)
    begin = start + size if start < 0 else start
    if not 0 <= begin <= size or begin + length > size:
        raise Misfit(f"{length} elements from {start} are not in a dimension of size {size}")
    return (_at(x, dim, length),)


def split(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """split.Tensor: pieces of one size, and the rest."""
    x, piece = types[0], attributes["split_size"]
    dim, size = _along(x, attributes)
    if size is None:
        raise Undecided
    require(type(piece) is not int or piece > 0)
    if size == 0:
        return (x,)
    if type(size) is int and type(piece) is int:
        return _pieces(x, dim, _piece_sizes(size, piece))
    count = floor_div(size, piece)
    if type(count) is int and dims_equal(count * piece, size):
        return _pieces(x, dim, [piece] * count)
    raise Refusal(f"how many they are depends on the size {size}")


def split_with_sizes(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Pieces of given sizes, which must add up."""
    x = types[0]
    sizes = attributes["split_sizes"] if "split_sizes" in attributes else attributes["split_size"]
    if x.shape is None:
        return (x,) * len(sizes)
    dim, size = _along(x, attributes)
    require(all(type(s) is not int or s >= 0 for s in sizes))
    require_equal(total(sizes), size, "the sum of the sizes")
    return _pieces(x, dim, sizes)


def chunk(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """At most `chunks` pieces of one size, rounded up."""
    x, chunks = types[0], attributes["chunks"]
    if x.shape is None:
        require(chunks == 1)
        return (x,)
    dim, size = _along(x, attributes)
    if chunks == 1:
        return (x,)
    require(type(size) is int and type(chunks) is int and chunks > 0)
    assert type(size) is int
    require(size > 0)
    return _pieces(x, dim, _piece_sizes(size, -(-size // chunks)))


def unbind(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Each index of one dimension, which is dropped."""
    x = types[0]
    dim, size = _along(x, attributes)
    if size is None:
        raise Undecided
    if type(size) is not int:
        raise Refusal(f"how many they are depends on the size {size}")
    return (_without(x, dim),) * size


def _piece_sizes(size: int, piece: int) -> list[int]:
    full, rest = divmod(size, piece)
    return [piece] * full + ([rest] if rest else [])


def _pieces(x: TensorType, dim: int, sizes: Sequence[Dim]) -> tuple[Type, ...]:
    return tuple([_at(x, dim, size) for size in sizes])


def _tensors(types: tuple[Any, ...]) -> list[TensorType]:
    """Return the operand list, which must have one dtype and not be empty."""
    operands = types[0]
    require(len(operands) > 0 and all(type(t) is TensorType for t in operands))
    known = [t.dtype for t in operands if t.dtype is not None]
    require(all(dtype is known[0] for dtype in known))
    return list(operands)


def _list_dtype(operands: list[TensorType]) -> torch.dtype | None:
    """Return the common dtype; None if one is unknown, as it could promote the others."""
    return None if any(t.dtype is None for t in operands) else operands[0].dtype


def _common_sizes(shapes: Sequence[Shape], but: int | None = None) -> list[Dim | None]:
    """Return the common sizes of shapes, which must be equal in all dimensions but one."""
    sizes: list[Dim | None] = list(shapes[0])
    for shape in shapes[1:]:
        if len(shape) != len(sizes):
            raise Misfit(f"ranks {len(sizes)} and {len(shape)} differ")
        for i, size in enumerate(shape):
            if i != but:
                require_equal(sizes[i], size, f"the size of dimension {i}")
                sizes[i] = size if sizes[i] is None else sizes[i]
    return sizes


def cat(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Tensors of equal sizes in all other dimensions, one after the other along `dim`."""
    operands = _tensors(types)
    dtype, device = _list_dtype(operands), common_device(operands)
    ranked = [t.shape for t in operands if t.shape is not None]
    if not ranked:
        return (TensorType(None, dtype, device),)
    if any(len(shape) == 1 and shape[0] in (0, None) for shape in ranked):
        raise Undecided  # an empty vector may be concatenated with any rank
    if not ranked[0]:
        raise Misfit("scalars cannot be concatenated")
    dim = wrap_dim(attributes["dim"], len(ranked[0]))
    sizes = _common_sizes(ranked, but=dim)
    sizes[dim] = total([shape[dim] for shape in ranked]) if len(ranked) == len(operands) else None
    return (TensorType(tuple(sizes), dtype, device),)


def stack(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """Tensors of equal shapes along a new dimension."""
    operands = _tensors(types)
    dtype, device = _list_dtype(operands), common_device(operands)
    ranked = [t.shape for t in operands if t.shape is not None]
    if not ranked:
        return (TensorType(None, dtype, device),)
    sizes = _common_sizes(ranked)
    dim = wrap_dim(attributes["dim"], len(sizes) + 1)
    return (TensorType((*sizes[:dim], len(operands), *sizes[dim:]), dtype, device),)


def index_select(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The indices of one dimension in a vector."""
    x, index = types
    if x.shape is None:
        return (x,)
    require(index.dtype in (torch.int64, torch.int32))
    dim, _ = _along(x, attributes)
    if index.shape is None:
        return (_at(x, dim, None),)
    if len(index.shape) > 1:
        raise Misfit("the indices are not a vector")
    common_device(types)
    return (_at(x, dim, index.shape[0] if index.shape else 1),)


def index(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """index.Tensor: dimensions by tensors of ints, which broadcast against each other.

    Their shape replaces the dimensions if these are adjacent, else it comes first. Fake tensors treat an index without
    dimensions as a number, which is not adjacent to any; the kernels do not.
    """
    x, indices = types[0], types[1]
    require(x.shape is not None)
    places = [place for place, type_ in enumerate(indices) if type_ is not None]
    given = [indices[place] for place in places]
    require(bool(given) and all(i.dtype in (torch.int64, torch.int32) and i.shape is not None for i in given))
    if len(indices) > len(x.shape):
        raise Misfit(f"{len(indices)} indices are too many for rank {len(x.shape)}")
    common_device([x, *given])
    picked = broadcast([i.shape for i in given])
    left = [size for place, size in enumerate(x.shape) if place not in places]
    front = places[0] if places[-1] - places[0] + 1 == len(places) else 0
    return (TensorType((*left[:front], *picked, *left[front:]), x.dtype, x.device),)


def gather(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """One element for each index: the shape of the indices."""
    x, index = types
    require(index.dtype is torch.int64 and x.shape is not None and index.shape is not None)
    shape = _ranked(x)
    if len(shape) != len(index.shape):
        raise Misfit(f"ranks {len(shape)} and {len(index.shape)} differ")
    dim = wrap_dim(attributes["dim"], len(shape))
    require(0 not in index.shape)
    for i, (have, want) in enumerate(zip(shape, index.shape, strict=True)):
        if i == dim or have is None or want is None:
            continue
        require(dims_equal(have, want) or (type(have) is int and type(want) is int and want <= have))
    return (TensorType(index.shape, x.dtype, common_device(types)),)


def topk(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The k largest along a dimension, and their indices."""
    x, k = types[0], attributes["k"]
    if x.shape is None:
        return (x, TensorType(None, torch.int64, x.device))
    dim, size = _along(x, attributes)
    require(size is None or (type(size) is int and type(k) is int and 0 <= k <= size))
    values = _at(x, dim, k)
    return (values, TensorType(values.shape, torch.int64, x.device))


def glu(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """The first half of a dimension, gated by the second."""
    x = types[0]
    if x.shape is None:
        return (x,)
    dim, size = _along(x, attributes)
    require(x.dtype is None or x.dtype.is_floating_point)
    require(size is None or (type(size) is int and size % 2 == 0))
    return (_at(x, dim, None if size is None else size // 2),)
