"""Which operators canonicalization writes as others, and which patterns therefore wait for what never comes."""

from __future__ import annotations

from collections.abc import Mapping

from ir.opdef import OpDef, Trait
from passes.canonicalize.permute import PERMUTES
from passes.canonicalize.reshape import RESHAPES
from passes.canonicalize.spelling import SYNONYMS
from passes.canonicalize.split import SPLITS
from passes.rewrite.expansion import op_nodes
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Chain, OpNode, Pattern

RESPELLED: dict[str, str] = {
    **SYNONYMS,
    **dict.fromkeys(RESHAPES, "aten.reshape"),
    **dict.fromkeys(PERMUTES, "aten.permute"),
    **dict.fromkeys(SPLITS, "aten.split_with_sizes"),
    "aten.unbind.int": "aten.split_with_sizes",
    "aten.rsub.Tensor": "aten.sub.Tensor",
    "aten.clamp_min": "aten.clamp",
    "aten.clamp_max": "aten.clamp",
    "aten.expand_as": "aten.expand",
    "aten.broadcast_to": "aten.expand",
}
"""Operators that do not outlive canonicalization where shapes are known, and what stands for them then."""


def canonical_name(opdef: OpDef) -> str | None:
    """Return the name of the operator that canonical programs have in place of `opdef`; None where it stays."""
    known = RESPELLED.get(opdef.name)
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
