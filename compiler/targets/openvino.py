"""The target OpenVINO on CPUs: activations run in the kernels of convolutions and linear layers."""

from __future__ import annotations

from compiler.targets.target import Target
from passes.convert.attention import DecomposeMultiheadAttentionPattern
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from passes.convert.recompose import RECOMPOSITIONS
from passes.fuse.attention import MHAInProjectionPattern, ScaledDotProductAttentionPattern
from passes.fuse.conv import ConvBNActPattern, ConvBNPattern, ConvTransposeBNActPattern, ConvTransposeBNPattern
from passes.fuse.dense import (
    AdaptiveAvgPoolPattern,
    AddReluPattern,
    GatedLinearPattern,
    LayerNormPattern,
    LinearActPattern,
    LinearBNActPattern,
    LinearBNPattern,
    LinearPattern,
)
from passes.fuse.norms import GroupNormPattern, RMSNormPattern
from passes.quant import tables

OPENVINO = Target(
    "openvino",
    conversions=(RemoveIdentityAdaptiveAvgPoolPattern, DecomposeMultiheadAttentionPattern, *RECOMPOSITIONS),
    fusions=(
        ConvBNActPattern,
        ConvBNPattern,
        ConvTransposeBNActPattern,
        ConvTransposeBNPattern,
        MHAInProjectionPattern,
        ScaledDotProductAttentionPattern,
        GatedLinearPattern,
        LinearBNActPattern,
        LinearBNPattern,
        LinearActPattern,
        LinearPattern,
        AddReluPattern,
        LayerNormPattern,
        RMSNormPattern,
        GroupNormPattern,
        AdaptiveAvgPoolPattern,
    ),
    table=tables.OPENVINO,
)
"""Its plugin merges what follows a convolution or a linear layer into their kernels.

A sum as well, but only where both operands are quantized: so it is a region of its own.
"""
