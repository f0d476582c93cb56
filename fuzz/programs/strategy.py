"""Strategies for whole programs, typed and correct by construction, and for the tensors to run them on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from hypothesis import strategies as st
from typing_extensions import override

from fuzz.calls.generators import GENERATORS, generate_call
from fuzz.calls.source import Source, Unavailable, Wanted
from fuzz.calls.tensors import random_tensor
from fuzz.calls.types import SYMBOLS, draw_integer, draw_shape, special_numbers
from fuzz.programs.case import positional_convention
from ir.attributes import Attribute, iter_leaves, map_leaves
from ir.builder import Builder, bind_arguments, infer_types
from ir.core import Graph, Operation, Value
from ir.errors import InferenceError, InputError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.memory.aliasing import demands_strides
from ir.opdef import OpDef, get_opdef
from ir.program import CallingConvention, Program, SymbolRange, Weight, WeightKind, weight_of
from ir.spelling import did_you_mean
from ir.types import CPU, Dim, TensorType, simplify_dim, symbols_of

SYMBOL_RANGE = SymbolRange(4, 9)
"""What the symbols of a generated program stand for."""
_SAMPLES = ((4, 9), (5, 4), (6, 7), (7, 8), (8, 6), (9, 5))  # each symbol takes each number once

_UNKNOWN_SHORT = ("rand", "randn", "rand_like", "randn_like", "empty.memory_format", "empty_like", "new_empty")
RANDOM_OR_UNINITIALIZED = tuple(f"aten.{short}" for short in _UNKNOWN_SHORT)
OPERATORS = tuple(name for name in GENERATORS if name not in RANDOM_OR_UNINITIALIZED)
_COMMON_SHORT = (
    "relu", "conv2d", "batch_norm", "linear", "add.Tensor", "reshape", "permute", "gelu", "max_pool2d",
    "adaptive_avg_pool2d", "flatten.using_ints", "layer_norm", "matmul", "softmax.int", "mul.Tensor", "mul.Scalar",
    "add.Scalar", "transpose.int", "view", "squeeze.dim", "unsqueeze", "cat", "split.Tensor", "chunk", "unbind.int",
    "select.int", "scaled_dot_product_attention", "hardtanh", "relu6", "silu", "clone", "contiguous", "to.dtype",
    "dropout", "mean.dim", "expand", "conv1d", "clamp", "slice.Tensor",
)  # fmt: skip
COMMON = tuple(f"aten.{short}" for short in _COMMON_SHORT)
"""What rewrite rules look for."""
# What often follows an operator in a model, and is looked for there.
_FOLLOWERS = {
    "conv2d": ("batch_norm", "relu", "batch_norm", "add.Tensor"),
    "conv1d": ("batch_norm", "relu"),
    "batch_norm": ("relu", "add.Tensor", "conv2d", "max_pool2d"),
    "add.Tensor": ("relu", "layer_norm"),
    "relu": ("conv2d", "linear", "max_pool2d", "relu"),
    "linear": ("relu", "gelu", "reshape", "dropout", "add.Tensor"),
    "adaptive_avg_pool2d": ("flatten.using_ints", "reshape"),
    "mean.dim": ("linear",),
    "flatten.using_ints": ("linear", "dropout"),
    "reshape": ("permute", "reshape", "transpose.int"),
    "permute": ("reshape", "permute", "matmul", "select.int"),
    "transpose.int": ("reshape", "matmul", "transpose.int"),
    "matmul": ("softmax.int", "mul.Scalar", "add.Tensor"),
    "softmax.int": ("matmul", "dropout"),
    "scaled_dot_product_attention": ("transpose.int", "permute"),
}
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool)
HALVES = (torch.float16, torch.bfloat16)
_HALF_ONE_IN = 10
_UNUSED_ONE_IN = 12  # a weight that nothing uses
_MOST_ELEMENTS = 1 << 20  # of one input: with five sizes n*m, numbers up to 7 make 2 GB
_SEEDS = 2**16
_UNTRAINED = (WeightKind.BUFFER, WeightKind.CONSTANT)


class ProgramSource(Source):
    """Takes operands from the values of a program, and makes inputs and weights where none fits.

    `values` are those that it may take, oldest first.
    """

    def __init__(self, draw: st.DrawFn, *, symbolic: bool, half: bool = False) -> None:
        super().__init__(draw, symbolic=symbolic)
        self.usual = torch.float32
        """The dtype of floats that nothing says otherwise of."""
        self.scales: tuple[float, ...] = (1.0,)
        """What weights are multiplied by."""
        self.dtypes: tuple[torch.dtype, ...] = _DTYPES
        if half and self.integer(0, _HALF_ONE_IN - 1) == _HALF_ONE_IN - 1:
            self.in_half(self.one_of(HALVES), large=self.flag())
        self.graph = Graph()
        self.program = Program("fuzzed", self.graph, CallingConvention(None, None))
        self.values: list[Value] = []
        self.contiguous = False
        self.constants: set[Value] = set()
        """The values that depend on constants alone."""
        self.folds = False
        """Whether only constants are taken, new ones where none fits."""
        self.apart = False
        """Whether a new weight is taken, which nothing else is to use."""
        self.readers: list[Operation] | None = None
        """What reads, before it, what the next operation writes; None if nothing may."""

    def wanted(self, wanted: Wanted) -> Value:
        """Return a value of the program, recent ones more often than old ones, or a new input."""
        allowed = [d for d in self.dtypes if d in wanted.dtypes]
        found = [
            v
            for v in reversed(self.values)
            if not self.apart
            and v.tensor_type.dtype in allowed
            and wanted.fits(v.tensor_type)
            and (not self.contiguous or _is_contiguous(v))
        ]
        if self.folds:
            found = [v for v in found if v in self.constants]
        # recent values more often than old ones, so that there are chains; a new input now and then (one draw makes
        # what is distributed as the smaller one of two)
        square = len(found) ** 2
        place = self.integer(0, square + square // 9) if found else 0
        if place < square:
            return found[len(found) - 1 - math.isqrt(square - 1 - place)]
        some_zero = wanted.zero and self.integer(0, 19) == 19
        most = wanted.max_rank
        shape = draw_shape(self.draw, max(wanted.min_rank, min(2, most)), most, zero=some_zero, symbolic=self.symbolic)
        type_ = TensorType(shape, self.one_of(allowed))
        if not (self.folds or self.apart) or not all(type(size) is int for size in shape):
            return self._input(type_)
        made = self.weight(type_, None)
        if self.apart:
            self.values.pop()
        return made

    def make(
        self, shape: Sequence[Dim], dtype: torch.dtype | None = None, *, bounds: tuple[float, float] | None = None
    ) -> Value:
        """Return a value of the type that is there, a new weight, or a new input where a size is symbolic."""
        if dtype not in self.dtypes:
            dtype = self.usual if dtype is None or dtype.is_floating_point else torch.int64
        type_ = TensorType(tuple(shape), dtype)
        if bounds is None and (found := [v for v in self.values if v.type == type_]) and self.flag():
            return self.one_of([v for v in found if v in self.constants] or found if self.folds else found)
        if all(type(size) is int for size in shape):
            return self.weight(type_, bounds)
        if bounds is not None:
            raise Unavailable
        return self._input(type_)

    def dtype(self, choices: Sequence[torch.dtype | None]) -> torch.dtype | None:
        """Draw a dtype that the program may have."""
        return super().dtype([c for c in choices if c is None or c in self.dtypes])

    @override
    @contextmanager
    def allowing(self, *dtypes: torch.dtype) -> Iterator[None]:
        """Let operands be of these dtypes inside the `with` block."""
        saved = self.dtypes
        self.dtypes = (*saved, *dtypes)
        try:
            yield
        finally:
            self.dtypes = saved

    def in_half(self, dtype: torch.dtype, *, large: bool) -> None:
        """Take half precision for floats that nothing else is said of; products of large weights do not fit it."""
        self.usual, self.dtypes = dtype, (dtype, *_DTYPES)
        self.scales = (1.0, 2.0**6, 2.0**12, 2.0**12) if large else (1.0,)

    def written(self, value: Value | None) -> None:
        """Mark a weight as one that the program writes, and take it for nothing else."""
        weight = weight_of(value)
        if weight is not None:
            weight.is_mutated = True
            self.values = [v for v in self.values if v is not value]
            if self.readers is not None and self.flag():
                # before the write it is not what it is after
                self.readers.append(Builder(self.graph).op("aten.neg", weight.value))

    def add(self, op: Operation) -> None:
        """Let the tensors that an operation gives be taken."""
        self.values += [result for result in op.results if type(result.type) is TensorType]
        if all(v in self.constants for v in op.operand_values) or op.opdef.facts.fill is not None:
            self.constants |= set(op.results)

    def _input(self, type_: TensorType) -> Value:
        value = self.graph.add_input(type_, f"x{len(self.graph.inputs)}")
        self.values.append(value)
        return value

    def weight(self, type_: TensorType, bounds: tuple[float, float] | None, like: Weight | None = None) -> Value:
        """Return a new weight of a type without symbols; of the name and kind of another one, if `like` is given."""
        number = len(self.program.weights)
        name = f"w{number}" if like is None or like.name in self.program.weights else like.name
        assert type_.dtype is not None
        kinds: Sequence[WeightKind] = (WeightKind.BUFFER if like is None else like.kind,)
        if like is None and bounds is None and type_.dtype.is_floating_point:
            kinds = _UNTRAINED if self.folds else (WeightKind.PARAMETER, *_UNTRAINED)
        chance, place = divmod(self.integer(0, 8 * len(kinds) - 1), len(kinds))
        kind, is_tied = kinds[place], chance == 4 and kinds[place] is not WeightKind.CONSTANT
        data = random_tensor([int(d) for d in type_.shape or () if d is not None], type_.dtype, number, bounds)
        if len(self.scales) > 1 and bounds is None and type_.dtype.is_floating_point:
            data = data * self.one_of(self.scales)
        trains = kind is WeightKind.PARAMETER and type_.dtype.is_floating_point
        weight = Weight(name, kind, type_, data, trains, aliases=(f"tied{number}",) if is_tied else ())
        if like is not None:
            weight.persistent, weight.is_mutated = like.persistent, like.is_mutated
        elif kind is WeightKind.BUFFER:
            weight.persistent, weight.is_mutated = not self.folds and chance not in (5, 6), chance == 7
        value = self.program.add_weight(weight)
        self.values.append(value)
        if kind is WeightKind.CONSTANT or not weight.persistent:
            self.constants.add(value)
        return value


def _is_contiguous(value: Value) -> bool:
    op = value.defining_op
    return op is None or op.opdef.fixes_strides


@st.composite
def programs(
    draw: st.DrawFn,
    max_ops: int = 12,
    *,
    operators: Sequence[str] = (),
    symbolic: bool = False,
    half: bool = False,
    training: bool = False,
) -> Program:
    """Return a strategy for programs of at most `max_ops` operations.

    They have several inputs and outputs, shared values and weights, values used twice, and outputs that are used.

    Args:
        draw: given by hypothesis.
        max_ops: the largest number of operations.
        operators: the operators to choose from; all that have a call generator, the commonest more often, by default.
        symbolic: whether sizes may be expressions over symbols.
        half: whether one in ten programs is in float16 or bfloat16; a CPU has no kernels for some operators then, so
            that such a program may be valid and not run.
        training: whether one in three programs is in training mode: its dropouts draw, its batch norms write
            statistics. These refuse one value for each channel, so that such a program may be valid and not run.
    """
    _check_request(operators, max_ops)
    source = ProgramSource(draw, symbolic=symbolic, half=half)
    source.training = training and source.integer(0, 2) == 2
    source.symbols = SYMBOLS if symbolic else ()
    source.tensor()
    builder = Builder(source.graph)
    for number in range(max_ops):
        # a stop and not a count, so that a failing program shrinks by leaving out any operation
        if draw_integer(draw, 0, 15) == 0:
            break
        earlier = [op for op in source.graph.operations() if op.segments is None and op.operands]
        if earlier and source.integer(0, 7) == 7:
            # what draws or writes in training above all, it may not be done once for twice; also what gives several
            trained = [op for op in earlier if op.in_training]
            found = trained if source.integer(0, 3) else [op for op in earlier if len(op.results) > 1]
            _repeat_operation(source, builder, source.one_of(found or earlier))
            continue
        name = source.one_of(operators or _choices(source, earlier[-1].name if earlier else ""))
        builder.location = UNKNOWN_LOCATION
        if source.flag():
            builder.location = Location(f"layer{number}", "torch.nn.modules.module.Module", "model.py", number + 1)
        kind = source.integer(0, 15)
        source.folds, source.apart = kind > 11, kind == 11
        source.devices = (None, None, None, torch.device("meta")) if source.folds else (None,)
        _add_operation(source, builder, name)
    finish_program(source)
    return source.program


def _check_request(operators: Sequence[str], max_ops: int) -> None:
    """Check what programs are asked for.

    Raises:
        InputError: when there is no generator for an operator, or no operation is asked for.
    """
    if isinstance(operators, str):
        raise InputError(f"operators is the text {operators!r}", remedy=f"pass a sequence: ({operators!r},)")
    unknown = [name for name in operators if name not in GENERATORS]
    if unknown:
        name = unknown[0]
        full = name if name.startswith("aten.") else f"aten.{name}"
        raise InputError(
            f"there is no generator of calls of {name!r}",
            remedy=did_you_mean(full, GENERATORS, "write a name as `aten.relu`, `aten.add.Tensor`"),
        )
    if max_ops < 1:
        raise InputError(f"max_ops is {max_ops}", remedy="ask for one operation at least")


def _choices(source: ProgramSource, last: str) -> Sequence[str]:
    """Draw a set of operators: all, the common ones, the last one again, or those that often follow it."""
    kind = source.integer(0, 9)
    if last and kind == 8:
        return (last,)
    followers = _FOLLOWERS.get(last.removeprefix("aten."), ())
    if followers and kind in (6, 7):
        return [f"aten.{short}" for short in followers]
    return OPERATORS if kind in (4, 5, 9) else COMMON


def _add_operation(source: ProgramSource, builder: Builder, name: str) -> None:
    opdef = get_opdef(name)
    source.contiguous, source.readers = demands_strides(opdef), []
    try:
        args, kwargs = generate_call(source, name)
    except Unavailable:
        return
    finally:
        source.contiguous = False
    if source.symbolic:
        _, attributes, _, types = bind_arguments(opdef, args, kwargs)
        if not _holds_for_all_numbers(opdef, types, attributes):
            return
    source.add(builder.op(opdef, *args, **kwargs))
    for read in source.readers:
        source.add(read)
        source.add(builder.op(read.opdef, *read.operands))


def _repeat_operation(source: ProgramSource, builder: Builder, op: Operation) -> None:
    """Apply an operation once more, with one operand another value of the same type, or none, or the two exchanged."""
    values = list(op.operands)
    place = source.integer(0, len(values) - 1)
    changed = values[place]
    if changed is None or (demands_strides(op.opdef) and not all(v is None or _is_contiguous(v) for v in values)):
        return
    same = [changed, *(v for v in reversed(source.values) if v.type == changed.type)]
    if len(set(same)) == 1 and isinstance(changed.type, TensorType) and source.flag():
        same.append(source._input(changed.type))
    if demands_strides(op.opdef):
        same = [v for v in same if _is_contiguous(v)]
    values[place] = changed if source.flag() else source.one_of(same)
    if len(values) == 2 and values[0] is not None and values[1] is not None and values[0].type == values[1].type:
        values = values[::-1] if source.flag() else values
    arguments: dict[str, Any] = {p.name: v for p, v in zip(op.opdef.operand_params, values, strict=True)}
    source.add(builder.op(op.opdef, **arguments, **op.attributes))


def holds_for_all_numbers(program: Program) -> bool:
    """Return whether all operations of a program take the numbers that its symbols stand for."""
    for op in program.graph.operations():
        types = op.opdef.group([value and value.type for value in op.operands], op.segments)
        if op.body is None and not _holds_for_all_numbers(op.opdef, types, op.attributes):
            return False
    return True


def _holds_for_all_numbers(opdef: OpDef, types: tuple[Any, ...], attributes: Mapping[str, Attribute]) -> bool:
    """Whether the operator takes the operands as they are and for the numbers in range, with the same result types.

    Inference takes symbols for large numbers (a chunk into three gives three), and these are small.
    """
    try:
        general = infer_types(opdef, types, attributes)
        for numbers in _SAMPLES:
            values = dict(zip(SYMBOLS, numbers, strict=True))
            fixed = {key: substitute(value, values) for key, value in attributes.items()}
            if infer_types(opdef, substitute(types, values), fixed) != substitute(general, values):
                return False
    except InferenceError:
        return False
    return True


def substitute(item: Any, values: dict[sympy.Symbol, int]) -> Any:
    """Return types or attributes with numbers in place of symbols."""

    def leaf(value: Any) -> Any:
        if isinstance(value, TensorType):
            return TensorType(substitute(value.shape, values), value.dtype, value.device)
        return simplify_dim(value.xreplace(values)) if isinstance(value, sympy.Expr) else value

    return map_leaves(item, leaf)


def finish_program(source: ProgramSource, outputs: Sequence[Value] = ()) -> None:
    """Declare symbols, return `outputs` and what nobody uses (and perhaps a used value), and set the convention.

    Now and then a value that nobody uses is left: dead code, or one of several results. It shrinks to none left.
    """
    graph, program = source.graph, source.program
    numbers = [leaf for op in graph.operations() for leaf in iter_leaves(tuple(op.attributes.values()))]
    numbers += [d for v in source.values if isinstance(v.type, TensorType) for d in v.type.shape or ()]
    used = symbols_of([number for number in numbers if isinstance(number, sympy.Expr)])
    plain = [d for v in graph.inputs for d in v.tensor_type.shape or ()]
    for symbol in used:
        program.symbols[symbol] = SYMBOL_RANGE
        if symbol not in plain:
            source._input(TensorType((symbol,), source.usual))
    for value in [v for v in source.values if v.defining_op and v in source.constants and v.is_unused]:
        type_ = value.tensor_type
        if type_.dtype is source.usual and source.flag():  # what is returned is not folded
            operands = (source._input(type_), value) if type_.device == CPU else (value, value)
            call = ("aten.mul.Tensor", *operands) if source.flag() else ("aten.lerp.Scalar", *operands, 0.5)
            source.add(Builder(graph).op(*call))  # of two dtypes there is a product, and no mean
    source.folds = source.apart = False
    if source.integer(0, _UNUSED_ONE_IN - 1) == 1:
        unread = source.program.weights[source.weight(TensorType((2,), source.usual), None).name]
        unread.is_folded = unread.kind is WeightKind.BUFFER and not unread.is_mutated
        source.values.pop()
    unused = []
    dead = source.integer(0, 3) == 3
    for op in graph.operations():
        if len(op.results) == 1:
            unused += [r for r in op.results if r.is_unused and not (dead and source.flag())]
        else:
            # that nobody uses one of several results is what some rules ask for
            unused += [r for r in op.results if type(r.type) is TensorType and r.is_unused and not source.flag()]
    returned = [*outputs, *(v for v in unused if v not in outputs)]
    if not returned or (source.values and source.integer(0, 2) == 2):
        # a used value: what is returned may not come to share memory; among the last ones is what a rule looks for
        returned.append(source.one_of(source.values[-4:] if source.flag() else source.values))
    graph.set_outputs(returned)
    program.convention = positional_convention(graph)


@st.composite
def input_tensors(
    draw: st.DrawFn, program: Program, *, special: bool = True, finite: bool = False
) -> list[torch.Tensor]:
    """Return a strategy for one tensor per graph input, whose shapes agree on the numbers for symbols.

    With `special`, some floating tensors hold zeros of both signs and subnormal numbers and, unless `finite`, NaN,
    infinities and numbers that overflow.
    """
    return draw_inputs(draw, program, special=special, finite=finite)


def draw_inputs(draw: st.DrawFn, program: Program, *, special: bool = True, finite: bool = False) -> list[torch.Tensor]:
    """Draw the tensors of `input_tensors`."""
    numbers = {
        symbol: draw_integer(draw, bounds.lower, bounds.upper if bounds.upper is not None else bounds.lower + 7)
        for symbol, bounds in program.symbols.items()
    }
    tensors = []
    types = substitute(tuple(value.type for value in program.graph.inputs), numbers)
    if any(math.prod(type_.shape) > _MOST_ELEMENTS for type_ in types):
        numbers = {symbol: program.symbols[symbol].lower for symbol in numbers}
        types = substitute(tuple(value.type for value in program.graph.inputs), numbers)
    for type_ in types:
        seed, chance = draw_integer(draw, 0, _SEEDS - 1), draw_integer(draw, 0, 3)
        tensor = random_tensor(type_.shape, type_.dtype, seed)
        if special and type_.dtype.is_floating_point and tensor.numel() and chance == 3:
            special_ones = special_numbers(type_.dtype, finite=finite)
            number = special_ones[draw_integer(draw, 0, len(special_ones) - 1)]
            tensor.view(-1)[draw_integer(draw, 0, tensor.numel() - 1)] = number
        tensors.append(tensor)
    return tensors
