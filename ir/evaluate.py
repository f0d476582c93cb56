"""The reference meaning of a program: its operations run one by one on their ATen kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch

from ir.attributes import Ref
from ir.core import RETURN, Graph, Operation, Value
from ir.data_sizes import DataSizes, data_sizes_of
from ir.errors import EvaluationError, InputError
from ir.expressions import linear_solution
from ir.fake import flat_results, kernel_call
from ir.memory.aliasing import aliased_operands, statistics_places
from ir.opdef import Trait
from ir.ops.nn_ops import OPAQUE, call_module, decode_call, opaque_results
from ir.program import Program
from ir.text.printer import print_operation_context
from ir.types import Dim, ScalarType, TensorType, simplify_dim, symbols_of

Watch = Callable[[Operation, Sequence[Any]], None]
Kernels = Mapping[str, Callable[[Operation, Sequence[Any]], Sequence[Any] | None]]
"""Name of an operator -> what is called with an operation and its operands, and returns the results, or None to leave
them to the operator's own kernel."""


def evaluate(
    program: Program,
    args: Sequence[Any],
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    written: dict[str, torch.Tensor] | None = None,
    watch: Watch | None = None,
    kernels: Kernels | None = None,
) -> list[Any]:
    """Run a program and return the outputs of its graph: the results, then the mutated buffers and inputs.

    Gradients flow as in the model. Shapes must match the types, dtypes need not, so a program can run in float64.
    Neither arguments nor weights are mutated.

    Args:
        program: the program.
        args: one tensor (or number, where the type is a scalar's) for each input of the graph, in order.
        weights: tensors that stand for the weights of these names; the others keep their own data.
        written: receives, under the names of the weights, the tensors that operations in training wrote in place of
            them (running statistics).
        watch: called with each operation, those in bodies too, and its results.
        kernels: what computes the operators of these names in place of their own kernels.

    Raises:
        InputError: when an argument does not fit its type, or a weight has no data.
        EvaluationError: when an operation fails; its notes show the operation and those around it.
    """
    inputs, values, symbols = _prepared(program, args, weights, written)
    return evaluate_graph(
        program.graph,
        inputs,
        values,
        symbols,
        opaques=program.opaques,
        watch=watch,
        kernels=kernels,
        data_sizes=data_sizes_of(program),
    )


def _prepared(
    program: Program,
    args: Sequence[Any],
    weights: Mapping[str, torch.Tensor] | None,
    written: dict[str, torch.Tensor] | None = None,
) -> tuple[list[Any], dict[str, torch.Tensor], dict[sympy.Symbol, int]]:
    """Return inputs of the graph, tensors of its weights, copied where they may be mutated, and numbers of symbols."""
    symbols = bind_symbols(program, args)
    values: dict[str, torch.Tensor] = {}
    given = weights or {}
    for name, weight in program.weights.items():
        data = given.get(name, weight.data)
        if data is not None:
            values[name] = data
        elif not weight.value.is_unused:
            raise InputError(
                f"weight {name!r} has no data",
                remedy="pass it in `weights`: a program that was parsed from text has none, and scales have none until "
                "ranges are set",
            )
    inputs = list(args)
    for value in _written_values(program.graph):
        if value.is_weight:
            values[value.name] = values[value.name].clone()
            if written is not None:
                written[value.name] = values[value.name]
        elif isinstance(inputs[value.index], torch.Tensor):
            inputs[value.index] = inputs[value.index].clone()
    return inputs, values, symbols


