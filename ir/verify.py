"""The verifier: the invariants of every program between passes.

* The list of operations is well linked, ends in the one `return`, and operations know their graph.
* Every value is defined once, and before its uses; a body uses its own inputs and results only.
* Use lists are exact: they have each use, and nothing else.
* Operands and attributes are those of the operator's schema; operators are functional.
* Result types equal those of inference, as far as both are known.
* Weights are in `Program.weights` under their names, and each name means one weight.
* Symbols are declared, and the calling convention names what exists.
* A size that depends on data is named only below an operation whose result has it.
"""

from __future__ import annotations

import keyword
import linecache
from collections.abc import Iterator
from typing import Any, NoReturn

import sympy
import torch
from torch.utils import _pytree as pytree

from ir.attributes import ATTRIBUTE_TYPES, LITERAL_TYPES, Attribute, Ref, iter_leaves
from ir.builder import infer_operation
from ir.core import RETURN, Graph, Operation, Value
from ir.data_sizes import undefined_sizes
from ir.errors import GraphwrightError, VerificationError
from ir.opdef import ParamKind
from ir.ops.nn_ops import OPAQUE
from ir.parameters import are_in_order
from ir.program import CallingConvention, Mutation, Program, Weight
from ir.text.literals import RESERVED_SYMBOLS
from ir.text.printer import format_parameters, print_operation_context
from ir.types import OpaqueType, ScalarType, TensorType, Type, make_symbol, types_agree

_ELEMENT_MAY_BE_ABSENT = "List[Optional[Tensor]]"


def verify(program: Program) -> None:
    """Check every invariant of a program, in linear time.

    Raises:
        VerificationError: for the first invariant that does not hold. Its notes show the operation with ten others on
            either side, and the line of the user's source that it comes from.
    """
    _Verifier(program).run()


