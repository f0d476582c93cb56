"""Generators of calls: reshaping, permuting, slicing, concatenation."""

from __future__ import annotations

from typing import Any

from fuzz.calls.elementwise import Arguments
from fuzz.calls.source import Source, along, any_dim, divisors, is_int, numbers_below, ranked, shape_of, static_dim
from ir.opdef import OpDef
from ir.types import Dim, simplify_dim


def reshape(source: Source, opdef: OpDef) -> Arguments:
    """Sizes merged, split, or 1s added and dropped; one size may be written as -1."""
    x = source.tensor(zero=False)
    sizes: list[Dim] = []
    for size in shape_of(x):
        kind = source.integer(0, 3)
        if kind == 1 and sizes:
            sizes[-1] = simplify_dim(sizes[-1] * size)
        elif kind == 2:
            first = source.one_of(divisors(size))
            sizes += [first, size // first if is_int(size) else size]
        elif kind == 3 and size == 1:
            continue
        else:
            sizes.append(size)
    if source.integer(0, 3) == 3:
        sizes.insert(source.integer(0, len(sizes)), 1)
    wanted = source.result_rank()
    if wanted is not None:
        _bring_to_rank(source, sizes, wanted)
    if sizes and source.flag():
        sizes[source.integer(0, len(sizes) - 1)] = -1
    return [x, sizes], {}


def _bring_to_rank(source: Source, sizes: list[Dim], rank: int) -> None:
    """Split or merge sizes to a wanted rank; it stays 1 at least if there are several elements."""
    while len(sizes) < rank:
        composite = [i for i, size in enumerate(sizes) if len(divisors(size)) > 1]
        if composite:
            at = source.one_of(composite)
            first = source.one_of(divisors(sizes[at])[1:])
            sizes[at : at + 1] = [first, sizes[at] // first]
        else:
            sizes.insert(source.integer(0, len(sizes)), 1)
    while len(sizes) > max(rank, 1):
        at = source.integer(0, len(sizes) - 2)
        sizes[at : at + 2] = [simplify_dim(sizes[at] * sizes[at + 1])]
    if rank == 0 and sizes == [1]:
        sizes.clear()


def flatten(source: Source, opdef: OpDef) -> Arguments:
    """A range of dimensions."""
    x = source.tensor()
    rank = len(shape_of(x))
    start = source.integer(0, max(0, rank - 1))
    end = source.integer(start, max(0, rank - 1))
    return [x, start, end - rank if rank and source.flag() else end], {}


def unflatten(source: Source, opdef: OpDef) -> Arguments:
    """One dimension into two mostly."""
    x, dim, size = along(source, zero=False)
    first = source.one_of(divisors(size))
    rest = size // first if is_int(size) else size
    return [x, dim, source.one_of(([first, rest], [first, -1], [-1, rest], [rest, first, 1], [size], [-1]))], {}


def squeeze(source: Source, opdef: OpDef) -> Arguments:
    """All dimensions, one, or some; of size 1 or not."""
    x = source.tensor()
    rank = len(shape_of(x))
    if opdef.name == "aten.squeeze":
        return [x], {}
    if opdef.name == "aten.squeeze.dim":
        return [x, any_dim(source, rank)], {}
    return [x, [d for d in range(rank) if source.flag()]], {}


def unsqueeze(source: Source, opdef: OpDef) -> Arguments:
    """A new dimension anywhere."""
    x = source.tensor()
    rank = len(shape_of(x))
    return [x, source.integer(-rank - 1, rank)], {}


def permutation(source: Source, rank: int) -> list[int]:
    """Draw a permutation of the dimensions; shrinks to the identity."""
    rest = list(range(rank))
    return [rest.pop(source.integer(0, len(rest) - 1)) for _ in range(rank)]


def permute(source: Source, opdef: OpDef) -> Arguments:
    """Any permutation, some dimensions counted from the end."""
    x = source.tensor()
    rank = len(shape_of(x))
    return [x, [d - rank if source.flag() else d for d in permutation(source, rank)]], {}


def transpose(source: Source, opdef: OpDef) -> Arguments:
    """Two dimensions, which may be the same."""
    x = source.tensor()
    rank = len(shape_of(x))
    return [x, any_dim(source, rank), any_dim(source, rank)], {}


def matrix(source: Source, opdef: OpDef) -> Arguments:
    """Rank 2 at most."""
    return [source.tensor(0, 2)], {}


def movedim(source: Source, opdef: OpDef) -> Arguments:
    """One dimension, or several."""
    x = source.tensor(1)
    rank = len(shape_of(x))
    if opdef.name.endswith(".int"):
        return [x, any_dim(source, rank), any_dim(source, rank)], {}
    count = source.integer(0, rank)
    return [x, permutation(source, rank)[:count], permutation(source, rank)[:count]], {}


def expand(source: Source, opdef: OpDef) -> Arguments:
    """Sizes of 1 repeated, leading dimensions added."""
    x = source.tensor()
    sizes: list[Any] = [source.size() if d == 1 and source.flag() else -1 if source.flag() else d for d in shape_of(x)]
    return [x, [source.size() for _ in range(source.integer(0, 1))] + sizes], {}


def repeat(source: Source, opdef: OpDef) -> Arguments:
    """Each dimension once to three times; `tile` also takes fewer numbers than dimensions."""
    x = source.tensor(0, 3)
    rank = len(shape_of(x))
    count = source.integer(0, rank + 1) if opdef.short_name == "tile" else rank + source.integer(0, 1)
    return [x, [source.integer(1, 3) for _ in range(count)]], {}


def flip(source: Source, opdef: OpDef) -> Arguments:
    """Some dimensions."""
    x = source.tensor(1)
    return [x, [d for d in range(len(shape_of(x))) if source.flag()]], {}


def roll(source: Source, opdef: OpDef) -> Arguments:
    """Some dimensions, or the flattened tensor."""
    x = source.tensor(1)
    dims = [d for d in range(len(shape_of(x))) if source.flag()]
    return [x, [source.integer(-2, 2) for _ in dims or (0,)], dims], {}


def pad(source: Source, opdef: OpDef) -> Arguments:
    """Some of the last dimensions, before and after; cropping too."""
    x = source.tensor(1, 4, zero=False)
    shape = shape_of(x)
    mode = source.one_of(("constant", "constant", "replicate", "reflect", "circular"))
    if opdef.short_name == "constant_pad_nd" or mode == "constant" or len(shape) < 2:
        count = source.one_of((min(2, len(shape)), *range(len(shape) + 1)))
        if source.flag():
            amounts = [amount for _ in range(count) for amount in (source.integer(0, 2),) * 2]  # the same on both sides
        else:
            amounts = [source.integer(0, 2) for _ in range(2 * count)]
        if count and source.integer(0, 3) == 3 and shape[-1] not in (0, 1):
            amounts[0] = -1
        return [x, amounts], {"value": source.one_of((0, 0.5)) if opdef.short_name != "pad" else 0.5}
    count = len(shape) - (2 if len(shape) == 4 else 1)
    room = [min(2, d - 1) if type(d) is int else 0 for d in shape[::-1][:count]]
    amounts = [source.integer(0, room[i // 2]) for i in range(2 * count)]
    return [x, amounts, mode], {}


def triangle(source: Source, opdef: OpDef) -> Arguments:
    """A diagonal of a batch of matrices."""
    return [source.tensor(2), source.integer(-1, 1)], {}


def alone(source: Source, opdef: OpDef) -> Arguments:
    """The tensor alone."""
    return [source.tensor()], {}


def select(source: Source, opdef: OpDef) -> Arguments:
    """One index, counted from either end."""
    x, dim, size = along(source, zero=False)
    return [x, dim, source.integer(-size, size - 1) if type(size) is int else 0], {}


_TABLE = 32
"""A size that no number for a symbol exceeds."""


def slice_(source: Source, opdef: OpDef) -> Arguments:
    """Any bounds, which are clipped; most symbolic ones are within a dimension of known size."""
    if source.symbols and source.flag():
        one = source.one_of(source.symbols)
        bounds = source.one_of(((None, one), (one, None), (0, one + 1), (one - 1, 2**63 - 1), (2, one), (one, _TABLE)))
        return [source.make((_TABLE, source.size())), 0, *bounds, source.integer(1, 3)], {}
    x = ranked(source)
    bound: tuple[Any, ...] = (None, 0, 1, 2, -1, 3, -3, 2**63 - 1)
    dim = static_dim(source, x)
    if source.symbolic and source.flag():
        dim, bound = any_dim(source, len(shape_of(x))), (*bound, *source.symbols)
    return [x, dim, source.one_of(bound), source.one_of(bound), source.integer(1, 3)], {}


def narrow(source: Source, opdef: OpDef) -> Arguments:
    """A range within the dimension."""
    x, dim, size = along(source, zero=False)
    start = source.integer(0, size - 1) if type(size) is int else 0
    return [x, dim, start, source.integer(0, size - start) if type(size) is int else 1], {}


def split(source: Source, opdef: OpDef) -> Arguments:
    """Pieces of size one to four."""
    x = ranked(source)
    return [x, source.integer(1, 4), static_dim(source, x)], {}


def split_with_sizes(source: Source, opdef: OpDef) -> Arguments:
    """Sizes that add up; symbolic ones too."""
    x, dim, size = along(source)
    if type(size) is not int:
        return [x, source.one_of(([size], [size - 1, 1])), dim], {}
    first = source.integer(0, size)
    return [x, source.one_of(([first, size - first], [size])), dim], {}


def chunk(source: Source, opdef: OpDef) -> Arguments:
    """Any number of chunks, even more than elements."""
    x = ranked(source, zero=False)
    return [x, source.integer(1, 4), static_dim(source, x)], {}


def unbind(source: Source, opdef: OpDef) -> Arguments:
    """One dimension."""
    x = ranked(source)
    return [x, static_dim(source, x)], {}


def cat(source: Source, opdef: OpDef) -> Arguments:
    """Other tensors of the same rank, the same tensor twice; an empty vector, which goes with any rank."""
    x = source.tensor(1)
    shape = shape_of(x)
    dim = any_dim(source, len(shape))
    operands = [x]
    for _ in range(source.integer(0, 2)):
        other = list(shape)
        other[dim] = source.size()
        operands.append(x if source.flag() else source.like(x, other))
    if source.integer(0, 7) == 7:
        operands.insert(source.integer(0, len(operands)), source.like(x, (0,)))
    return [operands, dim], {}


def stack(source: Source, opdef: OpDef) -> Arguments:
    """Tensors of one shape."""
    x = source.tensor(0, 3)
    others = [x if source.flag() else source.like(x, shape_of(x)) for _ in range(source.integer(0, 2))]
    rank = len(shape_of(x))
    return [[x, *others], source.integer(-rank - 1, rank)], {}


def index_select(source: Source, opdef: OpDef) -> Arguments:
    """Indices of a dimension, in any order and number."""
    x, dim, size = along(source, zero=False)
    return [x, dim, numbers_below(source, (source.size(),), size)], {}


def gather(source: Source, opdef: OpDef) -> Arguments:
    """Indices for all or some of the elements."""
    x, dim, size = along(source, zero=False)
    shape = list(shape_of(x))
    shape[dim] = source.size()
    return [x, dim, numbers_below(source, shape, size)], {}


def topk(source: Source, opdef: OpDef) -> Arguments:
    """At most all."""
    x, dim, size = along(source, zero=False)
    return [x, source.integer(1, size) if type(size) is int else 1, dim], {}


def glu(source: Source, opdef: OpDef) -> Arguments:
    """A dimension of even size."""
    shape = [source.size() for _ in range(source.integer(1, 3))]
    dim = any_dim(source, len(shape))
    shape[dim] = 2 * source.one_of((1, 2, 3))
    return [source.make(shape), dim], {}
