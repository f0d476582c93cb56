"""Effects of operations, in eval mode and in train mode, and what else keeps a match from being replaced."""

from __future__ import annotations

from collections.abc import Sequence

from ir.core import RETURN, Operation, Value
from ir.data_sizes import data_symbols_of_boundary, introduced, mentions
from ir.memory.aliasing import writes_operand
from ir.opdef import Trait
from ir.program import Program, weight_of
from passes.rewrite.language.roots import place_of
from passes.rewrite.pattern import Match


def may_train(op: Operation) -> bool:
    """Whether the operation is in training mode, or `train()` on the emitted module can put it there.

    Then it draws random numbers or updates statistics: it can be neither removed nor merged.
    """
    if op.body is not None:
        return any(map(may_train, op.body.operations()))
    if op.opdef.training is None:
        return False
    attributes = op.attributes
    if op.in_training or attributes.get("train_dropout_p", 0.0) != 0.0:
        return True
    # a layer that drops inside (nn.MultiheadAttention) has no such attribute, and follows the mode
    return bool(attributes.get("follows_mode", "dropout" in attributes)) and not _never_draws(op)


def _never_draws(op: Operation) -> bool:
    """Whether it is a dropout that drops nothing."""
    return [op.attributes[name] for name in ("p", "dropout") if name in op.attributes] == [0.0]


def is_removable(op: Operation) -> bool:
    """Whether the operation may be removed when it is unused.

    One that introduces a size which depends on data may not: attributes elsewhere may name it.
    """
    if introduced(op):
        return False
    return is_effectless(op)


def is_effectless(op: Operation) -> bool:
    """Whether the operation has no effect, in no mode."""
    if op.body is None and op.opdef.training is None:
        return op.opdef.is_pure
    return op.is_pure and not may_train(op)


def is_mergeable(op: Operation) -> bool:
    """Whether an equal operation before it may take its place, unless what it reads is mutated.

    The operator of a region is not pure, as its body says what it does.
    """
    if not op.opdef.is_pure or op.opdef.has(Trait.UNINITIALIZED):
        return False
    return not may_train(op)


def is_foldable(op: Operation) -> bool:
    """Whether results depend on operands and attributes only."""
    return is_mergeable(op) and not reads_written(op)


def reads_written(op: Operation) -> bool:
    """Whether some operation mutates an operand, so that what is read depends on the time."""
    return any(map(_is_written, op.operand_values))


def _is_written(value: Value) -> bool:
    weight = weight_of(value)
    if weight is not None:
        return weight.is_mutated
    # statistics that are not weights: lowering hides them from views
    return any(writes_operand(op, index) for op, index in value.uses)


def crossed_effect(ops: Sequence[Operation]) -> str | None:
    """Return why operations cannot be fused where the last of them stands, or None where they can.

    In training, dropouts draw their numbers in order, and uses of one batch norm update its statistics in order. No
    operation may move past another of its kind.
    """
    effects = [op for op in ops if may_train(op)]
    if not effects or len(ops) < 2:
        return None
    members = set(ops)
    last = ops[0]
    for op in ops:
        if last.is_before(op):
            last = op
    for op in effects:
        for other in _rivals(op, last):
            if other not in members and op.is_before(other) and other.is_before(last):
                return (
                    f"{op.name} at `{op.location.where}` would move past {other.name} at `{other.location.where}`, and "
                    "their order shows in training"
                )
    return None


def _rivals(op: Operation, last: Operation) -> list[Operation]:
    """Return operations whose order with `op` is observable in training; not all lie between `op` and `last`."""
    if op.body is None and op.opdef.has(Trait.NORMALIZES):
        statistics = [op.operand(name) for name in ("running_mean", "running_var")]
        return [user for value in statistics if value is not None for user in value.users if user.opdef is not RETURN]
    found: list[Operation] = []
    current: Operation | None = op
    while current is not None and current is not last:
        if _draws(current):
            found.append(current)
        current = current.next
    return found


def _draws(op: Operation) -> bool:
    """Whether the operation draws random numbers, or is opaque."""
    if op.body is not None:
        return any(map(_draws, op.body.operations()))
    if op.opdef.training is not None and not op.opdef.has(Trait.OPAQUE):
        return may_train(op) and not op.opdef.has(Trait.NORMALIZES)
    return op.opdef.has(Trait.RANDOM) or op.opdef.has(Trait.OPAQUE)


def moved_effect(match: Match) -> str | None:
    """Return why a match of several roots cannot be replaced at one place; None where it can."""
    place = place_of(match.ops, match.roots)
    if isinstance(place, str):
        return place
    for name, value in match.captures.items():
        if isinstance(value, Value) and value.defining_op in match.roots:
            return f"`{name}` is computed by another root"
    for op in match.ops:
        if may_train(op) or _draws(op) or reads_written(op) or not op.is_pure:
            return f"{op.name} at `{op.location.where}` has an effect, or reads what is mutated, and would be moved"
    return None


def outside_use(match: Match) -> str | None:
    """Return why a match is not closed: an intermediate value has users outside; None where it is."""
    members = set(match.ops)
    for op in match.ops:
        if op in match.roots:
            continue
        for result in op.results:
            outside = [user for user in result.users if user not in members]
            if outside:
                names = ", ".join(
                    "an output of the model" if user.opdef is RETURN else f"{user.name} at `{user.location.where}`"
                    for user in outside[:3]
                )
                count = len(result.users)
                users = f"{count} users" if count > 1 else "a user outside the match"
                return f"the output of {op.name} at `{op.location.where}` has {users} ({names})"
    return None


def hidden_size(program: Program, match: Match) -> str | None:
    """Return why a match must stay: an intermediate value defines a size that is named outside; None where none is."""
    for op in match.ops:
        symbols = () if op in match.roots else introduced(op)
        if symbols and (
            not data_symbols_of_boundary(program).isdisjoint(symbols) or mentions(program.graph, symbols, match.ops)
        ):
            return f"the output of {op.name} at `{op.location.where}` has a size that is named outside the match"
    return None
