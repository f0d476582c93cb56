"""Values, operations and graphs: the SSA objects, compared by identity.

Use-def edges have one owner: only `set_operand` changes the operands of an operation. Inserting and erasing an
operation is O(1), replacing a value is linear in the operands of its users. Every change bumps `Graph.revision`.

Iteration contract of `Graph.operations()`: operations inserted after the current one are visited, operations inserted
before it are not, and the current one may be erased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ir.attributes import Attribute, Ref, has_ref, map_leaves
from ir.errors import VerificationError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import Facts, OpDef, ParamKind, Trait, register_opdef
from ir.types import Dim, TensorType, Type

if TYPE_CHECKING:
    from ir.program import Weight

RETURN = register_opdef(OpDef("return", (), (), facts=Facts(Trait.OPAQUE)))
"""The terminator of a graph: its operands are the graph's outputs."""

# Operations are numbered with gaps, so that insertions rarely renumber the others.
_ORDER_GAP = 1 << 16


class Value:
    """One SSA value: a graph input, a weight or a result of an operation.

    Attributes:
        type: tensor, scalar or opaque type.
        owner: the operation or graph that defines it, or the weight that it is.
        index: its number among what the owner defines.
        name: a hint for printing and for emitted code; it need not be unique.
    """

    __slots__ = ("_uses", "index", "name", "owner", "type")

    def __init__(self, type_: Type, owner: Operation | Graph | Weight, index: int = 0, name: str = "") -> None:
        self.type = type_
        self.owner = owner
        self.index = index
        self.name = name
        # operation -> number of its operands that are this value; a dict for O(1) and a deterministic order
        self._uses: dict[Operation, int] = {}

    @property
    def defining_op(self) -> Operation | None:
        """The operation that defines the value, or None."""
        owner = self.owner
        return owner if type(owner) is Operation else None

    @property
    def is_input(self) -> bool:
        """Whether the value is a graph's input."""
        return type(self.owner) is Graph

    @property
    def is_weight(self) -> bool:
        """Whether the value is a weight of the program."""
        return type(self.owner) is not Graph and type(self.owner) is not Operation

    @property
    def users(self) -> tuple[Operation, ...]:
        """The operations that use the value, each once, in order of first use."""
        return tuple(self._uses)

    @property
    def uses(self) -> tuple[tuple[Operation, int], ...]:
        """All uses as (operation, operand number)."""
        return tuple((op, i) for op in self._uses for i, v in enumerate(op._operands) if v is self)

    @property
    def num_uses(self) -> int:
        """The number of uses; a value used twice by one operation counts twice."""
        return sum(self._uses.values())

    def has_one_use(self) -> bool:
        """Return whether the value is used exactly once."""
        uses = self._uses
        return len(uses) == 1 and next(iter(uses.values())) == 1

    @property
    def is_unused(self) -> bool:
        """Whether nothing uses the value."""
        return not self._uses

    @property
    def tensor_type(self) -> TensorType:
        """The type, which must be a tensor's.

        Raises:
            VerificationError: when the value is not a tensor.
        """
        if type(self.type) is not TensorType:
            raise VerificationError(f"value {self!r} is not a tensor")
        return self.type

    @property
    def known_shape(self) -> tuple[Dim, ...] | None:
        """The shape of a tensor whose dimensions are all known, else None."""
        type_ = self.type
        if type(type_) is not TensorType or type_.shape is None or None in type_.shape:
            return None
        return type_.shape

    def _add_use(self, op: Operation) -> None:
        uses = self._uses
        uses[op] = uses.get(op, 0) + 1

    def _drop_use(self, op: Operation) -> None:
        uses = self._uses
        count = uses[op] - 1
        if count:
            uses[op] = count
        else:
            del uses[op]

    def __repr__(self) -> str:
        return f"<Value {self.name or '?'}: {self.type}>"


