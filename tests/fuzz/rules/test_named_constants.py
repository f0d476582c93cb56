"""Numbers that a rule's code takes by name are drawn like literals: wrong rules with such conditions are found."""

from __future__ import annotations

import enum
import math
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import Phase

from fuzz.rules.dictionary import around, dictionary_of
from fuzz.search.sound import Target, search, search_settings
from graphwright import Match, Pattern, PatternBuilder

CHANNELS = 23
TABLE = {"head": 29, "tail": (31, 37)}
SETTINGS = SimpleNamespace(width=41)
SLOPE = 0.37
EACH, SEEDS = 100, 30


class Sizes(enum.Enum):
    LAST = 43


@attrs.frozen
class Options:
    last: int = 47


OPTIONS = Options()


def _from_a_helper(size: int) -> bool:
    return size == CHANNELS


class Wrong(Pattern):
    """relu(x) = sigmoid(x), which is not so, where the last size is a certain one"""

    is_conversion = True

    def pattern(self, p: PatternBuilder) -> Any:
        return p.relu(p.any("x"))

    def check(self, m: Match) -> str | None:
        shape = m.x.tensor_type.shape
        return None if shape and type(shape[-1]) is int and self.wanted(shape[-1]) else "another size"

    def wanted(self, size: Any) -> bool:
        return False

    def rewrite(self, m: Match, b: Any) -> Any:
        return b.sigmoid(m.x)


class OfAGlobal(Wrong):
    def wanted(self, size: Any) -> bool:
        return size == CHANNELS


class MoreThanAGlobal(Wrong):
    def wanted(self, size: Any) -> bool:
        return size > CHANNELS


class LessThanAHelpersGlobal(Wrong):
    def wanted(self, size: Any) -> bool:
        return _from_a_helper(size + 1)


class OfATable(Wrong):
    def wanted(self, size: Any) -> bool:
        return size in TABLE["tail"]


class OfAnAttribute(Wrong):
    limit: ClassVar[int] = 53

    def wanted(self, size: Any) -> bool:
        return size == self.limit


class OfAnObject(Wrong):
    def wanted(self, size: Any) -> bool:
        return size in (SETTINGS.width, OPTIONS.last, Sizes.LAST.value)


class OfAProperty(Wrong):
    @property
    def limit(self) -> int:
        return CHANNELS * 1

    def wanted(self, size: Any) -> bool:
        return size == self.limit


class OfADefault(Wrong):
    def wanted(self, size: Any, limit: int = 59) -> bool:
        return size == limit


class WithParameters(Wrong):
    def __init__(self, limit: int = 61) -> None:
        self.limit = limit

    def wanted(self, size: Any) -> bool:
        return size == self.limit


def of_a_closure(limit: int) -> type[Pattern]:
    class OfAClosure(Wrong):
        def wanted(self, size: Any) -> bool:
            return size == limit

    return OfAClosure


class OfASlope(Wrong):
    """leaky_relu(x, slope) = sigmoid(x) where the slope is a certain one"""

    def pattern(self, p: PatternBuilder) -> Any:
        return p.leaky_relu(p.any("x"), negative_slope=p.attr_where(lambda slope: slope == SLOPE, "the slope"))

    def wanted(self, size: Any) -> bool:
        return True


RULES: dict[type[Pattern], set[Any]] = {
    OfAGlobal: {23},
    MoreThanAGlobal: {23},
    LessThanAHelpersGlobal: {23},
    OfATable: {31, 37, (31, 37)},
    OfAnAttribute: {53},
    OfAnObject: {41, 43, 47},
    OfAProperty: {23},
    OfADefault: {59},
    WithParameters: {61},
    of_a_closure(67): {67},
    OfASlope: {0.37},
}


# found late
_LONG = ("LessThanAHelpersGlobal", "MoreThanAGlobal")


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=pytest.mark.long) if rule.__name__ in _LONG else rule for rule in RULES],
    ids=[rule.__name__ for rule in RULES],
)
def test_a_wrong_rule_with_a_named_constant_is_found(rule: type[Pattern]) -> None:
    assert RULES[rule] <= set(dictionary_of(rule()))
    chosen = search_settings(EACH)
    chosen = type(chosen)(chosen, phases=(Phase.generate,))
    # several seeds, as `assert_sound` goes on: what one search draws is much alike
    searches = (search(Target.of(rule), None, chosen, seed=seed)[1] for seed in range(SEEDS))
    found = next((each for each in searches if each is not None), None)
    assert found is not None
    assert found.property in ("values", "gradients")
    assert rule.__name__ in (found.rewrite or "")


def test_numbers_beside_those_of_the_code_are_known() -> None:
    assert around([4, 5, 0.5, True, (1, 2)]) == [3, 6, 0.375, 0.75]
    assert around([]) == []


def test_what_is_no_number_that_the_code_means_is_left_out() -> None:
    class Odd(Wrong):
        def wanted(self, size: Any) -> bool:
            return bool(size == math.pi and self.exact and len(HUGE))

    assert math.pi in dictionary_of(Odd())
    assert len(dictionary_of(Odd())) < 80


HUGE = tuple(range(100, 100_000))
