"""The conditions of placement tables, said once more: by the sizes of what goes in and comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from fuzz.programs.properties import Finding
from ir.columns import Layout
from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import weight_of
from ir.types import TensorType
from passes.quant.decide import Placing
from passes.quant.tables import Table
from passes.quant.tables.conditions import CONDITIONS
from passes.quant.tables.row import LAYOUT

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def demand(holds: bool, property_: str, message: str) -> None:
    """Raise a finding where something does not hold.

    Raises:
        Finding: where it does not.
    """
    if not holds:
        raise Finding(property_, message)


def check_decisions(placing: Placing) -> None:
    """Check that each condition of what is placed holds, and that its weights are those of the program.

    Raises:
        Finding: when one does not.
    """
    for op, decision in placing.decisions.items():
        row = decision.row
        if decision.refusal or row is None:
            continue
        demand(not row.is_float, "conditions", f"{op.name} is placed, and its row says float")
        for name in row.when:
            assert isinstance(name, str)
            demand(_HOLDS[name](op, placing), "conditions", f"{op.name} is placed, and {name!r} does not hold")
        for index, layer in placing.weights_of(op):
            fits = layer.name.startswith("aten.") and weight_of(op.operands[index]) is not None
            demand(fits, "conditions", f"{op.name} has no weight at {index}")
        if row.weights:
            computed = [each for each in _layers(op) if _outer(op, each.input("weight")) is None]
            demand(not computed, "conditions", f"{op.name} is placed, and a weight of it is computed")


def check_layer(layer: Operation) -> None:
    """Check what conditions about one operation say of a convolution, a linear layer, a pool or a sum.

    Raises:
        Finding: when one says otherwise.
    """
    names = ["16 channels", "one group", "plain sum", "16 results", "no gaps", "inputs never negative", "flat groups"]
    names += {"aten.linear": ["matrix product"], "aten.avg_pool2d": ["whole windows"]}.get(layer.name, [])
    for name in names:
        says, holds = CONDITIONS[name](layer, _NONE), _HOLDS[name](layer, None)
        demand((says is None) == holds, "conditions", f"{name!r} of {layer}: {says or 'it holds'}")


def _outer(op: Operation, weight: Value) -> object:
    if op.body is None:
        return weight_of(weight)
    return weight_of(op.operands[weight.index]) if weight.is_input else None


def _layers(op: Operation) -> list[Operation]:
    ops = [op] if op.body is None else list(op.body.operations())
    traits = (Trait.CONV, Trait.CONV_TRANSPOSE)
    return [each for each in ops if each.name == "aten.linear" or any(map(each.opdef.has, traits))]


def _channels(layer: Operation) -> tuple[object, object]:
    """Return the numbers of channels that go into a convolution and come out of it."""
    place_ = -(len(layer.input("weight").known_shape or ()) - 1)
    shapes = (layer.operand_values[0].known_shape, layer.result.known_shape)
    return tuple([None if shape is None else shape[place_] for shape in shapes])  # type: ignore[return-value]


def _wide(op: Operation, placing: Placing | None) -> bool:
    convolutions = [each for each in _layers(op) if each.name != "aten.linear"]
    return all(not isinstance(n, int) or n >= 16 for each in convolutions for n in _channels(each))


def _ungrouped(op: Operation, placing: Placing | None) -> bool:
    for each in _layers(op):
        if each.name != "aten.linear":
            shape = each.input("weight").known_shape
            (first, last) = _channels(each)
            if each.opdef.has(Trait.CONV_TRANSPOSE):
                first, last = last, first
            if shape is not None and shape[1] != first:
                return False
    return True


def _has_rows(op: Operation, placing: Placing | None) -> bool:
    for each in _layers(op):
        value = each.operand_values[0]
        shape = value.known_shape
        if shape is not None and set(shape[:-1]) <= {1}:
            return False
    return True


def _is_fixed(op: Operation, placing: Placing | None) -> bool:
    return all(result.known_shape is not None and "n" not in _symbols(result) for result in op.results)


def _symbols(value: Value) -> str:
    return "" if all(isinstance(size, int) for size in value.known_shape or ()) else "n"


def carries(op: Operation, table: Table) -> bool:
    """Return whether a table lets integers pass through a bare operation."""
    if op.body is not None or not op.operands:
        return False
    if any(each.uses and each.tensor_type.dtype == torch.int64 for each in op.results[1:]):
        return False  # the places of extremes, which ties change
    if op.name in table.rows:
        return table.rows[op.name].carries
    moves = op.opdef.has(Trait.LAYOUT) and op.opdef.layout is not Layout.STRIDED
    layout = table.rows.get(LAYOUT)
    return layout is not None and layout.carries and (moves or (op.opdef.has(Trait.DROPOUT) and not op.in_training))


def _reads_integers(op: Operation, index: int, placing: Placing) -> bool:
    """Return whether a placed operation has a type for an operand."""
    row = placing.decisions[op].row if placing.is_placed(op) else None
    value = op.operands[index]
    if row is None or value is None or value.is_weight or not value.tensor_type.dtype:
        return False
    name = "input" if index == 0 and _layers(op) else "*"
    return bool(row.input_type(name if op.body is None else op.body.inputs[index].name))


def _followed(op: Operation, placing: Placing | None) -> bool:
    assert placing is not None
    for result in op.results:
        pending, count = [result], 0
        while pending:
            for user, index in pending.pop().uses:
                if index == 0 and carries(user, placing.table):
                    pending += user.results
                    continue
                count += 1
                if not _reads_integers(user, index, placing):
                    return False
        if not count:
            return False
    return True


def _makers(op: Operation, placing: Placing) -> list[Operation | None]:
    """Return what computes the numbers that an operation reads, through those that carry them."""
    found = []
    for value in op.operand_values:
        floats = isinstance(value.type, TensorType) and value.type.dtype is not None
        if value.is_weight or not (floats and value.tensor_type.dtype.is_floating_point):  # type: ignore[union-attr]
            continue
        maker = value.defining_op
        while maker is not None and carries(maker, placing.table):
            maker = maker.operand_values[0].defining_op
        found.append(maker)
    return found


def _preceded(op: Operation, placing: Placing | None) -> bool:
    assert placing is not None
    return all(maker is not None and placing.is_placed(maker) for maker in _makers(op, placing))


def _near_convolution(op: Operation, placing: Placing | None) -> bool:
    assert placing is not None
    for maker in _makers(op, placing):
        if maker is not None and placing.is_placed(maker):
            layers = _layers(maker)
            if any(each.name != "aten.linear" for each in layers):
                return True
            if not layers and maker.body is not None and _near_convolution(maker, placing):
                return True
    return False


def _adds_plainly(op: Operation, placing: Placing | None) -> bool:
    ops = [op] if op.body is None else list(op.body.operations())
    return all(each.attributes["alpha"] == 1 for each in ops if each.name == "aten.add.Tensor")


def _has_whole_windows(op: Operation, placing: Placing | None) -> bool:
    if op.attributes["ceil_mode"] or op.attributes.get("divisor_override") is not None:
        return False
    averages_zeros = op.attributes["count_include_pad"] and sum(op.attributes["padding"])
    return not averages_zeros or _is_positive(op, placing)


def _is_positive(op: Operation, placing: Placing | None) -> bool:
    values = [each for each in op.operand_values if not each.is_weight and each.tensor_type.dtype in _FLOATS]
    return placing is not None and all(map(placing.is_never_negative, values))


def _fills(op: Operation, placing: Placing | None) -> bool:
    counts = [math.prod([n for n in (each.known_shape or ())[1:] if isinstance(n, int)]) for each in op.results]
    return all(count > 15 for count in counts)


def _overlaps(op: Operation, placing: Placing | None) -> bool:
    for each in _layers(op):
        shape = each.input("weight").known_shape
        if each.name == "aten.linear" or shape is None:
            continue
        steps = each.attributes["stride"]
        for number, taps in enumerate(shape[2:]):
            step = steps[number % len(steps)]
            if not isinstance(taps, int) or not isinstance(step, int) or step > taps:
                return False
    return True


def _is_flat(op: Operation, placing: Placing | None) -> bool:
    for each in _layers(op):
        if not each.name.startswith("aten.conv3d"):
            continue
        padding = each.attributes["padding"]
        is_padded = padding == "same" if isinstance(padding, str) else max(padding) > 0
        if is_padded and not _ungrouped(each, None) and not _is_positive(op, placing):
            return False
    return True


_HOLDS: dict[str, Callable[[Operation, Placing | None], bool]] = {
    "16 channels": _wide,
    "matrix product": _has_rows,
    "one group": _ungrouped,
    "fixed sizes": _is_fixed,
    "integers follow": _followed,
    "behind integers": _preceded,
    "behind a convolution": _near_convolution,
    "plain sum": _adds_plainly,
    "whole windows": _has_whole_windows,
    "16 results": _fills,
    "no gaps": _overlaps,
    "inputs never negative": _is_positive,
    "flat groups": _is_flat,
}


class _NoDecisions:
    """What conditions about layers alone are given."""

    def readers(self, value: Value) -> Sequence[tuple[Operation, bool]]:
        """Return none."""
        return ()

    def writer(self, value: Value) -> Operation | None:
        """Return none."""
        return None

    def is_placed(self, op: Operation) -> bool:
        """Return that nothing is."""
        return False

    def is_never_negative(self, value: Value) -> bool:
        """Return that nothing is known of it."""
        return False


_NONE = _NoDecisions()
