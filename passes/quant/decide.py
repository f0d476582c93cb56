"""What a table makes of a program: each region and operation in integers or in float, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ir.columns import Layout
from ir.core import Operation, Value
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program, weight_of
from ir.spelling import did_you_mean
from ir.types import TensorType
from passes.fuse.kinds import KINDS
from passes.quant.rules import Rules, Site
from passes.quant.signs import never_negative
from passes.quant.tables.conditions import CONDITIONS, data_operands, is_floating, layers_of
from passes.quant.tables.row import ANY, LAYOUT, IntegerType, Row, Table, integer_type
from passes.rewrite.driver import is_computation


@attrs.define(eq=False)
class Decision:
    """What is decided on one region or operation.

    Attributes:
        op: the operation.
        site: what rules see of it.
        row: the row of its kind; None where the table has none.
        refusal: why it stays in float; empty where it is placed.
    """

    op: Operation
    site: Site
    row: Row | None
    refusal: str = ""


class Placing:
    """The decisions on a program, made when it is created.

    Attributes:
        program: the program.
        table: the target's table.
        decisions: by operation, in the order of the program; operations that carry integers have none.
    """

    def __init__(
        self, program: Program, table: Table, rules: Rules | None = None, positive: frozenset[Value] | None = None
    ) -> None:
        """Decide; `positive` are the values that are `never_negative`, where they are known.

        Raises:
            InputError: when a rule matches nothing in the program.
        """
        self.program = program
        self.table = table
        self._positive = never_negative(program.graph) if positive is None else positive
        found = [op for op in program.graph.operations() if self._is_site(op)]
        self.decisions = {op: Decision(op, Site.of(op), self._row(op)) for op in found}
        rules = Rules() if rules is None else rules
        rules.check([each.site for each in self.decisions.values()])
        self._check_table()
        for each in self.decisions.values():
            each.refusal = self._fixed_refusal(each, rules)
        self._apply_conditions()

    def _is_site(self, op: Operation) -> bool:
        if self.carries(op) or not any(map(is_floating, (*op.operand_values, *op.results))):
            return False  # there are no floats to quantize
        return op.body is not None or op.name in self.table.rows or is_computation(op)

    def _row(self, op: Operation) -> Row | None:
        return self.table.rows.get(str(op.attributes["kind"])) if op.body is not None else _row_of(op, self.table)

    def carries(self, op: Operation) -> bool:
        """Return whether integers pass through an operation as they are."""
        return carries(op, self.table)

    def is_placed(self, op: Operation) -> bool:
        """Return whether an operation is to run in integers."""
        decision = self.decisions.get(op)
        return decision is not None and not decision.refusal

    def is_never_negative(self, value: Value) -> bool:
        """Return whether no number of a value is negative, as far as operators tell."""
        return value in self._positive

    def writer(self, value: Value) -> Operation | None:
        """Return the operation that computes a value, through those that carry it; None for inputs and weights."""
        return self.root(value).defining_op

    def root(self, value: Value) -> Value:
        """Return the value that operations carry to this one."""
        return root(value, self.table)

    def readers(self, value: Value) -> Sequence[tuple[Operation, bool]]:
        """Return the operations that read a value, also through those that carry it, and whether as integers."""
        found: list[tuple[Operation, bool]] = []
        pending = [value]
        while pending:
            read = pending.pop()
            for op, index in read.uses:
                if self.carries(op) and index == 0:
                    pending.extend(op.results)
                else:
                    found.append((op, self.type_of(op, index) is not None))
        return found

    def type_of(self, op: Operation, index: int) -> IntegerType | None:
        """Return the type in which an operation reads an operand; None for float."""
        row = self.decisions[op].row if self.is_placed(op) else None
        value = op.operands[index]
        if row is None or value is None or value.is_weight or not is_floating(value):
            return None
        name = row.input_type(operand_name(op, index))
        return integer_type(name, never_negative=value in self._positive) if name else None

    def type_behind(self, op: Operation, result: Value) -> IntegerType | None:
        """Return the type of the integers that an operation writes; None for float."""
        row = self.decisions[op].row if self.is_placed(op) else None
        if row is None or not row.outputs or not is_floating(result):
            return None
        return integer_type(row.outputs, never_negative=result in self._positive)

    def weights_of(self, op: Operation) -> Sequence[tuple[int, Operation]]:
        """Return the operands that are weights to quantize, each with a layer that reads it."""
        row = self.decisions[op].row if self.is_placed(op) else None
        return weight_operands(op) if row is not None and row.weights else ()

    def _fixed_refusal(self, decision: Decision, rules: Rules) -> str:
        op, row = decision.op, decision.row
        if row is None:
            return f"the table of {self.table.name} has no row for {decision.site.kind}"
        if row.is_float:
            return row.reason
        rule = rules.find(decision.site)
        if rule is not None and rule.value is None:
            return f"the rule {rule} excludes it"
        return _unfit(op, row)

    def _check_table(self) -> None:
        """Refuse rows that mean nothing: of a kind that is nearly one of the program's, or with operands of no region.

        Raises:
            InputError: when there is such a row.
        """
        missing = [each.site.kind for each in self.decisions.values() if each.row is None]
        present = {each.site.kind for each in self.decisions.values()}
        for kind in self.table.rows:
            if kind in present or kind in KINDS or "." in kind or kind == LAYOUT:
                continue
            remedy = did_you_mean(kind, missing, "")
            if remedy:
                raise InputError(
                    f"the table of {self.table.name} has a row of {kind!r}, which is no kind", remedy=remedy
                )
        operands: dict[str, dict[str, None]] = {}
        for op, decision in self.decisions.items():
            names = operands.setdefault(decision.site.kind, {})
            names.update((operand_name(op, index), None) for index in range(len(op.operands)))
        for kind, names in operands.items():
            row = next(each.row for each in self.decisions.values() if each.site.kind == kind)
            if row is not None and row.inputs and not any(name in names or name == ANY for name in row.inputs):
                wrong = next(iter(row.inputs))
                known = f"its operands are {', '.join(names) or 'none'}; `*` means every value"
                raise InputError(f"{kind} has no operand `{wrong}`", remedy=did_you_mean(wrong, names, known))

    def _apply_conditions(self) -> None:
        """Take places out whose conditions fail, until all that is left holds: each may be the condition of others."""
        changed = True
        while changed:
            changed = False
            for decision in self.decisions.values():
                for condition in decision.row.when if decision.row is not None and not decision.refusal else ():
                    holds = CONDITIONS[condition] if isinstance(condition, str) else condition
                    reason = holds(decision.op, self)
                    if reason is not None and not isinstance(reason, str):
                        raise InputError(
                            f"the condition {getattr(condition, '__name__', condition)} of {decision.site.kind} "
                            f"returned {reason!r}",
                            remedy="return why the operation stays in float, or None",
                        )
                    if reason:
                        decision.refusal, changed = reason, True
                        break


def _row_of(op: Operation, table: Table) -> Row | None:
    """Return the row of an operation outside of regions; dropout in eval mode moves its operand."""
    if op.name in table.rows:
        return table.rows[op.name]
    moves = op.opdef.has(Trait.LAYOUT) and op.opdef.layout is not Layout.STRIDED
    is_identity = op.opdef.has(Trait.DROPOUT) and not op.in_training
    return table.rows.get(LAYOUT) if moves or is_identity else None


def carries(op: Operation, table: Table) -> bool:
    """Return whether integers pass through an operation as they are, and nothing else of it is read."""
    row = _row_of(op, table) if op.body is None else None
    if row is None or not row.carries or not op.operands or op.operands[0] is None:
        return False
    return all(result.is_unused for result in op.results[1:] if not is_floating(result))  # places change with ties


def root(value: Value, table: Table) -> Value:
    """Return the value that operations carry to this one."""
    op = value.defining_op
    while op is not None and carries(op, table):
        value = op.operand_values[0]
        op = value.defining_op
    return value


def operand_name(op: Operation, index: int) -> str:
    """Return the name of an operand, as rows have it: of a region that of the body's input, else `*`."""
    return op.body.inputs[index].name if op.body is not None else _of_layer(op, index)


