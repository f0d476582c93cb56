"""From a computed weight back to the weights of the original that it was computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from ir.columns import Layout
from ir.core import Operation, Value
from ir.errors import InputError
from ir.fake import flat_results, kernel_call
from ir.opdef import Trait
from ir.program import Derivation

_REMEDY = "keep the checkpoint of the original, or transform without what computed the weight"


@attrs.define(eq=False)
class Piece:
    """A tensor of which some elements are known."""

    data: torch.Tensor
    """The elements, as a vector."""
    known: torch.Tensor
    """Which of them are known: bool, a vector."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Piece:
        """Return a tensor of which all elements are known."""
        return cls(tensor.reshape(-1), torch.ones(tensor.numel(), dtype=torch.bool), tuple(tensor.shape))

    @classmethod
    def without(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Piece:
        """Return a tensor of which nothing is known."""
        count = math.prod(shape)
        return cls(torch.zeros(count, dtype=dtype, device=device), torch.zeros(count, dtype=torch.bool), shape)

    def fill(self, other: Piece) -> None:
        """Take what another piece of the same tensor knows."""
        self.data = torch.where(other.known.to(self.data.device), other.data, self.data)
        self.known |= other.known

    @property
    def tensor(self) -> torch.Tensor:
        """All elements, in their shape."""
        return self.data.reshape(self.shape)


def sources_of(key: str, derivation: Derivation, tensor: torch.Tensor) -> dict[str, Piece]:
    """Return what a computed weight tells of each weight that it was computed from.

    What moves elements is undone exactly, and so is a cast to a dtype that has all numbers of the one before; a factor
    is undone up to rounding.

    Raises:
        InputError: when an operation cannot be undone, or the weight has another shape.
    """
    graph = derivation.program.graph
    (output,) = graph.outputs
    assert output is not None
    if tuple(tensor.shape) != output.tensor_type.shape:
        raise InputError(f"{key!r} is {list(tensor.shape)} in the checkpoint, and {output.type} in the module")
    pieces: dict[Value, Piece] = {output: Piece.of(tensor.detach())}
    for op in reversed(list(graph.operations())):
        results = {result: pieces[result] for result in op.results if result in pieces}
        if not results:
            continue
        if _moves(op):
            found = _moved_back(op, results)
        else:
            (piece,) = results.values()
            undo = _undone(op)
            if undo is None:
                raise InputError(
                    f"{key!r} cannot be converted back: {op.name} at `{op.location.where}` computed it from "
                    f"{', '.join(map(repr, derivation.sources))}, and that cannot be undone",
                    remedy=_REMEDY,
                )
            found = {op.operand_values[0]: Piece(undo(piece.data), piece.known, piece.shape)}
        for value, piece in found.items():
            known = pieces.setdefault(value, piece)
            if known is not piece:
                known.fill(piece)
    return {name: pieces[v] for name, v in zip(derivation.sources, graph.inputs, strict=True) if v in pieces}


def _moves(op: Operation) -> bool:
    return op.opdef.layout not in (None, Layout.STRIDED) or op.name == "aten.cat"


def _moved_back(op: Operation, results: Mapping[Value, Piece]) -> dict[Value, Piece]:
    """Put the elements of results where they came from, which the operation itself tells, run on their numbers."""
    first = next(iter(results.values())).data
    found: dict[Value, Piece] = {}
    starts: dict[Value, int] = {}
    numbers: list[torch.Tensor | None] = []
    start = 0
    for value in op.operands:
        if value is None:
            numbers.append(None)
            continue
        shape = tuple(d for d in value.tensor_type.shape or () if isinstance(d, int))
        if value not in found:
            found[value] = Piece.without(shape, first.dtype, first.device)
            starts[value] = start
            start += math.prod(shape)
        places = torch.arange(starts[value], starts[value] + math.prod(shape))
        numbers.append(places.reshape(shape))
    kernel, args, kwargs = kernel_call(op.opdef, op.opdef.group(numbers, op.segments), op.attributes, lambda leaf: leaf)
    assert kernel is not None
    origins = flat_results(kernel(*args, **kwargs))
    for result, origin in zip(op.results, origins, strict=True):
        piece = results.get(result)
        if piece is None:
            continue
        places = origin.reshape(-1)
        for value, target in found.items():
            inside = (places >= starts[value]) & (places < starts[value] + target.known.numel()) & piece.known
            there = places[inside] - starts[value]
            target.data[there.to(first.device)] = piece.data[inside.to(first.device)]
            target.known[there] = True
    return found


def _undone(op: Operation) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what undoes an operation on one tensor; None where nothing does."""
    if len(op.operand_values) != 1 or len(op.results) != 1:
        return None
    before, after = op.operand_values[0].tensor_type.dtype, op.result.tensor_type.dtype
    if before is None or after is None:
        return None
    if op.opdef.has(Trait.CAST):
        return (lambda y: y.to(before)) if torch.promote_types(before, after) == after else None
    factor = _factor(op)
    return None if factor is None or before != after else lambda y: y / factor


def _factor(op: Operation) -> float | None:
    """Return the number that an operation multiplies its operand by."""
    other: Any = op.attributes.get("other")
    if not op.result.tensor_type.dtype or not op.result.tensor_type.dtype.is_floating_point:
        return None
    if op.name == "aten.neg":
        return -1.0
    if not isinstance(other, int | float) or not math.isfinite(other) or other == 0:
        return None
    if op.name == "aten.mul.Scalar":
        return float(other)
    return 1 / other if op.name == "aten.div.Scalar" else None
