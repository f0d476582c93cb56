"""A program as what is drawn: operations in the boxes of their modules, and the values between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from ir.core import RETURN, Graph, Operation, Value
from ir.locations import Location
from ir.program import Program
from ir.types import Type
from passes.rewrite.rewriter import sort_operations

OPERATION, REGION, MODULE, INPUT, OUTPUT = "operation", "region", "module", "input", "output"
"""Kinds of items. Regions and modules are boxes with other items in them; the others are nodes."""


@attrs.define(eq=False)
class Item:
    """A node or a box.

    Attributes:
        kind: see above.
        parent: number of the box that it is in; -1 for none.
        label: its name.
        place: what is written under the name: the module of an operation, the class of a module.
        operation: what it stands for, if it is an operation, outside or inside of a region.
        path: path of the module, for a box of one.
        depth: how many boxes it is in.
    """

    kind: str
    parent: int
    label: str
    place: str = ""
    operation: Operation | None = None
    path: str = ""
    depth: int = 0


@attrs.frozen
class Edge:
    """A value on its way from where it is made to one that reads it.

    Attributes:
        source: number of the item that makes it.
        target: number of the item that reads it.
        type: its type.
    """

    source: int
    target: int
    type: Type


@attrs.frozen(eq=False)
class Drawing:
    """What is drawn of one program.

    Attributes:
        items: boxes come before what is in them; nodes are in the order of the program.
        edges: values between nodes.
    """

    items: tuple[Item, ...]
    edges: tuple[Edge, ...]

    @property
    def operations(self) -> dict[Operation, int]:
        """The operations of the program's graph, and the numbers of their items."""
        return {
            item.operation: number
            for number, item in enumerate(self.items)
            if item.operation is not None and (item.parent < 0 or self.items[item.parent].kind != REGION)
        }


def draw(program: Program, modules: Mapping[str, str] | None = None) -> Drawing:
    """Return what is drawn of a program.

    A box is drawn for each call of a module, that is, for operations of it that follow each other; so no value goes
    back to a box that it came from. A module of one operation gets none, and a module that only holds another is one
    with it.

    Args:
        program: the program.
        modules: path of a module -> name of its class, for those that no operation's place names.
    """
    ordered = _in_order_of_use(program.graph)
    calls = _Calls(_paths(ordered), modules or {})
    calls.simplify()
    return _Drawer(program, ordered, calls).drawing()


def label_of(op: Operation) -> str:
    """Return an operator's name without dialect and overload: `aten.add.Tensor` is `add`."""
    return op.name.split(".")[1] if "." in op.name else op.name


def _in_order_of_use(graph: Graph) -> list[Operation]:
    """Return the operations in order, but those that need nothing of the inputs right before the first that needs them.

    Expressions of weights, and constants, are often made far from where they are used.
    """
    ordered: list[Operation] = []
    waiting: set[Operation] = set()
    for op in [*graph.operations(), graph.return_op]:
        sources = [value.defining_op for value in op.operand_values]
        is_input = any(value.is_input for value in op.operand_values)
        needs_input = is_input or not all(source in waiting for source in sources if source is not None)
        if not needs_input and op.is_pure and op.opdef is not RETURN:
            waiting.add(op)
            continue
        needed = [source for source in sources if source in waiting]
        found: set[Operation] = set()
        while needed:
            source = needed.pop()
            if source is not None and source not in found:
                found.add(source)
                needed += [value.defining_op for value in source.operand_values if value.defining_op in waiting]
        ordered += sort_operations(list(found))
        waiting -= found
        if op.opdef is not RETURN:
            ordered.append(op)
    # what nothing reads
    return ordered + [op for op in graph.operations() if op in waiting]


def _paths(ordered: Sequence[Operation]) -> list[tuple[Operation, tuple[str, ...]]]:
    """Return the operations with the modules that they are drawn in."""
    found: list[tuple[Operation, tuple[str, ...]]] = []
    following: tuple[str, ...] = ()
    for op in reversed(ordered):
        if not op.location.is_unknown:
            paths = [tuple(part.module_path.split(".")) if part.module_path else () for part in op.location.parts]
            following = _common(paths)
        found.append((op, following))
    return found[::-1]


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    first = min(paths)
    last = max(paths)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[:length]


@attrs.define(eq=False)
class _Call:
    """Operations of one module that follow each other."""

    name: str
    path: str
    parent: int
    members: list[int] = attrs.field(factory=list)
    """Calls in it, as numbers."""
    operations: int = 0
    """How many operations are in it, but not in a call in it."""
    all_operations: int = 0
    is_drawn: bool = True


