"""Ways to break a program: one invariant each, and the message of the verifier."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import sympy
import torch
from torch.utils import _pytree as pytree

from ir.attributes import Ref
from ir.builder import make_operation
from ir.core import RETURN, Graph, Operation, Value
from ir.opdef import get_opdef
from ir.parameters import ParameterKind, ParameterSpec
from ir.program import Derivation, InputLeaf, Mutation, OutputLeaf, Program, SymbolRange, Weight, WeightKind
from ir.types import TensorType, make_symbol
from tests.ir.programs import f32, program_of


def ops_named(program: Program, name: str) -> list[Operation]:
    return [op for op in program.graph.operations() if op.name == name]


def the_op(program: Program, name: str) -> Operation:
    (op,) = ops_named(program, name)
    return op


def body_of(program: Program) -> Graph:
    body = the_op(program, "fused.conv_bn").body
    assert body is not None
    return body


def weight_value(program: Program, name: str) -> Value:
    return program.weights[name].value


def refer_to(index: int) -> Callable[[Program], None]:
    return lambda p: the_op(p, "aten.repeat").set_attribute("repeats", (Ref(index), 1))


# Each breaks `rich_program()` in one way. Private names are used on purpose: a faulty pass or edit of the core would
# break a program so.


def second_return(p: Program) -> None:
    end = Operation(RETURN, (), {}, ())
    p.graph._link(end, p.graph.return_op.prev, p.graph.return_op)


def unlink_backwards(p: Program) -> None:
    op = the_op(p, "aten.cat")
    op.prev = op.prev.prev if op.prev is not None else None


def wrong_graph(p: Program) -> None:
    the_op(p, "aten.cat").graph = body_of(p)


def circle(p: Program) -> None:
    the_op(p, "aten.mul.Tensor").next = the_op(p, "aten.cat")


def wrong_count(p: Program) -> None:
    p.graph.num_operations += 1


def no_end(p: Program) -> None:
    the_op(p, "aten.mul.Tensor").next = None


def used_before_definition(p: Program) -> None:
    cat, reshape = the_op(p, "aten.cat"), the_op(p, "aten.reshape")
    cat.set_operand(0, reshape.result)


def value_of_another_graph(p: Program) -> None:
    inside = body_of(p).first
    assert inside is not None
    the_op(p, "aten.reshape").set_operand(0, inside.result)


def body_uses_outer_value(p: Program) -> None:
    conv = body_of(p).first
    assert conv is not None
    conv.set_operand(0, p.graph.inputs[0])


def body_uses_weight(p: Program) -> None:
    conv = body_of(p).first
    assert conv is not None
    conv.set_operand(1, weight_value(p, "conv.weight"))


def weight_left_the_program(p: Program) -> None:
    del p.weights["folded $0"]


def result_of_another(p: Program) -> None:
    cat = the_op(p, "aten.cat")
    cat.results = the_op(p, "aten.reshape").results


def result_index(p: Program) -> None:
    the_op(p, "aten.split.Tensor").results[1].index = 0


def input_owner(p: Program) -> None:
    p.graph.inputs = (*p.graph.inputs[:2], body_of(p).inputs[2])


def missing_use(p: Program) -> None:
    the_op(p, "aten.cat").results[0]._uses.clear()


def extra_use(p: Program) -> None:
    the_op(p, "aten.mul.Tensor").results[0]._add_use(the_op(p, "aten.reshape"))


def use_counted_twice(p: Program) -> None:
    the_op(p, "aten.cat").results[0]._add_use(the_op(p, "aten.reshape"))


def use_by_an_operation_in_no_graph(p: Program) -> None:
    make_operation("aten.relu", the_op(p, "aten.reshape").result)


def absent_operand(p: Program) -> None:
    the_op(p, "aten.reshape").set_operand(0, None)


def absent_element(p: Program) -> None:
    the_op(p, "aten.cat").set_operand(0, None)


def scalar_operand(p: Program) -> None:
    the_op(p, "aten.t").set_operand(0, p.graph.inputs[1])


def too_few_operands(p: Program) -> None:
    op = the_op(p, "aten.mul.Tensor")
    op._operands = op._operands[:1]
    p.graph.inputs[2]._drop_use(op)


def no_segments(p: Program) -> None:
    the_op(p, "aten.cat").segments = None


def needless_segments(p: Program) -> None:
    the_op(p, "aten.reshape").segments = (1,)


def wrong_segments(p: Program) -> None:
    the_op(p, "aten.cat").segments = (3,)


def lost_attribute(p: Program) -> None:
    del the_op(p, "aten.cat").attributes["dim"]


def unknown_attribute(p: Program) -> None:
    the_op(p, "aten.cat").set_attribute("axis", 1)


def list_attribute(p: Program) -> None:
    the_op(p, "aten.reshape").set_attribute("shape", [4, -1])


def undeclared_symbol_in_attribute(p: Program) -> None:
    the_op(p, "aten.reshape").set_attribute("shape", (4 * make_symbol("m"), -1))


def unreferred_operand(p: Program) -> None:
    the_op(p, "aten.repeat").set_attribute("repeats", (3, 1))


def mutable_operator(p: Program) -> None:
    op = the_op(p, "aten.t")
    op.opdef = get_opdef("aten.t_")


def wrong_result_type(p: Program) -> None:
    the_op(p, "aten.reshape").result.type = f32(make_symbol("batch"), 256)


def wrong_result_dtype(p: Program) -> None:
    the_op(p, "aten.mm").result.type = TensorType((4, 4), torch.float64)


def wrong_number_of_results(p: Program) -> None:
    op = the_op(p, "aten.split.Tensor")
    op.results = (*op.results, Value(f32(1), op, 2))


def operands_that_do_not_fit(p: Program) -> None:
    the_op(p, "aten.mm").set_operand(1, weight_value(p, "folded $0"))


def renamed_weight(p: Program) -> None:
    p.weights["bn.mean"].name = "mean"


def alias_of_another(p: Program) -> None:
    p.weights["bn.var"].aliases = ("bn.mean",)


def weight_type(p: Program) -> None:
    p.weights["bn.mean"].type = f32(5)


def weight_data(p: Program) -> None:
    p.weights["bn.mean"].data = torch.zeros(5)


def weight_data_dtype(p: Program) -> None:
    p.weights["bn.mean"].data = torch.zeros(4, dtype=torch.float64)


def foreign_weight_value(p: Program) -> None:
    p.weights["bn.mean"].value = Weight("bn.mean", WeightKind.BUFFER, f32(4)).value


def derivation_sources(p: Program) -> None:
    weight = p.weights["folded $0"]
    assert weight.derivation is not None
    weight.derivation = attrs.evolve(weight.derivation, sources=())


def derivation_type(p: Program) -> None:
    inner = Graph([("weight", f32(4, 3, 3, 3))])
    inner.set_outputs(inner.inputs)
    p.weights["folded $0"].derivation = Derivation(("conv.weight",), program_of(inner))


def broken_derivation(p: Program) -> None:
    derivation = p.weights["folded $0"].derivation
    assert derivation is not None
    derivation.program.graph.first.set_attribute("shape", (4, 28))


def undeclared_symbol(p: Program) -> None:
    del p.symbols[make_symbol("n")]


def foreign_symbol(p: Program) -> None:
    p.symbols[sympy.Symbol("m")] = SymbolRange()


def constraint_on_another_symbol(p: Program) -> None:
    p.constraints = (sympy.Eq(make_symbol("m"), 2),)


def constraint_that_is_none(p: Program) -> None:
    p.constraints = (2 * next(iter(p.symbols)),)


def reserved_symbol(p: Program) -> None:
    p.symbols[make_symbol("inf")] = SymbolRange()


def symbol_with_blanks(p: Program) -> None:
    p.symbols[make_symbol("a b")] = SymbolRange()


def empty_range(p: Program) -> None:
    p.symbols[make_symbol("batch")] = SymbolRange(3, 2)


def negative_dimension(p: Program) -> None:
    p.graph.inputs[2].type = f32(-4)


def list_shape(p: Program) -> None:
    p.graph.inputs[2].type = TensorType([4], torch.float32)


def float_dimension(p: Program) -> None:
    p.graph.inputs[2].type = f32(4.0)


def no_type(p: Program) -> None:
    p.graph.inputs[2].type = "f32[4]"  # type: ignore[assignment]


def missing_body(p: Program) -> None:
    the_op(p, "fused.conv_bn").body = None


def needless_body(p: Program) -> None:
    the_op(p, "aten.cat").body = Graph()


def region_operand_type(p: Program) -> None:
    fused = the_op(p, "fused.conv_bn")
    fused.set_operand(2, weight_value(p, "bn.count"))


def region_operand_count(p: Program) -> None:
    body_of(p).add_input(f32(4), "more")


def region_input_names(p: Program) -> None:
    body_of(p).inputs[2].name = "var"


def region_absent_operand(p: Program) -> None:
    the_op(p, "fused.conv_bn").set_operand(2, None)


def region_result_type(p: Program) -> None:
    the_op(p, "fused.conv_bn").result.type = f32(make_symbol("batch"), 4, 7, 7)


def region_parts(p: Program) -> None:
    the_op(p, "fused.conv_bn").set_attribute("parts", ("conv",))


def region_quantization_points(p: Program) -> None:
    the_op(p, "fused.conv_bn").set_attribute("quantization_points", ("residual",))


def inside_of_region(p: Program) -> None:
    conv = body_of(p).first
    assert conv is not None
    conv.result.type = f32(4)


def absent_output(p: Program) -> None:
    p.graph.return_op.set_operand(1, None)


def unknown_callee(p: Program) -> None:
    p.opaques.clear()


def argument_out_of_range(p: Program) -> None:
    p.convention.inputs = (*p.convention.inputs[:3], InputLeaf("scale", 3))


def argument_twice(p: Program) -> None:
    p.convention.inputs = (*p.convention.inputs[:3], InputLeaf("scale", 1))


def result_out_of_range(p: Program) -> None:
    p.convention.outputs = (OutputLeaf(4), *p.convention.outputs[1:])


def mutation_out_of_range(p: Program) -> None:
    p.convention.mutations = (Mutation(4, buffer="bn.count"),)


def mutation_of_nothing(p: Program) -> None:
    p.convention.mutations = (Mutation(2),)


def mutation_of_unknown(p: Program) -> None:
    p.convention.mutations = (Mutation(2, buffer="count"),)


def mutation_of_constant(p: Program) -> None:
    p.weights["bn.count"].is_mutated = False


def mutation_of_another_type(p: Program) -> None:
    p.convention.mutations = (Mutation(2, input=0),)


def parameter_without_a_name(p: Program) -> None:
    p.convention.parameters = (ParameterSpec("x=print()", ParameterKind.KEYWORD_ONLY),)


def parameters_of_one_name(p: Program) -> None:
    p.convention.parameters = (ParameterSpec("x", ParameterKind.KEYWORD_ONLY),) * 2


def mutation_of_no_input(p: Program) -> None:
    p.convention.mutations = (Mutation(3, input=3),)


def wrong_in_spec(p: Program) -> None:
    p.convention.in_spec = pytree.tree_flatten(((0,), {}))[1]


def wrong_out_spec(p: Program) -> None:
    p.convention.out_spec = pytree.tree_flatten((0,))[1]


BREAKAGES: list[tuple[Callable[[Program], None], str]] = [
    (second_return, "a second `return`"),
    (unlink_backwards, "aten.cat, number 2 of its graph, is not linked"),
    (wrong_graph, "aten.cat, number 2 of its graph, is not linked"),
    (circle, "aten.cat is in a graph twice"),
    (wrong_count, "counts 11 operations, but has 10"),
    (no_end, "does not end in its `return`"),
    (used_before_definition, "operand 0 of aten.cat, <Value ?: f32[4*batch, 64]>, is defined only below it"),
    (value_of_another_graph, "operand 0 of aten.reshape, <Value ?: f32[batch, 4, 8, 8]>, is not defined in this graph"),
    (body_uses_outer_value, "is not defined in this graph"),
    (body_uses_weight, "operand 1 of aten.conv2d in a body is weight 'conv.weight'"),
    (weight_left_the_program, "operand 0 of aten.t is weight 'folded $0', which is not in the program"),
    (result_of_another, "is defined here as number 0, but elsewhere too"),
    (result_index, "is defined here as number 1, but elsewhere too"),
    (input_owner, "is defined here as number 2, but elsewhere too"),
    (missing_use, "lists 0 uses, but has 1; they differ at aten.reshape"),
    (extra_use, "lists 2 uses, but has 1; they differ at aten.reshape"),
    (use_counted_twice, "lists 2 uses, but has 1; they differ at aten.reshape"),
    (use_by_an_operation_in_no_graph, "lists 2 uses, but has 1; they differ at aten.relu"),
    (absent_operand, "operand 'self' of aten.reshape is absent"),
    (absent_element, "operand 'tensors' of aten.cat is absent"),
    (scalar_operand, "operand 'self' of aten.t is a int(n), not a tensor"),
    (too_few_operands, "aten.mul.Tensor takes 2 tensor operands, 1 given"),
    (no_segments, "aten.cat must have segments"),
    (needless_segments, "aten.reshape must not have segments"),
    (wrong_segments, "aten.cat takes 1 tensor operands, 2 given"),
    (lost_attribute, "aten.cat lacks its attribute dim"),
    (unknown_attribute, "aten.cat has no attribute axis"),
    (list_attribute, "attribute 'shape' of aten.reshape holds a list"),
    (undeclared_symbol_in_attribute, "attribute 'shape' of aten.reshape uses symbol m"),
    (refer_to(0), "attribute 'repeats' of aten.repeat refers to operand 0, not one of 1 to 1"),
    (refer_to(2), "attribute 'repeats' of aten.repeat refers to operand 2, not one of 1 to 1"),
    (unreferred_operand, "aten.repeat has operands that are neither in its schema nor in an attribute"),
    (mutable_operator, "aten.t_ writes its operands"),
    (wrong_result_type, "aten.reshape has type f32[batch, 256], inference gives f32[4*batch, 64]"),
    (wrong_result_dtype, "aten.mm has type f64[4, 4], inference gives f32[4, 4]"),
    (wrong_number_of_results, "aten.split.Tensor has 3 results, inference gives 2"),
    (operands_that_do_not_fit, "the operands of aten.mm do not fit it"),
    (renamed_weight, "weight 'mean' is listed as 'bn.mean'"),
    (alias_of_another, "the name 'bn.mean' belongs to two weights, 'bn.mean' and 'bn.var'"),
    (weight_type, "weight 'bn.mean' has type f32[5], but its value has f32[4]"),
    (weight_data, "weight 'bn.mean' has type f32[4], but its data is f32[5]"),
    (weight_data_dtype, "weight 'bn.mean' has type f32[4], but its data is f64[4]"),
    (foreign_weight_value, "the value of weight 'bn.mean' belongs to"),
    (derivation_sources, "the derivation of weight 'folded $0' must be a program without weights"),
    (derivation_type, "the derivation of weight 'folded $0' does not return one tensor of type f32[4, 27]"),
    (broken_derivation, "the operands of aten.reshape do not fit it"),
    (undeclared_symbol, "uses symbol n, which the program does not declare"),
    (foreign_symbol, "symbol 'm' was not made by `make_symbol`"),
    (constraint_on_another_symbol, "uses symbol m, which the program does not declare"),
    (constraint_that_is_none, "is not a relation"),
    (reserved_symbol, "a symbol cannot be named 'inf'"),
    (symbol_with_blanks, "a symbol cannot be named 'a b'"),
    (empty_range, "the range [3, 2] of symbol 'batch' is empty"),
    (negative_dimension, "has a negative dimension: f32[-4]"),
    (list_shape, "is a list, not a tuple"),
    (float_dimension, "is a float"),
    (no_type, "is a str"),
    (missing_body, "fused.conv_bn has no body"),
    (needless_body, "aten.cat has a body"),
    (region_operand_type, "operand 'mean' of fused.conv_bn is i64[], but the body takes f32[4]"),
    (region_operand_count, "fused.conv_bn has 4 operands, but its body has 5 inputs"),
    (region_input_names, "the inputs of the body of fused.conv_bn have no unique names: input, weight, var, var"),
    (region_absent_operand, "operand 'mean' of fused.conv_bn is absent"),
    (region_result_type, "result 0 of fused.conv_bn has type f32[batch, 4, 7, 7]"),
    (region_parts, "fused.conv_bn names 1 parts, but its body has 2 operations"),
    (region_quantization_points, "quantization point 'residual' of fused.conv_bn is not one of its operands"),
    (inside_of_region, "result 0 of aten.conv2d has type f32[4]"),
    (absent_output, "an output of the graph is absent"),
    (unknown_callee, "nn.opaque calls 'roi', which is not among the program's opaques"),
    (argument_out_of_range, "the arguments stand for graph inputs [0, 1, 3], but the graph has 3"),
    (argument_twice, "the arguments stand for graph inputs [0, 1, 1]"),
    (result_out_of_range, "the result has output 4, but the graph has 4"),
    (mutation_out_of_range, "a mutation writes output 4"),
    (mutation_of_nothing, "a mutation writes either a buffer or an input"),
    (mutation_of_unknown, "a mutation writes 'count', which is not a weight"),
    (mutation_of_constant, "a mutation writes weight 'bn.count', which is not marked as mutated"),
    (mutation_of_another_type, "a mutation writes a value of type"),
    (parameter_without_a_name, "a parameter is called 'x=print()', which Python does not allow"),
    (parameters_of_one_name, "two parameters are called 'x'"),
    (mutation_of_no_input, "a mutation writes input 3, but the graph has 3"),
    (wrong_in_spec, "in_spec has 1 leaves for 4 arguments"),
    (wrong_out_spec, "out_spec has 1 leaves for 3 results"),
]
