"""Attributes for an operation that replaces another one: the same ones, and other ways to write them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fuzz.calls.source import Source, Unavailable
from fuzz.rules.dictionary import dictionary_of, holds
from ir.attributes import normalize_attribute
from ir.columns import Layout
from ir.core import Operation, Value
from ir.opdef import OpDef, Param
from ir.types import TensorType
from passes.rewrite.pattern import Pattern

_PLAIN: dict[str, tuple[Any, ...]] = {
    "bool": (False, True),
    "MemoryFormat": (torch.contiguous_format, torch.preserve_format),
    "str": ("same", "valid", "constant"),
    "ScalarType": (torch.float32, torch.float64, torch.int64),
}
_NUMBERS = (0, 1, 1.0, 0.0, -0.0, 2)


class Respelling:
    """Draws the attributes of one operation.

    Args:
        source: draws.
        opdef: the operator of the new operation.
        rule: the literals in its code are tried as numbers.
        model: the operation that is to be replaced, if there is one.
        operand: the first operand of the new operation.
    """

    def __init__(
        self, source: Source, opdef: OpDef, rule: Pattern, model: Operation | None, operand: Value | None
    ) -> None:
        self.source = source
        self.opdef = opdef
        self.rule = rule
        self.model = model
        self.operand = _type(operand)
        self.result = _type(model.results[0]) if model is not None and model.results else self.operand

    def attribute(self, param: Param, predicate: Callable[[Any], bool] | None = None) -> Any:
        """Return a value for an attribute that meets the predicate, if one is given.

        Raises:
            Unavailable: when there is none.
        """
        source, model = self.source, self.model
        known = model is not None and param.name in model.attributes
        own = model.attributes[param.name] if model is not None and known else param.default
        pool: list[Any] = []
        kind = source.integer(0, 5)
        if known:
            pool = [own] if kind < 3 else list(self._other_ways(own)) if kind < 5 else []
        elif param.has_default and kind < 3:
            pool = [own]
        pool = self._meeting(predicate, pool) or self._meeting(predicate, self._choices(param))
        if not pool and (known or param.has_default):
            pool = self._meeting(predicate, [own])
        if not pool:
            raise Unavailable
        return source.one_of(pool)

    def _meeting(self, predicate: Callable[[Any], bool] | None, pool: list[Any]) -> list[Any]:
        return pool if predicate is None else [value for value in pool if holds(predicate, normalize_attribute(value))]

    def _other_ways(self, given: Any) -> Iterator[Any]:
        """Yield other ways to write a value: dimensions and indices from the back, a size of -1, defaults left out."""
        rank = self._rank()
        if type(given) is int:
            yield given - rank
            yield from (given - size for size in dict.fromkeys(_sizes(self.operand)))
        elif _all_ints(given):
            yield ()
            if given:
                at = self.source.integer(0, len(given) - 1)
                yield (*given[:at], -1, *given[at + 1 :])
                yield (*given[:at], given[at] - rank, *given[at + 1 :])
                yield tuple([n - rank for n in given])

    def _choices(self, param: Param) -> list[Any]:
        """Return values of an attribute's type, some of them named by the rule's code."""
        kind, optional = param.type, [None]
        if kind.startswith("Optional["):
            kind = kind[len("Optional[") : -1]
        else:
            optional.clear()
        literals = dictionary_of(self.rule)
        if kind == "int":
            return [*optional, *self._integers()]
        if kind == "List[int]":
            named = [t for t in literals if _all_ints(t)]
            if named and self.source.flag():
                return named
            drawn = dict.fromkeys(self._tuples())
            # most shapes do not hold as many elements as the operand
            size = math.prod(_sizes(self.operand))
            full = [t for t in drawn if math.prod(t) == size] if self.opdef.layout is Layout.RESHAPE else []
            return full if full and self.source.integer(0, 7) else [*optional, *drawn]
        if kind in ("number", "float"):
            named = [n for n in literals if isinstance(n, (int, float)) and not isinstance(n, bool)]
            return named if named and self.source.flag() else [*optional, *_NUMBERS]
        if kind == "ScalarType" and self.operand is not None:
            return [*optional, self.operand.dtype]
        return [*optional, *_PLAIN.get(kind, ())]

    def _integers(self) -> list[int]:
        rank, model = self._rank(), self.model
        sizes = [n for type_ in (self.operand, self.result) for n in _sizes(type_)]
        count = [] if model is None else [len(model.results)]
        return list(dict.fromkeys([*range(rank), *range(-rank, 0), *count, *sizes, 0, 1, 2**63 - 1]))

    def _tuples(self) -> Iterator[tuple[int, ...]]:
        """Yield shapes, parts of shapes, orders and sets of dimensions, and padding and factors that change nothing."""
        source, rank, model = self.source, self._rank(), self.model
        own = [] if model is None else [t for t in model.attributes.values() if _all_ints(t)]
        for given in (*own, tuple(_sizes(self.result)), tuple(_sizes(self.operand))):
            yield given
            start, stop = source.integer(0, len(given)), source.integer(0, len(given))
            yield given[min(start, stop) : max(start, stop)]
            # an extra 1, merged dimensions, the ends of pieces
            yield (*given[:start], 1, *given[start:])
            yield (*given[:start], math.prod(given[start:stop]), *given[max(start, stop) :])
            yield from ((math.prod(given[:end]), *given[end:]) for end in range(2, len(given)))
            yield tuple(itertools.accumulate(given[:-1]))
        order = list(range(rank))
        for end in range(rank - 1, 0, -1):
            other = source.integer(0, end)
            order[end], order[other] = order[other], order[end]
        yield tuple(order)
        yield tuple(order[-2:])
        for count in dict.fromkeys((rank, 2)):
            yield (0,) * count
            yield (1,) * count

    def _rank(self) -> int:
        return 0 if self.operand is None or self.operand.shape is None else len(self.operand.shape)


def _type(value: Value | None) -> TensorType | None:
    return value.type if value is not None and isinstance(value.type, TensorType) else None


def _sizes(type_: TensorType | None) -> list[int]:
    return [] if type_ is None else [n for n in type_.shape or () if type(n) is int]


def _all_ints(item: Any) -> bool:
    return isinstance(item, tuple) and all(type(n) is int for n in item)
