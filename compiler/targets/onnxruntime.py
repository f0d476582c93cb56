"""The target ONNX Runtime on CPUs: one integer kernel an operator, so a sum is a region of its own."""

from __future__ import annotations

from compiler.targets.target import Target
from passes.convert.attention import DecomposeMultiheadAttentionPattern
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from passes.convert.recompose import RECOMPOSITIONS
from passes.fuse.attention import MHAInProjectionPattern, ScaledDotProductAttentionPattern
from passes.fuse.conv import ConvBNPattern, ConvBNReluPattern, ConvTransposeBNPattern
from passes.fuse.dense import (
    AdaptiveAvgPoolPattern,
    AddReluPattern,
    LayerNormPattern,
    LinearBNPattern,
    LinearBNReluPattern,
    LinearPattern,
    LinearReluPattern,
)
from passes.fuse.norms import GroupNormPattern, RMSNormPattern
from passes.quant import tables

ONNXRUNTIME = Target(
    "onnxruntime",
    conversions=(RemoveIdentityAdaptiveAvgPoolPattern, DecomposeMultiheadAttentionPattern, *RECOMPOSITIONS),
    fusions=(
        ConvBNReluPattern,
        ConvBNPattern,
        ConvTransposeBNPattern,
        MHAInProjectionPattern,
        ScaledDotProductAttentionPattern,
        LinearBNReluPattern,
        LinearBNPattern,
        LinearReluPattern,
        LinearPattern,
        AddReluPattern,
        LayerNormPattern,
        RMSNormPattern,
        GroupNormPattern,
        AdaptiveAvgPoolPattern,
    ),
    table=tables.ONNXRUNTIME,
)
"""Its kernels read and write integers, and take in the activations that the range of their results cuts off."""
