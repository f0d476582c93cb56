"""Quantized programs: drawn ones, by the tables of all targets and by drawn ones, and what must hold of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from hypothesis import strategies as st

from compiler.pipeline import pipeline_of
from compiler.targets import TARGETS
from fuzz.programs.case import Case
from fuzz.programs.check import check_case
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Unusable
from fuzz.programs.strategy import input_tensors, programs
from fuzz.search.conditions import carries, check_decisions, check_layer, demand
from fuzz.search.sound import Target
from ir.builder import Builder
from ir.core import Graph, Operation, Value
from ir.errors import GraphwrightError
from ir.evaluate import evaluate
from ir.opdef import Trait
from ir.program import Program, copy_program, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.text.parser import parse_program
from ir.types import TensorType
from ir.verify import verify
from passes.manager.manager import PassManager
from passes.quant.decide import Placing
from passes.quant.place import Placement, PlaceQuantizers, is_quantized, place
from passes.quant.remove import RemoveQuantizers
from passes.quant.signs import never_negative
from passes.quant.tables import Table, find_table
from passes.quant.tables.conditions import CONDITIONS, layers_of
from passes.quant.tables.row import TYPES, UNSIGNED_IF_POSITIVE, Row
from passes.quant.unify import UnifyQuantizers, unify_quantizers
from passes.rewrite.region_names import parts_of

QUANTIZABLE = tuple(
    f"aten.{name}"
    for name in (
        *("conv2d", "conv1d", "conv_transpose2d.input", "linear", "batch_norm", "relu", "relu6", "gelu", "sigmoid"),
        *("add.Tensor", "mul.Tensor", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "layer_norm"),
        *("softmax.int", "reshape", "permute", "slice.Tensor", "split_with_sizes", "dropout"),
        "scaled_dot_product_attention",
    )
)
"""Operators of quantized networks, and those between them."""
SIGNED = tuple(
    f"aten.{name}"
    for name in (
        *("relu", "relu6", "sigmoid", "hardsigmoid", "abs", "exp", "hardtanh", "clamp", "add.Tensor", "mul.Tensor"),
        *("cat", "constant_pad_nd", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "mean.dim", "reshape"),
        *("dropout", "neg", "conv2d"),
    )
)
"""Operators of which is known whether results are negative, and one whose results are."""
_CERTAIN = ("aten.relu", "aten.relu6", "aten.sigmoid", "aten.abs", "aten.exp", "aten.softmax.int")
_WIDTHS = (1, 3, 15, 16, 17, 32)
_GROUPS = (1, 1, 2, 16)
_ROUNDING = 1e-5


@attrs.frozen(eq=False)
class QuantizedCase:
    """A program, inputs for it, and the table by which it is quantized.

    Attributes:
        program: in float, with the regions of its target.
        inputs: one tensor for each input.
        target: the name of the target whose patterns it is fused by.
        table: the table of that target, perhaps with other conditions.
        layer: a layer, pool or sum of its own, of which conditions about one operation are asked.
    """

    program: Program
    inputs: tuple[torch.Tensor, ...]
    target: str
    table: Table
    layer: Operation

    def place(self) -> tuple[Program, Placement]:
        """Return the program with quantizers, and what was placed."""
        program = copy_program(self.program)
        return program, place(program, self.table)


@st.composite
def quantized_cases(draw: st.DrawFn, target: str = "", operators: Sequence[str] = QUANTIZABLE) -> QuantizedCase:
    """Draw a program and a table for it.

    Args:
        draw: given by hypothesis.
        target: the name of a target; any by default.
        operators: the operators of the programs.
    """
    name = target or draw(st.sampled_from(tuple(TARGETS)))
    program = draw(programs(operators=operators, symbolic=not draw(st.integers(0, 3))))
    inputs = tuple(draw(input_tensors(program)))
    pipeline_of(TARGETS[name].patterns)(program)
    return QuantizedCase(program, inputs, name, draw(_tables(find_table(name))), _layer(draw))


@st.composite
def _tables(draw: st.DrawFn, table: Table) -> Table:
    """Draw the table itself, or one with other conditions in each row."""
    if draw(st.booleans()):
        return table
    sets = st.lists(st.sampled_from(tuple(CONDITIONS)), max_size=2, unique=True)
    rows = {kind: row if row.is_float or row.carries else _under(row, draw(sets)) for kind, row in table.rows.items()}
    return Table(table.name, rows)


def _under(row: Row, conditions: Sequence[str]) -> Row:
    windows = "pool" in row.kind and row.kind.startswith("aten.")
    return attrs.evolve(row, when=[each for each in conditions if windows or each != "whole windows"])


def _layer(draw: st.DrawFn) -> Operation:
    """Draw a convolution or a linear layer of any width, a pool or a sum; it has types, and no numbers."""
    if draw(st.booleans()):
        return _pool_or_sum(draw)
    channels, filters = draw(st.sampled_from(_WIDTHS)), draw(st.sampled_from(_WIDTHS))
    name = draw(st.sampled_from(("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d.input")))
    groups, batch = draw(st.sampled_from(_GROUPS)), draw(st.integers(1, 2))
    sizes: tuple[int, ...] = {"linear": (), "conv1d": (4,), "conv3d": (2, 2, 2)}.get(name, (4, 4))
    shapes: list[tuple[int, ...]]
    if name == "linear":
        shapes = [(batch, channels), (filters, channels)]
    elif name.startswith("conv_t"):
        shapes = [(batch, channels * groups, *sizes), (channels * groups, filters, *(1 for _ in sizes))]
    else:
        shapes = [(batch, channels * groups, *sizes), (filters * groups, channels, *(1 for _ in sizes))]
    x, weight = [(f"x{i}", TensorType(shape, torch.float32)) for i, shape in enumerate(shapes)]
    graph = Graph([x, weight])
    rank = len(sizes)
    steps, padding = [draw(st.integers(1, 2)) for _ in sizes], [draw(st.integers(0, 1))] * rank
    options: dict[str, Any] = {} if name == "linear" else {"groups": groups, "stride": steps, "padding": padding}
    return Builder(graph).op(f"aten.{name}", *graph.inputs, None, **options)


def _pool_or_sum(draw: st.DrawFn) -> Operation:
    x = TensorType((1, 2, 4, 4), torch.float32)
    graph = Graph([("x", x), ("y", x)])
    if draw(st.booleans()):
        return Builder(graph).op("aten.add.Tensor", *graph.inputs, alpha=draw(st.sampled_from((1, 2, -1))))
    options: dict[str, Any] = {
        "padding": [draw(st.integers(0, 1))],
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
        "divisor_override": draw(st.sampled_from((None, 3))),
    }
    return Builder(graph).op("aten.avg_pool2d", graph.inputs[0], [3], [draw(st.integers(1, 3))], **options)


# --- what must hold -----------------------------------------------------------------------------------------------


def check_quantized(case: QuantizedCase) -> None:
    """Check that a program is quantized as its table says, and that quantizers share their parameters where they must.

    Raises:
        Finding: when a property does not hold; its `property` is `conditions`, `signs`, `placement`, `pairs`, `weights`
            or `sharing`.
        Unusable: when the program does not run.
    """
    check_layer(case.layer)
    _check_signs(case)
    check_decisions(Placing(case.program, case.table))
    program, placement = case.place()
    verify(program)
    _check_places(program, placement, case.table)
    _check_pairs(program)
    _check_weights(program)
    _check_text(program)
    _check_sharing(program, case.table)


def check_removed(case: QuantizedCase) -> None:
    """Check that a program computes what it did before once its quantizers are removed, by all properties, bit by bit.

    Raises:
        Finding: when it does not.
        Unusable: when the program does not run.
    """
    pass_ = PassManager([PlaceQuantizers(case.table), UnifyQuantizers(case.table), RemoveQuantizers()])
    checked = Case.of(case.program, case.inputs)
    check_case(pass_, checked, Target.of(pass_).properties)


def _check_places(program: Program, placement: Placement, table: Table) -> None:
    """Each value has one quantizer of a type, which is that of the row; nothing is dead, and all places are told."""
    ops = [op for op in program.graph.operations() if op.opdef is QUANTIZE]
    scales = [op.input("scale").name for op in ops]
    demand(bool(placement.placed) == is_quantized(program), "placement", "it says other than the program")
    demand(len(scales) == len(set(scales)), "placement", "two quantizers have one scale")
    most = max(Counter((op.input("x"), op.attributes["dtype"]) for op in ops).values(), default=1)
    demand(most == 1, "placement", "a value has two quantizers of one type")
    dead = any(op.result.is_unused for op in program.graph.operations() if op.opdef in (QUANTIZE, DEQUANTIZE))
    demand(not dead, "placement", "nothing reads a quantizer")
    told = {each.scale: each for each in placement.placed if each.role != "weight"}
    demand(set(told) == set(scales), "placement", f"{sorted(told)} are told, and {sorted(scales)} are there")
    for op in program.graph.operations():
        for member, part in () if op.body is None else zip(op.body.operations(), parts_of(op), strict=True):
            fits = part not in ("conv", "linear") or layers_of(member) == (member,)
            demand(fits, "placement", f"{member} is the part {part!r} of {op}")
    for op in ops:
        type_ = TYPES[told[op.input("scale").name].type]
        value = op.input("x")
        if told[op.input("scale").name].role == "output" and value.defining_op is not None:
            end = "output_quantizer" if len(value.defining_op.results) == 1 else f"output{value.index}_quantizer"
            demand(end in op.input("scale").name, "placement", f"{op} is not named as an {end}")
        made = op.attributes["dtype"], op.attributes["quant_min"], op.attributes["quant_max"]
        demand(made == (type_.dtype, type_.quant_min, type_.quant_max), "placement", f"{op} is not {type_.name}")
    for each in placement.placed:
        row = table.find(each.site.kind)
        assert row is not None
        wanted = {"weight": row.weights, "output": row.outputs}.get(each.role) or row.input_type(each.operand)
        fits = each.type in (("u8", "s8") if wanted == UNSIGNED_IF_POSITIVE else (wanted,))
        demand(fits, "placement", f"{each}, and the row says {wanted or 'float'}")


def _check_pairs(program: Program) -> None:
    """What Q makes is read by the same parameters, and in the dtype of what Q was made of."""
    for op in program.graph.operations():
        if op.opdef is DEQUANTIZE:
            _same_pair(op, op.input("q"), op.input("scale"), op.input("zero_point"))
        elif op.body is not None:
            outer = dict(zip(op.body.inputs, op.operands, strict=True))
            for each in op.body.operations():
                if each.opdef is DEQUANTIZE and each.input("q").is_input:
                    _same_pair(each, *(outer[each.input(name)] for name in ("q", "scale", "zero_point")))


def _same_pair(op: Operation, q: Value | None, scale: Value | None, zero_point: Value | None) -> None:
    maker = None if q is None else q.defining_op
    if maker is None or maker.opdef is not QUANTIZE:
        raise Finding("pairs", f"{op} reads what no quantizer makes")
    same = (maker.input("scale"), maker.input("zero_point")) == (scale, zero_point)
    demand(same, "pairs", f"{op} has other parameters than {maker}")
    demand(op.attributes["axis"] == maker.attributes["axis"], "pairs", f"{op} has another axis than {maker}")
    had, has = maker.input("x").tensor_type.dtype, op.result.tensor_type.dtype
    demand(had is has, "pairs", f"{op} is {has}, and {maker} quantizes {had}")


def _check_weights(program: Program) -> None:
    """A scale for each output channel, by which its largest weight is the largest integer."""
    for region in program.graph.operations():
        body = region.body
        for op in () if body is None else body.operations():
            if op.opdef is not QUANTIZE:
                continue
            assert body is not None
            outer = dict(zip(body.inputs, region.operands, strict=True))
            weight, scale = (weight_of(outer[op.input(name)]) for name in ("x", "scale"))
            if weight is None or scale is None or weight.data is None or scale.data is None:
                raise Finding("weights", f"{op} quantizes no weight of the program")
            transposed = any(user.opdef.has(Trait.CONV_TRANSPOSE) for user, _ in _readers_of(op))
            axis = op.attributes["axis"]
            demand(axis == int(transposed), "weights", f"{op} is not along the output channels")
            greatest = torch.iinfo(op.attributes["dtype"]).max
            greatest = greatest if op.attributes["quant_max"] is None else op.attributes["quant_max"]
            rows = weight.data.detach().movedim(axis, 0)
            for row, step in zip(rows, scale.data, strict=True):
                largest = float(row.abs().max()) if row.numel() else 0.0
                want = largest / greatest if largest / greatest > 0.0 else 1.0
                near = abs(float(step) - want) <= _ROUNDING * want or not largest < float("inf")
                demand(near or float(step) == 1.0, "weights", f"a scale of {op} is {float(step)}, not {want}")


def _readers_of(op: Operation) -> list[tuple[Operation, int]]:
    """Return what reads what is dequantized of a quantizer's integers."""
    return [use for reader, _ in op.result.uses for use in reader.results[0].uses]


