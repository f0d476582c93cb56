"""Variations of an example of a rule: other sizes and dtypes, other producers and users, edited operations.

An example meets conditions that the pattern does not state. A variation starts with it and edits some of its
operations; a call that refuses the changed operands is drawn again around them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
import torch

from fuzz.calls.generators import GENERATORS, draw_call, generate_call
from fuzz.calls.quantization import SCALES
from fuzz.calls.source import Unavailable
from fuzz.calls.types import FLOATS, SYMBOLS
from fuzz.programs.retyping import retype_results
from fuzz.programs.strategy import HALVES
from fuzz.rules.growth import operators_with
from fuzz.rules.match_source import PREFIXES, MatchSource
from fuzz.rules.respelling import Respelling
from fuzz.rules.spellings import spelled
from ir.builder import bind_arguments
from ir.caches import cached
from ir.copying import copy_operation
from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.locations import UNKNOWN_LOCATION
from ir.opdef import OpDef, Trait
from ir.program import Program, Weight
from ir.quant.kernels import QUANTIZED
from ir.types import Dim, TensorType
from passes.rewrite.example import Example
from passes.rewrite.expansion import op_nodes
from passes.rewrite.language.nodes import Tree
from passes.rewrite.pattern import Chain, OpNode, Pattern

EDITS = ("attribute", "attribute", "operator", "redraw", "insert", "exchange", "absent", "drop")
"""Edits of an operation: another value of an attribute, another operator that the pattern or a trait allows, operands
and attributes drawn again, an operation inserted before it, operands exchanged, an optional operand dropped, the
operation dropped."""
_OPS_FOR_AN_EDIT = 5
"""One more edit is possible for each of so many operations."""
_ATTEMPTS = 4
_USUAL = (2, 3, 1, 4, 2, 3)
"""Usual sizes, with their frequencies."""
_BOUNDS = {"running_mean": (-1.0, 1.0), "running_var": (0.5, 2.0), "scale": SCALES}
"""Operand -> the range of its numbers: a variance and a scale are positive."""


def bounds_of(value: Value) -> tuple[float, float] | None:
    """Return the range that the users of a weight demand of its numbers; None for any."""
    for op in value.users:
        for name, bounds in _BOUNDS.items():
            if name in op.opdef.operand_index and op.operand(name) is value:
                return bounds
    return None


@cached()
def _names(example: Example) -> tuple[str, ...]:
    return example.size_names


@cached(most=1000)
def _program(example: Example, sizes: tuple[tuple[str, Dim], ...]) -> Program:
    """Return the program of an example, which is not to be changed: to parse it takes longer than to vary it."""
    return example.program(dict(sizes).__getitem__)


class Variation:
    """One program under construction that starts with an example."""

    def __init__(self, source: MatchSource, rule: Pattern, variants: list[Tree]) -> None:
        self.source = source
        self.rule = rule
        self.variants = variants
        self.values: dict[Value, Value] = {}
        """Value of the example -> the value that replaces it."""
        self.computed: dict[Value, None] = {}
        """The values that replace results of operations of the example, in their order."""

    def build(self, example: Example, tree: Tree | None = None) -> list[Value]:
        """Build the program; return the values that replace the outputs of the example.

        Args:
            example: the example.
            tree: an alternative of the pattern, in which what the rule fires on is spelled; None for its own.

        Raises:
            Unavailable: when the changes do not fit together.
            GraphwrightError: when the example is not valid for the drawn sizes.
        """
        source = self.source
        size = self._sizes()
        names = _names(example)
        symbolic = source.one_of(names) if source.symbolic and names else ""
        sizes = [(name, SYMBOLS[0] if name == symbolic else size(name)) for name in names]
        program = _program(example, tuple(sizes))
        half = [value.tensor_type.dtype for value in program.graph.inputs if value.tensor_type.dtype in HALVES]
        if half and half[0] is not None:
            source.in_half(half[0], large=True)
        elif source.integer(0, 15) == 15:
            source.usual = source.one_of((torch.float64, torch.int64, torch.complex64))
        for value in program.graph.inputs:
            self.values[value] = self._entry(value.tensor_type)
        for weight in program.weights.values():
            self.values[weight.value] = self._weight(weight)
        ops = list(program.graph.operations())
        edits: dict[int, list[str]] = {}
        for _ in range(source.integer(1, 1 + len(ops) // _OPS_FOR_AN_EDIT) if ops and source.flag() else 0):
            edits.setdefault(source.integer(0, len(ops) - 1), []).append(source.one_of(EDITS))
        anonymous = self._seldom()
        spelling = None if tree is None else spelled(self.rule, program, tree)
        for number, op in enumerate(ops):
            if spelling is not None and op in spelling.inner:
                continue
            source.builder.location = UNKNOWN_LOCATION if anonymous else op.location
            if spelling is not None and op is spelling.match.root:
                results = list(spelling.build(source, self.values))
            else:
                results = self._operation(op, edits.get(number, []))
            if len(results) < len(op.results):
                raise Unavailable
            self.values.update(zip(op.results, results, strict=False))
            self.computed |= dict.fromkeys(results)
        source.builder.location = UNKNOWN_LOCATION
        if self.computed and source.integer(0, 3) == 3:
            self._use(source.one_of(list(self.computed)))
        return [self.values[value] for value in program.graph.outputs if value is not None]

    def _seldom(self) -> bool:
        return self.source.integer(0, 7) == 7

    # ---- sizes, inputs and weights ----

    def _sizes(self) -> Any:
        """Return a function that draws a number for each named size: sometimes one for all, or a 0."""
        source, known = self.source, dict[str, int]()
        kind, equal = source.integer(0, 7), source.integer(2, 3)

        def size(name: str) -> int:
            if name not in known:
                known[name] = equal if kind > 5 else source.one_of(_USUAL)
                if kind in (4, 5) and self._seldom():
                    known[name] = 0 if kind == 4 else source.hinted(1, 16)
            return known[name]

        return size

    def _retyped(self, type_: TensorType) -> TensorType:
        """Return the type with the program's floating dtype; seldom another dtype, or another shape."""
        source = self.source
        dtype = source.usual if type_.dtype is torch.float32 else type_.dtype
        kind = source.integer(0, 19)
        if kind == 19:
            dtype = source.one_of((*FLOATS, torch.int64, torch.bool, torch.complex64))
        shape = type_.shape or ()
        if kind in (16, 17, 18) and shape:
            at = source.integer(0, len(shape) - 1)
            shape = (*shape[:at], source.integer(1, 3), *shape[at + (kind < 18) :])
        return attrs.evolve(type_, dtype=dtype, shape=shape)

    def _entry(self, type_: TensorType) -> Value:
        """Return an input, perhaps in another memory order or behind an operation."""
        source, type_ = self.source, self._retyped(type_)
        shape, kind = type_.shape or (), source.integer(0, 7)
        if kind > 5 and len(shape) > 1:
            order = source.shuffled(range(len(shape)))
            made = source.new_input(
                attrs.evolve(type_, shape=tuple([shape[order.index(i)] for i in range(len(shape))]))
            )
            return source.builder.op("aten.permute", made, order).results[0]
        made = source.new_input(type_)
        return self._behind(made) if kind == 5 and self._seldom() else made

    def _weight(self, weight: Weight) -> Value:
        """Return a weight like that of the example, another one, or another value of its type.

        Raises:
            Unavailable: when its size is a symbol.
        """
        source, type_, bounds = self.source, self._retyped(weight.type), bounds_of(weight.value)
        if not type_.is_static:
            raise Unavailable
        if type_.dtype in QUANTIZED or (source.flag() and type_.dtype in source.dtypes):
            return source.weight(type_, bounds, weight)
        return source.make(type_.shape or (), type_.dtype, bounds=bounds)

    # ---- operations ----

    def _operation(self, op: Operation, edits: list[str]) -> list[Value]:
        """Return the results of an edited operation, or the values that replace them."""
        source = self.source
        if op.body is not None:
            return self._region(op)
        grouped = [self._taken(entry) for entry in op.grouped_operands()]
        opdef, attributes = op.opdef, dict(op.attributes)
        for edit in edits:
            data = [place for place, entry in enumerate(grouped) if isinstance(entry, Value)]
            if edit == "drop" and data and len(op.results) == 1:
                return [grouped[data[0]]]
            if edit == "insert" and data:
                place = source.one_of(data)
                grouped[place] = self._behind(grouped[place])
            elif edit == "exchange" and data:
                self._exchange(grouped, data)
            elif edit == "absent":
                for place in data[1:]:
                    grouped[place] = grouped[place] if source.flag() else None
            elif edit == "operator":
                opdef = source.one_of(self._relatives(opdef))
            elif edit == "attribute" and op.opdef.attribute_params:
                self._respell(op, grouped[data[0]] if data else None, attributes)
        made = None if "redraw" in edits else self._made(opdef, grouped, attributes)
        made = made or self._drawn(opdef, grouped, attributes)
        if made.in_training:
            for name in _BOUNDS:
                source.written(made.operand(name) if name in made.opdef.operand_index else None)
        return list(made.results)

    def _region(self, op: Operation) -> list[Value]:
        """Return the results of a copy of a region, whose types follow from those of its operands."""
        twin = copy_operation(op, [None if value is None else self.values[value] for value in op.operands])
        retype_results(twin)
        self.source.graph.append(twin)
        return list(twin.results)

    def _use(self, value: Value) -> None:
        """Add a user of a value, or return it from the program."""
        if self.source.flag():
            self.source.returned.append(value)
        else:
            self.source.builder.op("aten.neg", value)

    def _taken(self, entry: Any) -> Any:
        return tuple(map(self._taken, entry)) if isinstance(entry, tuple) else self.values.get(entry)

    def _made(self, opdef: OpDef, grouped: list[Any], attributes: dict[str, Any]) -> Operation | None:
        known = {param.name: attributes[param.name] for param in opdef.attribute_params if param.name in attributes}
        if len(grouped) != len(opdef.operand_params):
            return None
        named = {param.name: value for param, value in zip(opdef.operand_params, grouped, strict=True)}
        try:
            return self.source.builder.op(opdef, **named, **known)
        except GraphwrightError:
            return None

    def _drawn(self, opdef: OpDef, grouped: list[Any], attributes: dict[str, Any]) -> Operation:
        """Draw a call around operands that the example computes, with its attributes where they are accepted.

        Raises:
            Unavailable: when none is found.
        """
        source = self.source
        fixed = {place: value for place, value in enumerate(grouped) if value in self.computed}
        fixed = fixed or {place: value for place, value in enumerate(grouped[:1]) if isinstance(value, Value)}
        for attempt in range(_ATTEMPTS):
            source.places, source.pinned = fixed, list(fixed.values())
            try:
                operands, drawn, segments, _ = bind_arguments(opdef, *draw_call(source, opdef))
            except (Unavailable, GraphwrightError):
                continue
            finally:
                source.places, source.pinned = {}, []
            around = [fixed.get(place, value) for place, value in enumerate(opdef.group(operands, segments))]
            kept = drawn if attempt % 2 else drawn | {k: v for k, v in attributes.items() if k in drawn}
            made = self._made(opdef, around, kept) or self._made(opdef, around, drawn)
            if made is not None:
                return made
        raise Unavailable

    def _respell(self, op: Operation, operand: Value | None, attributes: dict[str, Any]) -> None:
        """Give an attribute another value."""
        param = self.source.one_of(op.opdef.attribute_params)
        own = op.attributes.get(param.name, param.default)
        with suppress(Unavailable):
            drawn = Respelling(self.source, op.opdef, self.rule, op, operand).attribute(
                param, lambda value: value != own
            )
            attributes[param.name] = drawn

    def _behind(self, value: Value) -> Value:
        """Return the result of a drawn operation on a value."""
        source = self.source
        name = source.one_of(PREFIXES)
        source.pinned = [value]
        try:
            args, kwargs = generate_call(source, name)
            return source.builder.op(name, *args, **kwargs).results[0] if value in args else value
        except (Unavailable, GraphwrightError):
            return value
        finally:
            source.pinned = []

    def _exchange(self, grouped: list[Any], data: list[int]) -> None:
        """Exchange two operands, or replace one by another value of its type."""
        source = self.source
        a, b = source.one_of(data), source.one_of(data)
        if a != b:
            grouped[a], grouped[b] = grouped[b], grouped[a]
            return
        others = [value for value in self.values.values() if value.type == grouped[a].type]
        grouped[a] = source.one_of(others) if others else grouped[a]

    def _relatives(self, opdef: OpDef) -> list[OpDef]:
        """Return the operators that the pattern accepts in place of this one, and those with its traits."""
        found: dict[OpDef, None] = {}
        for part in (part for node in self.variants for part in op_nodes(node)):
            if isinstance(part, (OpNode, Chain)):
                ops = part.ops if isinstance(part.ops, tuple) else (part.ops,)
                flat = [o for op in ops for o in (operators_with(op) if isinstance(op, Trait) else (op,))]
                found |= dict.fromkeys(flat if opdef in flat else ())
        for trait in (Trait.ACTIVATION, Trait.IDEMPOTENT, Trait.LAYOUT):
            found |= dict.fromkeys(operators_with(trait) if opdef.has(trait) else ())
        return [o for o in found if o.name in GENERATORS and not o.is_region] or [opdef]
