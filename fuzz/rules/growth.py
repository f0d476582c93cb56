"""Construction of a match of a pattern: operands, and an operation for each node."""

from __future__ import annotations

import re
from typing import Any

import attrs

from fuzz.calls.generators import GENERATORS, draw_call, generate_call
from fuzz.calls.source import Unavailable, shape_of
from fuzz.programs.strategy import COMMON
from fuzz.rules.demands import demanded_ranks, keeps_rank, meeting_value, place_in, same_call, weight_ranks
from fuzz.rules.dictionary import holds
from fuzz.rules.match_attributes import draw_attributes
from fuzz.rules.match_source import MatchSource
from ir.builder import bind_arguments
from ir.caches import cached
from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.opdef import OpDef, Trait, get_opdef
from ir.types import Dim, TensorType
from passes.rewrite.expansion import op_nodes
from passes.rewrite.language.nodes import Roots, Siblings, Tree, trees_of
from passes.rewrite.pattern import AnyValue, Chain, Node, OpNode

NEAR_MISSES = ("literal", "edge", "shape", "operator", "user", "mode", "condition")
"""What a near miss may have changed: literals of the pattern, edges, the shape of an operand, operators, the users of
an intermediate value, the mode of operations, or conditions of the pattern on values and operations."""

_ATTEMPTS = 6
_SEARCHING_FROM = 3
"""From this attempt on, operands that meet the pattern's conditions are searched for."""
_MAX_CHAIN = 3
_MANY = 4
"""If a node takes more operators than this, those that the rule's code names are drawn more often."""


@cached()
def operators_with(trait: Trait) -> tuple[OpDef, ...]:
    """Return the operators with a trait that have a call generator."""
    return tuple([opdef for name in GENERATORS if (opdef := get_opdef(name)).has(trait)])


@attrs.define
class Tried:
    """The operators that were tried for one node and did not fit."""

    unfit: set[OpDef] = attrs.field(factory=set)
    """Their generators did not use the fixed operands, which hardly fit then."""
    hopeless: set[OpDef] = attrs.field(factory=set)
    """They refused the fixed operands, and have no others."""


