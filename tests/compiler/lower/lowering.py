"""Holds a lowered program to the module that it came from: results, and what is written to inputs and buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from compiler.usercode.tensors import meaningful_strides
from ir.evaluate import evaluate
from ir.program import Program
from ir.verify import verify


class Function(nn.Module):
    """A module whose forward is a function of the module and its arguments."""

    def __init__(self, function: Callable[..., Any], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


@contextmanager
def slow_attention() -> Iterator[None]:
    """Turn off the fused kernel of attention, which computes other bits than the traced operators."""
    saved = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(saved)


def lowered(model: nn.Module, *args: Any, **options: Any) -> Program:
    """Capture and lower, and verify the program."""
    program = lower(capture(model, args, **options))
    verify(program)
    return program


def names(program: Program) -> list[str]:
    """Names of the operators, in order, without dialect."""
    return [op.opdef.name.partition(".")[2] for op in program.graph.operations()]


def assert_same(program: Program, model: nn.Module, *args: torch.Tensor) -> None:
    """Evaluate the program and run a copy of the model, and compare all that a caller can see, bit for bit."""
    reference = copy.deepcopy(model)
    given = [arg.clone() for arg in args]
    with torch.no_grad(), slow_attention():
        expected = pytree.tree_leaves(reference(*given))
    written: dict[str, torch.Tensor] = {}
    with torch.no_grad(), slow_attention():
        results = evaluate(program, args, written=written)
    assert len(program.convention.outputs) == len(expected)
    for leaf, value in zip(program.convention.outputs, expected, strict=True):
        if leaf.value is None:
            assert leaf.constant == value
        elif not isinstance(value, torch.Tensor):
            assert results[leaf.value] == value
        else:
            _assert_bits(results[leaf.value], value)
            assert meaningful_strides(results[leaf.value]) == meaningful_strides(value)
    for mutation in program.convention.mutations:
        if mutation.buffer is not None:
            written[mutation.buffer] = results[mutation.output]
        else:
            assert mutation.input is not None
            _assert_bits(results[mutation.output], given[mutation.input])
    changed = {mutation.input for mutation in program.convention.mutations}
    for number, (before, after) in enumerate(zip(args, given, strict=True)):
        if number not in changed:
            _assert_bits(before, after)
    for name, buffer in reference.named_buffers():
        if name.endswith("num_batches_tracked"):
            continue  # the module's own counting, no operation
        _assert_bits(written.get(name, model.get_buffer(name)), buffer)


def _assert_bits(found: Any, expected: torch.Tensor) -> None:
    assert isinstance(found, torch.Tensor)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    same = (found == expected) | ((found != found) & (expected != expected))
    assert bool(same.all()), (found, expected)
