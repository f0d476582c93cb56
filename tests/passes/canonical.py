"""Holds canonicalization to what it promises: the same bits, strides and sharing, and a fixpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ir.errors import EvaluationError
from ir.evaluate import evaluate
from ir.program import Program, SymbolRange, Weight, WeightKind
from ir.text.printer import print_program
from ir.types import TensorType, symbols_of, type_of_tensor
from ir.verify import verify
from passes.canonicalize import Canonicalize
from passes.manager.manager import PassContext, run_pass
from tests.passes.building import names, program


def canonicalize(p: Program, **options: Any) -> Program:
    """Canonicalize in place, verify, and hold a second run to change nothing."""
    run_pass(Canonicalize(**options), p, PassContext())
    verify(p)
    revision, text = p.graph.revision, print_program(p)
    run_pass(Canonicalize(**options), p, PassContext())
    assert p.graph.revision == revision
    assert print_program(p) == text
    return p


def symbolic(p: Program) -> Program:
    """Declare the symbols of the inputs."""
    for value in p.graph.inputs:
        p.symbols.update({symbol: SymbolRange(1) for symbol in symbols_of(value.tensor_type.shape or ())})
    return p


def random_inputs(p: Program, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random_tensor(v.tensor_type, generator) for v in p.graph.inputs]


def random_tensor(type_: TensorType, generator: torch.Generator) -> torch.Tensor:
    assert type_.is_static and type_.dtype is not None and type_.shape is not None
    shape = [int(d) for d in type_.shape]
    if type_.dtype.is_floating_point:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(type_.dtype)
        flat = tensor.view(-1)
        for i, special in enumerate((float("nan"), -0.0, 0.0, float("inf"), -float("inf"), 6.0)):
            if 2 * i + 1 < flat.numel():
                flat[2 * i + 1] = special
        return tensor
    if type_.dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    return torch.randint(-4, 5, shape, generator=generator).to(type_.dtype)


def sharing(inputs: Sequence[torch.Tensor], outputs: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the pairs of tensors among inputs and outputs that share storage."""
    pointers = [t.untyped_storage().data_ptr() if t.numel() else -1 - i for i, t in enumerate((*inputs, *outputs))]
    return [(i, j) for j in range(len(pointers)) for i in range(j) if pointers[i] == pointers[j]]


def meaningful_strides(tensor: torch.Tensor) -> list[int]:
    """Return the strides of the dimensions where they mean something."""
    return [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1] if tensor.numel() else []


def assert_same(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
    """Equal bit for bit: NaN in the same places, the same sign of zero, the same dtype, shape and strides."""
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert meaningful_strides(a) == meaningful_strides(b)
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(
            a.nan_to_num() if a.is_floating_point() else a, b.nan_to_num() if b.is_floating_point() else b
        )
        if a.is_floating_point():
            assert torch.equal(torch.signbit(a) | a.isnan(), torch.signbit(b) | b.isnan())


def check(
    types: Sequence[TensorType], body: Callable[..., Any], weights: dict[str, TensorType] | None = None
) -> Program:
    """Build a program, canonicalize it under all checks, and return it."""
    p = program(types, body, weights)
    return check_program(p)


def check_program(p: Program, **options: Any) -> Program:
    """Canonicalize a program and hold its outputs to those of before, also for inputs in other memory layouts."""
    return check_change(p, random_inputs(p), lambda: canonicalize(p, **options))


def check_change(p: Program, given: Sequence[torch.Tensor], change: Callable[[], Any]) -> Program:
    """Hold the outputs after a change to those before: bits, strides and sharing, in three memory layouts."""
    runs = [list(given), [transposed(x) for x in given], [channels_last(x) for x in given]]
    expected = []
    with torch.no_grad():
        for inputs in runs:
            try:
                outputs = evaluate(p, inputs)
            except EvaluationError:
                assert inputs is not runs[0]  # only a view may refuse strides
                continue
            expected.append((inputs, outputs, sharing(inputs, outputs)))
        change()
        for inputs, outputs, shared in expected:
            results = evaluate(p, inputs)
            assert_same(outputs, results)
            assert sharing(inputs, results) == shared
    return p


def transposed(x: torch.Tensor) -> torch.Tensor:
    """Return an equal tensor whose memory runs through the dimensions in the reverse order."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def constant(p: Program, name: str, data: torch.Tensor, kind: WeightKind = WeightKind.CONSTANT, **fields: Any) -> Any:
    """Add a constant (or buffer) and return its value."""
    return p.add_weight(Weight(name, kind, type_of_tensor(data), data, **fields))


__all__ = [
    "assert_same",
    "canonicalize",
    "check",
    "check_program",
    "constant",
    "names",
    "program",
    "random_inputs",
    "symbolic",
]
