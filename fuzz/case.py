"""A case: a program in its text form, its weights and inputs. It can be run, written as a script, and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from ir.parser import parse_program
from ir.printer import print_program
from ir.program import Program


@attrs.frozen(eq=False)
class Case:
    """What a property was checked on: a program and what it is run on."""

    program: str
    """The text form of the program."""
    inputs: tuple[Any, ...] = attrs.field(converter=tuple)
    """One tensor or number for each input."""
    weights: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    """The weights by name."""

    @classmethod
    def of(cls, program: Program, inputs: Sequence[Any]) -> Case:
        """Return the case of a program and its inputs."""
        weights = {name: w.data.detach() for name, w in program.weights.items() if w.data is not None}
        return cls(print_program(program), tuple(inputs), weights)

    def build(self) -> Program:
        """Return the program with its weights, anew for each call."""
        program = parse_program(self.program)
        for name, data in self.weights.items():
            program.weights[name].data = data
        return program


def literal(item: Any) -> str:
    """Return Python code for a tensor or number: every bit of it."""
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
