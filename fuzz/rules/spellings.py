"""Other spellings of an example: what a rule matches in it, built again from another alternative of the pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from typing_extensions import override

from fuzz.calls.source import Unavailable
from fuzz.rules.growth import Growth, Tried
from fuzz.rules.match_attributes import meeting
from fuzz.rules.match_source import MatchSource
from ir.caches import WeakCache
from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.program import Program
from passes.rewrite.example import Example
from passes.rewrite.expansion import nodes, op_nodes
from passes.rewrite.language.nodes import Roots, Tree
from passes.rewrite.matching import accepts_opdef, compile_rule
from passes.rewrite.pattern import AnyValue, AttrCapture, AttrWhere, Chain, Match, Node, OpNode, Pattern

_OTHERWISE_ONE_IN = 8
"""How seldom an operator or a chain is drawn although the example has one for this part of the pattern."""


@attrs.frozen(eq=False)
class Spelling:
    """A match that is built from a tree of its pattern.

    Attributes:
        tree: the tree, of one root.
        match: what the rule matches in the example.
        inner: its operations that nothing outside of it uses.
        captures: what the names of the pattern stand for in the example.
    """

    tree: Tree
    match: Match
    inner: frozenset[Operation]
    captures: Mapping[str, Any]

    def build(self, source: MatchSource, values: Mapping[Value, Value]) -> Sequence[Value]:
        """Build the tree around values that replace those of the example; return the results of its root.

        Raises:
            Unavailable: when it could not be built.
        """
        growth = _Regrowth(source, self, values)
        inside = {result for op in self.match.ops for result in op.results}
        for name, item in self.captures.items():
            if isinstance(item, Value) and item not in inside:
                growth.captures[name] = values[item]
            elif not _of_operations(item) and not isinstance(item, Value):
                growth.captures[name] = item
        owner = growth.grow(self.tree, 1).defining_op
        return [] if owner is None else owner.results


def spelled(rule: Pattern, program: Program, tree: Tree) -> Spelling | None:
    """Return how a tree of a rule's pattern takes the place of what the rule fires on first; None where it cannot."""
    found = None if isinstance(tree, Roots) else _first_match(rule, program)
    return None if found is None else Spelling(tree, found[0], _inner(found[0]), found[1])


def suited(rule: Pattern, tree: Tree) -> Sequence[Example]:
    """Return the examples with all values and chains that a tree of a rule's pattern names, and most of its operations.

    A norm that is one operator has no scale of which a formula could be made, and a scale to divide by is the inverse
    of one to multiply with.
    """
    known = _SUITED.setdefault(rule, {})
    if tree not in known:
        known[tree] = tuple(_suited(rule, tree)) if not isinstance(tree, Roots) else ()
    return known[tree]


_SUITED: WeakCache[Pattern, dict[Tree, Sequence[Example]]] = WeakCache()


def _suited(rule: Pattern, tree: Node) -> list[Example]:
    parts = list(nodes(tree))
    wanted = {
        part.name for part in parts if isinstance(part, Chain) or (isinstance(part, AnyValue) and not part.optional)
    }
    named = {part.name for part in parts if isinstance(part, OpNode)}
    found = [(e, match) for e in rule.examples if not e.refused and (match := _first_match(rule, e.program()))]
    held = [
        (e, (-len(named - captures.keys()), _count_held(tree, match)))
        for e, (match, captures) in found
        if wanted - {""} <= captures.keys()
    ]
    most = max([count for _, count in held], default=None)
    return [e for e, count in held if count == most]


def _count_held(tree: Node, match: Match) -> int:
    """Return how many operations of a tree are of an operator that a match has."""
    return sum(any(accepts_opdef(part.ops, op.opdef) for op in match.ops) for part in op_nodes(tree))


def _first_match(rule: Pattern, program: Program) -> tuple[Match, dict[str, Any]] | None:
    """Return the first match on which a rule fires, and what its pattern captured: `check` may capture more."""
    variants = compile_rule(rule)
    for op in program.graph.operations():
        for variant in variants:
            match = variant.try_match(op) if variant.accepts(op.opdef) else None
            if isinstance(match, Match):
                captures = dict(match.captures)
                if rule.check(match) is None:
                    return match, captures
    return None


