"""The rewriters that `rewrite_throughput.py` compares, each in a process of its own.

Every tool builds the same program, a chain of n unary operations on one f32[2, 3] tensor, in blocks of four:
relu, relu, neg, sigmoid. It then rewrites relu(relu(x)) to a new relu(x), which leaves 3n/4 operations, in the
cheapest way that its documentation offers.

    python -m benchmarks.rewrite_tools TOOL [--gc-off] <<< 4000

answers each line of standard input, a size n, with a line of JSON: the CPU seconds of building and of rewriting. It
checks the result first.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

BLOCK = ("relu", "relu", "neg", "sigmoid")


@attrs.frozen
class Tool:
    """One rewriter, imported, with its rule."""

    build: Callable[[int], Any]
    """Makes the chain of n operations, n being a multiple of four."""
    rewrite: Callable[[Any], object]
    """Rewrites until no relu(relu(x)) is left."""
    operations: Callable[[Any], list[str]]
    """Names the operations that are left, in order."""
    prepare: Callable[[Any], Any] = lambda program: program
    """Makes what `rewrite` takes; neither building nor rewriting."""


def graphwright(*, records: bool) -> Tool:
    """Ours: `Builder` binds arguments to the schema and infers types, as it does for the operations that are made.

    Args:
        records: run as users do: a `Convert` pass in a `PassManager`, with the record of rewrites for the report.
    """
    import torch

    from ir.builder import Builder
    from ir.core import Graph
    from ir.program import CallingConvention, Program
    from ir.types import TensorType
    from passes.apply import Convert
    from passes.manager.manager import PassManager
    from passes.rewrite.driver import RewriteLog, run_worklist
    from passes.rewrite.matching import RuleIndex
    from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
    from passes.rewrite.rewriter import Rewriter

    importlib.import_module("ir.ops.table")  # gives the operators their inference rules

    class ReluRelu(Pattern):
        """relu(relu(x)) = relu(x)"""

        def pattern(self, p: PatternBuilder) -> Node:
            return p.relu(p.relu(p.any("x")))

        def rewrite(self, m: Match, b: Rewriter) -> Any:
            return b.relu(m.x)

    def build(n: int) -> Program:
        graph = Graph([("x", TensorType((2, 3), torch.float32))])
        b = Builder(graph)
        value = graph.inputs[0]
        for _ in range(n // 4):
            value = b.sigmoid(b.neg(b.relu(b.relu(value))))
        graph.set_outputs([value])
        return Program("chain", graph, CallingConvention(None, None))

    index = RuleIndex([ReluRelu()])
    return Tool(
        build,
        PassManager([Convert((ReluRelu,))]) if records else lambda program: run_worklist(program, index, RewriteLog()),
        lambda program: [op.opdef.short_name for op in program.graph.operations()],
    )


def xdsl(*, recursive: bool) -> Tool:
    """xdsl: a registered dialect, operations made by `create` (the quickest way, which checks nothing).

    Dead code is left to the pattern.

    Args:
        recursive: whether the walker runs to a fixpoint, as ours does and as is its default: created operations are
            visited, and sweeps repeated until none changes. One sweep in program order is enough here.
    """
    from xdsl.dialects.builtin import ModuleOp, TensorType, f32
    from xdsl.ir import Block, Region, SSAValue
    from xdsl.irdl import IRDLOperation, irdl_op_definition, operand_def, result_def, traits_def
    from xdsl.pattern_rewriter import (
        GreedyRewritePatternApplier,
        PatternRewriter,
        PatternRewriteWalker,
        RewritePattern,
    )
    from xdsl.traits import Pure

    class Unary(IRDLOperation):
        x = operand_def()
        y = result_def()
        traits = traits_def(Pure())

    @irdl_op_definition
    class Relu(Unary):
        name = "bench.relu"

    @irdl_op_definition
    class Neg(Unary):
        name = "bench.neg"

    @irdl_op_definition
    class Sigmoid(Unary):
        name = "bench.sigmoid"

    @irdl_op_definition
    class Return(IRDLOperation):
        name = "bench.return"
        x = operand_def()

    class ReluRelu(RewritePattern):
        """relu(relu(x)) = relu(x)"""

        def match_and_rewrite(self, op: Any, rewriter: PatternRewriter) -> None:
            if not isinstance(op, Relu):
                return
            inner = op.operands[0].owner
            if not isinstance(inner, Relu):
                return
            x = inner.operands[0]
            rewriter.replace(op, Relu.create(operands=(x,), result_types=(x.type,)))
            if not inner.results[0].uses:
                rewriter.erase(inner)

    kinds: dict[str, type[IRDLOperation]] = {"relu": Relu, "neg": Neg, "sigmoid": Sigmoid}

    def build(n: int) -> ModuleOp:
        type_ = TensorType(f32, [2, 3])
        block = Block(arg_types=[type_])
        value: SSAValue = block.args[0]
        for _ in range(n // 4):
            for name in BLOCK:
                op = kinds[name].create(operands=(value,), result_types=(type_,))
                block.add_op(op)
                value = op.results[0]
        block.add_op(Return.create(operands=(value,)))
        return ModuleOp(Region(block))

    def rewrite(program: ModuleOp) -> None:
        applier = GreedyRewritePatternApplier([ReluRelu()], dce_enabled=False)
        PatternRewriteWalker(applier, apply_recursively=recursive).rewrite_module(program)

    # the terminator is not counted
    return Tool(build, rewrite, lambda program: [op.name.removeprefix("bench.") for op in program.body.block.ops][:-1])


def onnxscript() -> Tool:
    """onnxscript's rewriter: one rule on an onnx_ir model in memory, of nodes made one by one."""
    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRule, RewriteRuleSet

    rules = RewriteRuleSet([RewriteRule(lambda op, x: op.Relu(op.Relu(x)), lambda op, x, **_: op.Relu(x))])

    def build(n: int) -> Any:
        type_, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 3])
        first = value = ir.Value(name="x", type=type_, shape=shape)
        nodes = []
        for i in range(n):
            result = ir.Value(name=f"v{i}", type=type_, shape=shape)
            nodes.append(ir.Node("", BLOCK[i % 4].capitalize(), [value], outputs=[result]))
            value = result
        graph = ir.Graph([first], [value], nodes=nodes, opset_imports={"": 20}, name="chain")
        return ir.Model(graph, ir_version=10)

    return Tool(build, rules.apply_to_model, lambda program: [node.op_type.lower() for node in program.graph])