class Stepper:
    """One run of a program, an operation of its graph at a time: several runs may go side by side.

    Args are those of `evaluate`. Call `step` with each operation of the graph, in order.
    """

    def __init__(
        self,
        program: Program,
        args: Sequence[Any],
        weights: Mapping[str, torch.Tensor] | None = None,
        *,
        watch: Watch | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        inputs, values, symbols = _prepared(program, args, weights)
        self.weights = values
        """The tensors of the weights by name; one that is replaced is the weight from the next step on."""
        self._run = _Run(values, symbols, program.opaques, watch, kernels, data_sizes_of(program))
        self._frame = _Frame(self._run, program.graph, inputs)

    def step(self, op: Operation, *, keeps_operands: bool = False) -> list[Any]:
        """Run an operation whose operands are known; its results are values from then on.

        Args:
            op: an operation of the program's graph.
            keeps_operands: whether the operation is run once more before the next one.

        Raises:
            EvaluationError: when the operation fails.
        """
        return self._frame.step(op, keeps_operands=keeps_operands)

    def outputs(self) -> list[Any]:
        """Return the outputs of the graph, after all of its operations."""
        return self._frame.outputs()


def evaluate_graph(
    graph: Graph,
    inputs: Sequence[Any],
    weight_values: Mapping[str, torch.Tensor],
    symbols: Mapping[sympy.Symbol, int],
    *,
    opaques: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    kernels: Kernels | None = None,
    data_sizes: DataSizes | None = None,
) -> list[Any]:
    """Run a graph and return its outputs.

    Operations in training write the tensors that are given to them; pass copies where that matters.

    Args:
        graph: the graph.
        inputs: one tensor or number for each input.
        weight_values: the tensors of the weights that the graph uses, by name.
        symbols: the number that each symbol stands for.
        opaques: the callables of opaque operations, by name.
        watch: called with each operation, those in bodies too, and its results.
        kernels: what computes the operators of these names in place of their own kernels.
        data_sizes: what defines and checks the sizes that depend on data; None in a graph without such.

    Raises:
        InputError: when the number of inputs is wrong or a weight is missing.
        EvaluationError: when an operation fails.
    """
    if len(inputs) != len(graph.inputs):
        raise InputError(f"the graph takes {len(graph.inputs)} inputs, {len(inputs)} given")
    return _Run(weight_values, symbols, opaques or {}, watch, kernels, data_sizes).graph(graph, inputs)


def bind_symbols(program: Program, args: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """Return the number for each symbol, from the shapes of the arguments.

    A dimension that is linear in one unbound symbol binds it; all other dimensions are checked.

    Raises:
        InputError: when the number of arguments, a rank, a dimension or a scalar does not fit, or a number is out of
            its symbol's range.
    """
    inputs = program.graph.inputs
    if len(args) != len(inputs):
        raise InputError(f"program {program.name!r} takes {len(inputs)} inputs, {len(args)} given")
    bound: dict[sympy.Symbol, int] = {}
    pending: list[tuple[Dim, int, str]] = []
    for value, arg in zip(inputs, args, strict=True):
        if isinstance(value.type, TensorType):
            shape = value.type.shape
            if isinstance(arg, torch.Tensor) and shape == arg.shape:
                continue  # the usual case: all dimensions are numbers
            what = f"argument {value.index} ({value.name})"
            if not isinstance(arg, torch.Tensor):
                raise InputError(f"{what} must be a tensor of type {value.type}, not a {type(arg).__qualname__}")
            if shape is None:
                continue
            if len(shape) != arg.dim():
                raise InputError(f"{what} must have type {value.type}, but has shape {tuple(arg.shape)}")
            pending += [
                (dim, size, f"dimension {i} of {what}")
                for i, (dim, size) in enumerate(zip(shape, arg.shape, strict=True))
                if dim is not None and not (type(dim) is int and dim == size)
            ]
        elif isinstance(value.type, ScalarType) and value.type.value is not None:
            pending.append((value.type.value, int(arg), f"argument {value.index} ({value.name})"))
    # plain symbols first: they may make expressions solvable
    for dim, size, what in sorted(pending, key=lambda item: _num_operations(item[0])):
        _bind(dim, size, what, bound)
    for symbol, bounds in program.symbols.items():
        number = bound.get(symbol)
        if number is not None and number not in bounds:
            raise InputError(f"{symbol} is {number}, which is not in its range {bounds}")
    return bound


def _num_operations(dim: Dim) -> int:
    return -1 if isinstance(dim, int) else int(dim.count_ops())


def _bind(dim: Dim, size: int, what: str, bound: dict[sympy.Symbol, int]) -> None:
    known = simplify_dim(dim if isinstance(dim, int) else dim.xreplace({s: sympy.Integer(n) for s, n in bound.items()}))
    if isinstance(known, int):
        if known != size:
            raise InputError(
                f"{what} must be {dim} = {known}, not {size}" if dim != known else f"{what} must be {dim}, not {size}"
            )
        return
    solution = linear_solution(known)
    if solution is None:
        names = ", ".join(s.name for s in symbols_of([known]))
        raise InputError(f"{what} is {dim}: its size {size} does not tell what {names} stands for")
    symbol, slope, offset = solution
    if (size - offset) % slope:
        raise InputError(f"{what} must be {dim}, which cannot be {size}")
    bound[symbol] = (size - offset) // slope


def _written_values(graph: Graph) -> list[Value]:
    """Return the weights and inputs that may be mutated: running statistics, and arguments of opaque calls."""
    found: dict[Value, None] = {}
    for op in graph.operations():
        places: Sequence[int] = ()
        if op.body is not None:
            places = [value.index for value in _written_values(op.body)]
        elif op.opdef is OPAQUE:
            places = range(len(op.operands))
        elif op.in_training and not op.opdef.has(Trait.RANDOM):
            places = statistics_places(op.opdef) or range(1, len(op.operands))
        written = [value for place in places if (value := op.operands[place]) is not None]
        if written:
            found.update(dict.fromkeys(_storage_roots(written)))
    return list(found)


def _storage_roots(values: Sequence[Value]) -> list[Value]:
    """Return the weights and inputs that one of the values may alias."""
    seen = dict.fromkeys(values)
    pending = list(seen)
    while pending:
        value = pending.pop()
        op = value.defining_op
        if op is None:
            continue
        sources: Sequence[Value | None] = ()
        if op.body is not None:
            inner = op.body.outputs[value.index]
            sources = [op.operands[v.index] for v in _storage_roots([inner])] if inner is not None else ()
        elif op.opdef.has(Trait.VIEW):
            sources = aliased_operands(op)
        new = [v for v in dict.fromkeys(sources) if v is not None and v not in seen]
        seen.update(dict.fromkeys(new))
        pending += new
    return [value for value in seen if value.defining_op is None]


class _Run:
    """One evaluation: the tensors of weights, the numbers of symbols, the callables of opaque names."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        symbols: Mapping[sympy.Symbol, int],
        opaques: Mapping[str, Any],
        watch: Watch | None,
        kernels: Kernels | None,
        data_sizes: DataSizes | None,
    ) -> None:
        self.watch = watch
        self._kernels = kernels or {}
        self._weights = weights
        self._numbers = {symbol: sympy.Integer(number) for symbol, number in symbols.items()}
        self._data_sizes = data_sizes
        self._opaques = opaques
        self._expressions: dict[sympy.Expr, int | float] = {}

    def graph(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        """Run a graph; tensors are released after their last use."""
        frame = _Frame(self, graph, inputs)
        for op in graph.operations():
            frame.step(op)
        return frame.outputs()

    def results(self, op: Operation, operands: list[Any]) -> list[Any]:
        """Run one operation."""
        try:
            results = self._results(op, operands)
            if len(results) != len(op.results):
                raise EvaluationError(f"{op.name} gave {len(results)} results, not {len(op.results)}")
        except Exception as error:
            if isinstance(error, EvaluationError) and error.location is not None:
                raise  # raised inside the body of the operation, and shown there
            raise self._failure(op, operands, error) from error
        problem = None if self._data_sizes is None else self._data_sizes.define(op, results, self._numbers)
        if problem is not None:
            raise EvaluationError(problem, location=op.location)
        if self.watch is not None:
            self.watch(op, results)
        return results

    def operand(self, value: Value | None, env: dict[Value, Any]) -> Any:
        if value is None:
            return None
        if value in env:
            return env[value]
        if not value.is_weight:
            raise EvaluationError(f"{value!r} is used, but not defined before", remedy="verify the program")
        if value.name not in self._weights:
            raise InputError(f"no tensor is given for weight {value.name!r}")
        return self._weights[value.name]

    def _failure(self, op: Operation, operands: list[Any], error: Exception) -> Exception:
        shown = ", ".join(f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x) for x in operands)
        failure = EvaluationError(f"{op.name} failed on ({shown}): {error}", location=op.location)
        failure.add_note(print_operation_context(op))
        return failure

    def _results(self, op: Operation, operands: list[Any]) -> list[Any]:
        if op.body is not None:
            return self.graph(op.body, operands)
        replaced = self._kernels[op.name](op, operands) if op.name in self._kernels else None
        if replaced is not None:
            return list(replaced)

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return operands[leaf.index]
            return self._number(leaf) if isinstance(leaf, sympy.Expr) else leaf

        opdef = op.opdef
        if opdef is OPAQUE:
            return self._call_opaque(op, operands, resolve)
        kernel, args, kwargs = kernel_call(opdef, opdef.group(operands, op.segments), op.attributes, resolve)
        if kernel is None or opdef is RETURN:
            raise EvaluationError(f"{op.name} has no kernel")
        return flat_results(kernel(*args, **kwargs))

    def _call_opaque(self, op: Operation, operands: list[Any], resolve: Any) -> list[Any]:
        name = op.attributes["callee"]
        callee = self._opaques.get(name)
        if callee is None:
            raise EvaluationError(
                f"there is no callable for {name!r}",
                remedy="a program that was parsed from text has none: set program.opaques",
            )
        args, kwargs = decode_call(op.attributes, operands, resolve)
        return opaque_results(call_module(callee, args, kwargs), op.attributes["returns"])

    def _number(self, expr: sympy.Expr) -> int | float:
        number = self._expressions.get(expr)
        if number is None:
            exact = expr.xreplace(self._numbers)
            if exact.free_symbols:
                names = ", ".join(sorted(s.name for s in exact.free_symbols))
                raise EvaluationError(f"it is not known what {names} stands for")
            number = self._expressions[expr] = int(exact) if exact.is_Integer else float(exact)
        return number


class _Frame:
    """The values of one graph in one run; each is released after its last use."""

    def __init__(self, run: _Run, graph: Graph, inputs: Sequence[Any]) -> None:
        self._run = run
        self._graph = graph
        self._values: dict[Value, Any] = {}
        self._uses_left: dict[Value, int] = {}
        for value, given in zip(graph.inputs, inputs, strict=True):
            self._define(value, given)

    def _define(self, value: Value, result: Any) -> None:
        uses = value.num_uses
        if uses:
            self._values[value] = result
            self._uses_left[value] = uses

    def step(self, op: Operation, *, keeps_operands: bool = False) -> list[Any]:
        """Run an operation and define its results."""
        results = self._run.results(op, [self._run.operand(v, self._values) for v in op.operands])
        uses_left = self._uses_left
        for operand in () if keeps_operands else op.operands:
            if operand is not None and operand in uses_left:
                uses_left[operand] -= 1
                if not uses_left[operand]:
                    del self._values[operand]
        for value, result in zip(op.results, results, strict=True):
            self._define(value, result)
        return results

    def outputs(self) -> list[Any]:
        """Return the outputs of the graph."""
        return [self._run.operand(v, self._values) for v in self._graph.outputs]
