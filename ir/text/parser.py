"""Parsing of the text form that `ir.text.printer` writes."""

from __future__ import annotations

from collections.abc import Callable

import sympy

from ir.attributes import Attribute, Ref
from ir.builder import infer_operation
from ir.core import Graph, Operation, Value
from ir.errors import GraphwrightError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import OpDef, ParamKind, Trait, get_opdef
from ir.program import (
    SURROUNDINGS,
    CallingConvention,
    Derivation,
    InputLeaf,
    OutputLeaf,
    Program,
    SymbolRange,
    Weight,
    WeightKind,
)
from ir.text.literals import RESERVED_SYMBOLS, expect_end
from ir.text.parser_boundary import BoundaryParser
from ir.text.printer import WEIGHT_FLAGS
from ir.text.specs import read_spec
from ir.types import Dim, TensorType, Type, make_symbol

_ONCE = frozenset({"in_spec", "out_spec", "parameters", "keeps_order", "mode_locked"})
_ONCE_A_NAME = frozenset({"opaque", "same_module", "refuses"})
_WEIGHT_KINDS = {kind.value: kind for kind in WeightKind}


def parse_program(text: str, symbol: Callable[[str], Dim] = make_symbol) -> Program:
    """Return the program that `text` stands for; its weights have no data.

    Result types that are left out are inferred. Only what is needed to build the program is checked: call
    `ir.verify.verify` on a program that was written by hand.

    Args:
        text: the text form of a program.
        symbol: returns what the name of a symbol stands for in types and attributes; a number in place of the symbol
            itself makes one of the programs that a text with symbols describes.

    Raises:
        ParseError: when the text is ill-formed, uses an undefined value, or names an unknown operator. The message
            points at the place.
    """
    parser = _Parser(text, symbol)
    program = parser.program()
    expect_end(parser.lexer)
    return program


