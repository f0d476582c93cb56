"""Sites: layers whose weights are quantized, and the number per channel that may be added to their results."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from compiler.quant.quantizers import Owners, Quantizer, operations
from ir.core import Operation, Value
from ir.opdef import Trait
from ir.program import Program, Weight, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from passes.rewrite.remarks import Remark


@attrs.define(eq=False)
class Site:
    """One layer with a quantized weight.

    Attributes:
        layer: the convolution or linear.
        outer: the operation of the main graph that holds it: a region, or the layer itself.
        quantizer: that of its weight.
        input: that of its input; None where the input is in float, or computed by the region.
        result: the operation that adds `bias` last: the layer, or a batch norm behind it.
        bias: what is added for each channel, a weight that nothing else reads; None where there is none.
        no_bias: why there is none.
    """

    layer: Operation
    outer: Operation
    quantizer: Quantizer
    input: Quantizer | None
    result: Operation
    bias: Weight | None
    no_bias: str = ""
    owners: Owners | None = attrs.field(default=None, repr=False)

    def norm_weight(self, name: str) -> torch.Tensor | None:
        """Return the data of a weight of the batch norm behind the layer."""
        assert self.owners is not None
        weight = weight_of(self.owners.outer(self.result.operand(name)))
        return None if weight is None or weight.data is None else weight.data.detach()

    def channel_of(self, x: torch.Tensor) -> int:
        """Return the dimension of the channels of a result."""
        if self.result is not self.layer:
            return 1  # of a batch norm
        if not is_convolution(self.layer):
            return x.dim() - 1
        rank = self.quantizer.operation.operands[0].tensor_type.rank  # type: ignore[union-attr]
        return x.dim() - (rank or x.dim()) + 1  # 0 without a batch


def sites_of(program: Program, found: Mapping[str, Quantizer]) -> list[Site]:
    """Return the layers with quantized weights, in program order."""
    owners = Owners(program.graph)
    by_operation = {op: entry for entry in found.values() for op in entry.operations}
    result = []
    for op, region in operations(program.graph):
        if not (is_convolution(op) or op.name == "aten.linear"):
            continue
        quantizer = _quantizer_of(op.operands[1], owners, by_operation)
        if quantizer is None or quantizer.weight is None:
            continue
        last = _batch_norm_behind(op) or op
        bias, why = _own_bias(last, owners)
        source = _quantizer_of(op.operands[0], owners, by_operation)
        result.append(Site(op, region or op, quantizer, source, last, bias, why, owners))
    return result


def is_convolution(op: Operation) -> bool:
    """Return whether an operation is a convolution, transposed or not."""
    return op.opdef.has(Trait.CONV) or op.opdef.has(Trait.CONV_TRANSPOSE)


def _quantizer_of(value: Value | None, owners: Owners, by_operation: Mapping[Operation, Quantizer]) -> Quantizer | None:
    """Return the quantizer whose integers a value was dequantized from."""
    source = owners.outer(value)
    op = None if source is None else source.defining_op
    if op is None or op.opdef is not DEQUANTIZE:
        return None
    integers = owners.outer(op.operands[0])
    inner = None if integers is None else integers.defining_op
    return by_operation.get(inner) if inner is not None and inner.opdef is QUANTIZE else None


def _batch_norm_behind(op: Operation) -> Operation | None:
    users = op.result.users
    if (
        len(users) == 1
        and users[0].name == "aten.batch_norm"
        and users[0].graph is op.graph
        and not users[0].in_training
    ):
        return users[0]
    return None


def _own_bias(op: Operation, owners: Owners) -> tuple[Weight | None, str]:
    """Return the bias that an operation adds, or why it has none that may change."""
    bias = op.operand("bias")
    if bias is None:
        return None, f"{op.name} has no bias"
    weight = weight_of(owners.outer(bias))
    if weight is None:
        return None, "the bias is computed"
    if weight.data is None or weight.data.is_meta:
        return None, "the bias has no data"
    inner_uses = bias.num_uses
    if weight.value.num_uses > 1 or inner_uses > 1:
        return None, f"the bias `{weight.name}` is read at several places"
    if weight.is_mutated or weight.aliases:
        return None, f"the bias `{weight.name}` is tied or written"
    return weight, ""


def remark(site: Site, rule: str, message: str, kind: str = "missed") -> Remark:
    """Return a remark about a site."""
    return Remark(kind, rule, site.layer.location, f"`{site.layer.location.where}`: {message}", site.layer.name)