def _check_text(program: Program) -> None:
    text = str(program)
    demand(str(parse_program(text)) == text, "text", "what was parsed prints differently")


def _check_sharing(program: Program, table: Table) -> None:
    """Scales that went are those that are told, and no class is left to unite."""
    ops = [op for op in program.graph.operations() if op.opdef is QUANTIZE]
    before = [op.input("scale").name for op in ops]
    ranges = [tuple(op.attributes[name] for name in ("dtype", "axis", "quant_min", "quant_max")) for op in ops]
    found = unify_quantizers(program, table)
    verify(program)
    now = [op.input("scale").name for op in ops]
    demand(now == [found.names.get(name, name) for name in before], "sharing", f"{before} became {now}: {found.names}")
    demand(all(name in program.weights for name in now), "sharing", "a scale is missing")
    demand(not any(name in program.weights for name in found.names), "sharing", "a scale is left over")
    _check_pairs(program)
    by_name: dict[str, set[object]] = {}
    for name, range_ in zip(now, ranges, strict=True):
        by_name.setdefault(name, set()).add(range_)
    demand(all(len(each) == 1 for each in by_name.values()), "sharing", "integers of two types share a scale")
    for op in program.graph.operations():
        row = None if op.body is None else table.find(str(op.attributes["kind"]))
        if row is not None and row.shares:
            _check_shared(op, table)
    demand(unify_quantizers(program, table).names == {}, "sharing", "it unites more the second time")


