"""Rules by name: ours by the name of the class, others as `package.module:Class`."""

from __future__ import annotations

import importlib

from compiler.targets import STANDARD_PATTERNS
from ir.errors import InputError
from ir.spelling import did_you_mean
from passes.canonicalize import CANONICALIZATION_RULES
from passes.canonicalize.identity import INFERENCE_RULES
from passes.fold.batch_norm import FoldBatchNormPattern
from passes.rewrite.pattern import Pattern

RULES: dict[str, type[Pattern]] = {
    rule.__name__: rule
    for rule in (*CANONICALIZATION_RULES, *INFERENCE_RULES, *STANDARD_PATTERNS, FoldBatchNormPattern)
}
"""All our rules, by name."""


def find_rule(name: str) -> type[Pattern]:
    """Return the rule with a name: one of ours, or `module:Class`.

    Raises:
        InputError: when there is none.
    """
    if ":" not in name:
        if name in RULES:
            return RULES[name]
        raise InputError(
            f"there is no rule {name!r}",
            remedy=did_you_mean(name, RULES, "write a rule of your own as `package.module:Class`"),
        )
    module, _, attribute = name.partition(":")
    if not module or module.startswith("."):
        raise InputError(f"{name!r} does not name a module", remedy="write `package.module:Class`")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the rule {name!r} cannot be imported: {error}", remedy="is its folder in PYTHONPATH?"
        ) from error
    except Exception as error:
        raise InputError(f"the module of {name!r} raises {type(error).__name__} on import: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Pattern)):
        raise InputError(f"{name!r} is {found!r}, no subclass of graphwright.Pattern")
    return found


def name_of_rule(rule: type[Pattern]) -> str | None:
    """Return the name by which `find_rule` finds a rule; None if it cannot be imported."""
    if RULES.get(rule.__name__) is rule:
        return rule.__name__
    plain = rule.__module__ != "__main__" and "." not in rule.__qualname__
    return f"{rule.__module__}:{rule.__qualname__}" if plain else None
