"""What a pattern demands of operands, found before the operation that demands it is built."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fuzz.calls.tensors import random_tensor
from fuzz.calls.types import FLOATS, INTEGERS
from fuzz.rules.dictionary import holds
from fuzz.rules.match_source import MatchSource
from ir.builder import make_operation
from ir.caches import WeakCache
from ir.core import Graph, Value
from ir.errors import GraphwrightError
from ir.opdef import OpDef, ParamKind, Trait
from ir.program import Weight, WeightKind
from ir.types import Dim, TensorType
from passes.rewrite.pattern import AnyValue, AttrCapture, AttrWhere, OpNode

MAX_RANK = 7
"""The largest rank that an operand is given because something demands it."""
_CANDIDATES = 100
_ELEMENTS = 4096
_SEEDS = 2**16
_DTYPES = (torch.float32, *FLOATS, *INTEGERS, torch.bool)
_WEIGHT_RANKS: dict[str, dict[int, int]] = {
    **{f"conv{dims}d": {1: dims + 2, 2: 1} for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": {1: dims + 2, 2: 1} for dims in (1, 2, 3)},
    **{name: {1: 1, 2: 1, 3: 1, 4: 1} for name in ("batch_norm", "instance_norm")},
    "group_norm": {1: 1, 2: 1},
    "linear": {1: 2, 2: 1},
    "embedding": {0: 2},
    "addmm": {1: 2, 2: 2},
    "mm": {0: 2, 1: 2},
    "bmm": {0: 3, 1: 3},
}
"""The usual ranks of operands by their places, for operators whose operands must fit each other."""
_RANKS: WeakCache[OpNode, frozenset[int] | None] = WeakCache()


def demanded_ranks(node: OpNode) -> frozenset[int] | None:
    """Return the ranks that the literals of an operation allow its first operand: `permute(x, dims=(0, 2, 1))`.

    None where the literals do not determine it, where sizes decide as well, or where there are several operands.
    """
    if node not in _RANKS:
        _RANKS[node] = _probed_ranks(node)
    return _RANKS[node]


def weight_ranks(node: OpNode, place: int) -> frozenset[int] | None:
    """Return the usual ranks of one operand of an operation, independent of the others."""
    ops = node.ops if isinstance(node.ops, tuple) else ()
    ranks = [_WEIGHT_RANKS.get(opdef.short_name, {}).get(place) for opdef in ops]
    return None if None in ranks or not ranks else frozenset([rank for rank in ranks if rank is not None])


def keeps_rank(ops: Iterable[OpDef | Trait]) -> bool:
    """Return whether the result of each operator has the rank of its only operand."""
    return all(
        op is Trait.ACTIVATION or (isinstance(op, OpDef) and op.has(Trait.ELEMENTWISE) and len(op.operand_params) == 1)
        for op in ops
    )


def _probed_ranks(node: OpNode) -> frozenset[int] | None:
    literals = tuple(
        (name, value) for name, value in node.attributes if not isinstance(value, (AttrCapture, AttrWhere))
    )
    if not literals or not isinstance(node.ops, tuple):
        return None
    found = [_taken_ranks(opdef, literals) for opdef in node.ops]
    return None if None in found else frozenset().union(*[ranks for ranks in found if ranks is not None])


def _taken_ranks(opdef: OpDef, literals: tuple[tuple[str, object], ...]) -> frozenset[int] | None:
    """Return the operand ranks for which an operator accepts some literals; None for any rank, or where unknown."""
    params = opdef.operand_params
    if opdef.is_region or not params or any((p.kind is ParamKind.TENSOR) != (p is params[0]) for p in params):
        return None
    taken = set()
    for rank in range(MAX_RANK + 1):
        outcomes = {_takes(opdef, literals, rank, size) for size in (2, 1, 3)}
        if len(outcomes) > 1:
            return None  # sizes decide: a reshape to two by two takes four elements of any rank
        if outcomes == {True}:
            taken.add(rank)
    return frozenset(taken) if 0 < len(taken) <= MAX_RANK else None


def _takes(opdef: OpDef, literals: tuple[tuple[str, object], ...], rank: int, size: int) -> bool:
    x = Graph([("x", TensorType((size,) * rank, torch.float32))]).inputs[0]
    attributes: dict[str, Any] = dict(literals)
    try:
        make_operation(opdef, x, **attributes)
    except GraphwrightError:
        return False
    return True


def meeting_value(source: MatchSource, leaf: AnyValue) -> Value | None:
    """Return an operand that meets the condition of a leaf: an existing one, or a new input or weight; else None.

    A condition is opaque, so types of all ranks and dtypes are tried, some with sizes that the rule's code names.
    """
    condition = leaf.where
    assert condition is not None
    for value in reversed(source.values):
        if holds(condition, value):
            return value
    chance = random.Random(source.integer(0, _SEEDS - 1))  # one draw: many would take longer than the search
    for number in range(_CANDIDATES):
        type_ = _candidate(chance, source.sizes)
        value = Graph([("x", type_)]).inputs[0]
        if holds(condition, value):
            return source.new_input(type_)
        kind = chance.choice((WeightKind.PARAMETER, WeightKind.BUFFER, WeightKind.CONSTANT))
        data = random_tensor([int(d) for d in type_.shape or () if d is not None], type_.dtype or FLOATS[0], number)
        weight = Weight(f"w{len(source.program.weights)}", kind, type_, data, requires_grad=_may_train(kind, data))
        if holds(condition, weight.value):
            source.values.append(source.program.add_weight(weight))
            return source.values[-1]
    return None


def _candidate(chance: random.Random, named: Sequence[int]) -> TensorType:
    rank = chance.randrange(MAX_RANK + 1)
    pool = (2, 3, 1, 4, *named)
    sizes: list[Dim] = [chance.choice(pool)] * rank
    if chance.random() < 0.6:
        sizes = [chance.choice(pool) for _ in range(rank)]
    for at in range(rank):
        if math.prod(sizes) <= _ELEMENTS:
            break
        sizes[at] = 1
    return TensorType(tuple(sizes), chance.choice(_DTYPES))


def _may_train(kind: WeightKind, data: torch.Tensor) -> bool:
    return kind is WeightKind.PARAMETER and data.is_floating_point()


def same_call(a: OpNode, b: OpNode) -> bool:
    """Return whether two nodes may be one operation, as far as the pattern says."""
    return (a.ops, a.operands, a.attributes, a.where) == (b.ops, b.operands, b.attributes, b.where)


def place_in(node: OpNode, key: int | str) -> int:
    """Return the number of the operand that a key of a node means; -1 where that is not known."""
    if isinstance(key, int) or not isinstance(node.ops, tuple):
        return key if isinstance(key, int) else -1
    return node.ops[0].operand_index.get(key, -1)
