"""Gives one scale and zero point to values that must share them: classes, found by union."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import attrs
from typing_extensions import override

from ir.core import Operation, Value
from ir.locations import Location
from ir.program import Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from passes.manager.manager import Pass, PassContext
from passes.quant.decide import root
from passes.quant.parameters import Pair
from passes.quant.place import Place, Placement
from passes.quant.tables import Table, find_table, known_table
from passes.rewrite.remarks import Remark
from passes.rewrite.rewriter import Rewriter

Refuse = Callable[[Sequence[str], Sequence[str]], str | None]
"""Takes the names of the scales of two classes; returns why they must not be joined, or None."""


@attrs.frozen
class Join:
    """Two quantizers that should have the same parameters.

    Attributes:
        kept: the name of the scale that stays, or of the one that the other was not joined with.
        other: the name of the other scale.
        location: the place of what demands it.
        reason: why they share, or why they cannot.
    """

    kept: str
    other: str
    location: Location
    reason: str
    is_joined: bool

    @property
    def remark(self) -> Remark:
        """What is said of it."""
        kind = "unified" if self.is_joined else "apart"
        return Remark(kind, UnifyQuantizers.name, self.location, str(self), reason=self.reason)

    def __str__(self) -> str:
        return f"`{self.other}` {'is' if self.is_joined else 'is not'} `{self.kept}`: {self.reason}"


@attrs.frozen
class Unified:
    """What was unified.

    Attributes:
        names: name of each scale that went -> name of the scale in its place.
        joins: what was joined, and what was not.
    """

    names: dict[str, str]
    joins: tuple[Join, ...]

    @property
    def conflicts(self) -> tuple[Join, ...]:
        """What should share its parameters and does not."""
        return tuple(join for join in self.joins if not join.is_joined)


def unify_quantizers(program: Program, table: str | Table, refuse: Refuse | None = None) -> Unified:
    """Let quantizers share their parameters, in place, where integers pass from one to the other as they are.

    Layout operations and max pooling always demand it; other kinds where their row says `shares`. The addition of a
    residual never does.

    Args:
        program: a program with quantizers.
        table: the table by which they were placed, or its name.
        refuse: asked before two classes are joined where a row says `shares`.
    """
    return _Unifier(program, find_table(table), refuse).run()


class _Unifier:
    def __init__(self, program: Program, table: Table, refuse: Refuse | None) -> None:
        self.program = program
        self.table = table
        self.refuse = refuse
        self.parents: dict[Value, Value] = {}
        self.pairs: dict[Value, Pair] = {}
        self.members: dict[Value, list[str]] = {}
        self.ranges: dict[Value, tuple[object, ...]] = {}
        self.joins: list[Join] = []

    def run(self) -> Unified:
        ops = [op for op in self.program.graph.operations() if op.opdef is QUANTIZE]
        for op in ops:
            self._add(op)
        behind: dict[Operation, list[Value]] = {}
        for op in ops:
            source = root(op.input("x"), self.table).defining_op
            if source is not None:
                behind.setdefault(source, []).append(op.input("scale"))
            if source is not None and source.opdef is DEQUANTIZE:
                self._join(source.input("scale"), op.input("scale"), op, "the same integers, moved or selected", None)
        for op in self.program.graph.operations():
            row = None if op.body is None else self.table.find(str(op.attributes["kind"]))
            if row is not None and row.shares:
                scales = [*_scales_read(op), *behind.get(op, ())]
                for other in scales[1:]:
                    self._join(scales[0], other, op, row.reason, self.refuse)
        return Unified(self._replace(), tuple(self.joins))

    def _add(self, op: Operation) -> None:
        scale = op.input("scale")
        self.parents.setdefault(scale, scale)
        self.pairs.setdefault(scale, Pair(scale, op.input("zero_point")))
        self.members.setdefault(scale, [scale.name])
        self.ranges.setdefault(
            scale, tuple(op.attributes[name] for name in ("dtype", "axis", "quant_min", "quant_max"))
        )

    def _find(self, scale: Value) -> Value:
        while self.parents[scale] is not scale:
            self.parents[scale] = self.parents[self.parents[scale]]
            scale = self.parents[scale]
        return scale

    def _join(self, a: Value, b: Value, op: Operation, reason: str, refuse: Refuse | None) -> None:
        if a not in self.parents or b not in self.parents:
            return
        kept, other = self._find(a), self._find(b)
        if kept is other:
            return
        fault = None if refuse is None else refuse(self.members[kept], self.members[other])
        if self.ranges[kept] != self.ranges[other]:
            fault = "their integers are of different types"
        if fault is None:
            self.parents[other] = kept
            self.members[kept] += self.members[other]
        self.joins.append(Join(kept.name, other.name, op.location, fault or reason, fault is None))

    def _replace(self) -> dict[str, str]:
        names: dict[str, str] = {}
        b = Rewriter(self.program)
        for scale, pair in self.pairs.items():
            kept = self._find(scale)
            if kept is scale:
                continue
            names[scale.name] = kept.name
            for old, new in ((pair.scale, kept), (pair.zero_point, self.pairs[kept].zero_point)):
                b.replace_value(old, new)
                del self.program.weights[old.name]
        return names


def with_conflicts(placement: Placement, unified: Unified, table: Table) -> Placement:
    """Return a placement whose places say so where an operation that should share one scale does not."""
    apart = {join.location: join.reason for join in unified.conflicts}

    def told(place: Place) -> Place:
        row = table.find(place.site.kind)
        if not place.is_placed or row is None or not row.shares or place.location not in apart:
            return place
        return attrs.evolve(place, reason=f"in integers, which are not all of one scale: {apart[place.location]}")

    return attrs.evolve(placement, places=tuple(map(told, placement.places)))


def _scales_read(op: Operation) -> Sequence[Value]:
    """Return the scales by which a region dequantizes its operands."""
    assert op.body is not None
    outer = dict(zip(op.body.inputs, op.operands, strict=True))
    found = [
        outer[each.input("scale")]
        for each in op.body.operations()
        if each.opdef is DEQUANTIZE and each.input("q").is_input
    ]
    return [scale for scale in found if scale is not None]


@attrs.frozen
class UnifyQuantizers(Pass):
    """Gives one scale and zero point to quantizers between which integers pass as they are.

    Attributes:
        target: the name of a placement table, or a table.
    """

    name: ClassVar[str] = "unify-quantizers"
    whole: ClassVar[str] = "integers pass from region to region, and share a scale where they do"
    target: str | Table = attrs.field(default="tensorrt", validator=known_table)

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Unify, and say of each pair what was joined, or why it was not."""
        for join in unify_quantizers(program, self.target).joins:
            context.log.remarks.add(join.remark)
