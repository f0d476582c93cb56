"""Generators of calls: indexing, scattering, sorting, recurrent layers."""

from __future__ import annotations

from typing import Any

from fuzz.calls.elementwise import Arguments
from fuzz.calls.source import Source, Unavailable, along, any_dim, is_int, numbers_below, ranked, shape_of, static_dim
from ir.core import Value
from ir.opdef import OpDef


def index(source: Source, opdef: OpDef) -> Arguments:
    """Dimensions indexed by tensors that broadcast, adjacent or not."""
    x = ranked(source, zero=False)
    shape = shape_of(x)
    places = [place for place, size in enumerate(shape) if is_int(size)][:3]
    indices: list[Value | None] = [None] * (max(places, default=0) + 1)
    count = source.size()
    for place in [p for p in places if source.flag()] or places[:1]:
        indices[place] = numbers_below(source, source.one_of(((count,), (1,), ())), shape[place])
    while indices and indices[-1] is None:
        indices.pop()
    return [x, indices], {}


def like_another(source: Source, opdef: OpDef) -> Arguments:
    """A tensor that takes the shape of another, of as many elements or by broadcasting."""
    other = source.tensor(zero=False)
    shape = shape_of(other)
    if opdef.short_name == "expand_as":
        dropped = source.integer(0, len(shape))
        return [source.like(other, tuple([1 if source.flag() else d for d in shape[dropped:]])), other], {}
    return [source.like(other, source.one_of((shape, shape[::-1], (*shape, 1), (1, *shape)))), other], {}


def unfold(source: Source, opdef: OpDef) -> Arguments:
    """Windows along one dimension that overlap or leave gaps."""
    x, dim, size = along(source, zero=False)
    return [x, dim, source.integer(1, size if type(size) is int else 1), source.integer(1, 3)], {}


def repeat_interleave(source: Source, opdef: OpDef) -> Arguments:
    """Each element several times, along one dimension or of the flattened tensor."""
    x = ranked(source)
    return [x, source.integer(1, 3), source.one_of((None, static_dim(source, x)))], {}


def einsum(source: Source, opdef: OpDef) -> Arguments:
    """Products of two tensors, over the last dimension, none, or all."""
    x = source.tensor(1, 3, zero=False)
    shape = shape_of(x)
    letters = "abc"[: len(shape)]
    out = source.size()
    form, other = source.one_of(
        (
            (f"{letters},{letters[-1]}d->{letters[:-1]}d", (shape[-1], out)),
            (f"{letters},{letters}->{letters[:-1]}", shape),
            (f"{letters},{letters}->{letters[::-1]}", shape),
            (f"{letters},d->d{letters}", (out,)),
        )
    )
    return [form, [x, source.like(x, other)]], {}


def meshgrid(source: Source, opdef: OpDef) -> Arguments:
    """The coordinates of one to three axes."""
    axes = [source.make((source.size(),)) for _ in range(source.integer(1, 3))]
    return [axes], {"indexing": source.one_of(("ij", "xy"))}


def fill(source: Source, opdef: OpDef) -> Arguments:
    """A number, or a tensor without dimensions."""
    x = source.tensor()
    return [x, source.one_of((0, 1, 0.5, -1.0)) if opdef.name == "aten.fill.Scalar" else source.like(x, ())], {}


def copy(source: Source, opdef: OpDef) -> Arguments:
    """A tensor over another one that it broadcasts to."""
    x = source.tensor()
    shape = shape_of(x)
    return [x, source.make(source.one_of((shape, shape[1:], tuple([1] * len(shape)))))], {}


def slice_scatter(source: Source, opdef: OpDef) -> Arguments:
    """A slice with any bounds and step, and a source for it."""
    x, dim, size = along(source, zero=False)
    shape = list(shape_of(x))
    if type(size) is not int:
        return [x, source.like(x, shape), dim], {}
    start, end, step = source.integer(-size, size), source.integer(-size, size + 1), source.integer(1, 2)
    shape[dim] = len(range(*slice(start, end, step).indices(size)))
    return [x, source.like(x, shape), dim, start, end, step], {}


def select_scatter(source: Source, opdef: OpDef) -> Arguments:
    """One index of a dimension, and a source for it."""
    x, dim, size = along(source, zero=False)
    shape = list(shape_of(x))
    del shape[dim]
    return [x, source.like(x, shape), dim, source.integer(-size, size - 1) if type(size) is int else 0], {}


