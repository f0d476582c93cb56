"""Which values may alias, and whose strides are observable.

All answers are conservative: where the behaviour of an operator is not known, a result may alias each operand, and its
strides may depend on theirs. A walk over uses is bounded; past the bound the answer is the conservative one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ir.caches import cached
from ir.columns import Layout, StorageRule
from ir.core import RETURN, Operation, Value
from ir.opdef import OpDef, Trait
from ir.types import TensorType

_BOUND = 512

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


@cached()
def may_alias_operands(opdef: OpDef) -> bool:
    """Return whether a result of the operator may alias an operand."""
    if opdef.facts.storage is StorageRule.FRESH:
        return False
    if not opdef.operand_params:
        return False  # an operator on numbers, which the dispatcher does not know
    if opdef.has(Trait.VIEW) or opdef.has(Trait.OPAQUE):
        return True
    if not isinstance(opdef.target, torch._ops.OpOverload):
        return not opdef.has(Trait.PURE)
    if opdef.has(Trait.ELEMENTWISE):
        return False
    # A composite is code over other operators, and may return its operand (`type_as`, `einsum`).
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(opdef.target.name(), "CompositeImplicitAutograd"))


def demands_strides(opdef: OpDef) -> bool:
    """Return whether the operator fails where the strides of its operand do not allow a view."""
    return opdef.facts.storage is StorageRule.DEMANDED


def makes_view(opdef: OpDef) -> bool:
    """Return whether the results of the operator are views of its first operand, whatever its strides.

    `reshape` counts, though it copies where strides do not allow a view.
    """
    if opdef.name == "aten.reshape":
        return True
    if demands_strides(opdef) or opdef.layout is Layout.STRIDED or opdef.has(Trait.RANDOM):
        return False
    if not isinstance(opdef.target, torch._ops.OpOverload) or not opdef.operand_params:
        return False
    schema = opdef.target._schema
    first = schema.arguments[0].alias_info
    return not schema.is_mutable and first is not None and all(each.alias_info is not None for each in schema.returns)


def aliased_operands(op: Operation) -> tuple[Value, ...]:
    """Return the operands the result may alias, if the operator may alias any.

    Where the table has a storage rule, it is the first at most: `view_as` takes only a shape from the second.
    """
    operands = op.operand_values
    return operands[:1] if op.opdef.facts.storage is not None else operands


def is_fresh(value: Value) -> bool:
    """Return whether `value` certainly owns its storage."""
    op = value.defining_op
    if op is None or op.body is not None:
        return False
    return not may_alias_operands(op.opdef)


def may_alias_roots(value: Value) -> tuple[Value, ...]:
    """Return the roots that `value` may alias: itself if it is fresh, else what it may be a view of.

    A result of a region may alias every operand of the region.
    """
    roots: dict[Value, None] = {}
    seen: set[Value] = {value}
    worklist = [value]
    while worklist:
        current = worklist.pop()
        op = current.defining_op
        if op is None or is_fresh(current):
            roots.setdefault(current)
            continue
        for operand in aliased_operands(op):
            if operand not in seen:
                seen.add(operand)
                worklist.append(operand)
        if op.body is not None or op.opdef.has(Trait.OPAQUE):
            roots.setdefault(current)
    return tuple(roots)


def _reaches(
    value: Value, ends: Callable[[Operation, int], bool], onward: Callable[[Operation, int], Iterable[Value]]
) -> bool:
    """Return whether a forward walk over uses reaches a use of some kind; True past the bound.

    Args:
        value: where the walk starts.
        ends: tells whether a use (operation, operand number) is of that kind.
        onward: returns the values at which the walk continues after a use.
    """
    seen: set[Value] = {value}
    worklist = [value]
    while worklist:
        if len(seen) > _BOUND:
            return True
        for user, index in worklist.pop().uses:
            if ends(user, index):
                return True
            for reached in onward(user, index):
                if reached not in seen:
                    seen.add(reached)
                    worklist.append(reached)
    return False


def _aliasing_results(op: Operation) -> tuple[Value, ...]:
    return op.results if op.body is not None or may_alias_operands(op.opdef) else ()


def aliases_output(value: Value) -> bool:
    """Return whether `value`, or a value that may alias it, is an output of the graph."""
    return _reaches(value, lambda op, _: op.opdef is RETURN, lambda op, _: _aliasing_results(op))


def may_share_with_caller(value: Value) -> bool:
    """Return whether the storage of `value` may escape to the caller or a later call: inputs, weights, their views."""
    return any(root.defining_op is None or not is_fresh(root) for root in may_alias_roots(value))


def reaches_output(value: Value) -> bool:
    """Return whether the strides of `value` may be observable, in strides of an output or in what a dropout drops.

    Random numbers are drawn in memory order, so strides decide which element gets which number.
    """
    return _strides_reach(
        value, lambda op: op.opdef is RETURN or (op.opdef.has(Trait.RANDOM) and op.attributes.get("p") != 0)
    )


def reaches_kernel(value: Value) -> bool:
    """Return whether the strides of `value` may decide the bits of a result: in which order a kernel adds numbers."""
    moves = Trait.ELEMENTWISE | Trait.LAYOUT | Trait.CAST
    return _strides_reach(value, lambda op: op.opdef is not RETURN and not op.opdef.traits & moves)


def reaches_view(value: Value) -> bool:
    """Return whether the strides of `value` may make an operation fail: a view that may not copy."""
    return _strides_reach(value, lambda op: demands_strides(op.opdef))


def reaches_format(value: Value) -> bool:
    """Return whether the strides of `value` may decide whether a conversion to channels_last copies.

    That depends on the strides of size-1 dimensions, too, which are irrelevant elsewhere.
    """
    return _strides_reach(
        value, lambda op: op.attributes.get("memory_format") in _CHANNELS_LAST and may_alias_operands(op.opdef)
    )


def _strides_reach(value: Value, ends: Callable[[Operation], bool]) -> bool:
    """Return whether the strides of `value` may matter to an operation of some kind.

    The walk stops at operators whose result strides are independent of their operands'.
    """

    def onward(op: Operation, _: int) -> list[Value]:
        return [] if op.opdef.fixes_strides else [each for each in op.results if type(each.type) is TensorType]

    return _reaches(value, lambda op, _: ends(op), onward)


def is_written(value: Value) -> bool:
    """Return whether `value`, or a value that may alias it, may be mutated.

    Normalizations mutate their running statistics in training, and after `train()` where they follow the mode of their
    module. Opaque calls mutate arguments where they say so.
    """

    def onward(op: Operation, index: int) -> tuple[Value, ...]:
        return (*_aliasing_results(op), *(() if op.body is None else (op.body.inputs[index],)))

    return _reaches(value, writes_operand, onward)


def writes_operand(op: Operation, index: int) -> bool:
    """Return whether an operation may mutate operand number `index`, now or after `train()`."""
    opdef = op.opdef
    if opdef.has(Trait.OPAQUE):
        return bool(op.attributes.get("writes", False))
    if op.body is not None or opdef.training is None or opdef.has(Trait.RANDOM):
        return False
    return index in statistics_places(opdef) and bool(op.in_training or op.attributes.get("follows_mode"))


def statistics_places(opdef: OpDef) -> tuple[int, ...]:
    """Return the numbers of the operands that a normalization mutates in training."""
    index = opdef.operand_index
    return tuple([index[name] for name in ("running_mean", "running_var") if name in index])


def may_replace(old: Value, new: Value) -> bool:
    """Return whether using `new` in place of `old`, a fresh copy of it, is unobservable.

    It is unless an output would then alias an input, a weight or another output, or one of the two is mutated.
    """
    roots = may_alias_roots(new)
    if is_written(old) or any(map(is_written, roots)):
        return False
    if not aliases_output(old):
        return True
    return not may_share_with_caller(new) and not any(map(aliases_output, roots))
