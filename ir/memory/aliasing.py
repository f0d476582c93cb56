"""Which values may share storage, and whose strides a caller can see.

All answers are conservative: where an operator's behaviour is not known, a result may alias each operand, and its
strides may depend on theirs. Every walk is bounded; past the bound the conservative answer is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ir.caches import Cache
from ir.columns import Layout, StorageRule
from ir.core import RETURN, Operation, Value
from ir.opdef import OpDef, Trait
from ir.types import TensorType

_BOUND = 512

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)
_MAY_ALIAS: Cache[OpDef, bool] = Cache()


def may_alias_operands(opdef: OpDef) -> bool:
    """Return whether a result of the operator may share storage with an operand."""
    found = _MAY_ALIAS.get(opdef)
    if found is None:
        found = _MAY_ALIAS[opdef] = _may_alias(opdef)
    return found


def _may_alias(opdef: OpDef) -> bool:
    if opdef.facts.storage is StorageRule.FRESH:
        return False
    if not opdef.operand_params:
        return False  # an operator on numbers; the dispatcher does not know those
    if opdef.has(Trait.VIEW) or opdef.has(Trait.OPAQUE):
        return True
    if not isinstance(opdef.target, torch._ops.OpOverload):
        return not opdef.has(Trait.PURE)
    if opdef.has(Trait.ELEMENTWISE):
        return False
    # A composite is Python-like code over other operators: it may return its operand as it is (`type_as`, `einsum`).
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(opdef.target.name(), "CompositeImplicitAutograd"))


def demands_strides(opdef: OpDef) -> bool:
    """Return whether the operator fails where its operand's strides allow no view; types know no strides."""
    return opdef.facts.storage is StorageRule.DEMANDED


def makes_view(opdef: OpDef) -> bool:
    """Return whether the results of the operator are views of its first operand, however that lies in memory.

    A reshape is one where strides allow it, and a copy elsewhere.
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
    """Return the operands that a result may alias, where the operator may alias any.

    What lies as its first operand at most (`view_as`) takes nothing but a shape or dtype from the second.
    """
    operands = op.operand_values
    return operands[:1] if op.opdef.facts.storage is not None else operands


def is_fresh(value: Value) -> bool:
    """Return whether `value` certainly owns its storage: a result that shares it with no operand."""
    op = value.defining_op
    if op is None or op.body is not None:
        return False
    return not may_alias_operands(op.opdef)


def may_alias_roots(value: Value) -> tuple[Value, ...]:
    """Return the values whose storage `value` may share: itself where it is fresh, else what it may be a view of.

    A result of a region may share storage with every operand of the region.
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
    """Return whether a walk from use to use comes to an end that is looked for.

    Args:
        value: where the walk starts.
        ends: whether a use, an operation and the number of its operand, is what is looked for.
        onward: the values to which the walk goes on from a use.
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
    """Return whether `value`, or a value that may share its storage, is an output of the graph."""
    return _reaches(value, lambda op, _: op.opdef is RETURN, lambda op, _: _aliasing_results(op))


def may_share_with_caller(value: Value) -> bool:
    """Return whether the caller, or a later call, may hold the storage of `value`: inputs, weights, their views."""
    return any(root.defining_op is None or not is_fresh(root) for root in may_alias_roots(value))


def reaches_output(value: Value) -> bool:
    """Return whether the strides of `value` may show: in the strides of an output, or in what a dropout drops.

    Random numbers are drawn in the order of memory, so strides decide which element gets which number.
    """
    return _strides_reach(
        value, lambda op: op.opdef is RETURN or (op.opdef.has(Trait.RANDOM) and op.attributes.get("p") != 0)
    )


def reaches_view(value: Value) -> bool:
    """Return whether the strides of `value` may decide whether an operation fails: a view that may not copy."""
    return _strides_reach(value, lambda op: demands_strides(op.opdef))


def reaches_format(value: Value) -> bool:
    """Return whether the strides of `value` may decide whether a conversion to channels_last copies.

    It is asked of strides of dimensions of size 1 too, which mean nothing elsewhere.
    """
    return _strides_reach(
        value, lambda op: op.attributes.get("memory_format") in _CHANNELS_LAST and may_alias_operands(op.opdef)
    )


def _strides_reach(value: Value, ends: Callable[[Operation], bool]) -> bool:
    """Return whether the strides of `value` may matter to an operation of some kind.

    The walk goes forward through every operator whose result strides may follow its operands', and stops at those
    that fix them.
    """

    def onward(op: Operation, _: int) -> list[Value]:
        return [] if op.opdef.fixes_strides else [each for each in op.results if type(each.type) is TensorType]

    return _reaches(value, lambda op, _: ends(op), onward)


def is_written(value: Value) -> bool:
    """Return whether an operation may write to `value`, or to what may share its storage.

    Normalizations write their running statistics, in training, and after a call of `train()` where they follow the
    mode of their module. Opaque calls write where they say so.
    """

    def onward(op: Operation, index: int) -> tuple[Value, ...]:
        return (*_aliasing_results(op), *(() if op.body is None else (op.body.inputs[index],)))

    return _reaches(value, writes_operand, onward)


def writes_operand(op: Operation, index: int) -> bool:
    """Return whether an operation may write to the operand of that number, now or when `train()` is called."""
    opdef = op.opdef
    if opdef.has(Trait.OPAQUE):
        return bool(op.attributes.get("writes", False))
    if op.body is not None or opdef.training is None or opdef.has(Trait.RANDOM):
        return False
    return index in statistics_places(opdef) and bool(op.in_training or op.attributes.get("follows_mode"))


def statistics_places(opdef: OpDef) -> tuple[int, ...]:
    """Return the numbers of the operands that a normalization writes in training."""
    index = opdef.operand_index
    return tuple([index[name] for name in ("running_mean", "running_var") if name in index])


def may_replace(old: Value, new: Value) -> bool:
    """Return whether the users of `old`, a fresh copy of `new`, may use `new` itself without a caller telling.

    They may unless an output would then share storage with an input, a weight or another output, or one of the two is
    written while somebody reads the other.
    """
    roots = may_alias_roots(new)
    if is_written(old) or any(map(is_written, roots)):
        return False
    if not aliases_output(old):
        return True
    return not may_share_with_caller(new) and not any(map(aliases_output, roots))
