"""Sums and products in every order: the trees over their parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from ir.errors import PatternError
from passes.rewrite.language.nodes import AnyOf, AttrCapture, Node

Part = Node | AttrCapture | int | float
"""A value, or a number."""

_MOST_VALUES = 4


def associations(
    parts: Sequence[Part], join: Callable[[Part, Part, str], Node], is_value: Callable[[Part], bool], name: str = ""
) -> Node:
    """Return what matches parts that are joined two by two, with whatever brackets; `join` sees to the order of two.

    Args:
        parts: what is joined, values and numbers.
        join: returns the node of two parts, of which a number is the second, with a name.
        is_value: tells values from numbers.
        name: of the last operation.

    Raises:
        PatternError: when there are too few parts, or too many values: their orders are tried one by one.
    """
    values = sum(map(is_value, parts))
    if len(parts) < 2 or not values:
        raise PatternError("a sum or product needs two parts or more, and a value among them")
    if values > _MOST_VALUES:
        raise PatternError(
            f"a sum or product of {values} values has too many orders to try each",
            remedy=f"write it as one of {_MOST_VALUES} values, of which one is a sum or product of others",
        )
    known: dict[frozenset[int], Node] = {}

    def of(numbers: frozenset[int], name: str = "") -> Node | None:
        """Return what matches some of the parts joined; None where they are numbers alone."""
        if len(numbers) == 1:
            (number,) = numbers
            part = parts[number]
            return part if is_value(part) else None  # type: ignore[return-value]
        if numbers not in known:
            found: list[Node] = []
            for left, right in _splits(numbers):
                first, second = of(left), of(right)
                if first is not None and second is not None:
                    found.append(join(first, second, name))
                elif first is not None and len(right) == 1:
                    found.append(join(first, parts[min(right)], name))
                elif second is not None and len(left) == 1:
                    found.append(join(second, parts[min(left)], name))
            if not found:
                return None
            known[numbers] = found[0] if len(found) == 1 else AnyOf(tuple(found))
        return known[numbers]

    whole = of(frozenset(range(len(parts))), name)
    assert whole is not None
    return whole


def _splits(numbers: frozenset[int]) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Return each way to divide some numbers in two, the first always on the left; a long left side comes first."""
    first, *rest = sorted(numbers)
    return [
        (frozenset((first, *chosen)), numbers - {first, *chosen})
        for size in range(len(rest) - 1, -1, -1)
        for chosen in itertools.combinations(rest, size)
    ]
