"""Rules with one mistake each, as people make them, are found."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import Phase

from fuzz.search.sound import Target, search, search_settings
from passes.rewrite.pattern import Pattern
from tests.fuzz.search.wrong_rules import WRONG_RULES

MOST = 2000
"""Programs. Nearly all mistakes are found in 100, the rarest in some hundred."""


# found late
_LONG = ("ConvBiasOfOne", "AttentionOfAnyScale", "AttentionScaledByTokens")


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=pytest.mark.long) if rule.__name__ in _LONG else rule for rule in WRONG_RULES],
    ids=[rule.__name__ for rule in WRONG_RULES],
)
def test_a_mistake_is_found(rule: type[Pattern]) -> None:
    chosen = search_settings(MOST)
    seen, found = search(Target.of(rule), None, type(chosen)(chosen, phases=(Phase.generate,)), seed=1)
    assert found is not None, attrs.asdict(seen)
    assert rule.__name__ in (found.rewrite or found.message)