def _of_layer(op: Operation, index: int) -> str:
    """Return the name of an operand of a bare operator: a layer reads `input`."""
    return "input" if index == 0 and layers_of(op) else ANY


def weight_operands(op: Operation) -> Sequence[tuple[int, Operation]]:
    """Return the numbers of the operands that layers read as weights, each with one of these layers."""
    found: dict[int, Operation] = {}
    for layer in layers_of(op):
        weight = layer.input("weight")
        if op.body is None:
            found[op.operands.index(weight)] = layer
        elif weight.is_input:
            found.setdefault(weight.index, layer)
    return tuple(found.items())


def _has_dtype(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is not None


def _unfit(op: Operation, row: Row) -> str:
    """Return why the operands of an operation cannot be what the row says; empty where they can."""
    if row.weights:
        layers, weights = layers_of(op), weight_operands(op)
        if any(weight_of(op.operands[index]) is None for index, _ in weights) or len(weights) == 0 < len(layers):
            return "a weight is computed, so it has no scales of its own"
        for index, layer in weights:
            value = op.operands[index] if op.body is None else op.body.inputs[index]
            if value is None or not is_floating(value):
                return "the type of a weight is not known"
            for user, place in () if op.body is None else value.uses:
                if layers_of(user) != (user,) or user.operands[place] is not user.input("weight"):
                    return f"{user.name} reads the weight as well"
                if user.name.startswith("aten.conv_transpose") != layer.name.startswith("aten.conv_transpose"):
                    return "two layers read the weight, along different channels"
    for index, value in enumerate(op.operands):
        name = operand_name(op, index)
        if value is None or not row.input_type(name):
            continue
        if value.is_weight and is_floating(value):
            return f"the operand `{value.name}` is a weight"
        if not is_floating(value) and (name in row.inputs or not _has_dtype(value)):
            return f"the operand `{value.name or index}` is {value.type}, not known to be of floating-point numbers"
    if not data_operands(op):
        return "it reads no value"
    return ""