def inductor() -> Tool:
    """Inductor's PatternMatcherPass on an FX graph of ATen operators as `make_fx` leaves it.

    The pass visits each node once, the last first; the handler copies the type of the old node.
    """
    import torch
    from torch import fx
    from torch._inductor.pattern_matcher import (
        CallFunction,
        KeywordArg,
        PatternMatcherPass,
        register_graph_pattern,
    )
    from torch._subclasses.fake_tensor import FakeTensorMode

    aten = torch.ops.aten
    relu = aten.relu.default
    passes = PatternMatcherPass()

    @register_graph_pattern(CallFunction(relu, CallFunction(relu, KeywordArg("x"))), pass_dict=passes)
    def rewrite(match: Any, x: fx.Node) -> None:
        node = match.output_node()
        new = match.graph.call_function(relu, (x,))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        match.erase_nodes()

    with FakeTensorMode():
        fake = torch.empty(2, 3)
    targets = [getattr(aten, name).default for name in BLOCK]
    root = torch.nn.Module()

    def build(n: int) -> fx.Graph:
        graph = fx.Graph()
        node = graph.placeholder("x")
        node.meta["val"] = fake
        for i in range(n):
            node = graph.call_function(targets[i % 4], (node,))
            node.meta["val"] = fake
        graph.output(node)
        return graph

    return Tool(
        build,
        passes.apply,
        lambda program: [node.target._opname for node in program.graph.nodes if node.op == "call_function"],
        lambda graph: fx.GraphModule(root, graph),  # the matcher asks for a module
    )


TOOLS: dict[str, Callable[[], Tool]] = {
    "graphwright": partial(graphwright, records=False),
    "graphwright-pass": partial(graphwright, records=True),
    "xdsl": partial(xdsl, recursive=False),
    "xdsl-fixpoint": partial(xdsl, recursive=True),
    "inductor": inductor,
    "onnxscript": onnxscript,
}


def measure(tool: Tool, n: int) -> dict[str, float]:
    """Build, rewrite and check one chain; return the seconds of both.

    Raises:
        AssertionError: when anything but the right operations is left.
    """
    gc.collect()
    start = time.process_time()
    program = tool.build(n)
    built = time.process_time()
    program = tool.prepare(program)
    before = len(tool.operations(program))
    begin = time.process_time()
    tool.rewrite(program)
    end = time.process_time()
    left = tool.operations(program)
    if before != n or left != ["relu", "neg", "sigmoid"] * (n // 4):
        raise AssertionError(f"{before} operations became {len(left)}, not {3 * n // 4}")
    return {"build": built - start, "rewrite": end - begin}


def main() -> None:
    """Answer sizes on standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--gc-off", action="store_true", help="switch the garbage collector off while measuring")
    arguments = parser.parse_args()
    tool = TOOLS[arguments.tool]()
    measure(tool, 256)
    # the collector shall not traverse imports: torch's heap would slow the tools that import it
    gc.collect()
    gc.freeze()
    if arguments.gc_off:
        gc.disable()
    for line in sys.stdin:
        print(json.dumps(measure(tool, int(line))), flush=True)


if __name__ == "__main__":
    main()
