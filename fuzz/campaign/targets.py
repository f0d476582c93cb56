"""Targets by name: rules, passes, pipelines."""

from __future__ import annotations

import attrs

from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.targets import TARGETS
from fuzz.modules.strategy import modules
from fuzz.rules.names import find_rule
from fuzz.rules.reverse import inflated
from fuzz.search.sound import Target

PASSES = (
    "canonicalize",
    "canonicalize{inference=true}",
    "eliminate-common-subexpressions",
    "eliminate-dead-code",
    "fold-constants",
    "fold-batch-norm",
)
"""The passes that `--passes all` means.

Those that place quantizers are not among them: drawn programs hold quantizations, which they refuse, and what they
place has no ranges to run with. `tests/properties/test_quantizers.py` places, joins and removes in programs without.
"""

VARIANTS = ("inflated", "reordered", "modules")
"""Words before a pipeline: on programs to which rules were applied in reverse; with rules and conversions in other
orders and in drawn scopes; on whole modules, through both captures."""


def resolve(target: str) -> Target:
    """Return the target of a text: `rule NAME`, or a pipeline, perhaps after one of `VARIANTS`.

    A pipeline is text, the name of a runtime (`openvino`), or `standard`, which is that of TensorRT.

    Raises:
        InputError: when there is no such rule.
        ParseError: when the text is not a pipeline.
    """
    kind, _, name = target.partition(" ")
    if kind == "rule":
        return Target.of(find_rule(name))
    if kind == "inflated":
        return attrs.evolve(resolve(name), on=inflated())
    if kind == "reordered":
        return attrs.evolve(resolve(name), orders=True)
    if kind == "modules":
        return attrs.evolve(resolve(name), on=modules())
    runtime = TARGETS.get("tensorrt" if target == "standard" else target)
    return Target.of(parse_pipeline(target) if runtime is None else pipeline_of(runtime.patterns))
