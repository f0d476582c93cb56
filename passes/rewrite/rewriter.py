"""The one way to change a graph during a pass; every edit is an event that listeners see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from typing_extensions import override

from ir.attributes import Attribute
from ir.builder import Builder, infer_operation
from ir.copying import copy_into, copy_operation
from ir.core import Graph, Operation, Value
from ir.data_sizes import data_symbols_of_attributes, defining_operations
from ir.errors import PatternError
from ir.locations import merge_locations
from ir.opdef import get_opdef
from ir.program import Program, Weight
from ir.spelling import free_name
from ir.types import refined, types_agree
from passes.rewrite.expressions import computed_weight, names_shown
from passes.rewrite.region_names import check_inputs, check_kind, check_parts, parts_attribute
from passes.rewrite.remarks import Remark


class Listener:
    """Receives the events of a `Rewriter`; override what is of interest."""

    def inserted(self, op: Operation) -> None:
        """An operation was inserted."""

    def erased(self, op: Operation, operands: tuple[Value, ...]) -> None:
        """An operation was erased; `operands` are those it had."""

    def modified(self, op: Operation) -> None:
        """Operands or attributes of an operation changed."""

    def replaced(self, old: Value, new: Value) -> None:
        """All uses of `old` are about to become uses of `new`."""


class Events(Listener):
    """Collects what a rewrite touched.

    Attributes:
        created: operations that were inserted.
        touched: operations whose operands or attributes changed.
        freed: operands of operations that were erased.
        replacements: (old value, new value) in the order in which uses were moved.
    """

    def __init__(self) -> None:
        self.clear()

    @override
    def replaced(self, old: Value, new: Value) -> None:
        self.replacements.append((old, new))

    @override
    def inserted(self, op: Operation) -> None:
        self.created.append(op)

    @override
    def modified(self, op: Operation) -> None:
        self.touched.append(op)

    @override
    def erased(self, op: Operation, operands: tuple[Value, ...]) -> None:
        self.freed.extend(operands)

    def clear(self) -> None:
        """Forget them."""
        self.created: list[Operation] = []
        self.touched: list[Operation] = []
        self.freed: list[Value] = []
        self.replacements: list[tuple[Value, Value]] = []


class Rewriter(Builder):
    """Edits one graph of a program. New operations go before the anchor and get the current location.

    Attributes:
        program: the program that is rewritten.
        listeners: told of every edit.
    """

    def __init__(self, program: Program, listeners: Sequence[Listener] = ()) -> None:
        super().__init__(program.graph)
        self.program = program
        self.listeners = tuple(listeners)
        self._wanted: list[tuple[Value, str | None, bool]] = []
        """Expressions that are to become weights, with the arguments of `weight`."""

    @override
    def insert(self, op: Operation) -> Operation:
        """Insert an operation made elsewhere before the anchor.

        Raises:
            VerificationError: when it is in a graph already or was erased.
        """
        self.graph.insert_before(self.anchor, op)
        for listener in self.listeners:
            listener.inserted(op)
        return op

    def erase(self, op: Operation) -> None:
        """Erase an operation whose results are unused.

        Raises:
            VerificationError: when a result is still used.
        """
        operands = op.operand_values
        self.graph.erase(op)
        for listener in self.listeners:
            listener.erased(op, operands)

    def undo(self, created: Sequence[Operation], revision: int) -> bool:
        """Erase operations that were inserted since a revision of the graph; return whether these were the only edits.

        Expressions that were to become weights are forgotten.
        """
        wanted, self._wanted = self._wanted, []
        inside = set(created)
        users = [user for op in created for result in op.results for user in result.users]
        # an insertion is one revision
        if self.graph.revision - revision != len(created) or any(user not in inside for user in users):
            self._wanted = wanted
            return False
        for op in reversed(created):
            self.erase(op)
        return True

    def replace_value(self, old: Value, new: Value) -> None:
        """Make all users of `old` use `new`.

        Raises:
            PatternError: when the types differ.
        """
        if old is new:
            return
        if old.type is not new.type and not types_agree(old.type, new.type):
            raise PatternError(
                f"a value of type {old.type} cannot be replaced by one of type {new.type}",
                location=old.owner.location if isinstance(old.owner, Operation) else None,
                remedy="the replacement must have the same shape and dtype",
            )
        if old.name and not new.name:
            new.name = old.name
        new.type = refined(new.type, old.type)
        for listener in self.listeners:
            listener.replaced(old, new)
        for user in self.graph.replace_all_uses(old, new):
            for listener in self.listeners:
                listener.modified(user)

    def replace(self, op: Operation, *values: Value) -> None:
        """Replace the results of `op` by `values` and erase it.

        Raises:
            PatternError: when the number of values or their types do not fit.
        """
        self.replace_all((op,), values)

    def replace_all(self, ops: Sequence[Operation], values: Sequence[Value]) -> None:
        """Replace the results of several operations by `values`, in their order, and erase them.

        Raises:
            PatternError: when the number of values or their types do not fit.
        """
        results = [result for op in ops for result in op.results]
        if len(values) != len(results):
            names = " and ".join(op.name for op in ops)
            verb = "have" if len(ops) > 1 else "has"
            raise PatternError(
                f"{names} {verb} {len(results)} results, {len(values)} replacements given", location=ops[0].location
            )
        for old, new in zip(results, values, strict=True):
            self.replace_value(old, new)
        for op in reversed(sort_operations(ops)):
            if len(ops) == 1 or all(result.is_unused for result in op.results):  # one of several may stay
                self.erase(op)

    def set_operand(self, op: Operation, index: int, value: Value | None) -> None:
        """Change one operand; the result types must not change.

        Raises:
            PatternError: when a result type changes.
            InferenceError: when the operand does not fit.
        """
        op.set_operand(index, value)
        self._modified(op)

    def set_attribute(self, op: Operation, name: str, value: Attribute) -> None:
        """Change one attribute; the result types must not change.

        Raises:
            PatternError: when a result type changes.
            InferenceError: when the attribute does not fit.
        """
        op.set_attribute(name, value)
        self._modified(op)

    def _modified(self, op: Operation) -> None:
        for result, type_ in zip(op.results, infer_operation(op), strict=True):
            if not types_agree(result.type, type_):
                raise PatternError(f"the edit changes the type of {op.name} to {type_}", location=op.location)
        for listener in self.listeners:
            listener.modified(op)

    def add_weight(self, weight: Weight) -> Value:
        """Add a weight to the program."""
        return self.program.add_weight(weight)

    def weight(self, value: Value, name: str | None = None, *, inference: bool = False) -> Value:
        """Ask that `value`, an expression of weights alone, become a weight when the rewrite is done; return `value`.

        The weight holds what the expression computes, and knows how: `parameter_map` converts checkpoints through it.
        Weights that nothing reads any more are gone. It is trained where that trains what it is made of: where the
        expression only moves elements, each to one place (`cat`, `reshape`, `permute`), and nothing else reads them.
        Where it must stay an expression, it does, and a remark says why.

        Args:
            value: the expression. A pass calls `settle_weights` when it is done; rules need not.
            name: of the weight; by default that of the first weight in the expression. A suffix makes it unique.
            inference: whether it may become a weight that is not trained, though it is made of some that are.
        """
        self._wanted.append((value, name, inference))
        return value

    def settle_weights(self, who: str, may_erase: Callable[[Operation], bool] = lambda _: True) -> list[Remark]:
        """Make weights of the expressions that `weight` was called with; return what is to be said of it.

        Args:
            who: the rule or pass, for the remarks.
            may_erase: tells which operations may be erased when nothing uses them any more.
        """
        remarks: list[Remark] = []
        wanted, self._wanted = self._wanted, []
        for value, name, inference in wanted:
            op = value.defining_op
            if op is None or op.graph is not self.graph or value.is_unused:
                continue
            made = computed_weight(self.program, value, name, inference=inference)
            if isinstance(made, str):
                remarks.append(Remark("missed", who, op.location, f"{op.name} stays in forward: {made}", op.name))
                continue
            self.program.weights[made.name] = made
            self.graph.revision += 1
            location, sources = op.location, () if made.derivation is None else made.derivation.sources
            self.replace_value(value, made.value)
            self._erase_unused(op, may_erase)
            text = f"{made.name} is computed from {names_shown(sources)}{_size_of(made)}"
            remarks.append(Remark("applied", who, location, text, "weight"))
        return remarks

    def _erase_unused(self, op: Operation, may_erase: Callable[[Operation], bool]) -> None:
        worklist = [op]
        while worklist:
            current = worklist.pop()
            if current.graph is not self.graph or any(not result.is_unused for result in current.results):
                continue
            if not may_erase(current):
                continue
            sources = [value.defining_op for value in current.operand_values]
            self.erase(current)
            worklist.extend(source for source in sources if source is not None)

    def clone(self, op: Operation | Value, **changes: Any) -> Any:
        """Insert a copy of `op` before the anchor, with attributes changed, and return it; `aten.clone` of a value."""
        if isinstance(op, Value):
            return self.call("aten.clone", op, **changes)
        return self.insert(copy_operation(op, op.operands, {**op.attributes, **changes}))

    def fuse(
        self,
        kind: str,
        ops: Sequence[Operation],
        *,
        parts: Mapping[Operation, str] | None = None,
        inputs: Mapping[Value, str | Sequence[str]] | None = None,
        quantization_points: Sequence[str] | None = None,
        outputs: Sequence[Value] | None = None,
    ) -> Operation:
        """Replace `ops` by one fused region whose body they become.

        Args:
            kind: the region's kind: the operation is named `fused.<kind>`.
            ops: the operations, in any order.
            parts: names of the operations' modules in the emitted code.
            inputs: names of values that enter; a value with several names (attention of one tensor with itself)
                enters under each, in the order of its uses. Other values get names from the part that uses them.
            quantization_points: names of the operands that get a quantize/dequantize pair; by default all `inputs`.
            outputs: the values that leave; by default every result that is used outside.

        Returns:
            The region; the uses of the outputs are replaced and `ops` erased.

        Raises:
            PatternError: when a value would be used before it is defined, a name is not an identifier or is taken by
                modules, or `parts` and `inputs` are not about `ops` and values.
        """
        if not ops:
            raise PatternError(f"the region `fused.{kind}` would hold no operations", remedy="pass `m.ops`")
        for op in ops:
            if not isinstance(op, Operation):
                raise PatternError(f"{op!r} among the operations to fuse is not an operation", remedy="pass `m.ops`")
        ordered = sort_operations(ops)
        members = set(ordered)
        _check_names(kind, members, parts or {}, inputs or {}, quantization_points or ())
        if outputs is None:
            outputs = [r for op in ordered for r in op.results if any(u not in members for u in r.users)]
        given = {v: (n,) if isinstance(n, str) else tuple(n) for v, n in (inputs or {}).items()}
        names, uses = _entering(ordered, parts or {}, given)
        points = [n for v in given.values() for n in v] if quantization_points is None else quantization_points
        body = Graph([(name, value.type) for name, value in names.items()])
        entering = dict(zip(names, body.inputs, strict=True))
        mapping: dict[Value, Value] = {}
        for op in ordered:
            operands = [
                entering[uses[op, i]] if (op, i) in uses else None if v is None else mapping[v]
                for i, v in enumerate(op.operands)
            ]
            copy_into(op, body, mapping, operands)
        body.set_outputs([mapping[value] for value in outputs])
        location = merge_locations(op.location for op in ordered)
        sizes = self._sizes_of(ordered)
        anchor = self._region_anchor(ordered, outputs, (*names.values(), *sizes))
        region = Operation(
            get_opdef(f"fused.{kind}"),
            tuple(names.values()),
            {
                "kind": kind,
                **parts_attribute([(parts or {}).get(op, "") for op in ordered]),
                "quantization_points": tuple(points),
            },
            [value.type for value in outputs],
            location=location,
            body=body,
            names=[value.name for value in outputs],
        )
        with self.at(anchor):
            self.insert(region)
        for old, new in zip(outputs, region.results, strict=True):
            self.replace_value(old, new)
        for op in reversed(ordered):
            self.erase(op)
        return region

    def _sizes_of(self, ops: Sequence[Operation]) -> list[Value]:
        """Return the values outside of some operations that define sizes which these name."""
        named = set[Any]().union(*map(data_symbols_of_attributes, ops))
        definers = defining_operations(self.program) if named else {}
        return [op.results[0] for symbol, op in definers.items() if symbol in named and op not in ops]

    def _region_anchor(
        self, ordered: Sequence[Operation], outputs: Sequence[Value], inputs: Sequence[Value]
    ) -> Operation:
        """Return the operation before which the region goes: after all operands, before all users."""
        members = set(ordered)
        last = ordered[-1]
        users = [u for value in outputs for u in value.users if u not in members]
        if all(last.is_before(user) for user in users):
            return last
        first = min(users, key=_position)
        for value in inputs:
            source = value.defining_op
            if source is not None and not source.is_before(first):
                raise PatternError(
                    f"{source.name} is computed between the operations to fuse", location=source.location
                )
        return first


def _size_of(weight: Weight) -> str:
    data = weight.data
    return "" if data is None else f": {data.numel() * data.element_size()} bytes"


def _check_names(
    kind: str,
    members: Set[Operation],
    parts: Mapping[Operation, str],
    inputs: Mapping[Value, str | Sequence[str]],
    points: Sequence[str],
) -> None:
    for what, given, wanted, example in (
        ("parts", parts, Operation, 'parts={m.conv: "conv"}'),
        ("inputs", inputs, Value, 'inputs={m.x: "input"}'),
    ):
        if not isinstance(given, Mapping):
            raise PatternError(f"the {what} are {given!r}, not a mapping to names", remedy=f"write `{example}`")
        for key in given:
            if not isinstance(key, wanted):
                raise PatternError(
                    f"the key {key!r} of `{what}` is not {'an operation' if wanted is Operation else 'a value'}",
                    remedy=f"write `{example}`: operations are captured by `name=`, values by `p.any`",
                )
    for op in parts:
        if op not in members:
            raise PatternError(f"{op.name} in `parts` is not among the operations to fuse", location=op.location)
    check_kind(kind)
    check_parts(parts.values())
    check_inputs([n for given in inputs.values() for n in ((given,) if isinstance(given, str) else given)])
    check_inputs(points, "quantization points")


def _position(op: Operation) -> int:
    assert op.graph is not None
    op.graph._ensure_order()
    return op._order


def sort_operations(ops: Sequence[Operation]) -> list[Operation]:
    """Return operations of one graph in the graph's order, each once."""
    distinct = list(dict.fromkeys(ops))
    return distinct if len(distinct) < 2 else sorted(distinct, key=_position)


def _entering(
    ops: Sequence[Operation], parts: Mapping[Operation, str], given: Mapping[Value, tuple[str, ...]]
) -> tuple[dict[str, Value], dict[tuple[Operation, int], str]]:
    """Return the values that enter from outside by unique name, in order of first use, and the name of each use."""
    members = set(ops)
    names: dict[str, Value] = {}
    uses: dict[tuple[Operation, int], str] = {}
    named: dict[Value, list[str]] = {}
    for op in ops:
        params = [p.name for p in op.opdef.operand_params]
        for i, value in enumerate(op.operands):
            if value is None or value.defining_op in members:
                continue
            known = named.setdefault(value, [])
            wanted = given.get(value, ())
            if len(known) < max(1, len(wanted)):
                param = params[i] if op.segments is None and i < len(params) else f"operand{i}"
                base = wanted[len(known)] if wanted else f"{parts[op]}_{param}" if parts.get(op) else param
                name = free_name(base, names.__contains__)
                names[name] = value
                known.append(name)
            uses[op, i] = known[-1]
    return names, uses
