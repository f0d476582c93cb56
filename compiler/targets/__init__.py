"""What runtimes want, as data: each target's patterns."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.targets.onnxruntime import ONNXRUNTIME
from compiler.targets.openvino import OPENVINO
from compiler.targets.target import Target
from compiler.targets.tensorrt import OPTIONAL_PATTERNS, TENSORRT
from ir.errors import InputError
from ir.spelling import did_you_mean
from passes.rewrite.pattern import Pattern

TARGETS: Mapping[str, Target] = {target.name: target for target in (TENSORRT, ONNXRUNTIME, OPENVINO)}
"""The targets by name."""

STANDARD_PATTERNS: tuple[type[Pattern], ...] = tuple(
    dict.fromkeys(
        pattern
        for pattern in (*(p for target in TARGETS.values() for p in target.patterns), *OPTIONAL_PATTERNS)
        if isinstance(pattern, type)
    )
)
"""The patterns of all targets, each once, and those of none: pipeline text may name them, and the fuzzer tries them."""

PATTERN_LISTS: Mapping[str, tuple[type[Pattern] | Pattern, ...]] = {
    f"{target.name}.{name}": patterns
    for target in TARGETS.values()
    for name, patterns in target.lists.items()
    if name in ("conversions", "fusions")
}
"""The lists of the targets as pipeline text names them: `fuse{patterns=openvino.fusions}`."""


def find_target(target: str | Target) -> Target:
    """Return the target of a name, or the target that is given.

    Raises:
        InputError: when there is none of this name.
    """
    if isinstance(target, Target):
        return target
    found = TARGETS.get(target) if isinstance(target, str) else None
    if found is None:
        known = f"use one of {', '.join(map(repr, TARGETS))}, or a `Target` of your own"
        remedy = did_you_mean(target, TARGETS, known) if isinstance(target, str) else known
        raise InputError(f"target={target!r} is no target", remedy=remedy)
    return found
