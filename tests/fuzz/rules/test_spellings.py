"""Examples in the other alternatives of a pattern: each is drawn, and the rule fires on it where it can."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from fuzz.rules.instances import Instance, expanded_pattern, instances
from fuzz.rules.names import RULES
from fuzz.rules.rule_pass import ApplyRules
from fuzz.rules.spellings import suited
from passes.convert.layer_norms import RecomposeGroupNormPattern
from passes.convert.norms import RecomposeRMSNormPattern
from passes.manager.manager import PassContext
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Pattern
from tests.drawn import draws

EACH = 25
"""Programs for each alternative of a pattern."""
SHARE = 0.8
SEVERAL = {name: rule for name, rule in RULES.items() if len(compile_rule(rule())) > 1}


def fired(rule: Pattern, drawn: list[Instance]) -> Counter[int]:
    """Return how often each alternative fires."""
    seen: Counter[int] = Counter()
    for made in drawn:
        context = PassContext()
        ApplyRules((rule,)).run(made.program, context)
        seen.update({number: count for (_, number), count in context.log.variants.items()})
    return seen


@cache
def of_rms_norms() -> tuple[Instance, ...]:
    return tuple(draws(instances(RecomposeRMSNormPattern(), near=False), 120))


def test_examples_are_spelled_in_the_alternatives_of_the_pattern() -> None:
    spelled = Counter(made.variant for made in of_rms_norms() if made.change == "example")
    assert spelled[-1] > 20
    assert len(spelled) > len(expanded_pattern(RecomposeRMSNormPattern())) // 2


def test_rules_fire_on_what_is_spelled_otherwise() -> None:
    alone = [made for made in of_rms_norms() if made.change == "example" and made.variant >= 0]
    rule = RecomposeRMSNormPattern()
    assert sum(bool(fired(rule, [made])[made.variant]) for made in alone) > len(alone) // 4


def test_an_example_with_the_operators_of_an_alternative_is_spelled_in_it() -> None:
    rule = RecomposeGroupNormPattern()
    trees = {variant.order: variant.tree for variant in compile_rule(rule)}
    chosen = [suited(rule, expanded_pattern(rule)[number]) for number in trees]
    assert all(chosen)
    texts = [" ".join(example.text for example in examples) for examples in chosen]
    assert any("aten.div" in text and "aten.rsqrt" not in text for text in texts)
    assert any("aten.group_norm" in text and "aten.reshape" not in text for text in texts)


def taken(rule: Pattern, drawn: list[Instance]) -> Counter[int]:
    """Return how often the rule takes what an alternative matches: one before it may take the same."""
    seen: Counter[int] = Counter()
    for made in drawn:
        for op in made.program.graph.operations():
            for variant in compile_rule(rule):
                match = variant.try_match(op) if variant.accepts(op.opdef) else None
                seen[variant.order] += isinstance(match, Match) and rule.check(match) is None
    return +seen


@pytest.mark.long
@pytest.mark.parametrize("name", SEVERAL)
def test_the_alternatives_of_a_rule_are_reached(name: str) -> None:
    rule = SEVERAL[name]()
    variants = compile_rule(rule)
    seen = taken(rule, draws(instances(rule, near=False), min(EACH * len(variants), 1500)))
    never = sorted(variant.order for variant in variants if not seen[variant.order])
    assert len(seen) >= SHARE * len(variants), never
