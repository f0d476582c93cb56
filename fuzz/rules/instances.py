"""Strategies for programs in which a rule matches, and for near misses, drawn from the rule's own pattern.

The pattern's tree is built bottom-up. The calls of its operators come from the generators of `fuzz.calls.generators`,
with the operands that the pattern fixes put in their places; type inference says whether a call is possible. Numbers
that the rule's code names are drawn more often than others, so that conditions on sizes and attributes are met. Where a
rule has examples, most programs vary one of them (`fuzz.rules.variation`).
"""

from __future__ import annotations

from contextlib import suppress

import attrs
from hypothesis import reject
from hypothesis import strategies as st

from fuzz.calls.source import Unavailable
from fuzz.calls.types import draw_integer
from fuzz.programs.strategy import finish_program, holds_for_all_numbers
from fuzz.rules.dictionary import Numbers, dictionary_of, operators_named_by
from fuzz.rules.growth import NEAR_MISSES, Growth
from fuzz.rules.match_source import MatchSource
from fuzz.rules.spellings import suited
from fuzz.rules.variation import Variation
from ir.caches import WeakCache
from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.program import Program
from passes.rewrite.expansion import expand
from passes.rewrite.language.nodes import Tree
from passes.rewrite.matching import compile_rule, tree_of
from passes.rewrite.pattern import Match, Pattern

_BEGINNINGS = 4
"""How often a match is started, for a rule without examples."""
_TRIES = 4
"""How often a match is built until the rule fires on it, for a rule without examples; the last one is kept."""
_INTEGERS_ONE_IN = 8
"""In how many programs one is of integers or truth values, where the pattern's operators take them."""
_TRAINING_ONE_IN = 16
"""In how many programs one has operators around the match that may be in training mode."""
_SYMBOLIC_ONE_IN = 12
"""In how many programs one has sizes that are expressions over symbols."""
_VARIATIONS = 3
"""How often an example is varied until the changes fit together."""


@attrs.frozen(eq=False)
class Instance:
    """A program built from a rule's pattern."""

    rule: Pattern
    program: Program
    change: str | None
    """One of `NEAR_MISSES`; None if the pattern must match; `"example"` for a variation of an example."""
    variant: int
    """The number of the expansion of the pattern (alternatives and operand orders), or -1."""
    unknown: str = ""
    """What an example says that is not known of the inputs; it is erased when their tensors are drawn."""


@st.composite
def instances(draw: st.DrawFn, rule: Pattern, *, near: bool | None = None, symbolic: bool = False) -> Instance:
    """Return a strategy for programs that hold an instance of a rule's pattern, or a near miss of one.

    Args:
        draw: given by hypothesis.
        rule: the rule. Its `check` may still refuse an instance.
        near: whether near misses (True) or instances (False) are drawn; both by default.
        symbolic: whether sizes may be expressions over symbols, which else few programs have.
    """
    variants = expanded_pattern(rule)
    number = draw_integer(draw, 0, len(variants) - 1)
    change = None
    if near or (near is None and draw_integer(draw, 0, 2) == 2):
        change = NEAR_MISSES[draw_integer(draw, 0, len(NEAR_MISSES) - 1)]
    examples = rule.examples
    symbolic = symbolic or draw_integer(draw, 0, _SYMBOLIC_ONE_IN - 1) == _SYMBOLIC_ONE_IN - 1
    if examples and not near and change is None and draw_integer(draw, 0, 3):
        return _of_example(draw, rule, symbolic=symbolic)
    _, numbers, named = _prepared(rule)
    source = MatchSource(draw, numbers, named, symbolic=symbolic)
    if draw_integer(draw, 0, _INTEGERS_ONE_IN - 1) == _INTEGERS_ONE_IN - 1:
        source.in_integers()
    source.training = draw_integer(draw, 0, _TRAINING_ONE_IN - 1) == _TRAINING_ONE_IN - 1
    for _ in range(draw_integer(draw, 0, 2)):
        source.add_prefix()
    roots: list[Value] = []
    for _ in range(2 if draw_integer(draw, 0, 4) == 4 else 1):
        growth = Growth(source, change)
        try:
            root = growth.grow(variants[number], 1 if examples else _BEGINNINGS)
            if not examples and change is None and source.integer(0, 3):
                for _ in range(_TRIES - 1):
                    if root.defining_op is not None and _fires(rule, root.defining_op):
                        break
                    growth.erase()
                    root = growth.grow(variants[number], _BEGINNINGS)
        except Unavailable:
            if roots:
                break
            if examples and not near:
                return _of_example(draw, rule, symbolic=symbolic)
            reject()
        growth.surround(root)
        roots.append(root)
    finish_program(source, roots[:1] if source.flag() else [])
    if source.program.symbols and not holds_for_all_numbers(source.program):
        reject()
    return Instance(rule, source.program, change, number)


def fires_at(rule: Pattern, op: Operation) -> bool:
    """Return whether the rule matches at an operation, as it is now, and does not refuse."""
    found = (variant.try_match(op) for variant in compile_rule(rule) if variant.accepts(op.opdef))
    return any(isinstance(match, Match) and rule.check(match) is None for match in found)


def _fires(rule: Pattern, op: Operation) -> bool:
    try:
        return fires_at(rule, op)
    except Exception:  # noqa: BLE001 - it is reported where the rule is applied
        return True


def _of_example(draw: st.DrawFn, rule: Pattern, *, symbolic: bool) -> Instance:
    """Return a variation of an example, more often of one that fires than of a near miss; a size may be a symbol.

    Half of those that fire are spelled in an alternative of the pattern, each as often.
    """
    variants, numbers, named = _prepared(rule)
    firing, near = ([e for e in rule.examples if bool(e.refused) is refused] for refused in (False, True))
    chosen = near if near and draw_integer(draw, 0, 7) > 5 else firing or near
    example, number, tree = chosen[draw_integer(draw, 0, len(chosen) - 1)], -1, None
    if len(variants) > 1 and chosen is firing and draw_integer(draw, 0, 1):
        number = draw_integer(draw, 0, len(variants) - 1)
        others = suited(rule, variants[number])
        if others:
            example, tree = others[draw_integer(draw, 0, len(others) - 1)], variants[number]
    for _ in range(_VARIATIONS):
        source = MatchSource(draw, numbers, named, symbolic=symbolic)
        with suppress(Unavailable, GraphwrightError):
            roots = Variation(source, rule, variants).build(example, tree)
            break
    else:
        reject()
    Growth(source, None).surround(roots[0])
    finish_program(source, [*(roots if source.integer(0, 3) else roots[1:]), *source.returned])
    if source.program.symbols and not holds_for_all_numbers(source.program):
        reject()
    return Instance(rule, source.program, "example", number if tree is not None else -1, example.unknown)


_EXPANDED: WeakCache[Pattern, tuple[list[Tree], Numbers, frozenset[str]]] = WeakCache()


def expanded_pattern(rule: Pattern) -> list[Tree]:
    """Return the rule's pattern once for each combination of alternatives and operand orders."""
    return _prepared(rule)[0]


def _prepared(rule: Pattern) -> tuple[list[Tree], Numbers, frozenset[str]]:
    known = _EXPANDED.get(rule)
    if known is None:
        expanded = [each.tree for each in expand(tree_of(rule))]
        known = _EXPANDED[rule] = (expanded, Numbers(dictionary_of(rule)), operators_named_by(rule))
    return known