class _Verifier:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.symbols = set(program.symbols)
        # Values and operations, not their ids: nothing that was checked may be collected meanwhile.
        self.uses: dict[Value, dict[Operation, int]] = {}
        self.operations: set[Operation] = set()
        self._known_expressions: set[sympy.Expr] = set()

    def run(self) -> None:
        self._symbols()
        self._weights()
        self._graph(self.program.graph, None)
        for value, expected in self.uses.items():
            self._use_list(value, expected)
        self._convention(self.program.convention)
        for message, op in undefined_sizes(self.program):
            self._fail(message, op)

    # Failures

    def _fail(self, message: str, op: Operation | None = None, cause: BaseException | None = None) -> NoReturn:
        location = op.location if op is not None else self.program.location
        remedy = cause.remedy if isinstance(cause, GraphwrightError) else None
        error = VerificationError(f"program {self.program.name!r}: {message}", location=location, remedy=remedy)
        if op is not None:
            error.add_note(print_operation_context(op))
            line = linecache.getline(op.location.file, op.location.line).strip() if op.location.file else ""
            if line:
                error.add_note(f"{op.location.source}: {line}")
        raise error from cause

    # Program

    def _symbols(self) -> None:
        for symbol, bounds in self.program.symbols.items():
            name = symbol.name
            if not name.isidentifier() or not name.isascii() or name in RESERVED_SYMBOLS:
                self._fail(f"a symbol cannot be named {name!r}")
            if symbol != make_symbol(name):
                self._fail(f"symbol {name!r} was not made by `make_symbol`")
            if bounds.upper is not None and bounds.upper < bounds.lower:
                self._fail(f"the range {bounds} of symbol {name!r} is empty")
        for constraint in self.program.constraints:
            if not constraint.is_Relational:
                self._fail(f"the constraint {constraint} is not a relation")
            self._expression(constraint, f"the constraint {constraint}", None)

    def _weights(self) -> None:
        owners: dict[str, Weight] = {}
        for key, weight in self.program.weights.items():
            if key != weight.name:
                self._fail(f"weight {weight.name!r} is listed as {key!r}")
            for name in (weight.name, *weight.aliases):
                if name in owners:
                    self._fail(f"the name {name!r} belongs to two weights, {owners[name].name!r} and {key!r}")
                owners[name] = weight
            value = weight.value
            if value.owner is not weight or value.name != weight.name:
                self._fail(f"the value of weight {key!r} belongs to {value.owner!r}")
            self._type(value.type, f"weight {key!r}", None)
            if value.type != weight.type:
                self._fail(f"weight {key!r} has type {weight.type}, but its value has {value.type}")
            self._data(weight)
            self.uses[value] = {}
            if weight.derivation is not None:
                self._derivation(weight)

    def _data(self, weight: Weight) -> None:
        data = weight.data
        if data is None:
            return
        shape: tuple[Any, ...] = tuple(data.shape)
        if shape != weight.type.shape or data.dtype != weight.type.dtype:
            found = TensorType(shape, data.dtype, data.device)
            self._fail(f"weight {weight.name!r} has type {weight.type}, but its data is {found}")

    def _derivation(self, weight: Weight) -> None:
        assert weight.derivation is not None
        inner = weight.derivation.program
        if inner.weights or len(inner.graph.inputs) != len(weight.derivation.sources):
            self._fail(
                f"the derivation of weight {weight.name!r} must be a program without weights that takes the "
                f"{len(weight.derivation.sources)} sources"
            )
        outputs = inner.graph.outputs
        if len(outputs) != 1 or outputs[0] is None or not types_agree(outputs[0].type, weight.type):
            self._fail(f"the derivation of weight {weight.name!r} does not return one tensor of type {weight.type}")
        verify(inner)

    # Graphs

    def _graph(self, graph: Graph, owner: Operation | None) -> None:
        """Check a graph; `owner` is the fused operation whose body it is."""
        defined: set[Value] = set()
        for i, value in enumerate(graph.inputs):
            self._definition(value, graph, i, owner, defined)
        number = 0
        before: Operation | None = None
        op = graph.first
        while op is not None:
            self._links(op, before, graph, number)
            for i, operand in enumerate(op.operands):
                if operand is not None:
                    self._operand(op, i, operand, graph, defined, owner)
            for i, value in enumerate(op.results):
                self._definition(value, op, i, op, defined)
            self._operation(op)
            before, op = op, op.next
            number += 1
        end = graph.return_op
        if before is not end or graph.last is not end:
            self._fail("the graph does not end in its `return`", before or owner)
        if graph.num_operations != number - 1:
            self._fail(f"the graph counts {graph.num_operations} operations, but has {number - 1}", owner or end)
        if None in graph.outputs:
            self._fail("an output of the graph is absent", end)

    def _links(self, op: Operation, before: Operation | None, graph: Graph, number: int) -> None:
        if op in self.operations:
            self._fail(f"{op.name} is in a graph twice", op)
        self.operations.add(op)
        if op.graph is not graph or op.prev is not before:
            self._fail(f"{op.name}, number {number} of its graph, is not linked to it and to what is before it", op)
        if op.opdef is RETURN and op is not graph.return_op:
            self._fail("a second `return` is among the operations", op)

    def _definition(self, value: Value, owner: Any, index: int, op: Operation | None, defined: set[Value]) -> None:
        if value.owner is not owner or value.index != index or value in self.uses:
            self._fail(f"{value!r} is defined here as number {index}, but elsewhere too", op)
        defined.add(value)
        self.uses[value] = {}
        self._type(value.type, value, op)

    def _operand(
        self, op: Operation, index: int, value: Value, graph: Graph, defined: set[Value], owner: Operation | None
    ) -> None:
        if value.is_weight:
            if owner is not None:
                self._fail(f"operand {index} of {op.name} in a body is weight {value.name!r}: make it an operand", op)
            if self.program.weights.get(value.name) is not value.owner:
                self._fail(f"operand {index} of {op.name} is weight {value.name!r}, which is not in the program", op)
        elif value not in defined:
            source = value.owner
            home = source.graph if isinstance(source, Operation) else source
            problem = "is defined only below it" if home is graph else "is not defined in this graph"
            self._fail(f"operand {index} of {op.name}, {value!r}, {problem}", op)
        uses = self.uses[value]
        uses[op] = uses.get(op, 0) + 1

    def _use_list(self, value: Value, expected: dict[Operation, int]) -> None:
        recorded = value._uses
        if recorded == expected:
            return
        strays = [op for op in (*recorded, *expected) if recorded.get(op) != expected.get(op)]
        self._fail(
            f"{value!r} lists {value.num_uses} uses, but has {sum(expected.values())}; they differ at {strays[0].name}",
            strays[0] if strays[0].is_attached else value.defining_op or strays[0],
        )

    # Operations

    def _operation(self, op: Operation) -> None:
        opdef = op.opdef
        if opdef is RETURN:
            if op.results or op.attributes or op.body is not None:
                self._fail("a `return` has operands only", op)
            return
        if opdef.is_region != (op.body is not None):
            self._fail(f"{op.name} {'has no' if opdef.is_region else 'has a'} body", op)
        schema = getattr(opdef.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            self._fail(f"{op.name} writes its operands, but operations in a program are functional", op)
        if op.body is None:
            self._schema_operands(op)
            self._schema_attributes(op)
        else:
            self._region(op, op.body)
        for name, value in op.attributes.items():
            self._attribute(op, name, value)
        self._references(op)
        if opdef is OPAQUE and op.attributes["callee"] not in self.program.opaques:
            self._fail(f"nn.opaque calls {op.attributes['callee']!r}, which is not among the program's opaques", op)
        self._result_types(op)

    def _schema_operands(self, op: Operation) -> None:
        params = op.opdef.operand_params
        segments = op.segments
        if op.opdef.has_lists != (segments is not None):
            self._fail(f"{op.name} must {'' if op.opdef.has_lists else 'not '}have segments", op)
        sizes = (1,) * len(params) if segments is None else segments
        if len(sizes) != len(params) or sum(sizes) > len(op.operands):
            self._fail(f"{op.name} takes {len(params)} tensor operands, {len(op.operands)} given", op)
        start = 0
        for param, size in zip(params, sizes, strict=True):
            is_list = param.kind is ParamKind.LIST
            if size != 1 and not is_list:
                self._fail(f"operand {param.name!r} of {op.name} is not a list, but has {size} values", op)
            may_miss = param.kind is ParamKind.OPTIONAL or (is_list and param.type == _ELEMENT_MAY_BE_ABSENT)
            for value in op.operands[start : start + size]:
                if value is None:
                    if not may_miss:
                        self._fail(f"operand {param.name!r} of {op.name} is absent", op)
                elif isinstance(value.type, ScalarType):
                    self._fail(f"operand {param.name!r} of {op.name} is a {value.type}, not a tensor", op)
            start += size

    def _schema_attributes(self, op: Operation) -> None:
        names = {p.name for p in op.opdef.attribute_params}
        if names == op.attributes.keys():
            return
        missing = [p.name for p in op.opdef.attribute_params if p.name not in op.attributes]
        if missing:
            self._fail(f"{op.name} lacks its attribute {', '.join(missing)}", op)
        unknown = [name for name in op.attributes if name not in names]
        self._fail(f"{op.name} has no attribute {', '.join(unknown)}", op)

    def _attribute(self, op: Operation, name: str, value: Attribute) -> None:
        if type(value) in LITERAL_TYPES:
            return
        leaves = iter_leaves(value) if op.opdef is OPAQUE else _leaves_of_tuples(value)
        for leaf in leaves:
            if not isinstance(leaf, ATTRIBUTE_TYPES):
                kind = type(leaf).__qualname__
                self._fail(f"attribute {name!r} of {op.name} holds a {kind}, which is not an attribute value", op)
            if isinstance(leaf, sympy.Expr):
                self._expression(leaf, f"attribute {name!r} of {op.name}", op)

    def _references(self, op: Operation) -> None:
        """Check that attributes refer to exactly the operands after those of the schema; in opaque calls, to any."""
        first, count = op.num_schema_operands, len(op.operands)
        lowest = 0 if op.opdef is OPAQUE else first
        referred: set[int] = set()
        for name, value in op.attributes.items():
            for leaf in () if type(value) in LITERAL_TYPES else iter_leaves(value):
                if isinstance(leaf, Ref):
                    if not lowest <= leaf.index < count:
                        self._fail(
                            f"attribute {name!r} of {op.name} refers to operand {leaf.index}, "
                            f"not one of {lowest} to {count - 1}",
                            op,
                        )
                    if op.operands[leaf.index] is None:
                        self._fail(f"attribute {name!r} of {op.name} refers to an operand that is absent", op)
                    referred.add(leaf.index)
        if not referred.issuperset(range(first, count)):
            self._fail(f"{op.name} has operands that are neither in its schema nor in an attribute", op)

    def _region(self, op: Operation, body: Graph) -> None:
        inputs = body.inputs
        if op.segments is not None or len(op.operands) != len(inputs):
            self._fail(f"{op.name} has {len(op.operands)} operands, but its body has {len(inputs)} inputs", op)
        names = [value.name for value in inputs]
        if "" in names or len(set(names)) != len(names):
            self._fail(f"the inputs of the body of {op.name} have no unique names: {', '.join(names)}", op)
        for value, inside in zip(op.operands, inputs, strict=True):
            if value is None:
                self._fail(f"operand {inside.name!r} of {op.name} is absent", op)
            if not types_agree(value.type, inside.type):
                self._fail(
                    f"operand {inside.name!r} of {op.name} is {value.type}, but the body takes {inside.type}", op
                )
        for name in ("parts", "quantization_points"):
            if not _is_names(op.attributes.get(name)):
                self._fail(f"attribute {name!r} of {op.name} is not a list of names", op)
        parts = op.attributes.get("parts")
        if parts is not None and len(parts) != body.num_operations:
            self._fail(f"{op.name} names {len(parts)} parts, but its body has {body.num_operations} operations", op)
        for point in op.attributes.get("quantization_points") or ():
            if point not in names:
                self._fail(f"quantization point {point!r} of {op.name} is not one of its operands", op)
        self._graph(body, op)

    def _result_types(self, op: Operation) -> None:
        try:
            inferred = infer_operation(op)
        except GraphwrightError as error:
            self._fail(f"the operands of {op.name} do not fit it: {error.message}", op, error)
        if len(inferred) != len(op.results):
            self._fail(f"{op.name} has {len(op.results)} results, inference gives {len(inferred)}", op)
        for value, type_ in zip(op.results, inferred, strict=True):
            if not types_agree(value.type, type_):
                self._fail(f"result {value.index} of {op.name} has type {value.type}, inference gives {type_}", op)

    # Types

    def _type(self, type_: Type, owner: object, op: Operation | None) -> None:
        if isinstance(type_, TensorType) and not isinstance(type_.shape, tuple | None):
            self._fail(f"the shape of {owner} is a {type(type_.shape).__qualname__}, not a tuple", op)
        if isinstance(type_, TensorType):
            for dim in type_.shape or ():
                if type(dim) is int:
                    if dim < 0:
                        self._fail(f"{owner} has a negative dimension: {type_}", op)
                elif isinstance(dim, sympy.Expr):
                    self._expression(dim, owner, op)
                elif dim is not None:
                    self._fail(f"a dimension of {owner} is a {type(dim).__qualname__}", op)
            if type_.dtype is not None and not isinstance(type_.dtype, torch.dtype):
                self._fail(f"the dtype of {owner} is a {type(type_.dtype).__qualname__}", op)
        elif isinstance(type_, ScalarType):
            if isinstance(type_.value, sympy.Expr):
                self._expression(type_.value, owner, op)
        elif not isinstance(type_, OpaqueType):
            self._fail(f"the type of {owner} is a {type(type_).__qualname__}", op)

    def _expression(self, expr: sympy.Expr, owner: object, op: Operation | None) -> None:
        if expr in self._known_expressions:
            return
        if expr.free_symbols <= self.symbols:
            self._known_expressions.add(expr)
            return
        unknown = sorted(symbol.name for symbol in expr.free_symbols - self.symbols)
        self._fail(f"{owner} uses symbol {', '.join(unknown)}, which the program does not declare", op)

    # Calling convention

    def _convention(self, convention: CallingConvention) -> None:
        graph = self.program.graph
        num_inputs, num_outputs = len(graph.inputs), len(graph.outputs)
        places = [leaf.value for leaf in convention.inputs if leaf.value is not None]
        if convention.inputs and sorted(places) != list(range(num_inputs)):
            self._fail(f"the arguments stand for graph inputs {places}, but the graph has {num_inputs}")
        if not are_in_order(convention.parameters):
            self._fail(f"Python does not allow parameters in this order: {format_parameters(convention.parameters)}")
        names = [parameter.name for parameter in convention.parameters]
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name):
                self._fail(f"a parameter is called {name!r}, which Python does not allow")
            if names.count(name) > 1:
                self._fail(f"two parameters are called {name!r}")
        for leaf in convention.outputs:
            if leaf.value is not None and not 0 <= leaf.value < num_outputs:
                self._fail(f"the result has output {leaf.value}, but the graph has {num_outputs}")
            if isinstance(leaf.constant, sympy.Expr):
                self._expression(leaf.constant, "the result", None)
        if convention.in_spec is not None and not _is_of_call(convention.in_spec):
            self._fail("in_spec is not that of a call: `((...), {...})`, with names as keys")
        if convention.in_spec is not None and convention.in_spec.num_leaves != len(convention.inputs):
            self._fail(f"in_spec has {convention.in_spec.num_leaves} leaves for {len(convention.inputs)} arguments")
        if convention.out_spec is not None and convention.out_spec.num_leaves != len(convention.outputs):
            self._fail(f"out_spec has {convention.out_spec.num_leaves} leaves for {len(convention.outputs)} results")
        for mutation in convention.mutations:
            if not 0 <= mutation.output < num_outputs:
                self._fail(f"a mutation writes output {mutation.output}, but the graph has {num_outputs}")
            if (mutation.buffer is None) == (mutation.input is None):
                self._fail("a mutation writes either a buffer or an input")
            if mutation.buffer is not None:
                weight = self.program.weights.get(mutation.buffer)
                if weight is None:
                    self._fail(f"a mutation writes {mutation.buffer!r}, which is not a weight of the program")
                if not weight.is_mutated:
                    self._fail(f"a mutation writes weight {mutation.buffer!r}, which is not marked as mutated")
                self._mutation(mutation, weight.value)
            elif mutation.input is not None:
                if not 0 <= mutation.input < num_inputs:
                    self._fail(f"a mutation writes input {mutation.input}, but the graph has {num_inputs}")
                self._mutation(mutation, graph.inputs[mutation.input])
        written = {mutation.output for mutation in convention.mutations}
        for output, source in convention.views.items():
            if not 0 <= output < num_outputs:
                self._fail(f"output {output} is a view, but the graph has {num_outputs}")
            if source not in written:
                self._fail(f"output {output} is a view of output {source}, which no mutation writes")

    def _mutation(self, mutation: Mutation, written: Value) -> None:
        """Demand that a mutation writes what is of the type of the old contents, as far as both are known."""
        if mutation.is_assigned:
            return
        value = self.program.graph.outputs[mutation.output]
        if value is None or not types_agree(value.type, written.type):
            found = "no value" if value is None else f"a value of type {value.type}"
            self._fail(f"a mutation writes {found} to {written.name}, whose type is {written.type}")


def _is_of_call(spec: pytree.TreeSpec) -> bool:
    """Return whether a structure is one of positional arguments and keyword arguments."""
    if spec.type is not tuple or spec.num_children != 2:
        return False
    args, kwargs = spec.children()
    return args.type is tuple and kwargs.type is dict and all(isinstance(key, str) for key in kwargs.context)


def _is_names(value: Attribute) -> bool:
    return value is None or (isinstance(value, tuple) and all(isinstance(name, str) for name in value))


def _leaves_of_tuples(value: Attribute) -> Iterator[Attribute]:
    """Yield the leaves of nested tuples; only opaque calls may have lists and the like."""
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves_of_tuples(item)
    else:
        yield value
