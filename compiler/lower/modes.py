"""What follows the mode where the user's code reads `self.training`, found by comparing two captures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest

from ir.attributes import Attribute, attributes_equal
from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import Program

_ATTENTION = "aten.scaled_dot_product_attention"


def follow_modes(program: Program, opposite: Program | None, error: str, readers: Sequence[str]) -> None:
    """Decide for each operation of a module in `readers` whether its training flag follows the mode.

    Args:
        program: receives the flags; its lock says where else the two captures differ.
        opposite: the capture with those modules in the opposite mode.
        error: why there is no such capture.
        readers: paths of the modules whose code depends on `self.training`.
    """
    names = ", ".join(f"`{path}`" if path else "the root module" for path in readers[:5])
    if len(readers) > 5:
        names += ", …"
    if opposite is None:
        lock(program, f"{names} read self.training, and could not be captured in the other mode: {error}")
        return
    problem = _compare(program, opposite, frozenset(readers))
    if problem:
        lock(program, f"{names} read self.training, and compute something else in the other mode: {problem}")


def lock(program: Program, reason: str) -> None:
    """Lock the mode of the emitted module, for a reason."""
    program.mode_locked = f"{program.mode_locked}; {reason}" if program.mode_locked else reason


def _compare(program: Program, opposite: Program, readers: frozenset[str]) -> str:
    """Set the flags of operations that differ in these only; return what else differs, or an empty text."""
    matches: dict[Value, Value] = {}
    for name, weight in program.weights.items():
        if name in opposite.weights:
            matches[weight.value] = opposite.weights[name].value
    matches.update(zip(program.graph.inputs, opposite.graph.inputs, strict=True))
    changes: list[tuple[Operation, str, object]] = []
    for op, other in zip_longest(program.graph.operations(), opposite.graph.operations()):
        if op is None:
            return f"{other.name}{_where(other)} is there only"
        if other is None:
            return f"{op.name}{_where(op)} is missing there"
        same = op.opdef is other.opdef and op.segments == other.segments
        if not same or not _operands_match(op, other, matches):
            return f"{op.name}{_where(op)} is {other.name} there"
        mode = program.module_modes.get(op.location.module_path)
        found = flags_that_follow(op, other.attributes, readers, mode)
        if found is None:
            return f"{op.name}{_where(op)} has other arguments there"
        changes.extend((op, name, value) for name, value in found.items())
        matches.update(zip(op.results, other.results, strict=True))
    mine, theirs = program.graph.outputs, opposite.graph.outputs
    if len(mine) != len(theirs) or any(
        a is not None and matches.get(a) is not b for a, b in zip(mine, theirs, strict=True)
    ):
        return "the outputs are others there"
    for op, name, value in changes:
        op.set_attribute(name, value)
    return ""


def _where(op: Operation) -> str:
    return f" at {op.location}" if not op.location.is_unknown else ""


def _operands_match(op: Operation, other: Operation, matches: dict[Value, Value]) -> bool:
    found = [None if a is None else matches.get(a, a) for a in op.operands]
    return len(found) == len(other.operands) and all(a is b for a, b in zip(found, other.operands, strict=True))


def flags_that_follow(
    op: Operation, other: Mapping[str, Attribute], readers: Collection[str], mode: bool | None
) -> dict[str, Attribute] | None:
    """Return the attributes that make `op` follow its mode, or None where none do.

    An operation that trains while its module does not (`dropout(x, p, not self.training)`) does not follow it.

    Args:
        op: the captured operation.
        other: its attributes in the opposite mode.
        readers: paths of modules whose mode code other than the layer's own reads.
        mode: the mode of its module in the capture.
    """
    differing = [name for name, value in op.attributes.items() if not attributes_equal(value, other[name])]
    flag = op.opdef.training
    if flag is not None and op.opdef.follows_mode:
        if not differing:
            return {"follows_mode": False} if op.location.module_path in readers else {}
        if differing == [flag]:
            return {"follows_mode": True} if op.attributes[flag] is mode or mode is None else None
        here, there = op.attributes, other
        if op.opdef.has(Trait.DROPOUT) and differing == ["p"] and here["train"] and 0 in (here["p"], there["p"]):
            # `dropout(x, p if self.training else 0.0)`
            if mode is not None and (here["p"] != 0) is not mode:
                return None
            return {"p": here["p"] or there["p"], "train": here["p"] != 0, "follows_mode": True}
        return None
    if op.name == _ATTENTION and differing == ["dropout_p"]:
        here, there = op.attributes["dropout_p"], other["dropout_p"]
        if mode is not None and (here != 0) is not mode:
            return None
        return {"train_dropout_p": here or there} if 0 in (here, there) else None
    return {} if not differing else None
