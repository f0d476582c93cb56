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


@pytest.mark.parametrize("rule", WRONG_RULES, ids=lambda rule: rule.__name__)
def test_a_mistake_is_found(rule: type[Pattern]) -> None:
    chosen = search_settings(MOST)
    seen, found = search(Target.of(rule), None, type(chosen)(chosen, phases=(Phase.generate,)), seed=1)
    assert found is not None, attrs.asdict(seen)
    assert rule.__name__ in (found.rewrite or found.message)