def diagonal(source: Source, opdef: OpDef) -> Arguments:
    """A diagonal of two dimensions, and a source for it if it is scattered."""
    x = source.tensor(2, 4, zero=False)
    shape = shape_of(x)
    one = any_dim(source, len(shape))
    others = [d for d in range(len(shape)) if d != one % len(shape)]
    # the length of a diagonal of two different symbolic sizes is not known
    fitting = [d for d in others if (type(shape[d]) is type(shape[one]) is int) or shape[d] == shape[one]]
    if not fitting:
        raise Unavailable
    two = source.one_of(fitting)
    offset = source.integer(-1, 1)
    if opdef.short_name == "diagonal":
        return [x, offset, one, two], {}
    a, b = shape[one], shape[two]
    count = a
    if type(a) is int and type(b) is int:
        count = max(0, min(a, b - offset) if offset >= 0 else min(a + offset, b))
    else:
        offset = 0
    rest = [d for i, d in enumerate(shape) if i not in (one % len(shape), two)]
    return [x, source.like(x, (*rest, count)), offset, one, two], {}


def scatter(source: Source, opdef: OpDef) -> Arguments:
    """A number or a tensor to places of one dimension; no place twice, where the order would be undefined."""
    x, dim, size = along(source, zero=False)
    shape = list(shape_of(x))
    adds = "add" in opdef.name
    shape[dim] = source.size() if adds else 1
    places = numbers_below(source, tuple(shape), size)
    if opdef.name == "aten.scatter.value":
        return [x, dim, places, source.one_of((1, 0.5))], {}
    return [x, dim, places, source.like(x, shape)], {}


def index_put(source: Source, opdef: OpDef) -> Arguments:
    """One place of the first dimension, or sums over several; without sums no place twice."""
    x = source.tensor(1, 3, zero=False)
    size, *rest = shape_of(x)
    accumulate = source.flag()
    count = source.size() if accumulate else 1
    return [x, [numbers_below(source, (count,), size)], source.like(x, (count, *rest))], {"accumulate": accumulate}


def index_add(source: Source, opdef: OpDef) -> Arguments:
    """Slices added to places of one dimension."""
    x, dim, size = along(source, zero=False)
    shape = list(shape_of(x))
    shape[dim] = source.size()
    return [x, dim, numbers_below(source, (shape[dim],), size), source.like(x, shape)], {"alpha": source.one_of((1, 2))}


def sort(source: Source, opdef: OpDef) -> Arguments:
    """One dimension, up or down."""
    x = source.tensor(1, 3)
    return [x, any_dim(source, len(shape_of(x)))], {"descending": source.flag()}


def one_hot(source: Source, opdef: OpDef) -> Arguments:
    """Class numbers."""
    classes = source.integer(1, 4)
    shape = tuple([source.size() for _ in range(source.integer(0, 2))])
    return [numbers_below(source, shape, classes), classes], {}


def vectors(source: Source, opdef: OpDef) -> Arguments:
    """Two vectors, or a matrix and a vector."""
    if opdef.short_name == "mv":
        matrix = source.tensor(2, 2)
        return [matrix, source.like(matrix, shape_of(matrix)[1:])], {}
    x = source.tensor(1, 1)
    return [x, source.like(x, shape_of(x) if opdef.short_name == "dot" else (source.size(),))], {}


def lstm(source: Source, opdef: OpDef) -> Arguments:
    """One or two layers, in one or both directions, with and without biases, with dropout in training if allowed."""
    steps, batch, features, hidden = (source.one_of((1, 2, 3)) for _ in range(4))
    first, biases, both = source.flag(), source.flag(), source.flag()
    ways, layers = 2 if both else 1, 2 if source.integer(0, 2) == 2 else 1
    x = source.make((batch, steps, features) if first else (steps, batch, features))
    state = [source.like(x, (ways * layers, batch, hidden)) for _ in range(2)]
    weights: list[Any] = []
    for layer in range(layers):
        for _ in range(ways):
            width = ways * hidden if layer else features
            weights += [source.like(x, (4 * hidden, width)), source.like(x, (4 * hidden, hidden))]
            weights += [source.like(x, (4 * hidden,)) for _ in range(2)] if biases else []
    dropout = 0.5 if layers > 1 and source.flag() else 0.0  # between layers
    training = source.training and source.flag()
    arguments = [x, state, weights, biases, layers, dropout, training, both, first]
    return arguments, {"follows_mode": source.flag()}
