"""Passes with their rules, and independent passes, in another order and in drawn scopes.

The order in which rules are tried and conversions run, and what a scope leaves out, must not change what a program
means. It may change how the result is written, which is not checked here.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import attrs
from typing_extensions import override

from fuzz.programs.properties import Properties
from fuzz.rules.rule_pass import ApplyRules
from ir.core import Operation
from ir.program import Program
from passes.apply import Convert, Fuse
from passes.canonicalize import ApplyCanonicalRules, Canonicalize
from passes.manager.manager import Fixpoint, Pass, PassContext, PassManager, run_pass
from passes.manager.options import takes_passes
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.scope import Scope

ORDERS = 32
"""How many orders are tried; number 0 is the given one. As many numbers more mean the same orders in drawn scopes."""
_IN_A_SCOPE = 0.4
"""How often a pass is put into one."""

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
        order, scopes = self.number % ORDERS, self.number // ORDERS
        found = self.pass_ if order == 0 else _reordered(self.pass_, random.Random(order), order)
        return _in_scopes(found, random.Random(self.number)) if scopes else found

    def order(self) -> str:
        """Return the order in words: the rules of each pass in the order of trial, and its scope."""
        return f"order {self.number}: {' -> '.join(_described(self.reordered))}"


def demanded(properties: Properties, pass_: Pass) -> Properties:
    """Return what is demanded of a pass: one that leaves something out makes no canonical form."""
    is_scoped = isinstance(pass_, InOrder) and pass_.number >= ORDERS
    return attrs.evolve(properties, canonical=False) if is_scoped else properties


def _reordered(pass_: Pass, generator: random.Random, number: int) -> Pass:
    if isinstance(pass_, Canonicalize):
        inner = [_reordered(each, random.Random(number), number) for each in pass_.passes]
        return CanonicalizeInOrder(inner, only=pass_.only, skip=pass_.skip)
    if isinstance(pass_, (ApplyCanonicalRules, ApplyRules)):
        return attrs.evolve(pass_, rules=_shuffled(pass_.rules, generator))  # type: ignore[arg-type]
    if isinstance(pass_, Fuse):
        return attrs.evolve(pass_, patterns=_shuffled(pass_.patterns, generator))
    if isinstance(pass_, Convert):
        # to a joint fixpoint: one conversion may build what another one matches
        conversions = _conversions(pass_.patterns, (Canonicalize(),), generator, number)
        return Fixpoint(conversions, only=pass_.only, skip=pass_.skip)
    if isinstance(pass_, Fixpoint) and any(isinstance(inner, Convert) for inner in pass_.passes):
        patterns = [pattern for inner in pass_.passes if isinstance(inner, Convert) for pattern in inner.patterns]
        others = [_reordered(inner, generator, number) for inner in pass_.passes if not isinstance(inner, Convert)]
        return attrs.evolve(pass_, passes=(*_conversions(patterns, others, generator, number), *others))
    if isinstance(pass_, PassManager):
        return attrs.evolve(pass_, passes=tuple([_reordered(inner, generator, number) for inner in pass_.passes]))
    return pass_


@attrs.frozen
class Drawn:
    """A predicate that means some operations, by operator and module: a third, a half or most of them."""

    number: int

    def __call__(self, op: Operation) -> bool:
        """Return whether it means an operation."""
        hashed = zlib.crc32(f"{self.number} {op.name} {op.location.module_path}".encode())
        return hashed % 12 < (4, 6, 9)[self.number % 3]


def _in_scopes(pass_: Pass, generator: random.Random) -> Pass:
    """Return a pass in which some, alone or together, have drawn scopes."""
    if isinstance(pass_, PassManager) and takes_passes(type(pass_)):
        pass_ = pass_.with_passes([_in_scopes(inner, generator) for inner in pass_.passes])
    skips, drawn = generator.random() < 0.5, Drawn(generator.randrange(1 << 16))
    if pass_.whole or generator.random() >= _IN_A_SCOPE:
        return pass_
    return attrs.evolve(pass_, skip=drawn) if skips else attrs.evolve(pass_, only=drawn)


def _conversions(
    patterns: Sequence[type[Pattern] | Pattern], between: Sequence[Pass], generator: random.Random, number: int
) -> list[Pass]:
    """Return one pass for each conversion, in another order, sometimes with passes between them.

    Each comes first in some order: the others, by chance, might never show what one does before them.
    """
    passes: list[Pass] = []
    order = list(_shuffled(patterns, generator))
    if order:
        place = order.index(patterns[number % len(order)])
        order[0], order[place] = order[place], order[0]
    for pattern in order:
        if passes and generator.random() < 0.5:
            passes += between
        passes.append(Convert((pattern,)))
    return passes


def _shuffled(items: Sequence[T], generator: random.Random) -> tuple[T, ...]:
    return tuple(generator.sample(list(items), len(items)))


def _described(pass_: Pass) -> list[str]:
    scope = f" in {Scope(pass_.only, pass_.skip)}" if pass_.only or pass_.skip else ""
    if isinstance(pass_, PassManager):
        inner = [text for each in pass_.passes for text in _described(each)]
        return [f"({' -> '.join(inner)}){scope}"] if scope else inner
    rules: Sequence[Any] = ()
    if isinstance(pass_, (Convert, Fuse)):
        rules = instantiate(pass_.patterns)
    elif isinstance(pass_, ApplyCanonicalRules):
        rules = instantiate(pass_.rules)
    elif isinstance(pass_, ApplyRules):
        rules = pass_.rules
    names = ", ".join(rule.name for rule in rules)
    return [f"{pass_.name}({names}){scope}" if names else str(pass_)]
