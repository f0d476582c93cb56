"""The algebra of layouts: where each element of a value lies in its source.

A `LayoutMap` writes each dimension of a value as a sequence of atoms (size, stride): stepping through the atom moves by
`stride` elements in the row-major order of the source. Reshape regroups atoms (splitting them where it must), permute
reorders dimensions, slices move the offset. Two chains do the same exactly when their normal forms are equal, for all
values of the symbols.

A tensor in memory is the map with one atom a dimension, whose strides are the tensor's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import sympy

from ir.columns import Layout, permutation
from ir.core import Operation, Value
from ir.opdef import OpDef
from ir.types import Dim, TensorType, dims_equal, product, simplify_dim

Atom = tuple[Dim, Dim]
Strides = tuple[Dim, ...]


def _divide(a: Dim, b: Dim) -> Dim | None:
    """Return a / b if it is exact for all values of the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if dims_equal(a, b):
        return 1
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    numerator, denominator = quotient.as_numer_denom()
    if denominator == 1:
        return simplify_dim(numerator)
    return None


def _merged(atoms: Sequence[Atom]) -> list[Atom]:
    """Return atoms without those of size 1, with consecutive ones merged where the steps continue."""
    merged: list[Atom] = []
    for size, stride in atoms:
        if dims_equal(size, 1):
            continue
        if merged and dims_equal(merged[-1][1], simplify_dim(size * stride)):
            merged[-1] = (simplify_dim(merged[-1][0] * size), stride)
        else:
            merged.append((simplify_dim(size), stride))
    return merged


def contiguous_strides(shape: Sequence[Dim]) -> Strides:
    """Return the strides of a contiguous tensor."""
    strides: list[Dim] = []
    stride: Dim = 1
    for size in reversed(shape):
        strides.append(stride)
        stride = simplify_dim(stride * size)
    return tuple(reversed(strides))


