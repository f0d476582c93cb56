"""What is known of strides, and whether composed reshapes leave the same strides as one.

`reshape` returns a view where the operand's strides allow it, and a contiguous copy elsewhere. So whether a chain of
layout operations may be merged "bit for bit" is a question about strides: another layout sends the kernels behind it
down another path, and shows in the outputs. Strides of dimensions of size 1 mean nothing and are ignored throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from ir.columns import Layout, StrideRule
from ir.core import Operation, Value
from ir.memory.aliasing import may_alias_operands
from ir.opdef import OpDef, Trait
from ir.types import Dim, TensorType, dims_equal, simplify_dim

_BOUND = 32

Strides = tuple[Dim, ...]

_STEPS = frozenset(
    {Layout.RESHAPE, Layout.PERMUTE, Layout.SPLIT, Layout.SLICE, Layout.SELECT, Layout.SAME, Layout.DETACHED}
)
"""What the strides of a result follow from, where it is written in the one spelling."""


def is_contiguous_result(op: Operation) -> bool:
    """Return whether an operation's results are contiguous whatever the strides of its operands are."""
    if op.opdef.facts.strides is StrideRule.CONTIGUOUS:
        return True
    return op.opdef.layout is Layout.SAME and op.attributes.get("memory_format") is torch.contiguous_format


def contiguous_strides(shape: Sequence[Dim]) -> Strides:
    """Return the strides of a contiguous tensor."""
    strides: list[Dim] = []
    stride: Dim = 1
    for size in reversed(shape):
        strides.append(stride)
        stride = simplify_dim(stride * size)
    return tuple(reversed(strides))


def known_shape(value: Value) -> tuple[Dim, ...] | None:
    """Return the shape of a tensor value where all of it is known, else None."""
    type_ = value.type
    if type(type_) is not TensorType or type_.shape is None or None in type_.shape:
        return None
    return type_.shape


def strides_of(value: Value) -> Strides | None:
    """Return the strides of `value` where they follow from the operations alone, else None."""
    path: list[tuple[Operation, int]] = []
    op = value.defining_op
    while op is not None and not is_contiguous_result(op):
        if len(path) == _BOUND or not (_is_step(op.opdef) or _keeps_strides(op)):
            return None
        path.append((op, value.index))
        operand = op.operands[0]
        if operand is None:
            return None
        value = operand
        op = value.defining_op
    shape = known_shape(value)
    if op is None or shape is None:
        return None
    strides: Strides | None = contiguous_strides(shape)
    for op, index in reversed(path):
        assert strides is not None
        strides = _step(op, index, shape, strides)
        after = known_shape(op.results[index])
        if strides is None or after is None:
            return None
        shape = after
    return strides


def _is_step(opdef: OpDef) -> bool:
    if opdef.layout not in _STEPS or opdef.facts.spelled is not None:
        return False
    return opdef.layout is not Layout.SAME or (opdef.has(Trait.VIEW) and opdef.facts.storage is None)


def _keeps_strides(op: Operation) -> bool:
    """Whether the op is a unary elementwise one: a dense operand's strides are the result's."""
    return (
        op.opdef.has(Trait.ELEMENTWISE)
        and len(op.operands) == 1
        and not may_alias_operands(op.opdef)
        and "memory_format" not in op.attributes
    )


def _step(op: Operation, index: int, shape: tuple[Dim, ...], strides: Strides) -> Strides | None:
    layout = op.opdef.layout
    if layout is Layout.PERMUTE:
        return tuple(strides[d] for d in op.attributes["dims"])
    if layout is Layout.RESHAPE:
        after = known_shape(op.results[0])
        if after is None:
            return None
        verdict = reshape_is_view(shape, strides, after)
        if verdict is None:
            return None
        return view_strides(shape, strides, after) if verdict else contiguous_strides(after)
    if layout is Layout.SELECT:
        dim = op.attributes["dim"] % len(shape)
        return strides[:dim] + strides[dim + 1 :]
    if layout is Layout.SLICE and op.attributes["step"] != 1:
        return None
    if layout is not None:
        return strides
    return strides if is_dense_layout(shape, strides) else None


def is_dense_layout(shape: Sequence[Dim], strides: Sequence[Dim]) -> bool:
    """Return whether the strides provably are a permutation of contiguous ones."""
    pairs = [(size, stride) for size, stride in zip(shape, strides, strict=True) if not dims_equal(size, 1)]
    expected: Dim = 1
    while pairs:
        found = next((i for i, (_, stride) in enumerate(pairs) if dims_equal(stride, expected)), None)
        if found is None:
            return False
        expected = simplify_dim(expected * pairs.pop(found)[0])
    return True


def boundaries(shape: Sequence[Dim]) -> dict[Dim, int]:
    """Return where a shape cuts its row-major order: elements behind each cut -> the dimension that begins there.

    Dimensions of size 1 make no cut, and neither do the two ends.
    """
    cuts: dict[Dim, int] = {}
    count: Dim = 1
    pending: int | None = None
    for i in range(len(shape) - 1, -1, -1):
        size = shape[i]
        if type(size) is int and size == 1:
            continue
        if pending is not None:
            cuts[count] = pending
        count = simplify_dim(count * size)
        pending = i
    return cuts


def mergeable(shape: Sequence[Dim], strides: Sequence[Dim], inner: int) -> bool | None:
    """Return whether `inner` and the next outer dimension (sizes 1 skipped) step on from each other; None: unknown."""
    outer = inner - 1
    while shape[outer] == 1:
        outer -= 1
    expected = simplify_dim(shape[inner] * strides[inner])
    if dims_equal(strides[outer], expected):
        return True
    if type(expected) is int and type(strides[outer]) is int:
        return False
    return None


