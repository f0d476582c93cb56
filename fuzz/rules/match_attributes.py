"""The attributes of an operation in a match: drawn, named by the rule's code, or demanded by the pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fuzz.rules.dictionary import holds, is_alike, neutral_like
from fuzz.rules.match_source import MatchSource
from ir.attributes import normalize_attribute
from ir.core import Value
from ir.opdef import OpDef
from ir.types import TensorType
from passes.rewrite.pattern import AttrCapture, AttrWhere, OpNode

_AT_ONCE = 7
"""Attributes that one draw decides: drawing costs more than computing."""
_COMMON = (None, True, False, 0, 1, -1, 0.0, 1.0, (), (0,), (1, 1), (0, 1), (1, 0))
"""Values to try if the pattern has a condition on an attribute."""
_PROBABILITIES = frozenset({"p", "dropout_p", "train_dropout_p", "dropout"})
_SCALES = frozenset({"other", "value", "scale"})
"""Attributes that models compute from the sizes of tensors."""
_POSITIVE = frozenset({"stride", "dilation", "groups", "kernel_size"})
"""Attributes of positive numbers, one for each dimension of the operator."""


def draw_attributes(
    source: MatchSource,
    node: OpNode,
    opdef: OpDef,
    drawn: dict[str, Any],
    captures: Mapping[str, Any],
    change: str | None,
    *,
    hinted: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of a call, and what is captured: those that the pattern demands, else the drawn ones.

    With `hinted`, numbers that the rule's code names, or that change nothing, replace some of the drawn ones.
    """
    attributes: dict[str, Any] = dict(drawn)
    captured: dict[str, Any] = {}
    numbers = [
        name
        for name, value in drawn.items()
        if hinted and isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
    ]
    for start in range(0, len(numbers), _AT_ONCE):
        names = numbers[start : start + _AT_ONCE]
        code = source.integer(0, 8 ** len(names) - 1)
        for place, name in enumerate(names):
            value, kind = drawn[name], code // 8**place % 8
            pool = () if kind < 5 else source.around if kind == 7 and source.flag() else source.dictionary
            others = [n for n in pool if is_alike(n, value)]
            if not others and kind == 4:
                others = list(neutral_like(value, name))
            elif not others and kind and name in _SCALES:
                others = made_of_sizes(captures)
            if name in _PROBABILITIES:
                others = [n for n in others if 0 <= n <= 1]
            if name in _POSITIVE:
                others = [n for n in others if _is_positive(n) and _count(n) == _count(value)]
            if others:
                attributes[name] = source.one_of(others)
    for name, expected in node.attributes:
        if name not in attributes or (change == "literal" and source.flag()):
            continue
        if isinstance(expected, AttrCapture):
            known = captures.get(expected.name, captured.get(expected.name, attributes[name]))
            attributes[name] = captured[expected.name] = known
        elif isinstance(expected, AttrWhere):
            if change != "condition":
                attributes[name] = meeting(source, expected.predicate, attributes[name])
        else:
            attributes[name] = expected
    flag = opdef.training
    if flag is not None and isinstance(attributes[flag], bool):
        free = flag not in dict(node.attributes)
        if source.flag() if change == "mode" else free and source.integer(0, 3) == 3:
            attributes[flag] = not attributes[flag]
    return attributes, captured


def made_of_sizes(captures: Mapping[str, Any]) -> list[int | float]:
    """Return numbers computed from the last two sizes of captured values, as models compute scales."""
    types = [value.type for value in captures.values() if isinstance(value, Value)]
    sizes = {d for t in types if isinstance(t, TensorType) for d in (t.shape or ())[-2:] if type(d) is int and d > 1}
    return [number for n in sorted(sizes) for number in (n**-0.5, n**-0.5, n**0.5, 1 / n, n)]


def meeting(source: MatchSource, predicate: Callable[[Any], bool], drawn: Any) -> Any:
    """Draw an attribute that meets a condition: the drawn one, one that the rule's code names, or a common one.

    Raises:
        Unavailable: when none does.
    """
    if holds(predicate, normalize_attribute(drawn)) and source.flag():
        return drawn
    pool = [drawn, *source.dictionary, *source.around, *_COMMON]
    return source.one_of([value for value in pool if holds(predicate, normalize_attribute(value))])


def _is_positive(value: Any) -> bool:
    return all(map(_is_positive, value)) if isinstance(value, tuple) else value > 0


def _count(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 0
