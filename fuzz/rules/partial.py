"""The two matchers of a rule held against each other: what matches is a partial match without differences."""

from __future__ import annotations

from ir.core import Operation
from ir.program import Program
from passes.explain.partial import Tree
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Pattern


def explained_otherwise(rule: Pattern, program: Program) -> str | None:
    """Return where `explain` says something else of a rule than the matcher does; None where it says the same.

    A match has no differences, a near miss has one for the condition that fails, and what does not match has one that
    says why. Each partial match has the operation in it that was asked about, and no more operations than the pattern.
    """
    variants = compile_rule(rule)
    tree = Tree(rule, variants)
    matched: set[Operation] = set()
    for op in program.graph.operations():
        try:
            found = [variant.try_match(op) for variant in variants if variant.accepts(op.opdef)]
        except Exception:  # noqa: BLE001 - a condition of the rule raises: that is reported where it is applied
            return None
        matches = [each for each in found if isinstance(each, Match)]
        matched.update(inner for match in matches for inner in (match.root, *match.ops))
        whole = tree.compared(op)
        if whole is None:
            if found:
                return f"{op.name} is a root of {rule.name}, and is compared with none of its parts"
        elif whole.is_whole != bool(matches):
            said = "; ".join(difference.message for difference in whole.differences) or "it matches"
            return f"{rule.name} {'matches' if matches else 'does not match'} at {op.name}, and is explained so: {said}"
        elif not matches and any(isinstance(each, str) for each in found):
            kinds = {difference.kind for difference in whole.differences}
            if not kinds & {"attribute", "condition"}:
                return f"{rule.name} nearly matches at {op.name}, and is explained by {sorted(kinds)}"
    for op in program.graph.operations():
        furthest = tree.furthest(op)
        if furthest is None:
            if op in matched:
                return f"{op.name} is in a match of {rule.name}, and could be no part of it"
            continue
        if op in matched and not furthest.is_whole:
            return f"{op.name} is in a match of {rule.name}, and is said to be in none"
        if len(furthest.fits) > furthest.wanted:
            return f"{len(furthest.fits)} operations fit {rule.name}, which wants {furthest.wanted}"
    return None