def reshape_is_view(shape: Sequence[Dim], strides: Sequence[Dim], target: Sequence[Dim]) -> bool | None:
    """Return whether reshaping to `target` gives a view; None where that is not known."""
    kept = boundaries(target)
    answers = [mergeable(shape, strides, inner) for cut, inner in boundaries(shape).items() if cut not in kept]
    if all(answer is True for answer in answers):
        return True
    return False if any(answer is False for answer in answers) else None


def view_strides(shape: Sequence[Dim], strides: Sequence[Dim], target: Sequence[Dim]) -> Strides | None:
    """Return the strides of the view of shape `target`, which must exist; None where that cannot be proved."""
    result: list[Dim] = [1] * len(target)
    at = len(target) - 1
    size: Dim = 1
    stride: Dim = 1
    rest = [(s, t) for s, t in zip(shape, strides, strict=True) if not (type(s) is int and s == 1)]
    while at >= 0:
        want = target[at]
        if type(want) is int and want == 1:
            result[at] = simplify_dim(stride * size)
            at -= 1
            continue
        if type(size) is int and size == 1:
            if not rest:
                return None
            size, stride = rest.pop()
        # take `want` elements off the inner end; join outer source dimensions while there are too few
        while not _divides(want, size):
            if not rest:
                return None
            outer, step = rest.pop()
            if not dims_equal(step, simplify_dim(size * stride)):
                return None
            size = simplify_dim(size * outer)
        result[at] = stride
        stride = simplify_dim(stride * want)
        size = _quotient(size, want)
        at -= 1
    return tuple(result)


def _divides(part: Dim, whole: Dim) -> bool:
    if type(part) is int and type(whole) is int:
        return part != 0 and whole % part == 0
    if dims_equal(part, whole):
        return True
    return _exact_quotient(whole, part) is not None


def _quotient(whole: Dim, part: Dim) -> Dim:
    if type(part) is int and type(whole) is int:
        return whole // part
    if dims_equal(part, whole):
        return 1
    quotient = _exact_quotient(whole, part)
    assert quotient is not None
    return quotient


def _exact_quotient(whole: Dim, part: Dim) -> Dim | None:
    quotient = sympy.cancel(sympy.sympify(whole) / sympy.sympify(part))
    return simplify_dim(quotient) if quotient.as_numer_denom()[1] == 1 else None


def merge_keeps_strides(x: Value, middle: Sequence[Dim], target: Sequence[Dim]) -> bool:
    """Return whether `reshape(reshape(x, middle), target)` has the strides, and the sharing, of `reshape(x, target)`.

    The chain is a view where x merges at every cut that `middle` or `target` drops; one reshape, where it merges at
    those that `target` drops. Where a copy is made, it is contiguous in both.
    """
    shape = known_shape(x)
    if shape is None or 0 in shape:
        return False
    cuts, kept_first, kept = boundaries(shape), boundaries(middle), boundaries(target)
    extra = [inner for cut, inner in cuts.items() if cut in kept and cut not in kept_first]
    if not extra:
        return True
    strides = strides_of(x)
    if strides is None:
        return False
    if all(mergeable(shape, strides, inner) is True for inner in extra):
        return True
    return any(mergeable(shape, strides, inner) is False for cut, inner in cuts.items() if cut not in kept)


def reshape_views(x: Value, target: Sequence[Dim]) -> bool:
    """Return whether reshaping `x` to `target` certainly makes a view."""
    shape = known_shape(x)
    if shape is None or 0 in shape:
        return False
    kept = boundaries(target)
    if all(cut in kept for cut in boundaries(shape)):
        return True
    strides = strides_of(x)
    return strides is not None and reshape_is_view(shape, strides, target) is True


def reshape_copies(x: Value, target: Sequence[Dim]) -> bool:
    """Return whether reshaping `x` to `target` certainly makes a copy."""
    shape = known_shape(x)
    strides = None if shape is None or 0 in shape else strides_of(x)
    if shape is None or strides is None:
        return False
    return reshape_is_view(shape, strides, target) is False


def is_contiguous(value: Value) -> bool:
    """Return whether `value` is certainly contiguous."""
    op = value.defining_op
    if op is not None and is_contiguous_result(op):
        return True
    shape, strides = known_shape(value), strides_of(value)
    if shape is None or strides is None:
        return False
    pairs = zip(shape, strides, contiguous_strides(shape), strict=True)
    return all(dims_equal(size, 1) or dims_equal(a, b) for size, a, b in pairs)


def is_dense(value: Value) -> bool:
    """Return whether `value` has neither gaps nor overlaps.

    Graph inputs and weights are taken to be dense; so is every tensor that an operator made anew.
    """
    for _ in range(_BOUND):
        op = value.defining_op
        if op is None:
            return True
        if not _keeps_density(op.opdef):
            return op.body is None and not may_alias_operands(op.opdef)
        operand = op.operands[0]
        if operand is None:
            return False
        value = operand
    return False


def _keeps_density(opdef: OpDef) -> bool:
    """Whether a dense operand, without gaps and overlap, gives a dense result."""
    layout = opdef.layout
    if opdef.has(Trait.DROPOUT) or layout in (Layout.RESHAPE, Layout.DETACHED):
        return True
    return layout is not None and (layout.reorders or (layout is Layout.SAME and opdef.has(Trait.VIEW)))


def has_standard_format(value: Value, *, trust_inputs: bool = False) -> bool:
    """Return whether `value` is certainly contiguous or channels_last: what convolutions and pools return.

    With `trust_inputs`, the inputs of the graph are taken to be one of these.
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
        operand = op.operands[0]
        if operand is None:
            return False
        value = operand
    return False
