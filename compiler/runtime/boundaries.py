"""A file cut at its integers: each part gets the reference's integers, so that differences do not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from compiler.extras import import_extra
from compiler.onnx.writer import OnnxModel
from compiler.runtime.engines import OnnxFile
from ir.core import Operation, Value
from ir.evaluate import evaluate
from ir.program import Program
from ir.quant.dialect import QUANTIZE
from passes.rewrite.expressions import expression_of

_GIVEN = "/given"
"""What the name of integers ends in where they are an input."""


@attrs.frozen
class Difference:
    """How the integers that a part of the file gives differ from the reference's.

    Attributes:
        value: the name of the integers in the file.
        module: path of the module whose result they are.
        elements: how many integers.
        different: how many of them are not equal.
        lsb: the largest difference, in steps.
    """

    value: str
    module: str
    elements: int
    different: int
    lsb: int


@attrs.frozen(eq=False)
class Reference:
    """What the program itself gives for one call.

    Attributes:
        inputs: the tensors of the call.
        integers: results of the quantizations of activations, in order.
        outputs: the distinct outputs of the graph.
    """

    inputs: tuple[torch.Tensor, ...]
    integers: tuple[torch.Tensor, ...]
    modules: tuple[str, ...]
    outputs: tuple[torch.Tensor, ...]


def activations_quantized(program: Program) -> list[Operation]:
    """Return the quantizations of a program whose operand is not made of weights alone, in order."""
    found: list[Operation] = []

    def walk(operations: Any, outer: Mapping[Value, Value | None]) -> None:
        for op in operations:
            if op.body is not None:
                walk(op.body.operations(), dict(zip(op.body.inputs, op.operands, strict=True)))
            elif op.opdef is QUANTIZE:
                value = op.operands[0]
                source = outer.get(value, value)
                if source is None or isinstance(expression_of(source), str):
                    found.append(op)

    walk(program.graph.operations(), {})
    return found


def reference_of(program: Program, weights: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]) -> Reference:
    """Run a program on tensors, and keep its integers.

    Args:
        program: with its regions.
        weights: the present tensors of its weights, by name.
        inputs: one tensor for each input of the graph.
    """
    wanted = activations_quantized(program)
    kept: dict[Operation, torch.Tensor] = {}

    def watch(op: Operation, results: Sequence[Any]) -> None:
        if op.opdef is QUANTIZE:
            kept[op] = results[0]

    with torch.no_grad():
        outputs = evaluate(program, inputs, weights, watch=watch)
    distinct = dict(zip(program.graph.outputs, outputs, strict=True))
    return Reference(
        tuple(inputs),
        tuple(kept[op] for op in wanted),
        tuple(_module_of(op) for op in wanted),
        tuple(each for value, each in distinct.items() if value is not None),
    )


def _module_of(op: Operation) -> str:
    value = op.operands[0]
    maker = None if value is None else value.defining_op
    if maker is not None:
        return maker.location.where
    return f"the input `{value.name}`" if value is not None and value.is_input else op.location.where


def cut(written: OnnxModel, reference: Reference) -> tuple[OnnxFile, list[str]]:
    """Return a file that takes the inputs and all integers, and gives all integers again; and the names of these.

    Its inputs are those of the file and then the integers, in order; its outputs are the integers and then the outputs
    of the file.
    """
    onnx, onnx_ir = import_extra("onnx"), import_extra("onnx_ir")
    names = [written.names[op.result] for op in activations_quantized(written.program)]
    proto = onnx_ir.to_proto(written.model)
    graph = proto.graph
    given = set(names)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in given:
                node.input[place] = f"{name}{_GIVEN}"
    outputs = list(graph.output)
    del graph.output[:]
    del graph.value_info[:]
    kinds = {torch.uint8: onnx.TensorProto.UINT8, torch.int8: onnx.TensorProto.INT8}
    for name, tensor in zip(names, reference.integers, strict=True):
        kind, shape = kinds[tensor.dtype], list(tensor.shape)
        graph.input.append(onnx.helper.make_tensor_value_info(f"{name}{_GIVEN}", kind, shape))
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    graph.output.extend(output for output in outputs if output.name not in given)
    return OnnxFile(proto.SerializeToString(), inputs=tuple(value.name for value in graph.input)), names


def differences(names: Sequence[str], reference: Reference, found: Sequence[torch.Tensor]) -> list[Difference]:
    """Compare the integers of the parts of a file with the reference's."""
    result = []
    for name, module, expected, given in zip(names, reference.modules, reference.integers, found, strict=True):
        apart = (given.to(torch.int32) - expected.to(torch.int32)).abs()
        largest = int(apart.max()) if apart.numel() else 0
        result.append(Difference(name, module, apart.numel(), int(apart.count_nonzero()), largest))
    return result