class Operation:
    """One operation: an `OpDef`, operands, attributes, results and a location.

    Operands are flat: first those of the schema's tensor parameters (None where an optional one is absent, a run of
    `segments[i]` values for a list), then the values that attributes refer to by `Ref`.

    Attributes:
        opdef: the operator.
        attributes: its attributes by name, those at their default included; change them with `set_attribute`.
        segments: for each list parameter, how many operands belong to it; None without lists.
        location: where in the user's model it comes from.
        body: the graph of a fused region, else None.
        graph: the graph it is in, or None.
        prev: the operation before it in the graph.
        next: the operation after it; `return_op` after the last.
        results: its results, in order.
    """

    __slots__ = (
        "_operands",
        "_order",
        "attributes",
        "body",
        "graph",
        "is_erased",
        "location",
        "next",
        "opdef",
        "prev",
        "results",
        "segments",
    )

    def __init__(
        self,
        opdef: OpDef,
        operands: Sequence[Value | None],
        attributes: dict[str, Attribute],
        result_types: Sequence[Type],
        *,
        location: Location = UNKNOWN_LOCATION,
        segments: tuple[int, ...] | None = None,
        body: Graph | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.opdef = opdef
        self._operands: tuple[Value | None, ...] = tuple(operands)
        self.attributes = attributes
        self.segments = segments
        self.location = location
        self.body = body
        self.graph: Graph | None = None
        self.is_erased = False
        """Whether it was erased from a graph. It has dropped its uses, so it cannot be inserted again."""
        self.prev: Operation | None = None
        self.next: Operation | None = None
        self._order = 0
        self.results: tuple[Value, ...]
        if len(result_types) == 1:  # the usual case, faster without a comprehension
            self.results = (Value(result_types[0], self, 0, names[0] if names else ""),)
        else:
            self.results = tuple(
                [Value(t, self, i, names[i] if i < len(names) else "") for i, t in enumerate(result_types)]
            )
        for value in self._operands:
            if value is not None:
                uses = value._uses
                uses[self] = uses.get(self, 0) + 1

    @property
    def name(self) -> str:
        """The operator's name: `aten.conv2d`."""
        return self.opdef.name

    @property
    def result(self) -> Value:
        """The only result.

        Raises:
            VerificationError: when there is not exactly one.
        """
        if len(self.results) != 1:
            raise VerificationError(f"{self.name} has {len(self.results)} results, not one", location=self.location)
        return self.results[0]

    @property
    def operands(self) -> tuple[Value | None, ...]:
        """The operands; change them with `set_operand`."""
        return self._operands

    @property
    def operand_values(self) -> tuple[Value, ...]:
        """The operands that are present."""
        operands = self._operands
        return tuple([v for v in operands if v is not None]) if None in operands else operands  # type: ignore[return-value]

    def set_operand(self, index: int, value: Value | None) -> None:
        """Set operand number `index`: the only way to change a use-def edge."""
        operands = self._operands
        old = operands[index]
        if old is value:
            return
        if old is not None:
            old._drop_use(self)
        if value is not None:
            value._add_use(self)
        self._operands = (*operands[:index], value, *operands[index + 1 :])
        if self.graph is not None:
            self.graph.revision += 1

    def set_attribute(self, name: str, value: Attribute) -> None:
        """Set one attribute."""
        self.attributes[name] = value
        if self.graph is not None:
            self.graph.revision += 1

    def operand(self, name: str) -> Value | None:
        """Return the operand of the parameter `name` (for a fused region: of the body's input of that name).

        Raises:
            VerificationError: when there is no such single-valued parameter.
        """
        if self.body is not None:
            for i, value in enumerate(self.body.inputs):
                if value.name == name:
                    return self._operands[i]
        else:
            index = self.opdef.operand_index.get(name)
            if index is not None and self.opdef.operand_params[index].kind is not ParamKind.LIST:
                return self._operands[self._start(index)]
        raise VerificationError(f"{self.name} has no single operand {name!r}", location=self.location)

    def input(self, name: str) -> Value:
        """Return the operand of the parameter `name`, which must be present.

        Raises:
            VerificationError: when it is absent.
        """
        value = self.operand(name)
        if value is None:
            raise VerificationError(f"operand {name!r} of {self.name} is absent", location=self.location)
        return value

    def operand_list(self, name: str) -> tuple[Value | None, ...]:
        """Return the operands of the list parameter `name`.

        Raises:
            VerificationError: when there is no such list parameter.
        """
        index = self.opdef.operand_index.get(name)
        if index is None or self.opdef.operand_params[index].kind is not ParamKind.LIST:
            raise VerificationError(f"{self.name} has no operand list {name!r}", location=self.location)
        assert self.segments is not None
        start = self._start(index)
        return self._operands[start : start + self.segments[index]]

    def _start(self, index: int) -> int:
        return index if self.segments is None else sum(self.segments[:index])

    @property
    def num_schema_operands(self) -> int:
        """The number of operands of the schema's tensor parameters; attributes refer to the rest."""
        if self.body is not None or self.opdef is RETURN:
            return len(self._operands)
        return len(self.opdef.operand_params) if self.segments is None else sum(self.segments)

    def grouped_operands(self) -> tuple[object, ...]:
        """Return one entry for each tensor parameter: a value, None, or a tuple for a list."""
        if self.segments is None:
            return self._operands[: self.num_schema_operands]
        return self.opdef.group(self._operands, self.segments)

    def resolved_attribute(self, name: str) -> object:
        """Return the attribute with every `Ref` replaced by the operand it names."""
        value = self.attributes[name]
        if not has_ref(value):
            return value
        return map_leaves(value, lambda leaf: self._operands[leaf.index] if type(leaf) is Ref else leaf)

    @property
    def in_training(self) -> bool:
        """Whether the operation is in training mode: it then draws random numbers or updates its statistics."""
        flag = self.opdef.training
        if flag is None:
            return False
        value = self.attributes[flag]
        return bool(value) if isinstance(value, (bool, int, float)) else True

    @property
    def is_random(self) -> bool:
        """Whether the operation draws random numbers."""
        if self.body is not None:
            return any(op.is_random for op in self.body.operations())
        return self.opdef.has(Trait.RANDOM) and (self.opdef.training is None or self.in_training)

    @property
    def is_pure(self) -> bool:
        """Whether the operation may be removed when unused, and merged with an equal one."""
        if self.body is not None:
            return all(op.is_pure or op.opdef is RETURN for op in self.body.operations())
        opdef = self.opdef
        return opdef.is_pure and (opdef.training is None or not self.in_training)

    @property
    def is_attached(self) -> bool:
        """Whether the operation is in a graph."""
        return self.graph is not None

    def is_before(self, other: Operation) -> bool:
        """Return whether this operation comes before `other` in their graph.

        Raises:
            VerificationError: when they are not in one graph.
        """
        graph = self.graph
        if graph is None or graph is not other.graph:
            raise VerificationError("the operations are not in one graph", location=self.location)
        graph._ensure_order()
        return self._order < other._order

    def __repr__(self) -> str:
        return f"<Operation {self.name} at {self.location.where}>"


class Graph:
    """A straight-line SSA graph: inputs, operations in order, and a terminating `return`.

    Attributes:
        inputs: the graph's inputs, in order.
        first: the first operation; `return_op` in an empty graph.
        last: the last one, which is `return_op`.
        return_op: the terminator.
    """

    __slots__ = ("_is_ordered", "first", "inputs", "last", "num_operations", "return_op", "revision")

    def __init__(self, inputs: Sequence[tuple[str, Type]] = ()) -> None:
        self.inputs: tuple[Value, ...] = ()
        self.first: Operation | None = None
        self.last: Operation | None = None
        self.num_operations = 0
        """The number of operations without the `return`."""
        self.revision = 0
        """Bumped by every change: the measure of change."""
        self._is_ordered = True
        for name, type_ in inputs:
            self.add_input(type_, name)
        self.return_op = Operation(RETURN, (), {}, ())
        self._link(self.return_op, None, None)
        self.num_operations = 0

    def add_input(self, type_: Type, name: str = "") -> Value:
        """Append an input."""
        value = Value(type_, self, len(self.inputs), name)
        self.inputs = (*self.inputs, value)
        self.revision += 1
        return value

    @property
    def outputs(self) -> tuple[Value | None, ...]:
        """The operands of the `return`."""
        return self.return_op._operands

    def set_outputs(self, values: Sequence[Value | None]) -> None:
        """Replace the operands of the `return`."""
        op = self.return_op
        for old in op._operands:
            if old is not None:
                old._drop_use(op)
        op._operands = tuple(values)
        for new in op._operands:
            if new is not None:
                new._add_use(op)
        self.revision += 1

    def operations(self) -> Iterator[Operation]:
        """Yield the operations in order, without the `return`; the module's docstring says which edits are allowed."""
        op = self.first
        stop = self.return_op
        while op is not None and op is not stop:
            yield op
            # an erased operation keeps its `next`, which leads back into the list
            op = op.next
            while op is not None and op.graph is not self:
                op = op.next

    def insert_before(self, anchor: Operation, op: Operation) -> Operation:
        """Insert the unattached `op` before `anchor`.

        Raises:
            VerificationError: when `op` is in a graph already or was erased, or `anchor` is not in this one.
        """
        if op.is_erased:
            raise VerificationError(
                f"cannot insert {op!r}: it was erased",
                location=op.location,
                remedy="build the operation anew: an erased one no longer counts as a user of its operands",
            )
        if op.graph is not None or anchor.graph is not self:
            raise VerificationError(f"cannot insert {op!r} before {anchor!r}", location=op.location)
        self._link(op, anchor.prev, anchor)
        return op

    def append(self, op: Operation) -> Operation:
        """Insert `op` at the end, before the `return`.

        Raises:
            VerificationError: when `op` is in a graph already or was erased.
        """
        return self.insert_before(self.return_op, op)

    def erase(self, op: Operation) -> None:
        """Remove `op` from the graph and drop its operands.

        Raises:
            VerificationError: when a result is still used, or `op` is the terminator or not in this graph.
        """
        if op.graph is not self or op.opdef is RETURN:
            raise VerificationError(f"cannot erase {op!r}: it is not an operation of this graph", location=op.location)
        for result in op.results:
            if result._uses:
                users = ", ".join(user.name for user in result._uses)
                raise VerificationError(
                    f"cannot erase {op.name}: its result is still used by {users}",
                    location=op.location,
                    remedy="replace the uses first",
                )
        for value in op._operands:
            if value is not None:
                value._uses.pop(op, None)
        self._join(op.prev, op.next)
        op.graph = None
        op.is_erased = True
        self.num_operations -= 1
        self.revision += 1

    def replace_all_uses(self, old: Value, new: Value) -> tuple[Operation, ...]:
        """Make every user of `old` use `new` instead; return the users."""
        if old is new:
            return ()
        users = tuple(old._uses)
        uses = new._uses
        for user, count in old._uses.items():
            operands = user._operands
            user._operands = (new,) if len(operands) == 1 else tuple([new if v is old else v for v in operands])
            uses[user] = uses.get(user, 0) + count
        old._uses.clear()
        if users:
            self.revision += 1
        return users

    def _link(self, op: Operation, before: Operation | None, after: Operation | None) -> None:
        op.graph = self
        self._join(before, op)
        self._join(op, after)
        self.num_operations += 1
        self.revision += 1
        if self._is_ordered:
            self._number(op, before, after)

    def _join(self, before: Operation | None, after: Operation | None) -> None:
        """Make two operations neighbours; None stands for an end of the list."""
        if before is None:
            self.first = after
        else:
            before.next = after
        if after is None:
            self.last = before
        else:
            after.prev = before

    def _number(self, op: Operation, before: Operation | None, after: Operation | None) -> None:
        """Give `op` a number between its neighbours'. Where none is free, the next query renumbers all."""
        if after is None:
            op._order = 0 if before is None else before._order + _ORDER_GAP
        elif before is None:
            op._order = after._order - _ORDER_GAP
        else:
            op._order = (before._order + after._order) >> 1
            # appending would halve the gap before the terminator each time
            if after is self.return_op and op._order - before._order < _ORDER_GAP:
                op._order = before._order + _ORDER_GAP
                after._order = op._order + _ORDER_GAP
            self._is_ordered = before._order < op._order

    def _ensure_order(self) -> None:
        """Renumber the operations if an insertion found no free number."""
        if not self._is_ordered:
            number = 0
            op = self.first
            while op is not None:
                op._order = number
                number += _ORDER_GAP
                op = op.next
            self._is_ordered = True

    def __repr__(self) -> str:
        return f"<Graph with {self.num_operations} operations>"