@attrs.frozen
class LayoutMap:
    """Where the elements of a value come from, in the row-major order of a source."""

    dims: tuple[tuple[Atom, ...], ...]
    offset: Dim = 0

    @classmethod
    def strided(cls, shape: Sequence[Dim], strides: Sequence[Dim]) -> LayoutMap:
        """Return the map of a tensor with these strides."""
        return cls(tuple([((size, stride),) for size, stride in zip(shape, strides, strict=True)]))

    @classmethod
    def identity(cls, shape: Sequence[Dim]) -> LayoutMap:
        """Return the map of the source itself."""
        return cls.strided(shape, contiguous_strides(shape))

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the value."""
        return tuple(product([size for size, _ in dim]) for dim in self.dims)

    @property
    def strides(self) -> Strides | None:
        """The strides of the value, 1 for dimensions of size 1; None if a dimension has several."""
        dims = self.normal_form().dims
        return None if any(len(dim) > 1 for dim in dims) else tuple([dim[0][1] if dim else 1 for dim in dims])

    def permute(self, order: Sequence[int]) -> LayoutMap:
        """Return the map after `permute(order)`."""
        return LayoutMap(tuple(self.dims[i] for i in order), self.offset)

    def reshape(self, shape: Sequence[Dim]) -> LayoutMap | None:
        """Return the map after `reshape(shape)`; None where the sizes do not divide provably."""
        rest = [atom for dim in self.dims for atom in dim if not dims_equal(atom[0], 1)]
        rest.reverse()
        result: list[tuple[Atom, ...]] = []
        for size in shape:
            group: list[Atom] = []
            needed: Dim = size
            while not dims_equal(needed, 1):
                if not rest:
                    return None
                count, stride = rest.pop()
                left = _divide(needed, count)
                if left is not None:
                    group.append((count, stride))
                    needed = left
                    continue
                inner = _divide(count, needed)
                if inner is None:
                    return None
                group.append((needed, simplify_dim(stride * inner)))
                rest.append((inner, stride))
                needed = 1
            result.append(tuple(group))
        return None if rest else LayoutMap(tuple(result), self.offset)

    def seams(self) -> dict[Dim, bool | None]:
        """Return the cuts between the dimensions of the value, in row-major order; size-1 dimensions are left out.

        Returns:
            The number of elements behind each cut -> whether the dimensions on both sides could be merged without a
            copy; None if that is not known.
        """
        seams: dict[Dim, bool | None] = {}
        atoms = [atom for dim in self.dims for atom in dim if atom[0] != 1]
        count: Dim = 1
        for (_, step), (size, stride) in reversed(list(itertools.pairwise(atoms))):
            count = simplify_dim(count * size)
            reach = simplify_dim(size * stride)
            numbers = type(reach) is int and type(step) is int
            seams[count] = True if dims_equal(step, reach) else False if numbers else None
        return seams

    def is_view(self, shape: Sequence[Dim]) -> bool | None:
        """Return whether `reshape(shape)` of a tensor with this map is a view; None if that is not known."""
        kept = LayoutMap.identity(shape).seams()
        answers = [is_one for cut, is_one in self.seams().items() if cut not in kept]
        return False if False in answers else None if None in answers else True

    def view(self, shape: Sequence[Dim]) -> LayoutMap | None:
        """Return the map of a view of another shape, with one atom a dimension; None if none is proved to exist."""
        atoms = _merged([atom for dim in self.dims for atom in dim])
        found = LayoutMap((tuple(atoms),), self.offset).reshape(shape)
        strides = None if found is None else found.strides
        return None if strides is None else LayoutMap.strided(shape, strides)

    def narrow(self, dim: int, start: Dim, length: Dim) -> LayoutMap | None:
        """Return the map after taking `length` elements of `dim` from `start`; None if that cuts through atoms."""
        atoms = [atom for atom in self.dims[dim] if not dims_equal(atom[0], 1)]
        if not atoms:
            return self if dims_equal(length, 1) else None
        # the slice must take whole steps of the outermost atom
        stride = atoms[0][1]
        inner = product([size for size, _ in atoms[1:]])
        first, steps = _divide(start, inner), _divide(length, inner)
        if first is None or steps is None:
            return None
        offset = simplify_dim(self.offset + stride * first)
        dims = (*self.dims[:dim], ((steps, stride), *atoms[1:]), *self.dims[dim + 1 :])
        return LayoutMap(dims, offset)

    def select(self, dim: int, index: int) -> LayoutMap | None:
        """Return the map after `select(dim, index)`."""
        narrowed = self.narrow(dim, index, 1)
        if narrowed is None:
            return None
        dims = narrowed.dims
        return LayoutMap((*dims[:dim], *dims[dim + 1 :]), narrowed.offset)

    def normal_form(self) -> LayoutMap:
        """Return the map without size-1 atoms, with atoms merged where the steps continue."""
        return LayoutMap(tuple([tuple(_merged(dim)) for dim in self.dims]), self.offset)

    def same_as(self, other: LayoutMap) -> bool:
        """Return whether both maps are provably equal."""
        a, b = self.normal_form(), other.normal_form()
        if len(a.dims) != len(b.dims) or not dims_equal(a.offset, b.offset):
            return False
        for x, y in zip(a.dims, b.dims, strict=True):
            if len(x) != len(y):
                return False
            if not all(dims_equal(p[0], q[0]) and dims_equal(p[1], q[1]) for p, q in zip(x, y, strict=True)):
                return False
        return True

    def step(self, op: Operation, result: int = 0) -> LayoutMap | None:
        """Return the map after one layout operation; None for operations that are not described."""
        layout, attributes = op.opdef.layout, op.attributes
        type_ = op.results[result].type
        if layout is None or not isinstance(type_, TensorType) or not type_.is_known:
            return None
        shape: tuple[Dim, ...] = type_.shape  # type: ignore[assignment]
        rank = len(self.dims)
        if layout is Layout.RESHAPE:
            return self.reshape(shape)
        if layout is Layout.SAME:
            return self
        if layout.reorders:
            order = permutation(layout, attributes, rank)
            return None if order is None else self.permute(order)
        if layout is Layout.SELECT:
            dim, index = attributes["dim"] % rank, attributes["index"]
            if isinstance(index, int) and index < 0:
                index = index + self.shape[dim]
            return self.select(dim, index) if isinstance(index, int) else None
        if layout is Layout.SPLIT:
            dim = attributes["dim"] % rank
            sizes = [piece.known_shape for piece in op.results[: result + 1]]
            lengths = [size[dim] for size in sizes if size is not None and type(size[dim]) is int]
            return self.narrow(dim, sum(lengths[:-1]), lengths[-1]) if len(lengths) == len(sizes) else None
        if layout is Layout.SLICE:
            dim = attributes["dim"] % rank
            start, size = attributes["start"] or 0, self.shape[dim]
            if attributes["step"] != 1 or not isinstance(start, int) or not isinstance(size, int):
                return None
            start = max(start + size, 0) if start < 0 else min(start, size)
            return self.narrow(dim, start, shape[dim])
        return None


_DESCRIBED = frozenset({Layout.RESHAPE, Layout.SAME, Layout.SELECT, Layout.SPLIT, Layout.SLICE})


def _is_described(opdef: OpDef) -> bool:
    return opdef.layout is not None and (opdef.layout.reorders or opdef.layout in _DESCRIBED)


def trace_back(value: Value) -> tuple[Value, list[tuple[Operation, int]]]:
    """Walk from `value` back through layout operations.

    Returns:
        The first value that no layout operation defines, and the (operation, result number) pairs from it to `value`.
    """
    path: list[tuple[Operation, int]] = []
    op = value.defining_op
    while op is not None and _is_described(op.opdef) and len(op.operand_values) == 1:
        path.append((op, value.index))
        value = op.operand_values[0]
        op = value.defining_op
    path.reverse()
    return value, path


def apply_path(start: LayoutMap, path: Sequence[tuple[Operation, int]]) -> LayoutMap | None:
    """Return the map after all operations of a path."""
    current: LayoutMap | None = start
    for op, result in path:
        if current is None:
            return None
        current = current.step(op, result)
    return current
