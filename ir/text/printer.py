"""The text form of a program: deterministic, and parsed back by `ir.text.parser` to an equal program.

    program "Net" {
      symbol batch in [1, 32]
      parameter %fc.weight : f32[10, 4] requires_grad
      graph(%x : f32[batch, 4]) {
        %linear = aten.linear(%x, %fc.weight, None) : f32[batch, 10] loc("fc", "torch.nn.modules.linear.Linear")
        return %linear
      }
    }

Operands are in parentheses in schema order, a list of tensors as `[%a, %b]`, an absent one as `None`. Attributes follow
in braces, without those that equal the default of the schema. A value inside an attribute is written by its name, and
is an operand after those of the schema. `#` starts a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ir.attributes import attributes_equal
from ir.core import RETURN, Graph, Operation, Value
from ir.expressions import format_expression
from ir.locations import Location
from ir.opdef import ParamKind
from ir.parameters import NO_DEFAULT, ParameterKind, ParameterSpec
from ir.text.literals import format_attribute
from ir.text.specs import format_spec
from ir.types import Type

if TYPE_CHECKING:
    from ir.program import CallingConvention, Program, Weight

PLAIN_NAME = re.compile(r"[A-Za-z0-9_.$]+")
"""Value names that are written without quotes."""

WEIGHT_FLAGS: dict[str, tuple[str, bool]] = {
    "requires_grad": ("requires_grad", True),
    "non_persistent": ("persistent", False),
    "mutated": ("is_mutated", True),
    "carries_gradient": ("carries_gradient", True),
    "folded": ("is_folded", True),
}
"""Words after the type of a weight -> field of `Weight` and its value."""

_INDENT = "  "
_MODES_WIDTH = 100


def print_program(program: Program, *, locations: bool = True) -> str:
    """Return the text of a program, without the data of its weights.

    Args:
        program: the program.
        locations: whether to write `loc(...)` after each operation; without it, parsed operations have unknown
            locations.
    """
    return "\n".join(_Printer(locations).program(program, ""))


def print_graph(graph: Graph, *, locations: bool = False) -> str:
    """Return the text of a graph alone; weights appear where they are used."""
    return "\n".join(_Printer(locations).graph(graph, _Names.of_graph(graph), "graph", ""))


def print_operation(op: Operation, *, locations: bool = False) -> str:
    """Return the text of one operation, with names as `print_graph` gives them."""
    names = _Names.around(op)
    return "\n".join(_Printer(locations).operation(op, names, ""))


def print_operation_context(op: Operation, radius: int = 10) -> str:
    """Return the operation, marked by `>`, with up to `radius` operations on either side.

    The graph may be ill-formed: error messages show this text.
    """
    names = _Names.around(op)
    printer = _Printer(locations=False)
    start, above = op, 0
    while above < radius and start.prev is not None:
        start, above = start.prev, above + 1
    lines: list[str] = []
    current: Operation | None = start
    for _ in range(above + 1 + radius):
        if current is None:
            break
        text = printer.operation(current, names, "")
        mark = "> " if current is op else "  "
        lines.append(mark + text[0])
        # bodies of neighbours are left out
        lines.extend("  " + line for line in text[1:] if current is op)
        current = current.next
    return "\n".join(lines)


def operation_texts(graph: Graph) -> dict[Operation, str]:
    """Return the text of each operation of a graph, as `print_graph` has them; regions have their bodies."""
    names, printer = _Names.of_graph(graph), _Printer(locations=False)
    return {op: "\n".join(printer.operation(op, names, "")) for op in _all_operations(graph)}


def named_values(graph: Graph) -> dict[str, Value]:
    """Return the values that a graph defines, and the weights that it uses, by the names that its text gives them."""
    return {name: value for value, name in _Names.of_graph(graph).by_value.items()}


def format_name(name: str) -> str:
    """Return the text of a value's name: `%conv1.weight`, or in quotes where it has other characters."""
    return f"%{name}" if PLAIN_NAME.fullmatch(name) else f"%{json.dumps(name)}"


def format_location(location: Location) -> str:
    """Return `loc(module path, class, file, line)` without empty ends, with merged locations."""
    fields: list[str | int] = [location.module_path, location.module_class, location.file, location.line]
    while fields and not fields[-1]:
        fields.pop()
    parts = [json.dumps(field) for field in fields]
    if location.merged:
        parts.append(f"merged [{', '.join(map(format_location, location.merged))}]")
    return f"loc({', '.join(parts)})"


def format_parameters(parameters: Sequence[ParameterSpec]) -> str:
    """Return the text of a signature as Python writes it, names in quotes: `"x", /, "scale" = 2.0, *, "flag"`."""
    parts: list[str] = []
    before: ParameterKind | None = None
    for parameter in parameters:
        kind = parameter.kind
        if before is ParameterKind.POSITIONAL_ONLY and kind is not before:
            parts.append("/")
        if kind is ParameterKind.KEYWORD_ONLY and before not in (kind, ParameterKind.VAR_POSITIONAL):
            parts.append("*")
        mark = {ParameterKind.VAR_POSITIONAL: "*", ParameterKind.VAR_KEYWORD: "**"}.get(kind, "")
        default = "" if parameter.default is NO_DEFAULT else f" = {format_attribute(parameter.default)}"
        parts.append(f"{mark}{json.dumps(parameter.name)}{default}")
        before = kind
    if before is ParameterKind.POSITIONAL_ONLY:
        parts.append("/")
    return ", ".join(parts)


