"""What follows the mode where the user's code asks for it, found from two real runs: one in each mode."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import attrs

from compiler.capture.boundary.questions import FLAGS, Record, Step
from compiler.lower.modes import flags_that_follow, lock
from ir.core import Operation
from ir.locations import Location
from ir.program import Program

_OPERATORS: Mapping[str, frozenset[str]] = {
    "aten.dropout": frozenset({"dropout"}),
    "aten.feature_dropout": frozenset({"dropout1d", "dropout2d", "dropout3d", "feature_dropout"}),
    "aten.alpha_dropout": frozenset({"alpha_dropout"}),
    "aten.feature_alpha_dropout": frozenset({"feature_alpha_dropout"}),
    "aten.batch_norm": frozenset({"batch_norm"}),
    "aten.scaled_dot_product_attention": frozenset({"scaled_dot_product_attention"}),
    "aten.instance_norm": frozenset({"instance_norm"}),
    "aten.rrelu": frozenset({"rrelu"}),
    **{f"aten.{name}.input": frozenset({name}) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
"""Operators that take the mode -> functions that call them."""
_SWITCHES = ("training", "train", "use_input_stats")
"""What functions call the argument that operators have as their training flag."""
_COUNTS = ("add_", "__iadd__")


class UndecidedError(Exception):
    """The runs do not show which call passes the mode to which operation."""


@attrs.frozen
class _Pair:
    """One call of a function in the captured run, and in the other one."""

    here: Step
    there: Step


def follow_steps(
    program: Program, irregular: Collection[str], opaques: Collection[str], here: Record, there: Record
) -> None:
    """Set which operations of irregular modules follow the mode, or lock the mode.

    Args:
        program: the lowered program.
        irregular: paths of modules whose mode code other than the layer's own reads.
        opaques: paths of opaque modules.
        here: the run in the captured mode.
        there: the run in the opposite mode.

    Raises:
        UndecidedError: when calls and operations do not correspond one to one.
    """
    steps = list(_relevant(here, irregular, opaques)), list(_relevant(there, irregular, opaques))
    for a, b in zip(*steps, strict=False):
        if a.name != b.name or a.arguments != b.arguments or a.location.module_path != b.location.module_path:
            lock(program, _parting(a.location, f"calls {b.name} there and {a.name} here" if a.name != b.name else ""))
            return
    if len(steps[0]) != len(steps[1]):
        longer = max(steps, key=len)
        extra = longer[min(map(len, steps))]
        lock(program, _parting(extra.location, f"calls {extra.name} in one mode only"))
        return
    pairs = [_Pair(a, b) for a, b in zip(*steps, strict=True) if a.flags]
    # all are matched before one is changed, since this may find that nothing can be said
    for op, pair in list(_matched(program, irregular, pairs)):
        if pair.here.flags == pair.there.flags:
            continue
        other = {**op.attributes, **_attributes(op, pair)}
        found = flags_that_follow(op, other, irregular, program.module_modes.get(op.location.module_path))
        if found is None:
            lock(program, _parting(pair.here.location, f"gives {op.name} other arguments"))
            return
        for name, value in found.items():
            op.set_attribute(name, value)
        if op.name == "aten.batch_norm" and _counts(here, pair.here) | _counts(there, pair.here):
            op.set_attribute("counts_batches", True)


def _parting(place: Location, what: str) -> str:
    where = f"`{place.module_path}`" if place.module_path else "the root module"
    line = f" ({place.source})" if place.source else ""
    return f"{where} computes something else in the other mode{line}{': it ' + what if what else ''}"


def _relevant(record: Record, irregular: Collection[str], opaques: Collection[str]) -> Iterator[Step]:
    """Yield the calls that the user's code decides about; layers that follow the mode by themselves are left out."""
    for step in record.steps:
        path = step.location.module_path
        if any(step.is_in(opaque) for opaque in opaques):
            continue
        if step.of_layer and (path not in irregular or step.name in _COUNTS):
            continue
        yield step


def _counts(record: Record, step: Step) -> bool:
    """Return whether a layer counts its batches where a call is made."""
    path = step.location.module_path
    return any(s.of_layer and s.name in _COUNTS and s.location.module_path == path for s in record.steps)


def _matched(program: Program, irregular: Collection[str], pairs: list[_Pair]) -> Iterator[tuple[Operation, _Pair]]:
    ops = []
    for op in program.graph.operations():
        if op.body is not None and any(inner.name in _OPERATORS for inner in op.body.operations()):
            raise UndecidedError
        if op.name in _OPERATORS and (op.location.module_path in irregular or not _is_of_layer(op)):
            ops.append(op)
    pairs = [pair for pair in pairs if pair.here.name in FLAGS]
    if len(ops) != len(pairs):
        raise UndecidedError
    for op, pair in zip(ops, pairs, strict=True):
        if pair.here.name not in _OPERATORS[op.name] or op.location.module_path != pair.here.location.module_path:
            raise UndecidedError
        yield op, pair


def _is_of_layer(op: Operation) -> bool:
    return op.location.module_class.startswith("torch.nn.modules.")


def _attributes(op: Operation, pair: _Pair) -> dict[str, object]:
    """Return the attributes that an operation has in the other mode."""
    flag = op.opdef.training
    found = {flag if name in _SWITCHES else name: value for name, value in pair.there.flags.items()}
    return {name: value for name, value in found.items() if name in op.attributes}