def _inner(match: Match) -> frozenset[Operation]:
    matched = set(match.ops)
    inner = [op for op in match.ops if all(result.users and matched.issuperset(result.users) for result in op.results)]
    return frozenset(inner) - {match.root}


def _of_operations(item: Any) -> bool:
    return isinstance(item, Operation) or (isinstance(item, (tuple, list)) and any(map(_of_operations, item)))


class _Regrowth(Growth):
    """Growth of a tree out of the parts of another one: its operands, its operators and their attributes."""

    def __init__(self, source: MatchSource, spelling: Spelling, values: Mapping[Value, Value]) -> None:
        super().__init__(source, None)
        self.values = values
        self.match = spelling.match
        self.known = spelling.captures
        self.tree = spelling.tree

    def _as_before(self) -> bool:
        return self.source.integer(0, _OTHERWISE_ONE_IN - 1) < _OTHERWISE_ONE_IN - 1

    @override
    def _chain(self, node: Chain) -> Value:
        links = self.known.get(node.name)
        if not isinstance(links, (tuple, list)) or any(len(link.operands) > 1 for link in links):
            return super()._chain(node)
        if not self._as_before():
            return super()._chain(node)
        value = self.value(node.inner)
        made = []
        for link in links:
            op = self.source.builder.op(link.opdef, value, **link.attributes)
            made.append(op)
            value = op.results[0]
        self.ops += made
        self.inner += [op.results[0] for op in made]
        self.captures[node.name] = tuple(made)
        return value

    @override
    def _attempt(
        self,
        node: OpNode,
        fixed: dict[int | str, Any],
        free: dict[int | str, AnyValue],
        broken: set[int | str],
        tried: Tried,
        attempt: int,
    ) -> Operation | None:
        is_whole = all(leaf.optional for leaf in free.values())
        op = self._rebuilt(node, fixed) if not attempt and is_whole and self._as_before() else None
        return op or super()._attempt(node, fixed, free, broken, tried, attempt)

    def _rebuilt(self, node: OpNode, fixed: Mapping[int | str, Any]) -> Operation | None:
        """Return an operation on given operands, with the attributes of one of the example's where there is one."""
        source, like = self.source, self._like(node)
        try:
            opdef = like.opdef if like is not None and accepts_opdef(node.ops, like.opdef) else self._operator(node)
            names = [param.name for param in opdef.operand_params]
            named: dict[str, Any] = {names[key] if isinstance(key, int) else key: value for key, value in fixed.items()}
            if like is not None and like.opdef is opdef and not opdef.has_lists:
                # what the pattern does not name, as the weight of a convolution
                others = [(name, like.operand(name)) for name in names if name not in named]
                named |= {
                    name: self.values[value] for name, value in others if value is not None and value in self.values
                }
            given = {} if like is None else like.attributes
            attributes: dict[str, Any] = {p.name: given.get(p.name, p.default) for p in opdef.attribute_params}
            captured: dict[str, Any] = {}
            for name, expected in node.attributes:
                if isinstance(expected, AttrCapture):
                    captured[expected.name] = self.captures.get(expected.name, attributes.get(name))
                    attributes[name] = captured[expected.name]
                elif isinstance(expected, AttrWhere):
                    attributes[name] = meeting(source, expected.predicate, attributes.get(name))
                else:
                    attributes[name] = expected
            free = attributes.keys() - given.keys() - dict(node.attributes).keys()
            flags = [name for name in sorted(free) if isinstance(attributes[name], bool)]
            for flag in ("", *flags):
                if flag:
                    attributes[flag] = not attributes[flag]
                op = source.builder.op(opdef, **named, **attributes)
                if self._meets(node, op):
                    self.captures |= captured
                    return op
                source.graph.erase(op)
        except (Unavailable, GraphwrightError, IndexError):
            pass
        return None

    def _like(self, node: OpNode) -> Operation | None:
        """Return the operation that the example has for a part of the pattern: of its name, or of its operator."""
        if node is self.tree and accepts_opdef(node.ops, self.match.root.opdef):
            return self.match.root
        named = self.known.get(node.name) if node.name else None
        if isinstance(named, Operation):
            return named
        taken = [self.match.root, *self.known.values()]
        fitting = [op for op in self.match.ops if accepts_opdef(node.ops, op.opdef)]
        return next((op for op in fitting if op not in taken), fitting[0] if fitting else None)
