"""Proof that projections are split into heads, for conversions and fusions of attention."""

from __future__ import annotations

import attrs

from ir.core import Operation, Value
from ir.memory.layout import LayoutMap, apply_path, trace_back
from ir.types import Dim, TensorType, dims_equal


@attrs.frozen(eq=False)
class InProjection:
    """Query, key and value of shape (B, H, N, D) as linear projections of one input, split into heads."""

    x: Value
    """The input: (B, N, E), or (N, B, E) when not `batch_first`."""
    linears: tuple[Operation, ...]
    """The joint projection alone, or the three of query, key and value."""
    ops: tuple[Operation, ...]
    """All operations from the projections to query, key and value."""
    batch_first: bool
    heads: int
    head_dim: int
    shared: tuple[Value, ...]
    """Values between the projections and the heads that something else uses too."""


def heads_map(shape: tuple[Dim, ...], offset: Dim, heads: int, head_dim: int, batch_first: bool) -> LayoutMap | None:
    """Return the map from a projection of `shape` to (B, H, N, D): columns from `offset` on, split into heads."""
    taken = LayoutMap.identity(shape).narrow(2, offset, heads * head_dim)
    if taken is None:
        return None
    split = taken.reshape((shape[0], shape[1], heads, head_dim))
    return None if split is None else split.permute((0, 2, 1, 3) if batch_first else (1, 2, 0, 3))


def find_in_projection(query: Value, key: Value, value: Value) -> InProjection | str:
    """Return the in-projection that query, key and value come from, or why there is none."""
    traced = [trace_back(v) for v in (query, key, value)]
    linears = [source.defining_op for source, _ in traced]
    for linear, name in zip(linears, ("query", "key", "value"), strict=True):
        if linear is None or linear.name != "aten.linear":
            found = "an input or weight" if linear is None else linear.name
            return f"the {name} does not come from a linear projection by layout operations alone, but from {found}"
    distinct = tuple(dict.fromkeys(op for op in linears if op is not None))
    if len(distinct) == 2:
        return "two of query, key and value share a projection, and the third has its own"
    inputs = [op.input("input") for op in distinct]
    if any(x is not inputs[0] for x in inputs):
        return "query, key and value are projections of different inputs (cross-attention)"
    type_ = query.type
    if not isinstance(type_, TensorType) or type_.shape is None or len(type_.shape) != 4:
        return f"the query is {type_}, not (batch, heads, tokens, head_dim)"
    heads, head_dim = type_.shape[1], type_.shape[3]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return "the number of heads or the size of a head is not static"
    batch_first = _order(linears, traced, heads, head_dim)
    if isinstance(batch_first, str):
        return batch_first
    ops = dict.fromkeys([*distinct, *(op for _, path in traced for op, _ in path)])
    ends = {query, key, value}
    shared = [r for op in ops for r in op.results if r not in ends and any(user not in ops for user in r.users)]
    return InProjection(inputs[0], distinct, tuple(ops), batch_first, heads, head_dim, tuple(shared))


def _order(
    linears: list[Operation | None], traced: list[tuple[Value, list[tuple[Operation, int]]]], heads: int, head_dim: int
) -> bool | str:
    """Return whether the split is batch first, or why it is not a split into heads."""
    width = heads * head_dim
    joint = linears[0] is linears[1]
    for batch_first in (True, False):
        for part, (source, path) in enumerate(traced):
            shape = source.tensor_type.shape
            if shape is None or len(shape) != 3 or None in shape:
                return f"the projection is {source.type}, not of rank 3"
            if not dims_equal(shape[2], 3 * width if joint else width):
                return f"the projection is {source.type}, which is not {heads} heads of {head_dim}"
            known: tuple[Dim, ...] = shape
            actual = apply_path(LayoutMap.identity(known), path)
            expected = heads_map(known, part * width if joint else 0, heads, head_dim, batch_first)
            if actual is None or expected is None or not actual.same_as(expected):
                break
        else:
            return batch_first
    return "the projection is not split into heads in the order of multi-head attention"