class Growth:
    """One match under construction: an operation for each node, and the captures.

    `change` is one of `NEAR_MISSES`, or None.
    """

    def __init__(self, source: MatchSource, change: str | None) -> None:
        self.source = source
        self.change = change
        self.nodes: list[OpNode] = []
        """The nodes of the pattern."""
        self.made: dict[OpNode, Operation] = {}
        self.captures: dict[str, Any] = {}
        self.unmet: set[int] = set()
        """Leaves whose conditions no operand was found to meet: another search takes long and finds little."""
        self.others: list[Value] = []  # the other roots, of a pattern with several
        self.ops: list[Operation] = []
        """The operations of the match, operands first."""
        self.inner: list[Value] = []
        """Results of the operations of the match."""
        self.spatial = ""
        """The number of spatial dimensions, if a later operator fixes it."""
        self.ranks: frozenset[int] | None = None
        """The ranks that the literals of a later operator allow for the value that is built now."""

    def value(self, node: Node) -> Value:
        """Build a node; return the value that it matches."""
        if isinstance(node, AnyValue):
            return self._leaf(node)
        if isinstance(node, Chain):
            return self._chain(node)
        assert isinstance(node, OpNode)
        op = self.made.get(node) or self._other_result(node)
        if op is None:
            op = self._operation(node)
        self.made[node] = op
        return op.results[node.result]

    def _other_result(self, node: OpNode) -> Operation | None:
        """Return an operation whose other result the pattern uses, three times in four: a split yields both halves."""
        for other, op in self.made.items():
            if other.result != node.result < len(op.results) and same_call(other, node):
                return op if self.source.integer(0, 3) else None
        return None

    def _last_result(self, node: OpNode, attempt: int) -> int:
        """Return the number of the last result of a call that the pattern uses; in late attempts, that of this node."""
        if attempt >= _SEARCHING_FROM:
            return node.result
        return max((other.result for other in self.nodes if same_call(other, node)), default=node.result)

    def grow(self, node: Tree, beginnings: int) -> Value:
        """Build the pattern and return its root, the first of several; if its parts do not fit together, start again.

        Args:
            node: the pattern.
            beginnings: how often to start.

        Raises:
            Unavailable: when it could not be built.
        """
        self.nodes = [part for part in op_nodes(node) if isinstance(part, OpNode)]
        for _ in range(beginnings):
            try:
                root = self.value(trees_of(node)[0])
                self.others = [self._beside(root, tree) for tree in trees_of(node)[1:]]
                if isinstance(node, Roots) and node.siblings is not None:
                    self._siblings(root, node.trees[0], node.siblings)
            except (Unavailable, GraphwrightError):
                self.erase()
                self.source.in_floats()
            else:
                return root
        raise Unavailable

    def _beside(self, root: Value, node: Node) -> Value:
        """Build another root; sometimes something uses the first one before, and this one may use that."""
        if self.change == "user" and self.source.flag():
            before = self.source.graph.num_operations
            self.source.values.append(root)
            self._use(root)
            self.ops += list(self.source.graph.operations())[before:]
        return self.value(node)

    def _siblings(self, root: Value, tree: Node, siblings: Siblings) -> None:
        """Build the siblings of a root, of which each has values of its own but for the one that they read."""
        shared = {siblings.of.name: self.captures[siblings.of.name]}
        for _ in range(siblings.minimum - 1 + self.source.integer(0, 1)):
            self.captures, self.made = dict(shared), {}
            self.others.append(self._beside(root, tree))

    def erase(self) -> None:
        """Erase what was built; nothing uses it yet."""
        for op in reversed(self.ops):
            self.source.graph.erase(op)
        gone = set(self.ops)
        self.source.values[:] = [value for value in self.source.values if value.defining_op not in gone]
        self.made, self.captures, self.inner, self.ops = {}, {}, [], []

    def surround(self, root: Value) -> None:
        """Add other users of the root and of operands; for a near miss, of an intermediate value too."""
        source = self.source
        intermediate = [v for v in self.inner if v is not root]
        if self.change == "user" and intermediate:
            self._use(source.one_of(intermediate))
        source.values += [root, *self.others]
        if source.integer(0, 3):
            self._use(root)
        for _ in range(source.integer(0, 3)):
            self._use(source.one_of(source.values[::-1]))

    def _use(self, value: Value) -> None:
        source = self.source
        name = source.one_of(("aten.neg", *COMMON))
        source.pinned = [value]
        try:
            args, kwargs = generate_call(source, name)
            source.add(source.builder.op(name, *args, **kwargs))
        except (Unavailable, GraphwrightError):
            source.add(source.builder.op("aten.clone", value))
        finally:
            source.pinned = []

    def _leaf(self, node: AnyValue) -> Value:
        known = self.captures.get(node.name)
        if isinstance(known, Value):
            return known
        for _ in range(_ATTEMPTS):
            value = self.source.tensor()
            if self._accepts(node, value):
                if node.name:
                    self.captures[node.name] = value
                return value
        raise Unavailable

    def _accepts(self, node: AnyValue, value: Value | None) -> bool:
        if value is None:
            return node.optional
        return node.where is None or self.change == "condition" or holds(node.where, value)

    def _chain(self, node: Chain) -> Value:
        links = self.source.integer(node.minimum, max(node.minimum, min(node.maximum, _MAX_CHAIN)))
        ops = [opdef for o in node.ops for opdef in (operators_with(o) if isinstance(o, Trait) else (o,))]
        unary = [opdef for opdef in ops if len(opdef.operand_params) == 1]  # PReLU, with two operands, is not a link
        ops = ops if self.change == "operator" else unary or ops
        made: list[Operation] = []
        demanded = self.ranks
        try:
            # where no link changes the rank, the demand on the last one holds for all
            self.ranks = demanded if not links or keeps_rank(ops) else None
            value = self.value(node.inner)
            while len(made) < links:
                self.ranks = demanded if len(made) == links - 1 or keeps_rank(ops) else None
                op = self._operation(OpNode(tuple(ops), ((0, _Given(value=value)),), where=node.where))
                made.append(op)
                value = op.results[0]
        finally:
            self.ranks = demanded
        if node.name:
            self.captures[node.name] = tuple(made)
        return value

    def _operation(self, node: OpNode) -> Operation:
        fixed: dict[int | str, Any] = {}
        free: dict[int | str, AnyValue] = {}
        outer, outer_ranks = self.spatial, self.ranks
        demanded = self._demanded(node)
        ranks = set() if isinstance(node.ops, Trait) else set(map(_spatial_rank, node.ops))
        self.spatial = (ranks.pop() if len(ranks) == 1 else "") or outer
        around = self.source.alike
        try:
            for key, part in node.operands:
                place = place_in(node, key)
                self.ranks = (demanded if place == 0 else None) or self._usual(node, place)
                if isinstance(part, _Given):
                    fixed[key] = part.value
                elif part is None:
                    fixed[key] = None
                elif isinstance(part, tuple):
                    fixed[key] = tuple([self.value(item) for item in part])
                elif isinstance(part, AnyValue) and part.name not in self.captures:
                    free[key] = part
                else:
                    fixed[key] = value = self.value(part)
                    self.source.alike = value.tensor_type if isinstance(value.type, TensorType) else around
            for key in [key for key, part in free.items() if part.name in self.captures]:
                fixed[key] = self.value(free.pop(key))  # a later operand was built from it
        finally:
            self.spatial, self.ranks, self.source.alike = outer, outer_ranks, around
        broken = self._broken_edges(fixed)
        tried = Tried()
        for attempt in range(_ATTEMPTS):
            self.source.ranks, self.source.result_ranks = demanded, outer_ranks
            try:
                op = self._attempt(node, fixed, free, broken, tried, attempt)
            finally:
                self.source.ranks = self.source.result_ranks = None
            if op is not None:
                self.ops.append(op)
                self.inner += [result for result in op.results if type(result.type) is TensorType]
                return op
        raise Unavailable

    def _demanded(self, node: OpNode) -> frozenset[int] | None:
        """Return the ranks that the first operand of a node may have."""
        if self.change in ("literal", "operator"):
            return None
        demanded = demanded_ranks(node)
        keeps = isinstance(node.ops, tuple) and keeps_rank(node.ops)
        return self.ranks if demanded is None and keeps else demanded

    def _usual(self, node: OpNode, place: int) -> frozenset[int] | None:
        """Return the usual ranks of an operand, or None where any is tried."""
        ranks = weight_ranks(node, place) if self.change is None else None
        return ranks if ranks is not None and self.source.integer(0, 7) < 7 else None

    def _broken_edges(self, fixed: dict[int | str, Any]) -> set[int | str]:
        if self.change != "edge":
            return set()
        return {key for key, value in fixed.items() if isinstance(value, Value) and self.source.flag()}

    def _attempt(
        self,
        node: OpNode,
        fixed: dict[int | str, Any],
        free: dict[int | str, AnyValue],
        broken: set[int | str],
        tried: Tried,
        attempt: int,
    ) -> Operation | None:
        source = self.source
        opdef = self._operator(node)
        if opdef in tried.hopeless or (opdef in tried.unfit and source.integer(0, 3)):
            return None
        places = {
            key if isinstance(key, int) else opdef.operand_index.get(key, -1): value
            for key, value in fixed.items()
            if key not in broken
        }
        given = set(places)
        if attempt >= _SEARCHING_FROM:
            places |= self._searched(opdef, free)
        if attempt % 2 == 0:
            source.places, source.pinned = places, [v for v in places.values() if isinstance(v, Value)]
        try:
            args, kwargs = draw_call(source, opdef)
            if source.pinned:
                tried.unfit.add(opdef)
                if source.integer(0, 7):
                    return None
            operands, drawn, segments, _ = bind_arguments(opdef, args, kwargs)
            if segments is None and len(operands) != len(opdef.operand_params):
                raise Unavailable  # an attribute refers to a value
            grouped = list(opdef.group(operands, segments))
            if max(places, default=0) >= len(grouped) or min(places, default=0) < 0:
                return None
            # if the call was drawn around the fixed operands, the others fit already
            fits = bool(places) and all(grouped[place] is value for place, value in places.items())
            is_open = bool(places) and any(isinstance(v, Value) and i not in places for i, v in enumerate(grouped))
            if is_open and (source.integer(0, 7) == 7 if fits else attempt > 1 or source.flag()):
                self._fit_to(grouped, places)
            for place, value in places.items():
                grouped[place] = value
            if self.change == "shape" and source.flag():
                self._reshape_one(grouped, places)
            captured = self._capture_operands(opdef, free, grouped)
            if captured is None:
                return None
            named = {param.name: value for param, value in zip(opdef.operand_params, grouped, strict=True)}
            asked = source, node, opdef, drawn, self.captures, self.change
            attributes, captured_attributes = draw_attributes(*asked)
            try:
                op = source.builder.op(opdef, **named, **attributes)
            except GraphwrightError:
                if all(place in given for place, value in enumerate(grouped) if value is not None):
                    tried.hopeless.add(opdef)  # only attributes are left to draw
                plain, captured_attributes = draw_attributes(*asked, hinted=False)
                if plain == attributes:
                    return None
                op = source.builder.op(opdef, **named, **plain)
                tried.hopeless.discard(opdef)
        except (Unavailable, GraphwrightError):
            return None
        finally:
            source.places, source.pinned = {}, []
        if self._last_result(node, attempt) >= len(op.results) or not self._meets(node, op):
            source.graph.erase(op)
            return None
        if op.in_training:
            for name in ("running_mean", "running_var"):
                source.written(op.operand(name) if name in opdef.operand_index else None)
        self.captures |= {**captured, **captured_attributes}
        return op

    def _searched(self, opdef: OpDef, free: dict[int | str, AnyValue]) -> dict[int, Any]:
        """Return operands that meet the conditions of leaves, by place: no drawn call met them."""
        found: dict[int, Any] = {}
        for key, leaf in free.items():
            place = key if isinstance(key, int) else opdef.operand_index.get(key, -1)
            if leaf.where is None or self.change == "condition" or place < 0 or id(leaf) in self.unmet:
                continue
            value = meeting_value(self.source, leaf)
            if value is None:
                self.unmet.add(id(leaf))
            else:
                found[place] = value
        return found

    def _meets(self, node: OpNode, op: Operation) -> bool:
        if self.ranks is not None and getattr(op.results[node.result].type, "rank", None) not in self.ranks:
            return False
        if node.where is None or self.change in ("condition", "operator"):
            return True
        return node.where(op) is None

    def _operator(self, node: OpNode) -> OpDef:
        source = self.source
        if self.change == "operator" and source.integer(0, 2) == 2:
            return get_opdef(source.one_of(COMMON))
        ops = operators_with(node.ops) if isinstance(node.ops, Trait) else node.ops
        ops = tuple([opdef for opdef in ops if not opdef.is_region])
        if not ops:
            raise Unavailable
        if len(ops) > _MANY:
            named = [opdef for opdef in ops if opdef.name in source.named]
            if named and source.integer(0, 3) == 3:
                return source.one_of(named)
        agreeing = [opdef for opdef in ops if _spatial_rank(opdef) == self.spatial] if self.spatial else []
        return source.one_of(agreeing if agreeing and source.integer(0, 7) < 7 else ops)

    def _fit_to(self, grouped: list[Any], places: dict[int, Any]) -> None:
        """Replace free operands by new ones whose shapes derive from those of the fixed ones."""
        source = self.source
        shapes = [v.tensor_type.shape for v in places.values() if isinstance(v, Value)]
        if not shapes or shapes[0] is None:
            return
        shape = tuple(shapes[0])
        candidates = [shape]
        if len(shape) > 1:
            candidates += [(*shape[:-2], shape[-1], shape[-2]), (*shape[:-2], source.size(), shape[-2]), shape[1:]]
        for place, value in enumerate(grouped):
            if place not in places and isinstance(value, Value) and value.tensor_type.dtype is not None:
                grouped[place] = source.make(source.one_of(candidates), value.tensor_type.dtype)

    def _reshape_one(self, grouped: list[Any], places: dict[int, Any]) -> None:
        """Replace a free operand by one with a size of 1, or with a dimension more or less."""
        source = self.source
        candidates = [
            (place, value.tensor_type)
            for place, value in enumerate(grouped)
            if place not in places and isinstance(value, Value) and value.tensor_type.shape is not None
        ]
        if not candidates:
            return
        place, type_ = source.one_of(candidates)
        shape = shape_of(grouped[place])
        others: list[tuple[Dim, ...]] = [(1, *shape), (*shape, 1)]
        if shape:
            at = source.integer(0, len(shape) - 1)
            others = [(*shape[:at], 1, *shape[at + 1 :]), shape[1:], *others]
        grouped[place] = source.make(source.one_of(others), type_.dtype)

    def _capture_operands(
        self, opdef: OpDef, free: dict[int | str, AnyValue], grouped: list[Any]
    ) -> dict[str, Any] | None:
        captured: dict[str, Any] = {}
        for key, leaf in free.items():
            place = key if isinstance(key, int) else opdef.operand_index.get(key, -1)
            if not 0 <= place < len(grouped):
                if leaf.optional or self.change == "operator":
                    continue
                return None
            if leaf.name in captured:
                grouped[place] = captured[leaf.name]
            value = grouped[place]
            if isinstance(value, tuple) or not self._accepts(leaf, value):
                return None
            if leaf.name:
                captured[leaf.name] = value
        return captured


@cached()
def _spatial_rank(opdef: OpDef) -> str:
    """Return the digit in `conv2d` and `max_pool2d`, or nothing."""
    found = re.search(r"(\d)d", opdef.short_name)
    return found[1] if found else ""


@attrs.frozen(eq=False)
class _Given(AnyValue):
    """An existing operand in place of a node."""

    value: Value | None = None
