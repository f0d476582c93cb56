"""Strides of values, and whether merged reshapes keep them.

`reshape` returns a view where the strides of the operand allow it, else a contiguous copy. So merging layout operations
may change strides, and with them the path that later kernels take, and the bits of outputs. Strides of size-1
dimensions are ignored throughout.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ir.columns import Layout, StrideRule
from ir.core import Operation, Value
from ir.memory.aliasing import may_alias_operands
from ir.memory.layout import LayoutMap
from ir.opdef import OpDef, Trait
from ir.types import Dim, dims_equal, simplify_dim

_BOUND = 32

_STEPS = frozenset(
    {Layout.RESHAPE, Layout.PERMUTE, Layout.SPLIT, Layout.SLICE, Layout.SELECT, Layout.SAME, Layout.DETACHED}
)
"""Layouts of canonical operators whose result strides follow from the operand's."""


def is_contiguous_result(op: Operation) -> bool:
    """Return whether the results of an operation are contiguous whatever the strides of its operands."""
    if op.opdef.facts.strides is StrideRule.CONTIGUOUS:
        return True
    return op.opdef.layout is Layout.SAME and op.attributes.get("memory_format") is torch.contiguous_format


def layout_of(value: Value) -> LayoutMap | None:
    """Return the layout of `value` in memory if it follows from the operations alone, else None."""
    path: list[tuple[Operation, int]] = []
    op = value.defining_op
    while op is not None and not is_contiguous_result(op):
        if len(path) == _BOUND or not (_is_step(op.opdef) or _keeps_strides(op)):
            return None
        path.append((op, value.index))
        value = op.operand_values[0]
        op = value.defining_op
    shape = value.known_shape
    if op is None or shape is None:
        return None
    layout: LayoutMap | None = LayoutMap.identity(shape)
    for op, index in reversed(path):
        after = op.results[index].known_shape
        if layout is None or after is None:
            return None
        layout = _step(op, layout, after)
    return layout


def _is_step(opdef: OpDef) -> bool:
    if opdef.layout not in _STEPS or opdef.facts.spelled is not None:
        return False
    return opdef.layout is not Layout.SAME or (opdef.has(Trait.VIEW) and opdef.facts.storage is None)


def _keeps_strides(op: Operation) -> bool:
    """Whether the op is unary and elementwise, so that the result has the strides of a dense operand."""
    return (
        op.opdef.has(Trait.ELEMENTWISE)
        and len(op.operands) == 1
        and not may_alias_operands(op.opdef)
        and "memory_format" not in op.attributes
    )


def _step(op: Operation, before: LayoutMap, shape: Sequence[Dim]) -> LayoutMap | None:
    """Return the map of a result of this shape; the operand has one atom a dimension."""
    layout, strides = op.opdef.layout, before.strides
    assert strides is not None
    if layout is Layout.RESHAPE:
        is_view = before.is_view(shape)
        return None if is_view is None else before.view(shape) if is_view else LayoutMap.identity(shape)
    if layout is Layout.PERMUTE:
        strides = tuple(strides[d] for d in op.attributes["dims"])
    elif layout is Layout.SELECT:
        dim = op.attributes["dim"] % len(strides)
        strides = strides[:dim] + strides[dim + 1 :]
    elif layout is Layout.SLICE:
        strides = strides if op.attributes["step"] == 1 else None
    elif layout is None:
        strides = strides if memory_order(shape, strides) is not None else None
    return None if strides is None else LayoutMap.strided(shape, strides)


def memory_order(shape: Sequence[Dim], strides: Sequence[Dim]) -> list[int] | None:
    """Return the dimensions of a dense tensor in memory order; those of size 1 come first.

    Return None if the strides are not provably a permutation of contiguous ones.
    """
    left = [d for d in range(len(shape)) if not dims_equal(shape[d], 1)]
    order: list[int] = []
    reach: Dim = 1
    while left:
        inner = next((d for d in left if dims_equal(strides[d], reach)), None)
        if inner is None:
            return None
        left.remove(inner)
        order.insert(0, inner)
        reach = simplify_dim(reach * shape[inner])
    return [d for d in range(len(shape)) if d not in order] + order


