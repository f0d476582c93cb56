"""A program as a module whose operations are submodules: `torch.export` records of each node which one it came from."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import sympy
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from typing_extensions import override

from ir.attributes import Ref, map_leaves
from ir.core import Operation, Value
from ir.errors import CodegenError, InputError
from ir.expressions import evaluate_formula, formula_of, linear_solution
from ir.fake import flat_results, kernel_call
from ir.ops.nn_ops import OPAQUE, decode_call, opaque_results
from ir.program import Program, SymbolRange
from ir.types import Dim as Size

STEP = "step_"
"""Operation number `i` of a program is the submodule `step_<i>`."""
WEIGHT = "graphwright_weight_"
"""Weight number `i` is the buffer `graphwright_weight_<i>`."""

_LEAST = (257, 37, 2)
"""The least sizes of a trace, tried in turn: small ones may be 1 later on, which PyTorch takes for a constant."""
_MOST_ELEMENTS = 1 << 30
"""Of the inputs of a trace together; their memory is never touched."""
_STARTS = (33, 65, 129, 257)
_STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128, 224, 256)
"""Least sizes and divisors, among which those of nearly all models are."""

Kernels = Mapping[str, Callable[..., Any]]
"""Name of an operator -> what stands for its kernel in the trace; it takes the operands, then the attributes."""


def step_in(scopes: Iterable[str]) -> int | None:
    """Return the number of the operation in whose submodule something stands, from the paths of modules around it."""
    for scope in scopes:
        first = scope.partition(".")[0]
        if first.startswith(STEP):
            return int(first.removeprefix(STEP))
    return None


def operation_of(frames: Iterable[FrameType], operations: Sequence[Operation]) -> Operation | None:
    """Return the operation that PyTorch is at, from the frames of its code: the first that tells."""
    for frame in frames:
        node, module = frame.f_locals.get("node"), frame.f_locals.get("self")
        if isinstance(module, _Step):
            return module.op
        if isinstance(node, torch.fx.Node):
            step = step_in(path for path, _ in node.meta.get("nn_module_stack", {}).values())
            if step is not None:
                return operations[step]
    return None


class _Step(nn.Module):
    """One operation of a program."""

    def __init__(self, op: Operation, opaques: Mapping[str, Any], kernels: Kernels) -> None:
        super().__init__()
        self.op = op
        self.kernels = kernels
        self.callee: Any = None
        if op.opdef is OPAQUE:
            self.callee = opaques.get(op.attributes["callee"])  # a module becomes a child

    @override
    def forward(self, operands: Sequence[Any], sizes: Mapping[str, Any]) -> list[Any]:
        """Return the results for the operands and the sizes that symbols stand for."""
        op = self.op

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return operands[leaf.index]
            return _size(leaf, sizes, op) if isinstance(leaf, sympy.Expr) else leaf

        if op.opdef is OPAQUE:
            given, keywords = decode_call(op.attributes, operands, resolve)
            return opaque_results(self.callee(*given, **keywords), op.attributes["returns"])
        function = self.kernels.get(op.opdef.facts.synonym or op.name)
        if function is not None:
            try:
                attributes = {name: map_leaves(each, resolve) for name, each in op.attributes.items()}
                return flat_results(function(*operands, **attributes))
            except CodegenError as error:
                raise CodegenError(error.message, location=op.location, remedy=error.remedy) from None
        kernel, args, kwargs = kernel_call(op.opdef, op.opdef.group(operands, op.segments), op.attributes, resolve)
        if kernel is None:
            raise CodegenError(f"{op.name} has no kernel", location=op.location)
        if any(isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in operands):
            kernel, args, kwargs = _in_double(kernel, args, kwargs)
        return flat_results(kernel(*args, **kwargs))


def _in_double(kernel: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return a call with tensors in place of Python's numbers, where the operator takes them.

    A file has other numbers in float32.
    """
    if not isinstance(kernel, torch._ops.OpOverload):
        return kernel, args, kwargs
    schema = kernel._schema.arguments
    given = dict(zip([each.name for each in schema], args, strict=False)) | kwargs
    numbers = [each.name for each in schema if type(given.get(each.name)) is float]
    packet = kernel.overloadpacket
    for other in [getattr(packet, name) for name in packet.overloads()] if numbers else ():
        arguments = {each.name: str(each.type) for each in other._schema.arguments}
        if list(arguments) == [each.name for each in schema] and all(
            arguments[each.name] in (str(each.type), "Optional[Tensor]" if "Optional" in str(each.type) else "Tensor")
            for each in schema
        ):
            taken = [name for name in numbers if arguments[name].endswith(("Tensor", "Tensor]"))]
            if taken:
                given |= {name: torch.tensor(given[name], dtype=torch.float64) for name in taken}
                return other, [], given
    return kernel, args, kwargs


def _size(expr: sympy.Expr, sizes: Mapping[str, Any], op: Operation) -> Any:
    formula = formula_of(expr)
    if formula is None:
        raise CodegenError(
            f"the size `{expr}` cannot be computed in a file",
            location=op.location,
            remedy="transform the model with a fixed size in place of the dynamic one",
        )
    return evaluate_formula(formula, sizes)