class _Calls:
    """The tree of calls; the first is that of the root."""

    def __init__(self, placed: Sequence[tuple[Operation, tuple[str, ...]]], modules: Mapping[str, str]) -> None:
        self.calls = [_Call("", "", -1)]
        self.of: dict[Operation, int] = {}
        self.classes = dict(modules)
        self.classes.update(
            {part.module_path: part.class_name for op, _ in placed for part in op.location.parts if part.class_name}
        )
        self.times: dict[str, int] = {}
        open_ = [0]
        for op, path in placed:
            names = [self.calls[number].name for number in open_[1:]]
            same = 0
            while same < min(len(names), len(path)) and names[same] == path[same]:
                same += 1
            del open_[same + 1 :]
            for depth in range(same, len(path)):
                self.calls[open_[-1]].members.append(len(self.calls))
                whole = ".".join(path[: depth + 1])
                self.times[whole] = self.times.get(whole, 0) + 1
                self.calls.append(_Call(path[depth], whole, open_[-1]))
                open_.append(len(self.calls) - 1)
            self.of[op] = open_[-1]
            self.calls[open_[-1]].operations += 1

    def simplify(self) -> None:
        """Decide which calls get a box."""
        calls = self.calls
        for call in reversed(calls):
            call.all_operations = call.operations + sum(calls[member].all_operations for member in call.members)
        direct: dict[str, int] = {}
        parts: dict[str, set[tuple[str, ...]]] = {}
        for call in calls:
            direct[call.path] = direct.get(call.path, 0) + call.operations
            parts.setdefault(call.path, set()).add(tuple(calls[member].name for member in call.members))
        for call in calls[1:]:
            alone = call.operations == 0 and len(call.members) == 1
            # a ModuleList is not called; its modules are, one here and one there
            is_list = not direct[call.path] and len(parts[call.path]) > 1
            call.is_drawn = call.all_operations > 1 and not alone and not is_list
        calls[0].is_drawn = False

    def box(self, number: int) -> int:
        """Return the nearest call around a call, or that one, that has a box; 0 for none."""
        while number and not self.calls[number].is_drawn:
            number = self.calls[number].parent
        return number


class _Drawer:
    def __init__(self, program: Program, ordered: Sequence[Operation], calls: _Calls) -> None:
        self.program = program
        self.ordered = ordered
        self.calls = calls
        self.items: list[Item] = []
        self.edges: list[Edge] = []
        self.makers: dict[Value, int] = {}
        self.boxes: dict[int, int] = {0: -1}
        self.seen: dict[str, int] = {}

    def drawing(self) -> Drawing:
        for value in self.program.graph.inputs:
            self.makers[value] = self._add(Item(INPUT, -1, value.name or "input"))
        for op in self.ordered:
            self._operation(op, self._box(self.calls.box(self.calls.of[op])))
        return_op = self.program.graph.return_op
        for number, result in enumerate(return_op.operands):
            if result is None or result not in self.makers:
                continue
            label = "output" if len(return_op.operands) == 1 else f"output {number}"
            for mutation in self.program.convention.mutations:
                if mutation.output == number:
                    label = f"to {mutation.buffer or f'input {mutation.input}'}"
            target = self._add(Item(OUTPUT, -1, label))
            self.edges.append(Edge(self.makers[result], target, result.type))
        return Drawing(tuple(self.items), tuple(self.edges))

    def _add(self, item: Item) -> int:
        item.depth = 0 if item.parent < 0 else self.items[item.parent].depth + 1
        self.items.append(item)
        return len(self.items) - 1

    def _box(self, number: int) -> int:
        missing = []
        while number not in self.boxes:
            missing.append(number)
            number = self.calls.box(self.calls.calls[number].parent)
        for each in reversed(missing):
            call = self.calls.calls[each]
            parent = self.boxes[self.calls.box(call.parent)]
            label = self._below(call.path, parent)
            if self.calls.times[call.path] > 1:
                self.seen[call.path] = self.seen.get(call.path, 0) + 1
                label += f" · call {self.seen[call.path]}"
            place = self.calls.classes.get(call.path, "")
            self.boxes[each] = self._add(Item(MODULE, parent, label, place, path=call.path))
        return self.boxes[missing[0]] if missing else self.boxes[number]

    def _below(self, path: str, box: int) -> str:
        """Return a module's path, as seen from the box around it."""
        around = self.items[box].path if box >= 0 else ""
        return path.removeprefix(f"{around}.") if around and path.startswith(f"{around}.") else path

    def _operation(self, op: Operation, box: int) -> None:
        place = self._place(op, box)
        if op.body is None:
            target = self._add(Item(OPERATION, box, label_of(op), place, op))
            self._read(op, target)
            for result in op.results:
                self.makers[result] = target
            return
        region = self._add(Item(REGION, box, label_of(op), place, op))
        for inner, outer in zip(op.body.inputs, op.operands, strict=False):
            if outer is not None and outer in self.makers:
                self.makers[inner] = self.makers[outer]
        around = self.items[box].path if box >= 0 else ""
        for part in op.body.operations():
            inside = self._add(Item(OPERATION, region, label_of(part), _relative(part.location, around), part))
            self._read(part, inside)
            for result in part.results:
                self.makers[result] = inside
        for result, made in zip(op.results, op.body.return_op.operands, strict=False):
            if made is not None and made in self.makers:
                self.makers[result] = self.makers[made]

    def _read(self, op: Operation, target: int) -> None:
        for value in dict.fromkeys(op.operand_values):
            source = self.makers.get(value)
            if source is not None and source != target:
                self.edges.append(Edge(source, target, value.type))

    def _place(self, op: Operation, box: int) -> str:
        around = self.items[box].path if box >= 0 else ""
        return _relative(op.location, around)


def _relative(location: Location, around: str) -> str:
    names = dict.fromkeys(
        part.module_path.removeprefix(f"{around}.") if around else part.module_path
        for part in location.parts
        if part.module_path and part.module_path != around
    )
    shown: Iterator[str] = iter(names)
    return " + ".join(shown)


def boxes_by_parent(items: Sequence[Item]) -> Mapping[int, list[int]]:
    """Return box -> the items in it, in order; -1 is the whole graph."""
    found: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        found.setdefault(item.parent, []).append(number)
    return found
