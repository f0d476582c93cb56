"""The target OpenVINO on CPUs: sums and activations run in the kernels of convolutions and linear layers."""

from __future__ import annotations

from compiler.targets.target import Target
from passes.convert.attention import DecomposeMultiheadAttentionPattern
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from passes.fuse.attention import MHAInProjectionPattern, ScaledDotProductAttentionPattern
from passes.fuse.conv import ConvBNActPattern, ConvBNAddActPattern, ConvBNPattern
from passes.fuse.dense import AdaptiveAvgPoolPattern, LayerNormPattern, LinearActPattern, LinearPattern
from passes.quant import tables

OPENVINO = Target(
    "openvino",
    conversions=(RemoveIdentityAdaptiveAvgPoolPattern, DecomposeMultiheadAttentionPattern),
    fusions=(
        ConvBNAddActPattern,
        ConvBNActPattern,
        ConvBNPattern,
        MHAInProjectionPattern,
        ScaledDotProductAttentionPattern,
        LinearActPattern,
        LinearPattern,
        LayerNormPattern,
        AdaptiveAvgPoolPattern,
    ),
    table=tables.OPENVINO,
)
"""Its plugin merges what follows a convolution or a linear layer into their kernels."""
