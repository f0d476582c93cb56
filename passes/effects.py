"""What an operation does besides computing its results, in eval mode and in train mode."""

from __future__ import annotations

from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import weight_of

# Their result holds whatever was in memory.
_UNINITIALIZED = frozenset({"aten.empty.memory_format", "aten.empty_like", "aten.new_empty", "aten.empty_strided"})


def may_train(op: Operation) -> bool:
    """Return whether `train()` on the emitted module can put the operation in training mode, or it is in it already.

    Then it draws random numbers or updates its statistics, so that it can neither be removed where it is unused nor
    merged with an equal one.
    """
    if op.body is not None:
        return any(map(may_train, op.body.operations()))
    if op.opdef.training is None:
        return False
    attributes = op.attributes
    if op.in_training or attributes.get("train_dropout_p", 0.0) != 0.0:
        return True
    return bool(attributes.get("follows_mode", False)) and not _never_draws(op)


def _never_draws(op: Operation) -> bool:
    """Whether it is a dropout that drops nothing, or a normalization without statistics to write."""
    p = op.attributes.get("p")
    return type(p) is float and p == 0.0


def is_removable(op: Operation) -> bool:
    """Return whether the operation may go when nothing uses it."""
    if op.body is None and op.opdef.training is None:
        return op.opdef.is_pure
    return op.is_pure and not may_train(op)


def is_mergeable(op: Operation) -> bool:
    """Return whether the operation may be replaced by an equal one that comes before it."""
    if op.body is not None or not op.opdef.has(Trait.PURE) or may_train(op) or op.name in _UNINITIALIZED:
        return False
    return not any(map(_is_written, op.operand_values))


def is_foldable(op: Operation) -> bool:
    """Return whether the results depend on nothing but the operands and attributes."""
    return is_mergeable(op)


def _is_written(value: Value) -> bool:
    weight = weight_of(value)
    return weight is not None and weight.is_mutated