def _check_shared(op: Operation, table: Table) -> None:
    """What a region reads, and what quantizers make of its results, has one scale for each type."""
    makers = [value.defining_op for value in op.operand_values]
    quantizers = [maker for maker in makers if maker is not None and maker.opdef is QUANTIZE]
    for result in op.results:
        pending = [result]
        while pending:
            for user, place_ in pending.pop().uses:
                if user.opdef is QUANTIZE and place_ == 0:
                    quantizers.append(user)
                elif place_ == 0 and carries(user, table):
                    pending += user.results
    ranges = {(each.attributes["dtype"], each.input("scale")) for each in quantizers}
    demand(len(ranges) == len({dtype for dtype, _ in ranges}), "sharing", f"{op} has integers of several scales")


# --- signs --------------------------------------------------------------------------------------------------------


def _check_signs(case: QuantizedCase) -> None:
    """What is said never to be negative is not, with these inputs; it is said of what the commonest operators give."""
    program = case.program
    said = never_negative(program.graph)
    for op in program.graph.operations():
        for result in op.results:
            last = result.defining_op if op.body is None else op.body.outputs[result.index]
            maker = last.defining_op if isinstance(last, Value) else last
            certain = maker is not None and maker.name in _CERTAIN
            demand(not certain or result in said, "signs", f"{result.name} of {op.name} may be negative, it is said")
    seen: list[Finding] = []

    def watch(op: Operation, results: Sequence[object]) -> None:
        for value, made in zip(op.results, results, strict=False):
            if value in said and isinstance(made, torch.Tensor) and not made.is_complex() and bool((made < 0).any()):
                seen.append(Finding("signs", f"{value.name} of {op.name} is negative"))

    try:
        with quiet(), torch.no_grad():
            evaluate(program, case.inputs, watch=watch)
    except GraphwrightError as error:
        raise Unusable(str(error)) from error
    if seen:
        raise seen[0]
