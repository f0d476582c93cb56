"""Places quantizers: Q behind values, DQ first in the regions that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
from typing_extensions import override

from ir.core import Operation, Value
from ir.errors import PassError
from ir.locations import Location
from ir.program import Program, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from passes.manager.manager import Pass, PassContext
from passes.quant.decide import Decision, Placing
from passes.quant.parameters import (
    Pair,
    add_pair,
    name_of,
    name_of_input_quantizer,
    name_of_output_quantizer,
    name_of_weight_quantizer,
    weight_scale,
)
from passes.quant.regions import Integers, dequantize, quantize, with_integers, wrap
from passes.quant.rules import Rules, Site
from passes.quant.signs import NeverNegative
from passes.quant.tables import Table, find_table, known_table
from passes.quant.tables.conditions import channel_axis
from passes.quant.tables.row import TYPES, IntegerType
from passes.rewrite.remarks import Remark
from passes.rewrite.rewriter import Rewriter


@attrs.frozen
class Place:
    """One operand, weight or result that could be in integers, and whether it is.

    Attributes:
        site: the region that reads it, or whose result it is.
        role: `input`, `weight`, `output`; `region` for all of one that stays in float.
        operand: the name of the operand; empty for results and regions.
        value: the name of the value.
        type: the type of the integers, `u8`; empty in float.
        reason: why it is, or is not, in integers.
        source: where that is written; empty where it follows from the program.
        scale: the name of the scale's weight, whose users are its `quant.quantize` and `quant.dequantize`; empty in
            float.
    """

    site: Site
    role: str
    operand: str
    value: str
    type: str
    reason: str
    source: str
    scale: str

    @property
    def is_placed(self) -> bool:
        """Whether it is in integers."""
        return bool(self.scale)

    @property
    def module(self) -> str:
        """The path of the module that it belongs to."""
        return self.site.location.where

    @property
    def location(self) -> Location:
        """Its place in the user's model."""
        return self.site.location

    def __str__(self) -> str:
        what = {"input": f"`{self.operand}` of ", "weight": f"`{self.operand}` of ", "output": "the result of "}
        where = f"{what.get(self.role, '')}{self.site.kind} at `{self.module}`"
        return f"{where} is {self.type or 'float'}: {self.reason}"


@attrs.frozen
class Placement:
    """What was placed, in the order of the program.

    Attributes:
        table: the name of the table.
        places: all places, those that stay in float as well.
    """

    table: str
    places: tuple[Place, ...]

    @property
    def placed(self) -> tuple[Place, ...]:
        """The places in integers."""
        return tuple(place for place in self.places if place.is_placed)

    def sites(self) -> tuple[Site, ...]:
        """Return the sites, each once."""
        return tuple(dict.fromkeys(place.site for place in self.places))


def is_quantized(program: Program) -> bool:
    """Return whether a program holds quantizers."""
    return any(
        op.opdef in (QUANTIZE, DEQUANTIZE)
        for outer in program.graph.operations()
        for op in ((outer,) if outer.body is None else outer.body.operations())
    )


def place(
    program: Program, table: str | Table, rules: Any = None, *, positive: frozenset[Value] | None = None
) -> Placement:
    """Put quantizers where a table wants them, in place.

    Scales and zero points of activations have no data until ranges are set, so that the program cannot be run; those of
    weights follow from the weights.

    Args:
        program: a program without quantizers.
        table: a target's table, or its name.
        rules: `Rules`, or a mapping from keys to values; a place whose rule has the value None stays in float.
        positive: the values that are `never_negative`, where they are known.

    Raises:
        PassError: when the program is quantized already.
        InputError: when there is no such table, or a rule matches nothing in the program.
    """
    if is_quantized(program):
        raise PassError(
            "the program is quantized already", location=program.location, remedy="quantize the float program once"
        )
    placing = Placing(program, find_table(table), Rules.of(rules), positive)
    return _Placer(placing).run()


