"""What emitted modules are made of, for packages that `save_code` wrote; you need not import it yourself."""

from compiler.emitted.forward_code import taken
from compiler.emitted.fused import (
    FusedAdaptiveAvgPool2d,
    FusedConvBN,
    FusedConvBNAct,
    FusedConvBNActMaxPool,
    FusedConvBNAddAct,
    FusedGatedLinear,
    FusedGroupNorm,
    FusedLayerNorm,
    FusedLinear,
    FusedLinearAct,
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
from compiler.emitted.written import WrittenModule, WrittenRegion, hold, load_tensors
from ir.program import Surrounding

__all__ = [
    "Check",
    "Container",
    "FusedAdaptiveAvgPool2d",
    "FusedConvBN",
    "FusedConvBNAct",
    "FusedConvBNActMaxPool",
    "FusedConvBNAddAct",
    "FusedGatedLinear",
    "FusedGroupNorm",
    "FusedLayerNorm",
    "FusedLinear",
    "FusedLinearAct",
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
    "load_tensors",
    "taken",
    "with_switches",
    "write_unless_itself",
]