class _Scope:
    """Values by name, and the operands that attributes of the current operation refer to."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.referred: list[Value] = []
        self.first_reference = 0
        self.said: set[str] = set()
        """The statements of the program that it makes once, by what they are about."""
        self.arguments: list[Value | None] = []
        """The operands that attributes may name again: those of an opaque call."""


class _Parser(BoundaryParser):
    def __init__(self, text: str, symbol: Callable[[str], Dim]) -> None:
        super().__init__(text, self._refer, symbol)
        self.scope = _Scope()

    # Values

    def _define(self, value: Value, name: str, place: int) -> None:
        if name in self.scope.values:
            raise self.lexer.error(f"a value named {name!r} is defined already", index=place)
        self.scope.values[name] = value

    def _use(self) -> Value:
        place = self.lexer.index
        name = self.lexer.expect_value()
        value = self.scope.values.get(name)
        if value is None:
            raise self.lexer.error(f"no value named {name!r} is defined above", index=place)
        return value

    def _optional_use(self) -> Value | None:
        return None if self.lexer.accept("None") else self._use()

    def _refer(self) -> Ref:
        scope = self.scope
        value = self._use()
        if value in scope.arguments:
            return Ref(scope.arguments.index(value))
        scope.referred.append(value)
        return Ref(scope.first_reference + len(scope.referred) - 1)

    def _location(self) -> Location:
        return self.literals.location() if self.lexer.at("loc") else UNKNOWN_LOCATION

    # Programs

    def program(self) -> Program:
        lexer = self.lexer
        lexer.enter()
        outer, self.scope = self.scope, _Scope()
        lexer.expect("program")
        name = lexer.expect_string("the program's name in quotes")
        location = self._location()
        lexer.expect("{")
        convention = CallingConvention(None, None)
        program = Program(name, Graph(), convention, location=location)
        while not lexer.at("graph"):
            self._statement(program)
        lexer.next()
        program.graph = self._graph(Graph())
        lexer.expect("}")
        self.scope = outer
        lexer.leave()
        return program

    def _statement(self, program: Program) -> None:
        lexer = self.lexer
        convention = program.convention
        place = lexer.index
        keyword = lexer.expect_kind("name", "a statement or the graph")
        subject = f"{keyword} {lexer.text}" if keyword in _ONCE_A_NAME else keyword
        if subject in self.scope.said:
            raise lexer.error(f"{subject!r} is said twice", index=place)
        if subject in _ONCE or keyword in _ONCE_A_NAME:
            self.scope.said.add(subject)
        match keyword:
            case "symbol":
                self._symbol(program)
            case "require":
                self._constraint(program)
            case "parameter" | "buffer" | "constant":
                self._weight(program, _WEIGHT_KINDS[keyword])
            case "opaque":
                program.opaques[lexer.expect_string("the name of an opaque callable")] = None
            case "modules":
                self._add_modes(program.module_modes)
            case "same_module":
                alias = lexer.expect_string("a path of a module")
                lexer.expect("=")
                program.module_aliases[alias] = lexer.expect_string("the first path of the module")
            case "after":
                switch = self._switch()
                if lexer.accept("of"):
                    switch = f"{lexer.expect_string('a module path')}.{switch}"
                lexer.expect("modules")
                modes = dict(program.modes_after.get(switch, {}))
                self._add_modes(modes)
                program.modes_after = {**program.modes_after, switch: modes}
            case "refuses":
                name = self._one_of(SURROUNDINGS, "the name of surroundings")
                program.surroundings = {**program.surroundings, name: self._surrounding()}
            case "mode_locked":
                program.mode_locked = lexer.expect_string("why the mode is locked")
            case "parameters":
                convention.parameters = self._parameters()
            case "keeps_order":
                convention.keeps_order = True
            case "in_spec":
                convention.in_spec = read_spec(self.literals)
            case "out_spec":
                convention.out_spec = read_spec(self.literals)
            case "argument":
                name = lexer.expect_string("the name of an argument")
                lexer.expect("=")
                value, constant = self._leaf("input")
                convention.inputs += (InputLeaf(name, value, constant, self._accepts()),)
            case "result":
                lexer.expect("=")
                value, constant = self._leaf("output")
                convention.outputs += (OutputLeaf(value, constant),)
            case "mutation":
                convention.mutations += (self._mutation(),)
            case "view":
                output = self._output_number()
                lexer.expect("=")
                convention.views = {**convention.views, output: self._output_number()}
            case _:
                raise lexer.error(f"{keyword!r} is not a statement of a program", index=place)

    def _symbol(self, program: Program) -> None:
        lexer = self.lexer
        place = lexer.index
        name = lexer.expect_kind("name", "the name of a symbol")
        symbol = make_symbol(name)
        if "." in name or name in RESERVED_SYMBOLS or symbol in program.symbols:
            raise lexer.error(f"a symbol cannot be named {name!r}, or there is one already", index=place)
        lexer.expect("in")
        lexer.expect("[")
        lower = lexer.expect_int("the lower bound")
        lexer.expect(",")
        upper = None if lexer.accept("inf") else lexer.expect_int("the upper bound")
        lexer.expect("]")
        program.symbols[symbol] = SymbolRange(lower, upper)

    def _constraint(self, program: Program) -> None:
        place = self.lexer.index
        constraint = self.literals.expression()
        if not isinstance(constraint, sympy.Basic) or not constraint.is_Relational:
            raise self.lexer.error("expected a relation between symbols, such as `Eq(Mod(s0, 2), 0)`", index=place)
        program.constraints = (*program.constraints, constraint)

    def _weight(self, program: Program, kind: WeightKind) -> None:
        lexer = self.lexer
        place = lexer.index
        name = text_name = lexer.expect_value()
        if lexer.kind == "string":
            name = lexer.expect_string("the weight's name")
        lexer.expect(":")
        type_place = lexer.index
        type_ = self.literals.type()
        if not isinstance(type_, TensorType):
            raise lexer.error("the type of a weight is a tensor's", index=type_place)
        weight = Weight(name, kind, type_)
        while True:
            if lexer.text in WEIGHT_FLAGS:
                setattr(weight, *WEIGHT_FLAGS[lexer.next()])
            elif lexer.accept("aliases"):
                weight.aliases = self._bracketed_strings()
            elif lexer.accept("derived_from"):
                sources = self._bracketed_strings()
                weight.derivation = Derivation(sources, self.program())
            else:
                break
        if name in program.weights:
            raise lexer.error(f"there is a weight named {name!r} already", index=place)
        program.add_weight(weight)
        self._define(weight.value, text_name, place)

    # Graphs

    def _graph(self, graph: Graph) -> Graph:
        lexer = self.lexer
        lexer.enter()
        lexer.expect("(")
        for _ in lexer.items(")"):
            place = lexer.index
            name = text_name = lexer.expect_value()
            if lexer.kind == "string":
                name = lexer.expect_string("the input's name")
            lexer.expect(":")
            self._define(graph.add_input(self.literals.type(), name), text_name, place)
        lexer.expect("{")
        while not lexer.at("return"):
            self._operation(graph)
        lexer.next()
        outputs: list[Value | None] = []
        if not lexer.at("}") and not lexer.at("loc"):
            outputs.append(self._optional_use())
            while lexer.accept(","):
                outputs.append(self._optional_use())
        graph.set_outputs(outputs)
        graph.return_op.location = self._location()
        lexer.expect("}")
        lexer.leave()
        return graph

    def _operation(self, graph: Graph) -> None:
        lexer = self.lexer
        names: list[str] = []
        places: list[int] = []
        while lexer.kind == "value":
            places.append(lexer.index)
            names.append(lexer.expect_value())
            if not lexer.accept(","):
                lexer.expect("=")
                break
        place = lexer.index
        name = lexer.expect_kind("name", "an operation or `return`")
        try:
            opdef = get_opdef(name)
        except GraphwrightError as error:
            raise lexer.error(error.message, index=place, remedy=error.remedy) from error
        operands, segments = self._operands(opdef)
        scope = self.scope
        scope.referred = []
        scope.first_reference = len(operands)
        scope.arguments = operands if opdef.has(Trait.OPAQUE) else []
        attributes = self._attributes(opdef)
        referred = scope.referred
        types = self._result_types()
        location = self._location()
        body: Graph | None = None
        if lexer.accept("body"):
            self.scope = _Scope()
            body = self._graph(Graph())
            self.scope = scope
        elif opdef.is_region:
            raise lexer.error(f"expected the body of {name}, found {lexer.describe()}")
        # without types if these are inferred: inference reads the operands of the operation
        op = Operation(
            opdef,
            [*operands, *referred],
            attributes,
            types or (),
            location=location,
            segments=segments,
            body=body,
            names=names,
        )
        if types is None and names:
            op.results = tuple(
                Value(type_, op, i, hint)
                for i, (type_, hint) in enumerate(zip(self._infer(op, place, len(names)), names, strict=True))
            )
        elif len(op.results) != len(names):
            raise lexer.error(f"{len(names)} results are named, but {len(op.results)} types given", index=place)
        graph.append(op)
        for result, hint, at in zip(op.results, names, places, strict=True):
            self._define(result, hint, at)

    def _infer(self, op: Operation, place: int, count: int) -> tuple[Type, ...]:
        try:
            types = infer_operation(op)
        except GraphwrightError as error:
            raise self.lexer.error(error.message, index=place, remedy=error.remedy) from error
        if len(types) != count:
            raise self.lexer.error(f"{op.name} has {len(types)} results, but {count} are named", index=place)
        return types

    def _operands(self, opdef: OpDef) -> tuple[list[Value | None], tuple[int, ...] | None]:
        lexer = self.lexer
        place = lexer.index
        lexer.expect("(")
        operands: list[Value | None] = []
        segments: list[int] = []
        params = opdef.operand_params
        for _ in lexer.items(")"):
            number, before = len(segments), len(operands)
            if not opdef.is_region and number < len(params) and params[number].kind is ParamKind.LIST:
                lexer.expect("[")
                operands += [self._optional_use() for _ in lexer.items("]")]
            else:
                operands.append(self._optional_use())
            segments.append(len(operands) - before)
        if not opdef.is_region and len(segments) != len(params):
            wanted = ", ".join(p.name for p in params)
            raise lexer.error(
                f"{opdef.name} has {len(params)} tensor operands ({wanted}), {len(segments)} given",
                index=place,
                remedy="write None for an absent one",
            )
        return operands, tuple(segments) if opdef.has_lists else None

    def _attributes(self, opdef: OpDef) -> dict[str, Attribute]:
        lexer = self.lexer
        read = self.literals.constant if opdef.has(Trait.OPAQUE) else self.literals.attribute
        given: dict[str, Attribute] = {}
        places: dict[str, int] = {}
        if lexer.accept("{"):
            for _ in lexer.items("}"):
                place = lexer.index
                name = lexer.expect_kind("name", "the name of an attribute")
                if name in given:
                    raise lexer.error(f"attribute {name!r} is given twice", index=place)
                places[name] = place
                lexer.expect("=")
                given[name] = read()
        if opdef.is_region:
            return given
        attributes: dict[str, Attribute] = {}
        for param in opdef.attribute_params:
            if param.name in given:
                attributes[param.name] = given.pop(param.name)
            elif param.has_default:
                attributes[param.name] = param.default
            else:
                raise lexer.error(f"{opdef.name} needs its attribute {param.name!r}")
        for name in given:
            raise lexer.error(f"{opdef.name} has no attribute {name!r}", index=places[name])
        return attributes

    def _result_types(self) -> tuple[Type, ...] | None:
        if not self.lexer.accept(":"):
            return None
        types = [self.literals.type()]
        while self.lexer.accept(","):
            types.append(self.literals.type())
        return tuple(types)
