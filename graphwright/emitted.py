"""What emitted modules are made of, for packages that `save_code` wrote; you need not import it yourself."""

from compiler.emitted.forward_code import taken
from compiler.emitted.fused import (
    FusedAdaptiveAvgPool2d,
    FusedConvBN,
    FusedConvBNAct,
    FusedConvBNActMaxPool,
    FusedConvBNAddAct,
    FusedConvTransposeBN,
    FusedConvTransposeBNAct,
    FusedGatedLinear,
    FusedGroupNorm,
    FusedLayerNorm,
    FusedLinear,
    FusedLinearAct,
    FusedLinearBN,
    FusedLinearBNAct,
    FusedModule,
    FusedRMSNorm,
    ScaledDotProductAttention,
    fused_class,
)
from compiler.emitted.graphmodule import (
    Container,
    assign_buffer,
    before_assignment,
    call_with,
    with_switches,
    write_unless_itself,
)
from compiler.emitted.guard import Check, InputGuard, Leaves
from compiler.emitted.quantization import Quantizer, fake_quantize
from compiler.emitted.sizes import check_size
from compiler.emitted.written import WrittenModule, WrittenRegion, hold, list_in_order, load_tensors, start
from ir.program import Surrounding

__all__ = [
    "Check",
    "Container",
    "FusedAdaptiveAvgPool2d",
    "FusedConvBN",
    "FusedConvBNAct",
    "FusedConvBNActMaxPool",
    "FusedConvBNAddAct",
    "FusedConvTransposeBN",
    "FusedConvTransposeBNAct",
    "FusedGatedLinear",
    "FusedGroupNorm",
    "FusedLayerNorm",
    "FusedLinear",
    "FusedLinearAct",
    "FusedLinearBN",
    "FusedLinearBNAct",
    "FusedModule",
    "FusedRMSNorm",
    "InputGuard",
    "Leaves",
    "Quantizer",
    "ScaledDotProductAttention",
    "Surrounding",
    "WrittenModule",
    "WrittenRegion",
    "assign_buffer",
    "before_assignment",
    "call_with",
    "check_size",
    "fake_quantize",
    "fused_class",
    "hold",
    "list_in_order",
    "load_tensors",
    "start",
    "taken",
    "with_switches",
    "write_unless_itself",
]
