"""Strategies for programs in which a rule must match, and for near misses: drawn from the rule's own pattern.

The pattern's tree is built bottom-up. The calls of its operators come from the generators of `fuzz.calls.generators`,
with the operands that the pattern fixes put in their places; type inference says whether a call is possible. Numbers
that the rule's code names are drawn more often than others, so that conditions on sizes and attributes are met.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import reject
from hypothesis import strategies as st

from fuzz.calls.source import Unavailable
from fuzz.programs.strategy import finish_program
from fuzz.rules.dictionary import dictionary_of, operators_named_by
from fuzz.rules.growth import NEAR_MISSES, Growth
from fuzz.rules.match_source import MatchSource
from fuzz.rules.scene_parts import Scene
from fuzz.rules.scenes import SCENES
from ir.caches import WeakCache
from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.program import Program
from passes.rewrite.expansion import expand
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder

_BEGINNINGS = 4
"""How often a match is begun where there is no scene to take its place."""
_TRIES = 4
"""How many times a match is built where the rule does not fire on it and there is no scene: the last one is kept."""


@attrs.frozen(eq=False)
class Instance:
    """A program built from a rule's pattern."""

    rule: Pattern
    program: Program
    change: str | None
    """One of `NEAR_MISSES`, or None where the rule's pattern must match; `"scene"` where it comes from a scene."""
    variant: int
    """The number of the expansion of the pattern (alternatives and operand orders) that was built; -1 for a scene."""


@st.composite
def instances(draw: st.DrawFn, rule: Pattern, *, near: bool | None = None, symbolic: bool = False) -> Instance:
    """Return a strategy for programs that hold an instance of a rule's pattern, or a near miss of one.

    Args:
        draw: given by hypothesis.
        rule: the rule. Its `check` may still refuse an instance.
        near: whether near misses (True) or instances (False) are drawn; both by default.
        symbolic: whether sizes may be expressions over symbols.
    """
    variants = expanded_pattern(rule)
    number = draw(st.integers(0, len(variants) - 1))
    change = None
    if near or (near is None and draw(st.integers(0, 2)) == 2):
        change = draw(st.sampled_from(NEAR_MISSES))
    scene = SCENES.get(rule.name)
    if scene is not None and not near and change is None and draw(st.integers(0, 3)):
        return _from_scene(draw, rule, scene)
    _, numbers, named = _prepared(rule)
    source = MatchSource(draw, numbers, named, symbolic=symbolic)
    for _ in range(draw(st.integers(0, 2))):
        source.add_prefix()
    roots: list[Value] = []
    for _ in range(2 if draw(st.integers(0, 4)) == 4 else 1):
        growth = Growth(source, change)
        try:
            root = growth.grow(variants[number], 1 if scene is not None else _BEGINNINGS)
            if scene is None and change is None and source.integer(0, 3):
                for _ in range(_TRIES - 1):
                    if _fires(rule, root):
                        break
                    growth.erase()
                    root = growth.grow(variants[number], _BEGINNINGS)
        except Unavailable:
            if roots:
                break
            if scene is not None and not near:
                return _from_scene(draw, rule, scene)
            reject()
        growth.surround(root)
        roots.append(root)
    finish_program(source, roots[:1] if source.flag() else [])
    return Instance(rule, source.program, change, number)


def _fires(rule: Pattern, root: Value) -> bool:
    """Return whether the rule matches at an operation and does not refuse; where it fails, that is seen later."""
    op = root.owner
    assert isinstance(op, Operation)
    for variant in compile_rule(rule):
        try:
            found = variant.try_match(op) if variant.accepts(op.opdef) else None
            if isinstance(found, Match) and rule.check(found) is None:
                return True
        except Exception:  # noqa: BLE001 - it is reported where the rule is applied
            return True
    return False


def _from_scene(draw: st.DrawFn, rule: Pattern, scene: Scene) -> Instance:
    source = MatchSource(draw, (), frozenset(), symbolic=False)
    try:
        root = scene(source)
    except (Unavailable, GraphwrightError):
        reject()
    growth = Growth(source, None)
    growth.surround(root)
    finish_program(source, [*([root] if source.flag() else []), *source.returned])
    return Instance(rule, source.program, "scene", -1)


_EXPANDED: WeakCache[Pattern, tuple[list[Node], list[Any], frozenset[str]]] = WeakCache()


def expanded_pattern(rule: Pattern) -> list[Node]:
    """Return the rule's pattern once for each combination of alternatives and operand orders."""
    return _prepared(rule)[0]


def _prepared(rule: Pattern) -> tuple[list[Node], list[Any], frozenset[str]]:
    known = _EXPANDED.get(rule)
    if known is None:
        expanded = expand(rule.pattern(PatternBuilder()))
        known = _EXPANDED[rule] = (expanded, dictionary_of(rule), operators_named_by(rule))
    return known
