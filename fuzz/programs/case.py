"""A case: a program in its text form, with weights and inputs; it can be run, saved, written as a script."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch.utils import _pytree as pytree

from compiler.usercode.difference import tensor_difference
from ir.core import Graph
from ir.errors import InputError
from ir.program import CallingConvention, InputLeaf, OutputLeaf, Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import CPU, TensorType, Type
from passes.rewrite.driver import RewriteLog


@attrs.frozen(eq=False)
class Case:
    """The subject of a check: a program, its weights and inputs."""

    program: str
    """The text form of the program."""
    inputs: tuple[Any, ...]
    """One tensor or number for each input."""
    weights: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    """The weights by name."""
    original: str = ""
    """The text of a program that is equal by construction, if there is one."""
    one_text: bool = False
    """Whether canonicalization must give both the same text."""

    @classmethod
    def of(cls, program: Program, inputs: Sequence[Any]) -> Case:
        """Return the case of a program and its inputs."""
        weights = {name: w.data.detach() for name, w in program.weights.items() if w.data is not None}
        return cls(print_program(program), tuple(inputs), weights)

    @classmethod
    def seeded(
        cls,
        program: str,
        *,
        seed: int = 0,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Case:
        """Return a case with random inputs and weights.

        Args:
            program: the text of the program.
            seed: of the random numbers.
            bounds: name -> range of its values: variances must be positive.
            values: name -> tensor or number.

        Raises:
            InputError: when an input or a weight has no value, and no type for which a tensor can be drawn.
        """
        built = parse_program(program)
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str, type_: Type) -> Any:
            if name in (values or {}):
                return (values or {})[name]
            if not isinstance(type_, TensorType) or not type_.is_static or not type_.dtype or type_.shape is None:
                raise InputError(f"no tensor can be drawn for %{name} of type {type_}", remedy="give its value")
            if type_.device not in (None, CPU):
                raise InputError(
                    f"%{name} is on {type_.device}: programs run on the CPU", remedy="leave its device out"
                )
            shape = [int(size) for size in type_.shape if size is not None]
            if not type_.dtype.is_floating_point:
                return torch.randint(0, 2, shape, generator=generator).to(type_.dtype)
            tensor = torch.randn(shape, generator=generator)
            if name in (bounds or {}):
                low, high = (bounds or {})[name]
                tensor = torch.rand(shape, generator=generator) * (high - low) + low
            return tensor.to(type_.dtype)

        inputs = [draw(value.name, value.type) for value in built.graph.inputs]
        return cls(program, tuple(inputs), {name: draw(name, w.type) for name, w in built.weights.items()})

    def of_original(self) -> Case:
        """Return the case of the program that is equal by construction."""
        return attrs.evolve(self, program=self.original, original="", one_text=False)

    def build(self) -> Program:
        """Return a new program with its weights."""
        program = parse_program(self.program)
        for name, data in self.weights.items():
            program.weights[name].data = data
        return program

    def code(self) -> str:
        """Return a Python expression for the case."""
        weights = "".join(f"        {name!r}: {literal(data)},\n" for name, data in self.weights.items())
        inputs = "".join(f"        {literal(x)},\n" for x in self.inputs)
        original = ""
        if self.original:
            original = f'    original="""\n{self.original.strip()}\n""",\n    one_text={self.one_text},\n'
        return f'''Case(
    program="""
{self.program.strip()}
""",
    inputs=(
{inputs}    ),
    weights={{
{weights}    }},
{original})'''


@attrs.frozen
class Outcome:
    """The effects of a pass on a program or a module."""

    fired: Counter[str]
    """Rule -> number of rewrites."""
    refused: Counter[tuple[str, str]]
    """(rule, reason) -> number of refused matches."""
    variants: Counter[tuple[str, int]]
    """(rule, alternative of its pattern) -> number of rewrites."""
    changed: bool
    """Whether the program changed."""
    operators: tuple[str, ...] = ()
    """The operators of a module's programs; empty for a program."""
    fates: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """(kind, fate) of a module -> number of captures; see `fuzz.modules.check`."""


class Kept:
    """Copies of the inputs and weights of a case, which neither passes nor runs may mutate."""

    def __init__(self, case: Case) -> None:
        given = {**{f"input {i}": x for i, x in enumerate(case.inputs)}, **case.weights}
        self.tensors = [(name, x, x.clone()) for name, x in given.items() if isinstance(x, torch.Tensor)]

    def mutated(self) -> str | None:
        """Return the name of a tensor that has changed, or None."""
        for name, tensor, copy in self.tensors:
            if not torch.equal(tensor, copy) and tensor_difference(copy, tensor, exact=True) is not None:
                return name
        return None


def positional_convention(graph: Graph) -> CallingConvention:
    """Return the convention of a function of the graph's inputs, one by one, that returns its outputs."""
    count = len(graph.outputs)
    return CallingConvention(
        None,
        None if count == 1 else pytree.tree_structure(tuple(range(count))),
        inputs=tuple(InputLeaf(v.name, i) for i, v in enumerate(graph.inputs)),
        outputs=tuple(OutputLeaf(i) for i in range(count)),
    )


def literal(item: Any) -> str:
    """Return Python code that reproduces every bit of a tensor or number."""
    if not isinstance(item, torch.Tensor):
        return _number(item)
    dtype = str(item.dtype)
    values = ", ".join(map(_number, item.detach().reshape(-1).tolist()))
    code = f"torch.tensor([{values}], dtype={dtype})"
    if item.dim() != 1:
        code += f".reshape({tuple(item.shape)})"
    if item.numel() and item.stride() != torch.empty(item.shape).stride():
        code = f"torch.empty_strided({tuple(item.shape)}, {item.stride()}, dtype={dtype}).copy_({code})"
    return code


def _number(number: Any) -> str:
    if isinstance(number, complex):
        return f"complex({_number(number.real)}, {_number(number.imag)})"
    if isinstance(number, float) and not math.isfinite(number):
        return f'float("{number}")'
    return repr(number)


def outcome_of(log: RewriteLog, changed: bool) -> Outcome:
    """Return the effects of a pass from its log."""
    refused = Counter((remark.rule, remark.message) for remark in log.remarks)
    return Outcome(Counter(log.counts), refused, log.variants, changed)
