"""The target TensorRT: ordered tuples of patterns.

Attributes:
    OPTIONAL_PATTERNS: patterns that are part of no list and are selected by name.
    TENSORRT_CONVERSION_PATTERNS: the structural conversions.
    TENSORRT_FUSION_PATTERNS: the fusions.
    TENSORRT_PATTERNS: conversions, then fusions.
"""

from compiler.targets.tensorrt import (
    OPTIONAL_PATTERNS,
    TENSORRT_CONVERSION_PATTERNS,
    TENSORRT_FUSION_PATTERNS,
    TENSORRT_PATTERNS,
)

__all__ = ["OPTIONAL_PATTERNS", "TENSORRT_CONVERSION_PATTERNS", "TENSORRT_FUSION_PATTERNS", "TENSORRT_PATTERNS"]
