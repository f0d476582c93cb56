"""LayoutMap must agree with the layout operations of PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ir.columns import Layout, permutation
from ir.memory.layout import LayoutMap
from ir.types import make_symbol


def evaluate(layout: LayoutMap, source: torch.Tensor) -> torch.Tensor:
    """Gather the elements of a source that a static map refers to."""
    indices = torch.tensor(int(layout.offset))
    for dim in layout.dims:
        index = torch.zeros(1, dtype=torch.int64)
        for size, stride in dim:
            index = (index[:, None] + torch.arange(int(size)) * int(stride)).reshape(-1)
        indices = indices[..., None] + index
    return source.reshape(-1)[indices]


@given(st.data())
def test_any_chain_agrees_with_torch(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    source = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    value, layout = source, LayoutMap.identity(shape)
    for _ in range(data.draw(st.integers(0, 5))):
        kind = data.draw(st.sampled_from(["permute", "split", "merge", "narrow", "select"]))
        rank = value.dim()
        if rank == 0:
            break
        dim = data.draw(st.integers(0, rank - 1))
        size = value.shape[dim]
        if kind == "permute":
            order = data.draw(st.permutations(range(rank)))
            value, layout = value.permute(order), layout.permute(order)
        elif kind == "split":
            factor = data.draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
            new = [*value.shape[:dim], factor, size // factor, *value.shape[dim + 1 :]]
            found = layout.reshape(new)
            if found is None:
                return
            value, layout = value.reshape(new), found
        elif kind == "merge" and dim + 1 < rank:
            new = [*value.shape[:dim], size * value.shape[dim + 1], *value.shape[dim + 2 :]]
            found = layout.reshape(new)
            if found is None:
                return
            value, layout = value.reshape(new), found
        elif kind == "narrow":
            length = data.draw(st.integers(1, size))
            start = data.draw(st.integers(0, size - length))
            found = layout.narrow(dim, start, length)
            if found is None:
                return
            value, layout = value.narrow(dim, start, length), found
        elif kind == "select":
            index = data.draw(st.integers(0, size - 1))
            found = layout.select(dim, index)
            if found is None:
                return
            value, layout = value.select(dim, index), found
    assert layout.shape == tuple(value.shape)
    assert torch.equal(evaluate(layout, source), value)
    normal = layout.normal_form()
    assert torch.equal(evaluate(normal, source).reshape(value.shape), value)


def test_symbolic_batch_is_proved():
    batch, tokens, heads, size = make_symbol("batch"), 5, 2, 3
    width = heads * size
    joint = LayoutMap.identity((tokens, batch, 3 * width))
    exported = joint.reshape((tokens, batch, 3, width))
    assert exported is not None
    exported = exported.permute((2, 0, 1, 3)).select(0, 1)
    assert exported is not None
    exported = exported.reshape((tokens, batch * heads, size))
    assert exported is not None
    exported = exported.permute((1, 0, 2)).reshape((batch, heads, tokens, size))
    direct = joint.narrow(2, width, width)
    assert direct is not None
    direct = direct.reshape((tokens, batch, heads, size))
    assert direct is not None and exported is not None
    assert exported.same_as(direct.permute((1, 2, 0, 3)))
    assert not exported.same_as(direct.permute((1, 2, 0, 3)).permute((0, 1, 2, 3)).permute((1, 0, 2, 3)))
    other = joint.narrow(2, 0, width)
    assert other is not None
    other = other.reshape((tokens, batch, heads, size))
    assert other is not None and not exported.same_as(other.permute((1, 2, 0, 3)))


def test_sizes_that_do_not_divide_are_not_decided():
    assert LayoutMap.identity((4, 6)).permute((1, 0)).reshape((8, 3)) is None
    batch = make_symbol("batch")
    assert LayoutMap.identity((batch, 4)).reshape((2, 2 * batch)) is None


NUMBERS = range(-3, 3)  # in range for two dimensions, or not


@pytest.mark.parametrize("count", [0, 1, 2])
def test_moved_dimensions_are_those_of_torch(count: int) -> None:
    for source, destination in itertools.product(itertools.product(NUMBERS, repeat=count), repeat=2):
        try:
            expected = torch.empty(2, 3).movedim(source, destination).shape
        except (RuntimeError, IndexError):
            expected = None
        order = permutation(Layout.MOVE, {"source": source, "destination": destination}, 2)
        assert (order and tuple((2, 3)[d] for d in order)) == expected, (source, destination)


def test_other_numbers_of_places_are_no_move() -> None:
    assert permutation(Layout.MOVE, {"source": (0, 1), "destination": 0}, 2) is None


@pytest.mark.parametrize("dims", [*itertools.product(NUMBERS, repeat=2), (0,), (0, 1, 0)])
def test_permuted_and_swapped_dimensions_are_those_of_torch(dims: tuple[int, ...]) -> None:
    x = torch.empty(2, 3)
    for layout, attributes, call in (
        (Layout.PERMUTE, {"dims": dims}, x.permute),
        (Layout.SWAP, {"dim0": dims[0], "dim1": dims[-1]}, lambda _: x.transpose(dims[0], dims[-1])),
    ):
        try:
            expected = call(dims).shape
        except (RuntimeError, IndexError):
            expected = None
        order = permutation(layout, attributes, 2)
        assert (order and tuple((2, 3)[d] for d in order)) == expected, (layout, dims)