@attrs.define(eq=False)
class _Job:
    """What is to be done to one region.

    Attributes:
        decision: what was decided on it.
        op: the region.
        inputs: operand number -> type of the integers that it reads.
        weights: operand number -> a layer that reads the weight.
        results: result number -> type of the integers that it writes.
        lifted: the inputs whose Q moves over what carries them.
        integers: operand number -> what takes its place.
        parameters: operand number -> the parameters of a weight.
    """

    decision: Decision
    op: Operation
    inputs: dict[int, IntegerType]
    weights: dict[int, Operation]
    results: dict[int, IntegerType]
    lifted: frozenset[int]
    integers: dict[int, tuple[Value, Integers]] = attrs.field(factory=dict)
    parameters: dict[int, Integers] = attrs.field(factory=dict)

    def operand(self, index: int) -> Value:
        """Return an operand."""
        value = self.op.operands[index]
        assert value is not None
        return value


class _Placer:
    """Edits the program as was decided."""

    def __init__(self, placing: Placing) -> None:
        self.placing = placing
        self.program = placing.program
        self.b = Rewriter(self.program)
        self.quantizers: dict[tuple[Value, str], tuple[Value, Pair]] = {}
        """Value and type -> the result of its Q, and the parameters."""
        self.pairs_of_weights: dict[tuple[Value, int, str], Pair] = {}

    def run(self) -> Placement:
        """Place all quantizers."""
        decisions = list(self.placing.decisions.values())
        jobs = {each: self._job(each) for each in decisions if not each.refusal}
        for job in jobs.values():
            self._wrap(job)
        readers = Counter((job.operand(i), type_.name) for job in jobs.values() for i, type_ in job.inputs.items())
        for job in jobs.values():
            for index, type_ in job.results.items():
                result = job.op.results[index]
                self._quantize_behind(result, type_, result.uses)
        for job in jobs.values():
            for index in sorted(job.lifted):
                root, type_ = self.placing.root(job.operand(index)), job.inputs[index]
                if _integers_of(root, type_) is None and (root, type_.name) not in self.quantizers:
                    uses = [(op, i) for op, i in root.uses if self.placing.carries(op) and i == 0]
                    self._quantize_behind(root, type_, uses)
        places: list[Place] = []
        for each in decisions:
            if each.refusal:
                places.append(Place(each.site, "region", "", "", "", each.refusal, "", ""))
            else:
                places += self._quantize_operands(jobs[each], readers)
        for job in jobs.values():  # last, since the values that were read and written give way to others
            with_integers(self.b, job.op, job.integers, job.parameters)
        for op in list(self.program.graph.operations()):
            if op.opdef is DEQUANTIZE and op.result.is_unused:
                self.b.erase(op)
        return Placement(self.placing.table.name, tuple(places))

    def _job(self, decision: Decision) -> _Job:
        """Take down what is decided on one operation, before any edit."""
        op, placing = decision.op, self.placing
        inputs = {i: type_ for i in range(len(op.operands)) if (type_ := placing.type_of(op, i)) is not None}
        results = {r.index: type_ for r in op.results if (type_ := placing.type_behind(op, r)) is not None}
        lifted = frozenset([i for i in inputs if self._can_lift(op.operands[i])])
        return _Job(decision, op, inputs, dict(placing.weights_of(op)), results, lifted)

    def _can_lift(self, value: Value | None) -> bool:
        """Return whether a Q may move over the operations that carry a value, to behind the region that writes it.

        Nothing may read the carried values in float.
        """
        root = value if value is None else self.placing.root(value)
        if root is None or root is value or root.defining_op is None or not self.placing.is_placed(root.defining_op):
            return False
        carried = [op for op, i in root.uses if self.placing.carries(op) and i == 0]
        return all(read for op in carried for result in op.results for _, read in self.placing.readers(result))

    def _wrap(self, job: _Job) -> None:
        """Make a region of a bare operation."""
        op = job.op
        if op.body is None:
            operands = op.operands
            job.op = wrap(self.b, op)
            place = {number: job.op.operands.index(value) for number, value in enumerate(operands) if value is not None}
            job.inputs = {place[i]: type_ for i, type_ in job.inputs.items()}
            job.weights = {place[i]: layer for i, layer in job.weights.items()}
            job.lifted = frozenset([place[i] for i in job.lifted])

    def _quantize_behind(self, value: Value, type_: IntegerType, uses: Sequence[tuple[Operation, int]]) -> None:
        """Put Q and DQ behind a value, and let these uses read what DQ gives."""
        q, pair = self._quantizer(value, type_, name_of_output_quantizer(value))
        owner = q.defining_op
        assert owner is not None and owner.next is not None
        with self.b.at(owner.next, owner.location):
            back = dequantize(self.b, q, pair.scale, pair.zero_point, value)
        for op, index in uses:
            op.set_operand(index, back)

    def _quantizer(self, value: Value, type_: IntegerType, name: str) -> tuple[Value, Pair]:
        """Return the integers of a value, from the one Q of this type behind it."""
        key = value, type_.name
        if key not in self.quantizers:
            op = value.defining_op
            device = value.tensor_type.device
            pair = add_pair(self.program, name, type_, None, device)
            anchor = self.program.graph.first if op is None else op.next
            assert anchor is not None
            with self.b.at(anchor, self.program.location if op is None else op.location):
                self.quantizers[key] = quantize(self.b, value, Integers(pair, type_)), pair
        return self.quantizers[key]

    def _quantize_operands(self, job: _Job, readers: Counter[tuple[Value, str]]) -> list[Place]:
        """Make the quantizers of what a region reads, and of its weights; return what there is to say of it."""
        assert job.decision.row is not None
        op, row, site = job.op, job.decision.row, job.decision.site
        assert op.body is not None
        names = [value.name for value in op.body.inputs]
        places: list[Place] = []
        for index, type_ in job.inputs.items():
            value = job.operand(index)
            found = _integers_of(value, type_)
            if found is None:
                alone = readers[value, type_.name] == 1
                name = name_of_input_quantizer(op, names[index]) if alone else name_of_output_quantizer(value)
                found = self._quantizer(value, type_, name)
            job.integers[index] = found[0], Integers(found[1], type_)
            scale = name_of(found[1])
            places.append(Place(site, "input", names[index], value.name, type_.name, row.reason, row.source, scale))
        for index, layer in job.weights.items():
            integers = job.parameters[index] = self._of_weight(job.operand(index), layer, row.weights)
            reason = "its output channels have a scale each"
            weight, scale = job.operand(index).name, name_of(integers.pair)
            places.append(Place(site, "weight", names[index], weight, row.weights, reason, row.source, scale))
        for index, type_ in job.results.items():
            result = op.results[index]
            scale = name_of(self.quantizers[result, type_.name][1])
            places.append(Place(site, "output", "", result.name, type_.name, row.reason, row.source, scale))
        return places

    def _of_weight(self, value: Value, layer: Operation, name: str) -> Integers:
        """Return the type and the parameters of a weight: one pair, however many regions read it along one axis."""
        weight, axis, type_ = weight_of(value), channel_axis(layer), TYPES[name]
        assert weight is not None
        key = value, axis, name
        if key not in self.pairs_of_weights:
            scale = weight_scale(weight, axis, type_)
            self.pairs_of_weights[key] = add_pair(
                self.program, name_of_weight_quantizer(weight), type_, scale, weight.type.device
            )
        return Integers(self.pairs_of_weights[key], type_, axis)


