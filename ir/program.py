"""A program: graph, weights, calling convention and symbol ranges."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import sympy
import torch
from torch.utils import _pytree as pytree

from ir.copying import copy_graph
from ir.core import Graph, Value
from ir.errors import VerificationError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.parameters import ParameterSpec
from ir.spelling import free_name
from ir.text.printer import print_program
from ir.types import TensorType


class WeightKind(enum.Enum):
    """The role of a weight in the module.

    Attributes:
        PARAMETER: an `nn.Parameter`.
        BUFFER: a persistent buffer.
    """

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    """A tensor outside of the model's state: a literal, or the result of constant folding."""


@attrs.frozen
class Derivation:
    """How a weight is computed from original ones, for loading an original checkpoint.

    `program` has no weights. Its inputs are the original tensors `sources`, in order; its only output is the weight.
    """

    sources: tuple[str, ...]
    program: Program


@attrs.define(eq=False)
class Weight:
    """A parameter, buffer or constant: a typed SSA value with a name.

    Attributes:
        kind: parameter, buffer, …
        type: type of its value.
        data: the original tensor itself, never a copy; a meta tensor if the model is on the meta device, None in a
            parsed program.
        requires_grad: whether it is trained.
        derivation: how it is computed from weights of the original; None for one of these.
        value: the SSA value that operations use.
    """

    name: str
    """Fully qualified name in the model."""
    kind: WeightKind
    type: TensorType
    data: torch.Tensor | None = None
    requires_grad: bool = False
    persistent: bool = True
    """Whether the weight is in the `state_dict`."""
    is_mutated: bool = False
    """Whether the program mutates it (running statistics, counters, caches); it is then not a constant."""
    carries_gradient: bool = False
    """Whether a call leaves a value with a gradient in it, which the next call reads."""
    is_folded: bool = False
    """Whether constant folding made it: it belongs to the program, not to the model; where unused, it is removed."""
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor (tied weights)."""
    derivation: Derivation | None = None
    value: Value = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.value = Value(self.type, self, 0, self.name)

    @property
    def is_constant(self) -> bool:
        """Whether the data is neither trainable nor mutated."""
        return not self.is_mutated and not self.requires_grad and self.kind is not WeightKind.PARAMETER


@attrs.frozen
class Mutation:
    """A mutation at the end of the call: output number `output` of the graph is written to a buffer or an input."""

    output: int
    buffer: str | None = None
    """Name of the weight."""
    input: int | None = None
    """Number of the graph input."""
    is_assigned: bool = False
    """Whether the original assigns a new tensor to the buffer, which ends the autograd history of the old one."""


ARGUMENT_KINDS = ("none", "sequence", "mapping", "any")
"""What an argument of unknown type may be, besides a tensor."""


@attrs.frozen
class InputLeaf:
    """One leaf of the flattened arguments of a call.

    `value` is the number of the graph input, or None where the leaf is a constant that the capture fixed.
    """

    name: str
    value: int | None
    constant: Any = None
    accepts: tuple[str, ...] = ()
    """What the argument may be besides a tensor, of `ARGUMENT_KINDS`; only where its type is unknown."""


@attrs.frozen
class OutputLeaf:
    """One leaf of the flattened result: output number `value` of the graph, or a constant.

    Where a mutation has the same output, the result is the mutated input or buffer itself.
    """

    value: int | None
    constant: Any = None


@attrs.define(eq=False)
class CallingConvention:
    """How the module is called: argument and result structure."""

    in_spec: pytree.TreeSpec | None
    """Structure of `(args, kwargs)`; None means that each input is one positional argument."""
    out_spec: pytree.TreeSpec | None
    """Structure of the result; None means the only output itself."""
    inputs: tuple[InputLeaf, ...] = ()
    outputs: tuple[OutputLeaf, ...] = ()
    mutations: tuple[Mutation, ...] = ()
    views: dict[int, int] = attrs.field(factory=dict)
    """Output -> output of the mutation whose buffer or input it is a view of."""
    parameters: tuple[ParameterSpec, ...] = ()
    """Parameters of `forward`; empty where they are not known."""
    keeps_order: bool = False
    """Whether keys of mappings among the arguments, including `**kwargs`, must be in the order of `in_spec`."""


SURROUNDINGS = ("no_grad", "nested", "inference_mode", "layout", "requires_grad", "autocast")
"""Surroundings of a call that a model may ask about."""


@attrs.frozen
class Surrounding:
    """Surroundings in which the program must not run, since the original computes something else there.

    Attributes:
        answers: those of the captured call, one for each input tensor where they differ by input (memory order of its
            dimensions, whether it requires a gradient).
        place: where the original asks.
    """

    answers: tuple[bool | tuple[int, ...], ...] = ()
    place: str = ""


@attrs.frozen
class SymbolRange:
    """Inclusive range of a symbol.

    Attributes:
        lower: the least value.
        upper: the greatest value; None where it is unbounded.
    """

    lower: int = 0
    upper: int | None = None

    def __contains__(self, size: int) -> bool:
        return self.lower <= size and (self.upper is None or size <= self.upper)

    def __str__(self) -> str:
        return f"[{self.lower}, {'inf' if self.upper is None else self.upper}]"


SWITCHES = ("train", "eval", "train_false")
"""Switches of the mode: `train()`, `eval()`, and `train(False)` where the model overrides `eval()`."""


@attrs.define(eq=False, repr=False)
class Program:
    """A graph with its weights, its calling convention and the ranges of its symbols.

    Attributes:
        name: the name it is printed under, by default that of the model's class.
        graph: inputs, operations, outputs.
        convention: how Python arguments become the graph's inputs, and its outputs the result.
        weights: parameters, buffers and constants by name.
        symbols: the symbolic sizes and their ranges.
        location: the root module's place.
    """

    name: str
    graph: Graph
    convention: CallingConvention
    weights: dict[str, Weight] = attrs.field(factory=dict)
    symbols: dict[sympy.Symbol, SymbolRange] = attrs.field(factory=dict)
    constraints: tuple[sympy.Basic, ...] = ()
    """Relations between symbols that the capture assumed, beside the ranges: `Eq(Mod(s0, 2), 0)`."""
    module_modes: dict[str, bool] = attrs.field(factory=dict)
    """Module path -> `training`, of every module of the original (the root is '')."""
    module_aliases: dict[str, str] = attrs.field(factory=dict, kw_only=True)
    """Another path of a module of the original -> its path in `module_modes`; submodules are aliased, too."""
    location: Location = UNKNOWN_LOCATION
    opaques: dict[str, Any] = attrs.field(factory=dict)
    """Python callables that opaque operations call: name -> module or function."""
    mode_locked: str = ""
    """Why the emitted module cannot switch modes; empty if it can."""
    modes_after: Mapping[str, Mapping[str, bool]] = attrs.field(factory=dict)
    """Switch -> module path -> `training` after it, for modules that do not follow the switch.

    A switch is one of `SWITCHES` of the root or, as in `backbone.train`, of a module that overrides it.
    """
    surroundings: Mapping[str, Surrounding] = attrs.field(factory=dict)
    """Name, of `SURROUNDINGS` -> surroundings that the program refuses."""

    def add_weight(self, weight: Weight) -> Value:
        """Add a weight and return its value.

        Raises:
            VerificationError: when the name is taken.
        """
        if weight.name in self.weights:
            raise VerificationError(f"there is a weight named {weight.name!r} already")
        self.weights[weight.name] = weight
        self.graph.revision += 1
        return weight.value

    def unique_weight_name(self, base: str) -> str:
        """Return `base`, or `base_1`, `base_2`, … where it is taken; names of tied weights count."""
        tied = [weight.aliases for weight in self.weights.values() if weight.aliases]
        return free_name(base, lambda name: name in self.weights or any(name in aliases for aliases in tied))

    def values(self) -> Iterator[Value]:
        """Yield weights, inputs and results, in order."""
        for weight in self.weights.values():
            yield weight.value
        yield from self.graph.inputs
        for op in self.graph.operations():
            yield from op.results

    def __repr__(self) -> str:
        return f"<Program {self.name!r} with {self.graph.num_operations} operations>"

    def __str__(self) -> str:
        return print_program(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the text in IPython, and where hypothesis reports an example: it would print all fields instead."""
        printer.text(str(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return copy_program(self)

    def __reduce__(self) -> Any:
        raise TypeError("a Program is not pickled: save its text, `str(program)`, and the emitted module")


def weight_of(value: Value | None) -> Weight | None:
    """Return the weight that `value` is, or None."""
    owner = None if value is None else value.owner
    return owner if isinstance(owner, Weight) else None


def copy_program(program: Program) -> Program:
    """Return an independent copy of a program.

    The tensors of weights and the callables of opaque names are shared.
    """
    mapping: dict[Value, Value] = {}
    weights: dict[str, Weight] = {}
    for name, weight in program.weights.items():
        derivation = weight.derivation
        if derivation is not None:
            derivation = attrs.evolve(derivation, program=copy_program(derivation.program))
        twin = weights[name] = attrs.evolve(weight, derivation=derivation)
        mapping[weight.value] = twin.value
    return attrs.evolve(
        program,
        graph=copy_graph(program.graph, mapping),
        convention=attrs.evolve(program.convention, views=dict(program.convention.views)),
        weights=weights,
        symbols=dict(program.symbols),
        module_modes=dict(program.module_modes),
        module_aliases=dict(program.module_aliases),
        opaques=dict(program.opaques),
        modes_after={switch: dict(modes) for switch, modes in program.modes_after.items()},
        surroundings=dict(program.surroundings),
    )
