"""What can be fuzzed by name: rules, passes, pipelines."""

from __future__ import annotations

import difflib
import importlib

import attrs

from compiler.pipeline import STANDARD_PATTERNS, parse_pipeline, pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.strategy import modules
from fuzz.rules.reverse import inflated
from fuzz.search.sound import Target
from ir.errors import InputError
from passes.canonicalize import CANONICALIZATION_RULES
from passes.canonicalize.identity import INFERENCE_RULES
from passes.fold.batch_norm import FoldBatchNormPattern
from passes.rewrite.pattern import Pattern

_ALL: tuple[type[Pattern], ...] = (
    *CANONICALIZATION_RULES,
    *INFERENCE_RULES,
    *STANDARD_PATTERNS,
    FoldBatchNormPattern,
)
RULES: dict[str, type[Pattern]] = {rule.__name__: rule for rule in _ALL}
"""All rules of ours, by name."""

PASSES = (
    "canonicalize",
    "canonicalize{inference=true}",
    "eliminate-common-subexpressions",
    "eliminate-dead-code",
    "fold-constants",
    "fold-batch-norm",
)
"""The passes that a campaign tries when asked for all."""

VARIANTS = ("inflated", "reordered", "modules")
"""Words in front of a pipeline: on programs to which rules were applied in reverse; with rules and conversions in other
orders; on whole modules, through both captures."""


def find_rule(name: str) -> type[Pattern]:
    """Return the rule of a name: one of ours, or `module:Class`.

    Raises:
        InputError: when there is none.
    """
    if ":" not in name:
        if name in RULES:
            return RULES[name]
        near = difflib.get_close_matches(name, RULES, 3)
        raise InputError(
            f"there is no rule {name!r}",
            remedy=f"did you mean {', '.join(near)}?" if near else "write a rule of your own as `package.module:Class`",
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the rule {name!r} cannot be imported: {error}", remedy="is its folder in PYTHONPATH?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pattern)):
        raise InputError(f"{name!r} is {found!r}, no subclass of graphwright.Pattern")
    return found


def resolve(target: str) -> Target:
    """Return the target that a text names.

    It is `rule NAME`, or the text of a pipeline (`standard` for the standard one), perhaps behind one of `VARIANTS`.

    Raises:
        InputError: when there is no such rule.
        ParseError: when the text is no pipeline.
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
    return Target.of(pipeline_of(TENSORRT_PATTERNS) if target == "standard" else parse_pipeline(target))
