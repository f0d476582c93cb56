"""Rules on canonical programs, the input of conversions and fusions in all our pipelines.

The pattern or the conditions of a rule may require what canonicalization rewrites: a dimension counted from the back,
an operation that changes nothing. Such a rule is right on every program, and matches no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from fuzz.programs.case import Case
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Unusable
from fuzz.search.counterexample import UnsoundError
from fuzz.search.soundness import Soundness
from ir.types import TensorType
from passes.canonicalize import Canonicalize
from passes.canonicalize.respelled import respelled_operators
from passes.manager.manager import PassContext, run_pass
from passes.rewrite.pattern import Pattern

ENOUGH = 10
"""The number of canonical programs on which a rule is checked, of those on which it fires."""
TRIED = 200
"""After so many programs on which a rule fires, and no canonical one, it is assumed to fire on none."""


def meets_canonical(rule: Pattern) -> bool:
    """Return whether a rule is for canonical programs, and names only operators that occur in them."""
    return (rule.is_conversion or rule.is_fusion) and not respelled_operators(rule)


def hold_canonical(
    rules: Sequence[Pattern], case: Case, fired: Counter[str], seen: Soundness, held: Callable[[Case], Counter[str]]
) -> None:
    """Check the rules that fired on a case on its canonical form, unless they have been checked often enough.

    Args:
        rules: the rules.
        case: the case on which they fired.
        fired: how often each of them fired on it.
        seen: the statistics, which are updated.
        held: checks the rules on a case, and returns which fired.
    """
    rules = [r for r in rules if fired[r.name] and seen.canonical[r.name] < ENOUGH and meets_canonical(r)]
    if not rules:
        return
    canonical = canonical_case(case)
    if canonical is None:
        return
    if canonical.program != case.program:
        try:
            fired = held(canonical)
        except Unusable:
            return
    for rule in rules:
        if fired[rule.name]:
            seen.canonical[rule.name] += 1
        else:
            seen.miss(rule.name, case.program, canonical.program)


def canonical_case(case: Case) -> Case | None:
    """Return the canonical program as a case, on the same inputs; None if types are unknown, which stops most rules."""
    program = case.build()
    types = [value.type for value in program.graph.inputs]
    if any(isinstance(type_, TensorType) and not type_.is_known for type_ in types):
        return None
    with quiet():
        run_pass(Canonicalize(), program, PassContext())
    return Case.of(program, case.inputs)


def fires_on_none(rule: Pattern, seen: Soundness) -> UnsoundError:
    """Return the error for a rule that fires on programs, but never on their canonical forms."""
    before, after = (text.strip() for text in seen.missed[rule.name])
    fired = seen.fired[rule.name]
    message = (
        f"{rule.name} matches no canonical program: it fired on {fired} programs built to match, and on none of them "
        "after canonicalization, which comes before conversions and fusions"
    )
    return UnsoundError(
        None,
        message,
        seen,
        details=f"\n\nit fired on:\n{before}\n\nand not on its canonical form:\n{after}\n",
        remedy="let the pattern and its conditions ask for the canonical form: a literal `dim=-1` matches it, but "
        "code that asks for -1 does not, since dimensions are counted from the front",
    )
