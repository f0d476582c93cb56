"""Inference of all types of a program from other types of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ir.builder import infer_operation
from ir.core import Graph, Operation
from ir.errors import InferenceError
from ir.fake import is_unknown
from ir.program import Program, copy_program
from ir.types import Type, type_of_tensor, types_agree


def retype(graph: Graph, types: Sequence[Type | None]) -> None:
    """Give the inputs of a graph other types (None where one stays), and infer all others from them.

    Raises:
        InferenceError: when an operation does not accept them, or a number of results depends on an unknown size.
    """
    for value, type_ in zip(graph.inputs, types, strict=True):
        value.type = value.type if type_ is None else type_
    for op in graph.operations():
        retype_results(op)


def retype_results(op: Operation) -> None:
    """Give the results of an operation, and what its body holds, the types that follow from its operands.

    Raises:
        InferenceError: when it does not accept the operands, or has another number of results for them.
    """
    if op.body is not None:
        retype(op.body, [None if value is None else value.type for value in op.operands])
    inferred = infer_operation(op)
    if len(inferred) != len(op.results):
        raise InferenceError(f"{op.name} has {len(op.results)} results, and {len(inferred)} for these types")
    for result, type_ in zip(op.results, inferred, strict=True):
        result.type = type_


def with_types_of(program: Program, inputs: Sequence[Any]) -> Program:
    """Return a program with the types of its values on these inputs; itself if all types are known.

    Raises:
        InferenceError: when an operation does not accept them.
    """
    if not any(is_unknown(value.type) for value in program.graph.inputs):
        return program
    typed = copy_program(program)
    retype(typed.graph, [type_of_tensor(x) if isinstance(x, torch.Tensor) else None for x in inputs])
    return typed


def untrue_type(program: Program, typed: Program) -> str | None:
    """Return the first value whose type on some inputs contradicts the program, or None.

    `typed` is the program with its types on these inputs.
    """
    for said, found in zip(program.values(), typed.values(), strict=True):
        if not types_agree(said.type, found.type):
            return f"{said!r} is {found.type}"
    return None
