"""Free names."""

from __future__ import annotations

from ir.spelling import free_name


def test_a_series_of_names_is_the_same_with_and_without_memory():
    taken, others = {"a_2", "b"}, {"a_2", "b"}
    numbers: dict[str, int] = {}
    for base in ("a", "a", "a", "b", "a", "b"):
        found = free_name(base, taken.__contains__)
        assert found == free_name(base, others.__contains__, numbers)
        taken.add(found)
        others.add(found)
    assert sorted(taken) == ["a", "a_1", "a_2", "a_3", "a_4", "b", "b_1", "b_2"]


def test_a_series_of_names_asks_for_each_once():
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    asked = 0

    def is_taken(name: str) -> bool:
        nonlocal asked
        asked += 1
        return name in taken

    for _ in range(100):
        taken.add(free_name("a", is_taken, numbers))
    assert asked < 201 and len(taken) == 100
