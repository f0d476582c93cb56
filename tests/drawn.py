"""What a strategy draws, to count how often it draws what."""

from __future__ import annotations

import warnings
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

T = TypeVar("T")


def draws(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """Return what a strategy draws, the same in each process."""
    made: list[T] = []

    def collect(data: st.DataObject) -> None:
        made.append(data.draw(strategy))

    chosen = settings(
        max_examples=count,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen(given(st.data())(collect))()
    return made
