"""Programs that several tests of the IR use."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from ir.attributes import Ref, UnknownObject
from ir.builder import Builder
from ir.core import Graph, Operation
from ir.locations import Location, merge_locations
from ir.opdef import get_opdef
from ir.parameters import ParameterKind, ParameterSpec
from ir.program import (
    CallingConvention,
    Derivation,
    InputLeaf,
    Mutation,
    OutputLeaf,
    Program,
    Surrounding,
    SymbolRange,
    Weight,
    WeightKind,
)
from ir.text.parser import parse_program
from ir.types import ScalarType, TensorType, make_symbol


def f32(*shape: object) -> TensorType:
    """The type of a float32 tensor on the CPU."""
    return TensorType(tuple(shape), torch.float32)


def program_of(graph: Graph, name: str = "p") -> Program:
    """A program whose inputs are its positional arguments."""
    return Program(name, graph, CallingConvention(None, None))


def rich_program() -> Program:
    """A program with one of everything that the text form has."""
    batch = make_symbol("batch")
    n = make_symbol("n")
    graph = Graph([("x", f32(batch, 3, 8, 8)), ("n", ScalarType("int", n)), ("x", f32(4))])
    _, in_spec = pytree.tree_flatten(((0, 0), {"flag": True, "scale": 0}))
    _, out_spec = pytree.tree_flatten({"y": 0, "rest": (0, [None])})
    program = Program(
        "Net",
        graph,
        CallingConvention(
            in_spec,
            out_spec,
            inputs=(
                InputLeaf("x", 0),
                InputLeaf("n", 1),
                InputLeaf("flag", None, True),
                InputLeaf("scale", 2, accepts=("none", "any")),
            ),
            keeps_order=True,
            outputs=(OutputLeaf(0), OutputLeaf(1), OutputLeaf(None, 2 * n)),
            mutations=(Mutation(2, buffer="bn.count", is_assigned=True), Mutation(3, input=2)),
            views={1: 3},
            parameters=(
                ParameterSpec("x", ParameterKind.POSITIONAL_ONLY),
                ParameterSpec("n"),
                ParameterSpec("dims", default=()),
                ParameterSpec("rest", ParameterKind.VAR_POSITIONAL),
                ParameterSpec("flag", ParameterKind.KEYWORD_ONLY, True),
                ParameterSpec("scale", ParameterKind.KEYWORD_ONLY, [1.0, (None, {"a": torch.int8, 1: "b"})]),
                ParameterSpec("sizes", ParameterKind.KEYWORD_ONLY, UnknownObject("user.Sizes")),
                ParameterSpec("options", ParameterKind.VAR_KEYWORD),
            ),
        ),
        symbols={batch: SymbolRange(1, 32), n: SymbolRange()},
        module_modes={"": False, "conv": False, "drop": True},
        module_aliases={"twin": "conv"},
        location=Location("", "user.Net", "net.py", 1),
        opaques={"roi": torch.nn.Identity()},
        mode_locked="`rnn` reads\n self.training",
        surroundings={
            "no_grad": Surrounding((True, False), "net.py:3"),
            "autocast": Surrounding(),
            "layout": Surrounding((), "net.py:4"),
        },
        modes_after={"train": {"conv": False, "drop": True, "bn": True}, "eval": {"drop": True}},
    )
    weight = program.add_weight(
        Weight("conv.weight", WeightKind.PARAMETER, f32(4, 3, 3, 3), requires_grad=True, aliases=("twin.weight",))
    )
    mean = program.add_weight(Weight("bn.mean", WeightKind.BUFFER, f32(4), is_mutated=True, carries_gradient=True))
    variance = program.add_weight(Weight("bn.var", WeightKind.BUFFER, f32(4), persistent=False, is_folded=True))
    count = program.add_weight(Weight("bn.count", WeightKind.BUFFER, TensorType((), torch.int64), is_mutated=True))
    inner = Graph([("weight", f32(4, 3, 3, 3))])
    inner.set_outputs([Builder(inner).reshape(inner.inputs[0], (4, 27))])
    folded = program.add_weight(
        Weight(
            "folded $0",
            WeightKind.CONSTANT,
            f32(4, 27),
            derivation=Derivation(("conv.weight",), program_of(inner, "derive")),
        )
    )
    conv_at = Location("conv", "torch.nn.modules.conv.Conv2d", "net.py", 7)
    bn_at = Location("bn", "torch.nn.modules.batchnorm.BatchNorm2d", "net.py", 8)
    body = Graph([("input", f32(batch, 3, 8, 8)), ("weight", f32(4, 3, 3, 3)), ("mean", f32(4)), ("var", f32(4))])
    b = Builder(body)
    with b.at(body.return_op, conv_at):
        y = b.conv2d(body.inputs[0], body.inputs[1], padding=1)
    with b.at(body.return_op, bn_at):
        y = b.batch_norm(y, None, None, body.inputs[2], body.inputs[3], False, None, 1e-5, True)
    body.set_outputs([y])
    fused = Operation(
        get_opdef("fused.conv_bn"),
        [graph.inputs[0], weight, mean, variance],
        {"kind": "conv_bn", "parts": ("conv", "bn"), "quantization_points": ("input",)},
        [y.type],
        location=merge_locations([conv_at, bn_at]),
        body=body,
        names=["features"],
    )
    graph.append(fused)
    b = Builder(graph, location=Location("", "user.Net", "net.py", 12))
    first, second = b.call("aten.split.Tensor", fused.result, 2, 1)
    joined = b.cat([second, first], 1)
    flat = b.repeat(b.reshape(joined, [batch * 4, -1]), [graph.inputs[1], 1])
    product = b.call("aten.mm", folded, b.t(folded))
    roi = b.call(
        "nn.opaque",
        [flat, product],
        "roi",
        (Ref(0), [Ref(1), n], slice(None, 2)),
        {"boxes": {"size": (7, 7), "scale": 0.25}},
        False,
        ("f32[batch, ?]", "?"),
    )
    counted = b.call("aten.add.Scalar", count, 1)
    scaled = b.mul(graph.inputs[2], graph.inputs[2])
    graph.set_outputs([flat, roi[0], counted, scaled])
    graph.return_op.location = Location("", "user.Net", "net.py", 20)
    return program


CONV_NET = """
program "ConvNet" {
  symbol batch in [1, 8]
  parameter %conv.weight : f32[4, 3, 3, 3] requires_grad
  parameter %conv.bias : f32[4] requires_grad
  parameter %bn.weight : f32[4] requires_grad
  parameter %bn.bias : f32[4] requires_grad
  buffer %bn.running_mean : f32[4] mutated
  buffer %bn.running_var : f32[4] mutated
  parameter %fc.weight : f32[5, 4] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[batch, 3, 8, 8]) {
    %conv = aten.conv2d(%x, %conv.weight, %conv.bias) {stride=[2, 2], padding=[1, 1]} loc("conv", "Conv2d", "net.py", 3)
    %bn = aten.batch_norm(%conv, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var)
      {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True}
    %relu = aten.relu(%bn)
    %pool = aten.adaptive_avg_pool2d(%relu) {output_size=[1, 1]}
    %flat = aten.flatten.using_ints(%pool) {start_dim=1}
    %fc = aten.linear(%flat, %fc.weight, None)
    return %fc
  }
}
"""
"""A small network; result types are left to inference."""


def conv_net() -> Program:
    """The program `CONV_NET`, without data."""
    return parse_program(CONV_NET)
