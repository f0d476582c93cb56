"""Which operators canonicalization writes as others, and which patterns therefore wait for what never comes."""

from __future__ import annotations

from collections.abc import Mapping

from ir.opdef import OpDef, Trait
from passes.rewrite.expansion import op_nodes
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Chain, OpNode, Pattern


def canonical_name(opdef: OpDef) -> str | None:
    """Return what canonical programs have in place of an operator where shapes are known; None where it stays."""
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
        needed = [_respelled(node) for node in op_nodes(variant.tree)]
        if not any(needed):
            return {}
        for names in needed:
            found.update(names)
    return found


def spelled_otherwise(respelled: Mapping[str, str]) -> str:
    """Return the result of `respelled_operators` as text, with what to write instead."""
    return ", ".join(f"{name} (write {canonical})" for name, canonical in respelled.items())


def _respelled(node: OpNode | Chain) -> dict[str, str]:
    """Return the operators of a node with their canonical names, if all of them are respelled."""
    if isinstance(node.ops, Trait) or (isinstance(node, Chain) and not node.minimum):
        return {}
    found: dict[str, str] = {}
    for entry in node.ops:
        name = None if isinstance(entry, Trait) else canonical_name(entry)
        if name is None or isinstance(entry, Trait):
            return {}
        found[entry.name] = name
    return found