class _Names:
    """Unique names for the values of one scope, in order of definition."""

    __slots__ = ("_names", "_next", "_used")

    def __init__(self) -> None:
        self._names: dict[Value, str] = {}
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    @classmethod
    def of_graph(cls, graph: Graph) -> _Names:
        """Name the values that a graph defines, and the weights that it uses."""
        names = cls()
        for op in _all_operations(graph):
            for value in op.operands:
                if value is not None and value.is_weight:
                    names.define(value)
        names.define_graph(graph)
        return names

    @classmethod
    def around(cls, op: Operation) -> _Names:
        """Name the values of the operation's graph, or the results of an unattached operation."""
        if op.graph is not None:
            return cls.of_graph(op.graph)
        names = cls()
        for value in op.results:
            names.define(value)
        return names

    def define_graph(self, graph: Graph) -> None:
        """Name the inputs and results of a graph."""
        for value in graph.inputs:
            self.define(value)
        for op in _all_operations(graph):
            for value in op.results:
                self.define(value)

    def define(self, value: Value) -> None:
        """Give a value its name."""
        if value in self._names:
            return
        base = name = _base_name(value)
        if name in self._used:
            number = self._next.get(base, 1)
            while (name := f"{base}_{number}") in self._used:
                number += 1
            self._next[base] = number + 1
        self._used.add(name)
        self._names[value] = format_name(name)

    def __getitem__(self, value: Value) -> str:
        text = self._names.get(value)
        # only a broken graph uses a value from elsewhere
        return format_name(f"undefined.{_base_name(value)}") if text is None else text

    @property
    def by_value(self) -> dict[Value, str]:
        """The names, in order of definition."""
        return self._names

    def hint(self, value: Value) -> str:
        """Return what follows a name in its definition if the value has another name: ` "x"`."""
        return "" if self[value] == format_name(value.name) else f" {json.dumps(value.name)}"


def _base_name(value: Value) -> str:
    """Return the name of a value before names are made unique."""
    owner = value.owner
    return value.name or (owner.opdef.short_name if type(owner) is Operation else f"arg{value.index}")


def _all_operations(graph: Graph) -> Iterator[Operation]:
    """Yield the operations and the `return`, each once even if the links of a broken graph form a cycle."""
    seen: set[Operation] = set()
    op = graph.first
    while op is not None and op not in seen:
        seen.add(op)
        yield op
        op = op.next


class _Printer:
    """Makes lines of text; caches the texts of types and locations."""

    def __init__(self, locations: bool) -> None:
        self._with_locations = locations
        self._types: dict[Type, str] = {}
        self._locations: dict[Location, str] = {}

    def type(self, type_: Type) -> str:
        text = self._types.get(type_)
        if text is None:
            text = self._types[type_] = str(type_)
        return text

    def location(self, location: Location) -> str:
        if not self._with_locations or (location.is_unknown and not location.line and not location.merged):
            return ""
        text = self._locations.get(location)
        if text is None:
            text = self._locations[location] = f" {format_location(location)}"
        return text

    def program(self, program: Program, indent: str) -> list[str]:
        inner = indent + _INDENT
        names = _Names()
        for weight in program.weights.values():
            names.define(weight.value)
        names.define_graph(program.graph)
        lines = [f"{indent}program {json.dumps(program.name)}{self.location(program.location)} {{"]
        for symbol, bounds in program.symbols.items():
            lines.append(f"{inner}symbol {symbol.name} in {bounds}")
        lines += (f"{inner}require {format_expression(constraint)}" for constraint in program.constraints)
        for weight in program.weights.values():
            lines += self.weight(weight, names, inner)
        lines += (f"{inner}opaque {json.dumps(name)}" for name in program.opaques)
        lines += _mode_lines(program.module_modes, f"{inner}modules")
        for alias, path in program.module_aliases.items():
            lines.append(f"{inner}same_module {json.dumps(alias)} = {json.dumps(path)}")
        if program.mode_locked:
            lines.append(f"{inner}mode_locked {json.dumps(program.mode_locked)}")
        for switch, modes in program.modes_after.items():
            path, dot, name = switch.rpartition(".")
            of = f" of {json.dumps(path)}" if dot else ""
            lines += _mode_lines(modes, f"{inner}after {name}{of} modules")
        for name, surrounding in program.surroundings.items():
            answers = f" answers {format_attribute(surrounding.answers)}" if surrounding.answers else ""
            place = f" place {json.dumps(surrounding.place)}" if surrounding.place else ""
            lines.append(f"{inner}refuses {json.dumps(name)}{answers}{place}")
        lines += _convention_lines(program.convention, inner)
        lines += self.graph(program.graph, names, "graph", inner)
        lines.append(f"{indent}}}")
        return lines

    def weight(self, weight: Weight, names: _Names, indent: str) -> list[str]:
        value = weight.value
        text = f"{indent}{weight.kind.value} {names[value]}"
        if names[value] != format_name(weight.name):
            text += f" {json.dumps(weight.name)}"
        text += f" : {self.type(weight.type)}"
        text += "".join(f" {word}" for word, (name, flag) in WEIGHT_FLAGS.items() if getattr(weight, name) is flag)
        if weight.aliases:
            text += f" aliases [{', '.join(map(json.dumps, weight.aliases))}]"
        if weight.derivation is None:
            return [text]
        text += f" derived_from [{', '.join(map(json.dumps, weight.derivation.sources))}]"
        return [text, *self.program(weight.derivation.program, indent + _INDENT)]

    def graph(self, graph: Graph, names: _Names, keyword: str, indent: str) -> list[str]:
        inputs = ", ".join(f"{names[v]}{names.hint(v)} : {self.type(v.type)}" for v in graph.inputs)
        lines = [f"{indent}{keyword}({inputs}) {{"]
        for op in _all_operations(graph):
            lines += self.operation(op, names, indent + _INDENT)
        lines.append(f"{indent}}}")
        return lines

    def operation(self, op: Operation, names: _Names, indent: str) -> list[str]:
        if op.opdef is RETURN:
            values = ", ".join(["None" if v is None else names[v] for v in op.operands])
            return [f"{indent}return {values}{self.location(op.location)}".rstrip()]
        results = ""
        types = ""
        if op.results:
            results = ", ".join([names[v] for v in op.results]) + " = "
            types = " : " + ", ".join([self.type(v.type) for v in op.results])
        operands = ", ".join(_operand_texts(op, names))
        attributes = _attribute_texts(op, names)
        braces = f" {{{', '.join(attributes)}}}" if attributes else ""
        lines = [f"{indent}{results}{op.name}({operands}){braces}{types}{self.location(op.location)}"]
        if op.body is not None:
            inside = _Names()
            inside.define_graph(op.body)
            lines += self.graph(op.body, inside, "body", indent + _INDENT)
        return lines


