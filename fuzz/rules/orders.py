"""Passes with their rules, and independent passes, in another order.

The order in which rules are tried and conversions run must not change what a program means. It may change how the
result is written, which is not checked here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import attrs
from typing_extensions import override

from fuzz.rules.rule_pass import ApplyRules
from ir.program import Program
from passes.apply import Convert, Fuse
from passes.canonicalize import ApplyCanonicalRules, Canonicalize
from passes.manager.manager import Fixpoint, Pass, PassContext, PassManager, run_pass
from passes.rewrite.pattern import Pattern, instantiate

ORDERS = 32
"""How many orders are tried; number 0 is the given one."""

T = TypeVar("T")


@attrs.frozen
class CanonicalizeInOrder(Fixpoint):
    """The passes of canonicalization, with other rules or in another order."""

    name: ClassVar[str] = Canonicalize.name


@attrs.frozen
class InOrder(Pass):
    """A pass in the order with a number."""

    name: ClassVar[str] = "in-order"
    pass_: Pass
    number: int

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run the pass in this order."""
        run_pass(self.reordered, program, context)

    @property
    def reordered(self) -> Pass:
        """The pass in that order."""
        return self.pass_ if self.number == 0 else _reordered(self.pass_, random.Random(self.number), self.number)

    def order(self) -> str:
        """Return the order in words: the rules of each pass in the order of trial."""
        return f"order {self.number}: {' -> '.join(_described(self.reordered))}"


def _reordered(pass_: Pass, generator: random.Random, number: int) -> Pass:
    if isinstance(pass_, Canonicalize):
        return CanonicalizeInOrder([_reordered(inner, random.Random(number), number) for inner in pass_.passes])
    if isinstance(pass_, ApplyCanonicalRules):
        return ApplyCanonicalRules(_shuffled(pass_.rules, generator))
    if isinstance(pass_, ApplyRules):
        return ApplyRules(_shuffled(pass_.rules, generator))
    if isinstance(pass_, Fuse):
        return Fuse(_shuffled(pass_.patterns, generator))
    if isinstance(pass_, Convert):
        # to a joint fixpoint: one conversion may build what another one matches
        return Fixpoint(_conversions(pass_.patterns, (Canonicalize(),), generator))
    if isinstance(pass_, Fixpoint) and any(isinstance(inner, Convert) for inner in pass_.passes):
        patterns = [pattern for inner in pass_.passes if isinstance(inner, Convert) for pattern in inner.patterns]
        others = [_reordered(inner, generator, number) for inner in pass_.passes if not isinstance(inner, Convert)]
        return attrs.evolve(pass_, passes=(*_conversions(patterns, others, generator), *others))
    if isinstance(pass_, PassManager):
        return attrs.evolve(pass_, passes=tuple([_reordered(inner, generator, number) for inner in pass_.passes]))
    return pass_


def _conversions(
    patterns: Sequence[type[Pattern] | Pattern], between: Sequence[Pass], generator: random.Random
) -> list[Pass]:
    """Return one pass for each conversion, in another order, sometimes with passes between them."""
    passes: list[Pass] = []
    for pattern in _shuffled(patterns, generator):
        if passes and generator.random() < 0.5:
            passes += between
        passes.append(Convert((pattern,)))
    return passes


def _shuffled(items: Sequence[T], generator: random.Random) -> tuple[T, ...]:
    return tuple(generator.sample(list(items), len(items)))


def _described(pass_: Pass) -> list[str]:
    if isinstance(pass_, PassManager):
        return [text for inner in pass_.passes for text in _described(inner)]
    rules: Sequence[Any] = ()
    if isinstance(pass_, (Convert, Fuse)):
        rules = instantiate(pass_.patterns)
    elif isinstance(pass_, ApplyCanonicalRules):
        rules = instantiate(pass_.rules)
    elif isinstance(pass_, ApplyRules):
        rules = pass_.rules
    names = ", ".join(rule.name for rule in rules)
    return [f"{pass_.name}({names})" if names else str(pass_)]
