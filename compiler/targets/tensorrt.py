"""The target TensorRT: conversions and fusions, as ordered tuples of patterns."""

from __future__ import annotations

from compiler.targets.target import Target
from passes.convert.attention import DecomposeMultiheadAttentionPattern
from passes.convert.classifier import FlattenLinearToConv1x1Pattern, FlattenLinearToConvPattern
from passes.convert.linears import MergeLinearsPattern
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from passes.convert.recompose import RECOMPOSITIONS
from passes.fuse.attention import MHAInProjectionPattern, ScaledDotProductAttentionPattern
from passes.fuse.conv import (
    ConvBNActPattern,
    ConvBNAddActPattern,
    ConvBNPattern,
    ConvTransposeBNActPattern,
    ConvTransposeBNPattern,
    StemConvBNActMaxPoolPattern,
)
from passes.fuse.dense import (
    AdaptiveAvgPoolPattern,
    GatedLinearPattern,
    LayerNormPattern,
    LinearActPattern,
    LinearBNActPattern,
    LinearBNPattern,
    LinearPattern,
)
from passes.fuse.norms import GroupNormPattern, RMSNormPattern
from passes.quant import tables
from passes.rewrite.pattern import Pattern

TENSORRT_CONVERSION_PATTERNS: tuple[type[Pattern], ...] = (
    FlattenLinearToConv1x1Pattern,
    RemoveIdentityAdaptiveAvgPoolPattern,
    DecomposeMultiheadAttentionPattern,
    *RECOMPOSITIONS,
)
"""The structural conversions."""

TENSORRT_FUSION_PATTERNS: tuple[type[Pattern], ...] = (
    StemConvBNActMaxPoolPattern,
    ConvBNAddActPattern,
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
    LayerNormPattern,
    RMSNormPattern,
    GroupNormPattern,
    AdaptiveAvgPoolPattern,
)
"""The fusions."""

TENSORRT_PATTERNS: tuple[type[Pattern], ...] = TENSORRT_CONVERSION_PATTERNS + TENSORRT_FUSION_PATTERNS
"""Conversions, then fusions."""

OPTIONAL_PATTERNS: tuple[type[Pattern], ...] = (FlattenLinearToConvPattern, MergeLinearsPattern)
"""Patterns that are part of no list and are selected by name."""

TENSORRT = Target("tensorrt", TENSORRT_CONVERSION_PATTERNS, TENSORRT_FUSION_PATTERNS, tables.TENSORRT)
"""Its builder fuses a convolution with what follows it, a residual sum included."""
