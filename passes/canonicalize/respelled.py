"""Which operators canonicalization writes as others, and which patterns therefore wait for what never comes."""

from __future__ import annotations

from collections.abc import Mapping

from ir.opdef import OpDef, Trait
from passes.rewrite.expansion import op_nodes
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Chain, OpNode, Pattern


def canonical_name(opdef: OpDef) -> str | None:
    """Return the operator that canonical programs have in place of `opdef`, where shapes are known; None: it stays."""
    known = opdef.facts.synonym or opdef.facts.spelled
    if known is not None:
        return known
    namespace, packet, *overload = opdef.name.split(".")
    if namespace == "aten" and packet.endswith("_") and not packet.startswith("_"):
        return ".".join((namespace, packet[:-1], *overload))  # capture makes in-place operators functional
    return None


def respelled_operators(rule: Pattern) -> dict[str, str]:
    """Return the operators that keep a rule from matching canonical programs, with their canonical names.

    Empty where at least one alternative of the pattern has none of them.

    Raises:
        PatternError: when the pattern is ill-formed.
    """
    found: dict[str, str] = {}
    for variant in compile_rule(rule):
        needed = [_respelled(node) for node in op_nodes(variant.root)]
        if not any(needed):
            return {}
        for names in needed:
            found.update(names)
    return found


def spelled_otherwise(respelled: Mapping[str, str]) -> str:
    """Return the operators that `respelled_operators` found in words, with what to write in their place."""
    return ", ".join(f"{name} (write {canonical})" for name, canonical in respelled.items())


def _respelled(node: OpNode | Chain) -> dict[str, str]:
    """Return the operators of a node that must match, when all of them are written otherwise."""
    if isinstance(node.ops, Trait) or (isinstance(node, Chain) and not node.minimum):
        return {}
    found: dict[str, str] = {}
    for entry in node.ops:
        name = None if isinstance(entry, Trait) else canonical_name(entry)
        if name is None or isinstance(entry, Trait):
            return {}
        found[entry.name] = name
    return found
