"""The quantizers of a placed program: each scale, and the operations that use it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from compiler.quant.observe.grid import Grid
from ir.core import Graph, Operation, Value
from ir.program import Program, Weight, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.quant.kernels import integer_range


@attrs.define(eq=False)
class Quantizer:
    """A scale with its zero point, and the quantizations that use them.

    Attributes:
        scale: the weight that holds the scale.
        zero_point: the weight that holds the zero point.
        operations: the quantizations, in program order.
        weight: the weight that is quantized; None for values that a call computes.
    """

    scale: Weight
    zero_point: Weight
    operations: list[Operation]
    weight: Weight | None = None
    regions: list[Operation] = attrs.field(factory=list)
    """The regions whose bodies the operations are in, or that read their integers, in program order."""

    @property
    def name(self) -> str:
        """The name of the scale."""
        return self.scale.name

    @property
    def operation(self) -> Operation:
        """The first of the operations: all have one type, axis and range."""
        return self.operations[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the integers."""
        dtype: torch.dtype = self.operation.attributes["dtype"]
        return dtype

    @property
    def axis(self) -> int | None:
        """The dimension that has a scale for each index."""
        axis: int | None = self.operation.attributes["axis"]
        return axis

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        attributes = self.operation.attributes
        return integer_range(self.dtype, attributes["quant_min"], attributes["quant_max"])

    def grid(self, *, power_of_two: bool) -> Grid:
        """Return the grid whose parameters are to be chosen: symmetric of a signed type."""
        low, high = self.ends
        return Grid(low, high, symmetric=self.dtype.is_signed, power_of_two=power_of_two)

    def set(self, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        """Give the weights these numbers."""
        device = self.scale.type.device if self.scale.data is None else self.scale.data.device
        self.scale.data = scale.to(device=device, dtype=self.scale.type.dtype or torch.float32)
        self.zero_point.data = zero_point.to(device=device, dtype=self.dtype)


def is_quantized(program: Program) -> bool:
    """Return whether the program quantizes or dequantizes anything."""
    return any(op.opdef in (QUANTIZE, DEQUANTIZE) for op, _ in operations(program.graph))


def operations(graph: Graph, region: Operation | None = None) -> Iterator[tuple[Operation, Operation | None]]:
    """Yield the operations of a graph and of the bodies in it, each with the outermost region that it is in."""
    for op in graph.operations():
        yield op, region
        if op.body is not None:
            yield from operations(op.body, region or op)


def quantizers(program: Program) -> dict[str, Quantizer]:
    """Return name of the scale -> quantizer, of every quantization of the program, in order of first use."""
    owners = Owners(program.graph)
    found: dict[str, Quantizer] = {}
    for op, region in operations(program.graph):
        if op.opdef is not QUANTIZE:
            continue
        value, scale, zero_point = (owners.outer(operand) for operand in op.operands)
        scale_weight, zero_weight = weight_of(scale), weight_of(zero_point)
        if scale_weight is None or zero_weight is None:
            continue  # its parameters are computed by the model itself
        entry = found.get(scale_weight.name)
        if entry is None:
            entry = found[scale_weight.name] = Quantizer(scale_weight, zero_weight, [], weight_of(value))
        entry.operations.append(op)
        readers = [region] if region is not None else [user for user in op.result.users if user.body is not None]
        entry.regions += [reader for reader in readers if reader not in entry.regions]
    return found


class Owners:
    """Which region has which body."""

    def __init__(self, graph: Graph) -> None:
        self._regions: dict[Graph, Operation] = {op.body: op for op, _ in operations(graph) if op.body is not None}

    def outer(self, value: Value | None) -> Value | None:
        """Return what an input of a body is outside of the regions around it; other values themselves."""
        while value is not None and isinstance(value.owner, Graph) and value.owner in self._regions:
            value = self._regions[value.owner].operands[value.index]
        return value