def _integers_of(value: Value, type_: IntegerType) -> tuple[Value, Pair] | None:
    """Return the integers of this type, and their parameters, that a DQ of the main graph makes a value of."""
    op = value.defining_op
    if op is None or op.opdef is not DEQUANTIZE:
        return None
    q = op.input("q")
    if q.tensor_type.dtype is not type_.dtype:
        return None
    return q, Pair(op.input("scale"), op.input("zero_point"))


@attrs.frozen
class PlaceQuantizers(Pass):
    """Puts Q and DQ where a target has integers; the ranges of activations are to be set.

    Attributes:
        target: the name of a placement table, or a table.
        without: globs of module paths, or kinds, that stay in float.
        without_vnni: give weights 7 bits, for processors without VNNI (`Table.without_vnni`).
    """

    name: ClassVar[str] = "place-quantizers"
    whole: ClassVar[str] = "its option `without` says what stays in float"
    target: str | Table = attrs.field(default="tensorrt", validator=known_table)
    without: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    without_vnni: bool = False

    @override
    def requires(self, program: Program) -> str | None:
        """Refuse a program that is quantized."""
        return "the program is quantized already" if is_quantized(program) else None

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Place, and say of each place why it is, or is not, in integers."""
        table = find_table(self.target)
        table = table.without_vnni() if self.without_vnni else table
        positive = context.analysis(NeverNegative, program).values
        placement = place(program, table, [(key, None) for key in self.without], positive=positive)
        for each in placement.places:
            kind = "quantized" if each.is_placed else "float"
            context.log.remarks.add(Remark(kind, self.name, each.site.location, str(each), each.site.kind, each.reason))