def strides_equal(shape: Sequence[Dim | None], a: Sequence[Dim | None], b: Sequence[Dim | None]) -> bool:
    """Return whether tensors of one shape provably have the same strides, up to size-1 dimensions."""
    return all(dims_equal(size, 1) or dims_equal(x, y) for size, x, y in zip(shape, a, b, strict=True))


def merge_keeps_strides(x: Value, middle: Sequence[Dim], target: Sequence[Dim]) -> bool:
    """Return whether `reshape(reshape(x, middle), target)` has the strides and the aliasing of `reshape(x, target)`.

    The chain is a view where x merges at every cut that `middle` or `target` drops; one reshape, where it merges at
    those that `target` drops (`computeStride` in ATen/TensorUtils.cpp). Where a copy is made, it is contiguous in both.
    """
    shape = x.known_shape
    if shape is None or 0 in shape:
        return False
    kept_first, kept = _cuts(middle), _cuts(target)
    extra = [cut for cut in _cuts(shape) if cut in kept and cut not in kept_first]
    if not extra:
        return True
    layout = layout_of(x)
    if layout is None:
        return False
    seams = layout.seams()
    return all(seams[cut] for cut in extra) or any(is_one is False for cut, is_one in seams.items() if cut not in kept)


def _cuts(shape: Sequence[Dim]) -> Collection[Dim]:
    return LayoutMap.identity(shape).seams()


def reshape_views(x: Value, target: Sequence[Dim]) -> bool:
    """Return whether reshaping `x` to `target` certainly makes a view."""
    shape = x.known_shape
    if shape is None or 0 in shape:
        return False
    kept = _cuts(target)
    if all(cut in kept for cut in _cuts(shape)):
        return True
    layout = layout_of(x)
    return layout is not None and layout.is_view(target) is True


def reshape_copies(x: Value, target: Sequence[Dim]) -> bool:
    """Return whether reshaping `x` to `target` certainly makes a copy."""
    shape = x.known_shape
    layout = None if shape is None or 0 in shape else layout_of(x)
    return layout is not None and layout.is_view(target) is False


def is_contiguous(value: Value) -> bool:
    """Return whether `value` is certainly contiguous."""
    op = value.defining_op
    if op is not None and is_contiguous_result(op):
        return True
    layout = layout_of(value)
    return layout is not None and layout.same_as(LayoutMap.identity(layout.shape))


def is_dense(value: Value) -> bool:
    """Return whether `value` has neither gaps nor overlaps.

    Graph inputs, weights and fresh results are assumed to be dense.
    """
    for _ in range(_BOUND):
        op = value.defining_op
        if op is None:
            return True
        if not _keeps_density(op.opdef):
            return op.body is None and not may_alias_operands(op.opdef)
        value = op.operand_values[0]
    return False


def _keeps_density(opdef: OpDef) -> bool:
    """Whether a dense operand gives a dense result."""
    layout = opdef.layout
    if opdef.has(Trait.DROPOUT) or layout in (Layout.RESHAPE, Layout.DETACHED):
        return True
    return layout is not None and layout.reorders


def has_standard_format(value: Value, *, trust_inputs: bool = False) -> bool:
    """Return whether `value` is certainly contiguous or channels_last: what convolutions and pools return.

    With `trust_inputs`, graph inputs are assumed to be one of these.
    """
    for _ in range(_BOUND):
        if is_contiguous(value):
            return True
        op = value.defining_op
        if op is None:
            return trust_inputs and value.is_input
        if op.opdef.facts.strides is StrideRule.FORMAT:
            return True
        if not (_keeps_strides(op) or op.opdef.facts.strides is StrideRule.PASSED):
            return False
        value = op.operand_values[0]
    return False
