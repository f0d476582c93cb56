"""Each field of the text form counts: a copy that differs only in it is not equal."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch

from ir.builder import Builder
from ir.compare import graphs_equal, programs_equal
from ir.core import Operation
from ir.locations import Location
from ir.parameters import NO_DEFAULT, ParameterKind
from ir.program import InputLeaf, OutputLeaf, Program, Surrounding, SymbolRange, WeightKind
from ir.types import make_symbol
from tests.ir.programs import f32, rich_program


def op(program: Program, name: str) -> Operation:
    return next(op for op in program.graph.operations() if op.name == name)


def set_on(what: Callable[[Program], object], field: str, value: object) -> Callable[[Program], None]:
    return lambda p: setattr(what(p), field, value)


def swap_operands(p: Program) -> None:
    split = op(p, "aten.split.Tensor")
    cat = op(p, "aten.cat")
    cat.set_operand(0, split.results[0])
    cat.set_operand(1, split.results[1])


def other_reference(p: Program) -> None:
    op(p, "aten.repeat").set_operand(1, p.graph.inputs[2])


def change_body(p: Program) -> None:
    body = op(p, "fused.conv_bn").body
    assert body is not None
    assert body.first is not None
    body.first.set_attribute("padding", (1, 2))


def change_derivation(p: Program) -> None:
    derivation = p.weights["folded $0"].derivation
    assert derivation is not None
    derivation.program.graph.first.set_attribute("shape", (4, -1))


def more_operations(p: Program) -> None:
    Builder(p.graph).relu(p.graph.inputs[0])


def drop_source(p: Program) -> None:
    weight = p.weights["folded $0"]
    assert weight.derivation is not None
    weight.derivation = attrs.evolve(weight.derivation, sources=())


def change_parameter(number: int, **changes: object) -> Callable[[Program], None]:
    def change(p: Program) -> None:
        parameters = list(p.convention.parameters)
        parameters[number] = attrs.evolve(parameters[number], **changes)
        p.convention.parameters = tuple(parameters)

    return change


def change_argument(number: int, **changes: object) -> Callable[[Program], None]:
    def change(p: Program) -> None:
        arguments = list(p.convention.inputs)
        arguments[number] = attrs.evolve(arguments[number], **changes)
        p.convention.inputs = tuple(arguments)

    return change


CHANGES: list[tuple[Callable[[Program], object], str]] = [
    (set_on(lambda p: p, "name", "Other"), "program name: Net != Other"),
    (set_on(lambda p: p, "location", Location("x")), "program location"),
    (lambda p: p.symbols.update({make_symbol("batch"): SymbolRange(2, 32)}), "symbols, number 0"),
    (lambda p: p.opaques.update(other=None), "opaque names, count: 1 != 2"),
    (lambda p: p.module_modes.update(drop=False), "module modes, number 2"),
    (set_on(lambda p: p.convention, "in_spec", None), "in_spec"),
    (set_on(lambda p: p.convention, "out_spec", None), "out_spec"),
    (set_on(lambda p: p.convention, "parameters", ()), "parameters"),
    (change_parameter(0, kind=ParameterKind.POSITIONAL_OR_KEYWORD), "parameters"),
    (change_parameter(1, kind=ParameterKind.POSITIONAL_ONLY), "parameters"),
    (change_parameter(2, default=[]), "parameters"),
    (change_parameter(2, default=NO_DEFAULT), "parameters"),
    (change_parameter(4, default=1), "parameters"),
    (change_parameter(4, name="mode"), "parameters"),
    (change_parameter(6, default=None), "parameters"),
    (set_on(lambda p: p.convention, "keeps_order", False), "order of keys: True != False"),
    (set_on(lambda p: p, "surroundings", {}), "refused surroundings, count: 3 != 0"),
    (
        lambda p: setattr(p, "surroundings", {**p.surroundings, "autocast": Surrounding((False,))}),
        "refused surroundings, number 1",
    ),
    (change_argument(0, accepts=("none", "mapping")), "kinds of arguments, number 0"),
    (set_on(lambda p: p, "mode_locked", ""), "lock on the mode"),
    (set_on(lambda p: p, "modes_after", {}), "modes after a switch, count: 4 != 0"),
    (set_on(lambda p: p, "modes_after", {"train": {"conv": True}}), "modes after a switch, number 0"),
    (set_on(lambda p: p, "modes_after", {"train": {"conv": False}}), "modes after a switch, count: 4 != 1"),
    (set_on(lambda p: p.convention, "mutations", ()), "mutations, count: 2 != 0"),
    (
        lambda p: setattr(
            p.convention, "inputs", (*p.convention.inputs[:2], InputLeaf("flag", None, 1), p.convention.inputs[3])
        ),
        "arguments, number 2: ('flag', None, 'True') != ('flag', None, '1')",
    ),
    (
        lambda p: setattr(p.convention, "outputs", (*p.convention.outputs[:2], OutputLeaf(None, 0.0))),
        "results, number 2",
    ),
    (lambda p: setattr(p.convention, "outputs", (OutputLeaf(1), *p.convention.outputs[1:])), "results, number 0"),
    (lambda p: p.weights.pop("bn.mean"), "weight names, number 1: bn.mean != bn.var"),
    (set_on(lambda p: p.weights["bn.var"], "type", f32(5)), "weight bn.var, type: f32[4] != f32[5]"),
    (set_on(lambda p: p.weights["bn.var"], "kind", WeightKind.CONSTANT), "weight bn.var, kind"),
    (set_on(lambda p: p.weights["bn.var"], "requires_grad", True), "weight bn.var, requires_grad: False != True"),
    (set_on(lambda p: p.weights["bn.var"], "persistent", True), "weight bn.var, persistent"),
    (set_on(lambda p: p.weights["bn.var"], "is_mutated", True), "weight bn.var, is_mutated"),
    (set_on(lambda p: p.weights["bn.mean"], "carries_gradient", False), "weight bn.mean, carries_gradient"),
    (set_on(lambda p: p.weights["bn.var"], "is_folded", False), "weight bn.var, is_folded: True != False"),
    (set_on(lambda p: p, "module_aliases", {}), "names of one module, count: 1 != 0"),
    (set_on(lambda p: p.convention, "views", {}), "views"),
    (set_on(lambda p: p.weights["bn.var"], "aliases", ("z",)), "weight bn.var, aliases"),
    (set_on(lambda p: p.weights["folded $0"], "derivation", None), "weight folded $0, derivation"),
    (drop_source, "weight folded $0, sources"),
    (set_on(lambda p: p.graph.return_op, "location", Location("x")), "return, location"),
    (change_derivation, "weight folded $0, derivation, operation 0 (aten.reshape), attribute shape"),
    (lambda p: p.graph.add_input(f32(1)), "number of inputs: 3 != 4"),
    (set_on(lambda p: p.graph.inputs[0], "name", "y"), "input 0, name: x != y"),
    (set_on(lambda p: p.graph.inputs[0], "type", f32(1)), "input 0 (x), type"),
    (more_operations, "number of operations: 10 != 11"),
    (swap_operands, "operation 2 (aten.cat), operand 0"),
    (other_reference, "operation 4 (aten.repeat), attribute repeats"),
    (lambda p: op(p, "aten.cat").set_attribute("dim", 1.0), "operation 2 (aten.cat), attribute dim: 1 != 1.0"),
    (lambda p: op(p, "aten.cat").set_attribute("x", 1), "operation 2 (aten.cat), attribute names"),
    (set_on(lambda p: op(p, "aten.cat").result, "type", f32(1)), "operation 2 (aten.cat), result 0, type"),
    (set_on(lambda p: op(p, "aten.cat"), "location", Location("x")), "operation 2 (aten.cat), location"),
    (set_on(lambda p: op(p, "aten.cat"), "segments", (1,)), "operation 2 (aten.cat), segments: (2,) != (1,)"),
    (change_body, "operation 0 (fused.conv_bn), body, operation 0 (aten.conv2d), attribute padding"),
    (lambda p: p.graph.set_outputs(p.graph.outputs[:3]), "return, number of operands: 4 != 3"),
    (lambda p: p.graph.set_outputs(p.graph.outputs[::-1]), "return, operand 0"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_every_field_counts(change: Callable[[Program], object], message: str) -> None:
    program = rich_program()
    change(program)
    difference = programs_equal(rich_program(), program)
    assert difference is not None
    assert str(difference).startswith(message)


def test_equal_programs() -> None:
    assert programs_equal(rich_program(), rich_program()) is None


def test_what_is_not_compared() -> None:
    program = rich_program()
    program.weights["bn.var"].data = torch.zeros(4)
    program.opaques["roi"] = None
    op(program, "aten.cat").result.name = "other"
    assert programs_equal(rich_program(), program) is None


def test_locations_are_optional() -> None:
    program = rich_program()
    op(program, "aten.cat").location = Location("x")
    assert programs_equal(rich_program(), program, locations=False) is None


def test_dimensions_may_be_written_differently() -> None:
    program = rich_program()
    batch = make_symbol("batch")
    # the same number, before SymPy expands it
    op(program, "aten.reshape").result.type = f32((batch + 1) ** 2 - batch**2 + 2 * batch - 1, 64)
    assert programs_equal(rich_program(), program) is None


def test_graphs_alone() -> None:
    assert graphs_equal(rich_program().graph, rich_program().graph) is None
    program = rich_program()
    swap_operands(program)
    assert graphs_equal(rich_program().graph, program.graph) is not None


def test_weights_of_graphs_alone_are_compared_by_name() -> None:
    program = rich_program()
    op(program, "aten.t").set_operand(0, program.weights["conv.weight"].value)
    difference = graphs_equal(rich_program().graph, program.graph)
    assert difference is not None
    assert difference.place == "operation 5 (aten.t), operand 0"