class TracedProgram(nn.Module):
    """A program without regions as a module: its inputs are those of the graph, its results the distinct outputs.

    Weight number i is the buffer `graphwright_weight_<i>`, operation number i the submodule `step_<i>`.
    """

    def __init__(self, program: Program, kernels: Kernels) -> None:
        super().__init__()
        self.program = program
        self.operations = list(program.graph.operations())
        self.outputs = outputs_of(program)
        self._buffers_of: dict[str, str] = {}
        for number, weight in enumerate(program.weights.values()):
            if weight.value.is_unused:
                continue
            if weight.data is None:
                raise InputError(
                    f"weight {weight.name!r} has no data", remedy="a program that was parsed from text has none"
                )
            self._buffers_of[weight.name] = f"{WEIGHT}{number}"
            self.register_buffer(f"{WEIGHT}{number}", weight.data.detach())
        for number, op in enumerate(self.operations):
            self.add_module(f"{STEP}{number}", _Step(op, program.opaques, kernels))

    @override
    def forward(self, *args: torch.Tensor) -> tuple[Any, ...]:
        """Return the distinct outputs of the graph."""
        program = self.program
        sizes = _bound_sizes(program, args)
        env: dict[Value, Any] = dict(zip(program.graph.inputs, args, strict=True))

        def value(each: Value | None) -> Any:
            if each is not None and each.is_weight:
                return getattr(self, self._buffers_of[each.name])
            return None if each is None else env[each]

        for number, op in enumerate(self.operations):
            results = getattr(self, f"{STEP}{number}")([value(v) for v in op.operands], sizes)
            env.update(zip(op.results, results, strict=True))
        return tuple(value(each) for each in self.outputs)


def outputs_of(program: Program) -> list[Value]:
    """Return the outputs of a program's graph, each once."""
    return list(dict.fromkeys(value for value in program.graph.outputs if value is not None))


def _bound_sizes(program: Program, args: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return what the symbols stand for, by name; dimensions that are plain symbols come first."""
    bound: dict[str, Any] = {}
    dims = [
        (dim, size)
        for value, arg in zip(program.graph.inputs, args, strict=True)
        for dim, size in zip(value.tensor_type.shape or (), arg.shape, strict=True)
        if isinstance(dim, sympy.Expr)
    ]
    for dim, size in sorted(dims, key=lambda item: int(item[0].count_ops())):
        solution = linear_solution(dim)
        if solution is not None and solution[0].name not in bound:
            symbol, slope, offset = solution
            bound[symbol.name] = size if (slope, offset) == (1, 0) else (size - offset) // slope
    return bound


def trace(program: Program, kernels: Kernels) -> ExportedProgram:
    """Capture a program without regions with `torch.export`.

    Args:
        program: the program; its inputs are tensors.
        kernels: what stands for the kernels of operators that `torch.export` is not to look into.

    Raises:
        InputError: when no sizes are known that fit the ranges and relations of the symbols.
        CodegenError: when PyTorch cannot capture it for all sizes in these ranges.
    """
    module = TracedProgram(program, kernels).eval()
    dynamic = tuple(
        {i: Dim.DYNAMIC for i, dim in enumerate(value.tensor_type.shape or ()) if isinstance(dim, sympy.Expr)}
        for value in program.graph.inputs
    )
    failure: Exception | None = None
    for least in _LEAST if program.symbols else _LEAST[-1:]:
        try:
            sizes = example_sizes(program, least)
        except InputError as error:
            failure = failure or error
            continue
        types = [value.tensor_type for value in program.graph.inputs]
        shapes = [[_number(dim, sizes) for dim in type_.shape or ()] for type_ in types]
        if least != _LEAST[-1] and sum(map(math.prod, shapes)) > _MOST_ELEMENTS:
            continue
        args = tuple(torch.zeros(shape, dtype=type_.dtype) for shape, type_ in zip(shapes, types, strict=True))
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.export.export(module, args, dynamic_shapes={"args": dynamic}, strict=False)
        except CodegenError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever PyTorch raises, it cannot capture it
            failure = error
    if isinstance(failure, InputError):
        raise failure
    raise CodegenError(
        f"PyTorch cannot capture the program for a file: {str(failure).strip() or type(failure).__name__}",
        location=program.location,
        remedy="fixed sizes in place of dynamic ones (no `dynamic_shapes=`) may help",
    ) from failure


def _number(dim: Size | None, sizes: Mapping[sympy.Symbol, int]) -> int:
    assert dim is not None
    return dim if isinstance(dim, int) else int(dim.xreplace({s: sympy.Integer(n) for s, n in sizes.items()}))


def example_sizes(program: Program, least: int = 2) -> dict[sympy.Symbol, int]:
    """Return sizes within the ranges of the symbols that fit the relations between them; none is 0 or 1 if possible.

    Distinct sizes are tried first, so that nothing takes two of them for one.

    Args:
        program: the program.
        least: the least size, where the ranges have it.

    Raises:
        InputError: when no sizes are found.
    """
    for start, step in itertools.product((least, *_STARTS), _STEPS):
        sizes = {s: _example(program.symbols[s], start, step, number) for number, s in enumerate(program.symbols)}
        numbers = {s: sympy.Integer(n) for s, n in sizes.items()}
        if all(bool(relation.xreplace(numbers)) for relation in program.constraints):
            return sizes
    raise InputError(
        f"no sizes were found for which {', '.join(map(str, program.constraints))}",
        location=program.location,
        remedy="transform the model with fixed sizes in place of the dynamic ones",
    )


def _example(bounds: SymbolRange, least: int, step: int, number: int) -> int:
    """Return a size for the symbol of that number: a multiple of `step`, or without one another than for the others."""
    wanted = max(bounds.lower, least)
    wanted = -(-wanted // step) * step if step else wanted + number
    if bounds.upper is not None and wanted > bounds.upper:
        return max(bounds.lower, bounds.upper - (0 if step else number))
    return wanted
