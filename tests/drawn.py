"""What a strategy draws, to count how often it draws what."""

from __future__ import annotations

import warnings
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")


def draws(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """Return what a strategy draws, the same in each process.

    Many are drawn in several searches: one search draws what it has drawn again with changes, so that its share of
    anything says little about the strategy.
    """
    made: list[T] = []

    def collect(data: st.DataObject) -> None:
        made.append(data.draw(strategy))

    searches = 1 + count // 100
    chosen = settings(
        max_examples=count // searches,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(searches):
            seed(number)(chosen(given(st.data())(collect)))()
    return made
