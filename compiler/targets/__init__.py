"""What runtimes want, as data: each target's lists of patterns."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.targets.tensorrt import (
    OPTIONAL_PATTERNS,
    TENSORRT_CONVERSION_PATTERNS,
    TENSORRT_FUSION_PATTERNS,
    TENSORRT_PATTERNS,
)
from passes.rewrite.pattern import Pattern

TARGETS: Mapping[str, Mapping[str, tuple[type[Pattern], ...]]] = {
    "tensorrt": {
        "all": TENSORRT_PATTERNS,
        "conversions": TENSORRT_CONVERSION_PATTERNS,
        "fusions": TENSORRT_FUSION_PATTERNS,
        "none": (),
    }
}
"""Target -> the names of its lists of patterns."""

STANDARD_PATTERNS: tuple[type[Pattern], ...] = (
    *dict.fromkeys(pattern for lists in TARGETS.values() for pattern in lists["all"]),
    *OPTIONAL_PATTERNS,
)
"""The patterns of all targets, each once, and those of none: pipeline text may name them, and the fuzzer tries them."""