def _operand_texts(op: Operation, names: _Names) -> list[str]:
    texts = ["None" if v is None else names[v] for v in op.operands]
    segments = op.segments
    if segments is None:
        return texts[: op.num_schema_operands]
    grouped: list[str] = []
    start = 0
    # a broken operation may have a wrong number of segments
    for param, size in zip(op.opdef.operand_params, segments, strict=False):
        part = ", ".join(texts[start : start + size])
        grouped.append(f"[{part}]" if param.kind is ParamKind.LIST else part)
        start += size
    return grouped


def _attribute_texts(op: Operation, names: _Names) -> list[str]:
    operands = op.operands

    def refer(index: int) -> str:
        value = operands[index] if 0 <= index < len(operands) else None
        return f"&{index}" if value is None else names[value]

    attributes = op.attributes
    defaults = op.opdef.defaults
    known = [p.name for p in op.opdef.attribute_params if p.name in attributes]
    if len(known) != len(attributes):
        known += [name for name in attributes if name not in known]
    return [
        f"{name}={format_attribute(attributes[name], refer)}"
        for name in known
        if not (name in defaults and attributes_equal(attributes[name], defaults[name]))
    ]


def _mode_lines(modes: Mapping[str, bool], start: str) -> list[str]:
    """Return one statement for each run of modules in one mode, on lines of limited width."""
    lines: list[str] = []
    current: bool | None = None
    for path, training in modes.items():
        name = json.dumps(path)
        if training is current and len(lines[-1]) + len(name) < _MODES_WIDTH:
            lines[-1] += f", {name}"
        else:
            lines.append(f"{start} {'train' if training else 'eval'} {name}")
            current = training
    return lines


def _convention_lines(convention: CallingConvention, indent: str) -> list[str]:
    lines: list[str] = []
    if convention.parameters:
        lines.append(f"{indent}parameters {format_parameters(convention.parameters)}")
    if convention.keeps_order:
        lines.append(f"{indent}keeps_order")
    for keyword, spec in (("in_spec", convention.in_spec), ("out_spec", convention.out_spec)):
        if spec is not None:
            lines.append(f"{indent}{keyword} {format_spec(spec)}")
    for leaf in convention.inputs:
        place = f"input {leaf.value}" if leaf.value is not None else format_attribute(leaf.constant)
        accepts = "".join(f" or {kind}" for kind in leaf.accepts)
        lines.append(f"{indent}argument {json.dumps(leaf.name)} = {place}{accepts}")
    for result in convention.outputs:
        place = f"output {result.value}" if result.value is not None else format_attribute(result.constant)
        lines.append(f"{indent}result = {place}")
    for mutation in convention.mutations:
        target = f"input {mutation.input}" if mutation.buffer is None else json.dumps(mutation.buffer)
        lines.append(f"{indent}mutation {target} = output {mutation.output}{' assigned' * mutation.is_assigned}")
    lines.extend(f"{indent}view output {output} = output {written}" for output, written in convention.views.items())
    return lines
