"""From a pattern's tree to matchers: alternatives are expanded, then each variant becomes nested closures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from ir.caches import WeakCache
from ir.core import Operation, Value
from ir.errors import PatternError
from ir.opdef import OpDef, ParamKind, Trait
from ir.spelling import known_names
from passes.rewrite.bounds.tolerance import check_tolerance
from passes.rewrite.expansion import check_captures, expand, num_operations, op_nodes, shared_nodes
from passes.rewrite.faults import rule_raised
from passes.rewrite.language.builder import overloads_with_keyword
from passes.rewrite.language.nodes import AnyOf, AnyValue, Chain, Node, OpNode, Roots, Tree, trees_of
from passes.rewrite.language.roots import joined, links
from passes.rewrite.literals import attribute_matcher
from passes.rewrite.pattern import Match, Pattern, PatternBuilder, missing_method, unscoped
from passes.rewrite.remarks import Refusal
from passes.rewrite.siblings import sibling_matcher


class _State:
    """What one attempt to match has found; `reason` is the first condition that failed on a fitting structure."""

    __slots__ = ("bound", "captures", "ops", "reason", "roots")

    def __init__(self) -> None:
        self.captures: dict[str, Any] = {}
        self.ops: list[Operation] = []
        self.bound: dict[int, Any] = {}
        self.reason: str | Refusal | None = None
        self.roots: list[Operation] = []


_ValueMatcher = Callable[[Value | None, _State], bool]
_OpMatcher = Callable[[Operation, _State], bool]


@attrs.define(eq=False, slots=True)
class Variant:
    """One expansion of a pattern without alternatives."""

    rule: Pattern
    tree: Tree
    length: int
    """The number of operations it has at least."""
    order: int
    match_op: _OpMatcher
    root: OpNode | Chain
    """The root, the first of several."""
    needs: tuple[tuple[int, frozenset[OpDef]], ...] = ()
    """(operand number of the root, operators one of which must define it): rejects most operations at once."""
    names: tuple[str, ...] = ()
    """The names of the alternatives that it has."""

    def accepts(self, opdef: OpDef) -> bool:
        """Return whether an operation of this operator can be the root."""
        return accepts_opdef(self.root.ops, opdef)

    def mentions(self, opdef: OpDef) -> bool:
        """Return whether an operation of this operator can be anywhere in a match."""
        return any(accepts_opdef(node.ops, opdef) for node in op_nodes(self.tree))

    def try_match(self, op: Operation) -> Match | Refusal | str | None:
        """Match at `op`: a match, the reason of a near miss, a refusal that is none, or None."""
        operands = op._operands
        for index, opdefs in self.needs:
            value = operands[index] if index < len(operands) else None
            if value is None or type(value.owner) is not Operation or value.owner.opdef not in opdefs:
                return None
        state = _State()
        if not self.match_op(op, state):
            return None
        if state.reason is not None:
            return state.reason
        ops = state.ops
        if len(ops) > 1:
            ops = list(dict.fromkeys(ops))
        return Match(op, ops, state.captures, state.roots[1:], self.names)


def accepts_opdef(ops: Trait | Sequence[OpDef | Trait], opdef: OpDef) -> bool:
    """Return whether a part of a pattern for these operators can be an operation of `opdef`."""
    if isinstance(ops, Trait):
        return opdef.has(ops)
    return any(opdef.has(o) if isinstance(o, Trait) else opdef is o for o in ops)


# Compiled once a class, if its rules have no parameters: then the pattern is the same for every instance.
_COMPILED: WeakCache[type[Pattern], tuple[Variant, ...]] = WeakCache()


def compile_rule(rule: Pattern) -> tuple[Variant, ...]:
    """Return the variants of a rule, longest first.

    Raises:
        PatternError: when the pattern is ill-formed or its root is not an operation.
    """
    if type(rule).__init__ is not object.__init__ or vars(rule):
        # it may have parameters, in slots too, and its pattern may depend on them
        return _compile(rule)
    class_ = unscoped(type(rule))
    known = _COMPILED.get(class_)
    if known is None:
        known = _COMPILED[class_] = _compile(rule)
    return tuple(attrs.evolve(variant, rule=rule) for variant in known)


def _compile(rule: Pattern) -> tuple[Variant, ...]:
    for method in ("pattern", "rewrite"):
        if getattr(type(rule), method) is getattr(Pattern, method):
            raise missing_method(rule, method)
    check_tolerance(f"the pattern {rule.name}", rule.tolerance, exact=rule.exact)
    try:
        return _variants(rule)
    except Exception as error:
        raise rule_raised(rule, "pattern", error) from error


def tree_of(rule: Pattern) -> Tree:
    """Return what the `pattern` of a rule returns, several roots as one.

    Raises:
        PatternError: when it returns no pattern.
    """
    tree: Any = rule.pattern(PatternBuilder())
    if isinstance(tree, Roots):
        return tree
    roots = tree if isinstance(tree, tuple) else (tree,)
    if not roots or not all(isinstance(each, _NODES) for each in roots):
        remedy = "is a `return` missing?" if tree is None else "return what the methods of `p` return"
        raise PatternError(f"`pattern` returned {tree!r}, not a pattern", remedy=remedy)
    if len(set(map(id, roots))) < len(roots):
        raise PatternError("two of its roots are one and the same operation", remedy="name each root once")
    return Roots(roots) if len(roots) > 1 else roots[0]


def _variants(rule: Pattern) -> tuple[Variant, ...]:
    tree = tree_of(rule)
    expanded = [(num_operations(each.tree) + rule.check_adds, order, each) for order, each in enumerate(expand(tree))]
    result = []
    for length, order, each in sorted(expanded, key=lambda v: (-v[0], v[1])):
        shared = shared_nodes(each.tree)
        check_captures(each.tree)
        roots: list[OpNode | Chain] = []
        matchers = []
        for root in trees_of(each.tree):
            if isinstance(root, AnyValue):
                raise PatternError("it may match without any operation", remedy="the root must be an operation")
            if isinstance(root, Chain) and not root.minimum:
                raise PatternError("its root is a chain that may be empty", remedy="give the chain `minimum=1`")
            assert not isinstance(root, AnyOf)
            matcher = _chain_root(root, shared) if isinstance(root, Chain) else _root_matcher(root, shared)
            accepts = functools.partial(_accepts, root.ops)
            matchers.append((matcher, accepts, links(root, roots) if roots else ()))
            roots.append(root)
        matcher = matchers[0][0] if len(roots) == 1 else joined(matchers)
        if isinstance(each.tree, Roots) and each.tree.siblings is not None:
            matcher = sibling_matcher(matcher, matchers[0][1], roots[0], each.tree.siblings, _State)
        result.append(Variant(rule, each.tree, length, order, matcher, roots[0], _needs(roots[0]), each.names))
    return tuple(result)


_NODES = (AnyValue, OpNode, AnyOf, Chain)


def _accepts(ops: Trait | Sequence[OpDef | Trait], op: Operation) -> bool:
    return accepts_opdef(ops, op.opdef)


def _root_matcher(node: OpNode, shared: set[int]) -> _OpMatcher:
    """Return the matcher of a root, which may be an operation in the tree of another root as well."""
    match_op, key = _op_matcher(node, shared), id(node)
    if key not in shared:
        return match_op

    def match(op: Operation, state: _State) -> bool:
        bound = state.bound.get(key)
        if bound is not None:
            return bound is op
        if not match_op(op, state):
            return False
        state.bound[key] = op
        return True

    return match


def _needs(root: OpNode | Chain) -> tuple[tuple[int, frozenset[OpDef]], ...]:
    """Return the operands of the root that certain operators must define."""
    if isinstance(root, Chain) or isinstance(root.ops, Trait) or any(opdef.has_lists for opdef in root.ops):
        return ()
    return tuple(
        (operand_index(root, key), frozenset(operand.ops))
        for key, operand in root.operands
        if isinstance(operand, OpNode) and not isinstance(operand.ops, Trait)
    )


# --- compilation -----------------------------------------------------------------------------------------------------


def _value_matcher(node: Node | None, shared: set[int]) -> _ValueMatcher:
    if node is None:
        return lambda value, state: value is None
    if isinstance(node, AnyValue):
        return _any_matcher(node)
    if isinstance(node, Chain):
        return _chain_matcher(node, shared)
    assert isinstance(node, OpNode)
    match_op = _op_matcher(node, shared)
    result, key = node.result, id(node)
    is_shared = key in shared

    def match(value: Value | None, state: _State) -> bool:
        if value is None or type(value.owner) is not Operation or value.index != result:
            return False
        if is_shared:
            bound = state.bound.get(key)
            if bound is not None:
                return bound is value.owner
        if not match_op(value.owner, state):
            return False
        if is_shared:
            state.bound[key] = value.owner
        return True

    return match


def _any_matcher(node: AnyValue) -> _ValueMatcher:
    name, optional = node.name, node.optional

    def match(value: Value | None, state: _State) -> bool:
        if value is None:
            if optional and name:
                state.captures.setdefault(name, None)
            return optional
        if node.where is not None and not fits_of(node, value):
            return False
        if name:
            captures = state.captures
            known = captures.get(name)
            if known is None:
                captures[name] = value
            elif known is not value:
                return False
        return True

    return match


def fits_of(node: AnyValue, value: Value) -> bool:
    """Return whether a value meets the condition of a placeholder, if it has one."""
    answer = node.where is None or node.where(value)
    if not isinstance(answer, bool):
        raise PatternError(
            f"the condition `where` of the value {node.name!r} returned {answer!r}",
            remedy="return True or False: only the condition of an operation returns a reason",
        )
    return answer


def refusal_of(where: Callable[[Operation], str | None], op: Operation) -> str | None:
    """Return why an operation does not meet a condition, or None where it does."""
    answer = where(op)
    if answer is not None and (not isinstance(answer, str) or not answer):
        raise PatternError(
            f"the condition `where` of {op.name} returned {answer!r}",
            remedy="return None where it holds, and else the reason why it does not, as text",
        )
    return answer


def _chain_matcher(node: Chain, shared: set[int]) -> _ValueMatcher:
    inner = _value_matcher(node.inner, shared)
    ops, name, minimum, maximum, where = node.ops, node.name, node.minimum, node.maximum, node.where

    def match(value: Value | None, state: _State) -> bool:
        links: list[Operation] = []
        while True:
            if len(links) >= minimum:
                captures, bound, count, reason = dict(state.captures), dict(state.bound), len(state.ops), state.reason
                if inner(value, state):
                    state.ops.extend(reversed(links))
                    if name:
                        state.captures[name] = tuple(reversed(links))
                    return True
                state.captures, state.bound, state.reason = captures, bound, reason
                del state.ops[count:]
            op = None if value is None else value.defining_op
            if op is None or len(links) >= maximum or not accepts_opdef(ops, op.opdef) or len(op.operand_values) != 1:
                return False
            if where is not None and state.reason is None:
                state.reason = refusal_of(where, op)
            links.append(op)
            value = op.operands[0]

    return match


def _chain_root(node: Chain, shared: set[int]) -> _OpMatcher:
    matcher = _chain_matcher(node, shared)
    return lambda op, state: len(op.results) == 1 and matcher(op.results[0], state)


def operand_index(node: OpNode, key: int | str) -> int:
    """Return the number of the operand that a key of a node means.

    Raises:
        PatternError: when it means none.
    """
    if isinstance(key, int):
        return key
    if isinstance(node.ops, Trait):
        raise PatternError(f"operand {key!r} of a pattern over a trait must be given by position")
    indices = {opdef.operand_index.get(key) for opdef in node.ops}
    if len(indices) != 1 or None in indices:
        known = dict.fromkeys(name for opdef in node.ops for name in opdef.operand_index)
        raise PatternError(
            f"{', '.join(o.name for o in node.ops)}: no common operand {key!r}; {known_names(key, known)}"
        )
    return next(i for i in indices if i is not None)


def _op_matcher(node: OpNode, shared: set[int]) -> _OpMatcher:
    by_trait = node.ops if isinstance(node.ops, Trait) else None
    opdefs = None if isinstance(node.ops, Trait) else frozenset(node.ops)
    if not isinstance(node.ops, Trait):
        _check_names(node, node.ops)
    single: list[tuple[int, _ValueMatcher]] = []
    lists: list[tuple[int, tuple[_ValueMatcher, ...]]] = []
    for key, operand in node.operands:
        index = operand_index(node, key)
        if isinstance(operand, tuple):
            lists.append((index, tuple(_value_matcher(part, shared) for part in operand)))
        else:
            single.append((index, _value_matcher(operand, shared)))
    conditions = tuple(attribute_matcher(name, expected) for name, expected in node.attributes)
    name, where, context = node.name, node.where, node.context
    with_lists = bool(lists) or any(opdef.has_lists for opdef in opdefs or ())

    def match(op: Operation, state: _State) -> bool:
        opdef = op.opdef
        if opdefs is not None:
            if opdef not in opdefs:
                return False
        elif by_trait is not None and by_trait not in opdef.traits:
            return False
        operands: Any = op.grouped_operands() if with_lists else op._operands
        for index, matcher in single:
            if not matcher(operands[index] if index < len(operands) else None, state):
                return False
        for index, matchers in lists:
            items = operands[index]
            if not isinstance(items, tuple) or len(items) != len(matchers):
                return False
            for part, item in zip(matchers, items, strict=True):
                if not part(item, state):
                    return False
        for condition in conditions:
            reason = condition(op, state)
            if reason is not None and state.reason is None:
                state.reason = reason
        if where is not None and state.reason is None:
            state.reason = refusal_of(where, op)
        if name:
            state.captures[name] = op
        if not context:
            state.ops.append(op)
        return True

    return match


def _check_names(node: OpNode, opdefs: tuple[OpDef, ...]) -> None:
    """Raise where a node names what no operator of it has."""
    for opdef in opdefs:
        if opdef.is_region:
            continue
        known = {p.name for p in opdef.params if p.kind is ParamKind.ATTRIBUTE}
        for name, _ in node.attributes:
            if name not in known:
                others = [f'`p.op("{each}", ..., {name}=...)`' for each in overloads_with_keyword(opdef, name)]
                raise PatternError(
                    f"{opdef.name} has no attribute {name!r}; {known_names(name, known)}",
                    remedy=f"an overload that has it is written {' or '.join(others)}" if others else None,
                )
    names = " and ".join(opdef.name for opdef in opdefs)
    last = max((key for key, _ in node.operands if isinstance(key, int)), default=-1)
    if all(last >= len(opdef.operand_params) and not opdef.is_region for opdef in opdefs):
        raise PatternError(
            f"{names} takes fewer than {last + 1} operands",
            remedy='attributes are not values and go by keyword: dim=1, or dim=p.attr("dim") for any',
        )
    if all(
        node.result >= len(opdef.results) and "list" not in opdef.results and not opdef.is_region for opdef in opdefs
    ):
        raise PatternError(f"{names}: there is no result {node.result}", remedy="the first result is number 0")


class RuleIndex:
    """The variants of a list of rules by root operator, in rule order and longest first within a rule."""

    def __init__(self, rules: Sequence[Pattern]) -> None:
        self.rules = tuple(rules)
        self.variants = tuple(itertools.chain.from_iterable(compile_rule(rule) for rule in rules))
        self.by_root = _ByRoot(self.variants)
        """For each operator, the variants whose root can be an operation of it."""

    def mentioning(self, opdef: OpDef) -> tuple[Pattern, ...]:
        """Return the rules whose patterns mention `opdef`, at the root or further in, in rule order."""
        return tuple(dict.fromkeys(variant.rule for variant in self.variants if variant.mentions(opdef)))


class _ByRoot(dict[OpDef, tuple[Variant, ...]]):
    """A table that is filled as operators are met."""

    def __init__(self, variants: tuple[Variant, ...]) -> None:
        super().__init__()
        self._variants = variants

    def __missing__(self, opdef: OpDef) -> tuple[Variant, ...]:
        found = tuple([variant for variant in self._variants if variant.accepts(opdef)])
        self[opdef] = found
        return found
