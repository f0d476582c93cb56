"""How far a rule got at a place: its furthest partial match there, and in what the program differs from the pattern.

The matcher (`passes.rewrite.matching`) only says yes or no, and must be fast. This one is asked when somebody wants to
know why: it takes an operation for each part of the pattern that it could be, follows the uses up to the root, and
compares everything below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ir.core import Operation, Value
from ir.errors import PatternError
from ir.locations import Location
from ir.opdef import OpDef
from passes.explain.found import Difference, PartialMatch
from passes.explain.parts import chain_ops, children, least, result_of, tops_of, uses_as
from passes.explain.texts import MOST_NAMED, one_of, operand_name, operator_names, place_of, source_of
from passes.rewrite.expansion import nodes, orders
from passes.rewrite.language.nodes import Roots, trees_of
from passes.rewrite.language.roots import candidates, links
from passes.rewrite.literals import attribute_matcher
from passes.rewrite.matching import Variant, accepts_opdef, fits_of, operand_index, refusal_of, tree_of
from passes.rewrite.pattern import AnyOf, AnyValue, Chain, Match, Node, OpNode, Pattern
from passes.rewrite.remarks import Refusal

_MOST_USERS = 16
_MOST_TOPS = 32


class _State:
    """What one comparison has found so far."""

    __slots__ = ("bound", "captures", "differences", "evidence", "fits", "roots", "wanted")

    def __init__(self) -> None:
        self.captures: dict[str, Any] = {}
        self.bound: dict[int, Operation] = {}
        self.fits: list[tuple[str, Operation]] = []
        self.roots: list[Operation] = []
        self.wanted = 0
        self.evidence = 0
        self.differences: list[Difference] = []

    def copy(self) -> _State:
        other = _State()
        other.captures, other.bound = dict(self.captures), dict(self.bound)
        other.fits, other.differences = list(self.fits), list(self.differences)
        other.roots = list(self.roots)
        other.wanted, other.evidence = self.wanted, self.evidence
        return other

    def become(self, other: _State) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    @property
    def rank(self) -> tuple[int, int, int]:
        return len(self.fits), self.evidence, -len(self.differences)

    def differ(self, kind: str, message: str, location: Location, expected: tuple[str, ...] = ()) -> None:
        self.differences.append(Difference(kind, message, location, expected))


class Tree:
    """The pattern of one rule with its alternatives, ready to be compared."""

    def __init__(self, rule: Pattern, variants: Sequence[Variant]) -> None:
        self.rule = rule
        self._variants = variants
        tree = tree_of(rule)
        self._trees = trees_of(tree)
        self._has_siblings = isinstance(tree, Roots) and tree.siblings is not None
        self._parts = [node for node in nodes(tree) if isinstance(node, (OpNode, Chain))]
        self._roots = {id(node) for node in tops_of(self._trees[0])}
        self._tops = {id(node) for each in self._trees for node in tops_of(each)}
        """The parts that may stand at a root, of several at any of them."""
        self._links = [links(each, self._trees[:number]) if number else () for number, each in enumerate(self._trees)]
        self._parents: dict[int, list[tuple[OpNode | Chain, int | str]]] = {}
        for parent in self._parts:
            for key, child in children(parent):
                for top in tops_of(child):
                    self._parents.setdefault(id(top), []).append((parent, key))
        self._candidates: dict[OpDef, tuple[OpNode | Chain, ...]] = {}

    @property
    def subject(self) -> str:
        """The operators that the pattern is made of, as text."""
        return ", ".join(dict.fromkeys(one_of(operator_names(part.ops)) for part in self._parts))

    def parts_for(self, opdef: OpDef) -> tuple[OpNode | Chain, ...]:
        """Return the parts of the pattern that an operation of an operator could be."""
        found = self._candidates.get(opdef)
        if found is None:
            found = tuple([node for node in self._parts if accepts_opdef(node.ops, opdef)])
            self._candidates[opdef] = found
        return found

    def furthest(self, op: Operation) -> PartialMatch | None:
        """Return the partial match with the most that has `op` in it; None where no part of the pattern could be it."""
        best: PartialMatch | None = None
        for part in self.parts_for(op.opdef):
            tops = list(self._climb(part, op, {}))[:_MOST_TOPS]
            found = [each for top in tops for each in self._compared(*top)]
            holding = [each for each in found if any(fit is op for _, fit in each.fits)]
            for each in holding or self._compared(part, op, is_top=id(part) in self._tops):
                if best is None or each.rank > best.rank:
                    best = each
        return best

    def compared(self, op: Operation) -> PartialMatch | None:
        """Return what the comparison alone finds with `op` as the root; None where it could not be."""
        roots = [part for part in self.parts_for(op.opdef) if id(part) in self._roots]
        found = [self._compare(part, op, is_top=True) for part in roots]
        return max(found, key=lambda match: match.rank, default=None)

    def whole_at(self, op: Operation) -> bool:
        """Return whether the structure matches with `op` as its root."""
        rooted = (variant for variant in self._variants if variant.accepts(op.opdef))
        return any(isinstance(_asked(variant.try_match, op), Match) for variant in rooted)

    # --- upwards: from a part to the root ----------------------------------------------------------------------------

    def _climb(
        self, part: OpNode | Chain, op: Operation, seen: dict[tuple[int, Operation], None]
    ) -> Iterator[tuple[OpNode | Chain, Operation, bool]]:
        """Yield the highest (part, operation, whether the part is the root) that the uses of `op` lead to."""
        if (id(part), op) in seen or len(seen) >= _MOST_TOPS:
            return
        seen[id(part), op] = None
        value = result_of(part, op)
        is_root, is_used = id(part) in self._tops, False
        for above, key in self._parents_of(part):
            for user in () if value is None else value.users[:_MOST_USERS]:
                if accepts_opdef(above.ops, user.opdef) and uses_as(above, key, user, value):
                    is_used = True
                    yield from self._climb(above, user, seen)
        if is_root or not is_used:
            yield part, op, is_root

    def _parents_of(self, part: OpNode | Chain) -> list[tuple[OpNode | Chain, int | str]]:
        """Return the parts that may use the result of a part, with the operand: a chain may be empty or go on."""
        found = list(self._parents.get(id(part), ()))
        for above, _ in list(found):
            if isinstance(above, Chain) and not above.minimum:
                found.extend(self._parents_of(above))
        return [*found, (part, 0)] if isinstance(part, Chain) else found

    # --- downwards: everything below a part ---------------------------------------------------------------------------

    def _compared(self, part: OpNode | Chain, op: Operation, is_top: bool) -> list[PartialMatch]:
        """Return the partial matches with a part at its top; of a root other than the first, those of first roots."""
        own = [self._compare(part, op, is_top)] if not is_top or id(part) in self._roots else []
        if own and (not (is_top and self._has_siblings) or own[0].is_whole):
            return own
        state = _State()
        self._part(part, op, state)
        found = [self._compare(*first, is_top=True) for first in self._first_roots(state)]
        holding = [each for each in found if any(fit is op for _, fit in each.fits)]
        if own:
            return [each for each in holding if each.is_whole] or own
        if not holding:
            self._no_other(self._trees[0], op, state)
            holding = [self._partial(state)]
        return holding

    def _first_roots(self, state: _State) -> Iterator[tuple[OpNode | Chain, Operation]]:
        """Yield what may be the first root beside the operations of another one: above a value that these read."""
        seen: dict[tuple[int, Operation], None] = {}
        own = [op for _, op in state.fits]
        near = [user for op in own for value in op.operand_values for user in value.users[:_MOST_USERS]]
        for op in dict.fromkeys([*own, *near]):
            for part in self.parts_for(op.opdef):
                for top, root, _ in self._climb(part, op, {}):
                    if id(top) in self._roots and (id(top), root) not in seen:
                        seen[id(top), root] = None
                        yield top, root

    def _part(self, part: OpNode | Chain, op: Operation, state: _State) -> None:
        if isinstance(part, OpNode):
            self._op(part, op, state)
        else:
            self._value(part, op.results[0], op, 0, state)

    def _other_roots(self, op: Operation, state: _State) -> None:
        """Compare the other roots, each with the operation that fits it best."""
        state.roots.append(op)
        for tree, common in zip(self._trees[1:], self._links[1:], strict=True):
            tops = list(tops_of(tree))
            places = ((link.value(state), link.depth) for link in common)
            value, depth = next(((value, depth) for value, depth in places if value is not None), (None, 0))
            before, tried = len(state.differences), []
            for part in tops if value is not None else ():
                accepts = partial(_accepts, part.ops)
                for found in candidates(value, depth, accepts)[:_MOST_TOPS]:  # type: ignore[arg-type]
                    if found not in state.roots:
                        other = state.copy()
                        self._part(part, found, other)
                        other.roots.append(found)
                        tried.append(other)
            if tried:
                state.become(max(tried, key=lambda other: (len(other.differences) == before, *other.rank)))
            else:
                self._no_other(tree, op, state)

    def _siblings(self, op: Operation, state: _State) -> None:
        """Add what the matcher says of the siblings of an operation, which matches by itself."""
        rooted = (variant for variant in self._variants if variant.accepts(op.opdef))
        answers = [answer for variant in rooted if (answer := _asked(variant.try_match, op)) is not None]
        for match in (answer for answer in answers if isinstance(answer, Match)):
            for each in match.ops:
                if each is not op:
                    _add_fit(state, OpNode((each.opdef,)), each)
            return
        for answer in answers[:1]:
            kind, text = ("users", answer.reason) if isinstance(answer, Refusal) else ("condition", answer)
            state.differ(kind, text, op.location)

    def _no_other(self, tree: Node, op: Operation, state: _State) -> None:
        """Add that another root of the pattern is missing."""
        expected = tuple(dict.fromkeys(name for top in tops_of(tree) for name in operator_names(top.ops)))
        state.wanted += least(tree)
        message = f"beside {place_of(op)} there is no {one_of(expected)} that reads the same value, another root"
        state.differ("users", message, op.location, expected)

    def _compare(self, part: OpNode | Chain, op: Operation, is_top: bool) -> PartialMatch:
        state = _State()
        self._part(part, op, state)
        if is_top and len(self._trees) > 1:
            self._other_roots(op, state)
        elif is_top and self._has_siblings and not state.differences:
            self._siblings(op, state)
        if not is_top:
            self._unused(part, op, state)
        elif state.differences and self.whole_at(op):
            # a choice that was good here was bad elsewhere; the matcher tries them all
            state.differences.clear()
            state.wanted = len(state.fits)
        return self._partial(state)

    def _partial(self, state: _State) -> PartialMatch:
        return PartialMatch(self.rule, tuple(state.fits), state.wanted, state.evidence, tuple(state.differences))

    def _unused(self, part: OpNode | Chain, op: Operation, state: _State) -> None:
        """Add that no operation uses a part as the pattern wants."""
        parents = [(above, key) for above, key in self._parents_of(part) if above is not part]
        state.wanted += self._above(part, set())
        expected = tuple(dict.fromkeys(name for above, _ in parents for name in operator_names(above.ops)))
        value = result_of(part, op)
        if value is None:
            state.differ("result", f"{place_of(op)} has no result {getattr(part, 'result', 0)}", op.location, expected)
            return
        users = value.users
        goes = ", ".join(place_of(user) for user in users[:MOST_NAMED]) or "nothing"
        more = f" and {len(users) - MOST_NAMED} more" if len(users) > MOST_NAMED else ""
        as_operand = next(
            (
                operand_name(user.opdef, 0 if isinstance(above, Chain) else operand_index(above, key))
                for above, key in parents
                for user in users
                if accepts_opdef(above.ops, user.opdef)
            ),
            "",
        )
        wants = f"which does not take it as {as_operand}" if as_operand else f"not to {one_of(expected)}"
        state.differ("users", f"the output of {place_of(op)} goes to {goes}{more}, {wants}", op.location, expected)

    def _above(self, part: OpNode | Chain, seen: set[int]) -> int:
        """Return how many operations there are at least beside a part and above it."""
        if id(part) in self._tops or id(part) in seen:
            return 0
        counts = []
        for above, key in self._parents.get(id(part), ()):
            beside = sum(least(child) for other, child in children(above) if other != key)
            own = above.minimum if isinstance(above, Chain) else 1
            counts.append(own + beside + self._above(above, seen | {id(part)}))
        return min(counts, default=0)

    def _value(self, node: Node | None, value: Value | None, user: Operation, index: int, state: _State) -> None:
        """Compare an operand of `user` with its pattern."""
        edge = f"{operand_name(user.opdef, index)} of {place_of(user)}"
        if node is None:
            if value is None:
                state.evidence += 1
            else:
                state.differ("operand", f"{edge} is {source_of(value)}, and must be absent", user.location)
        elif isinstance(node, AnyOf):
            self._choice(node, value, user, index, state)
        elif value is None and not (isinstance(node, AnyValue) and node.optional):
            expected = () if isinstance(node, AnyValue) else operator_names(node.ops)
            state.wanted += least(node)
            state.differ("operand", f"{edge} is absent, and must not be", user.location, expected)
        elif isinstance(node, AnyValue):
            self._placeholder(node, value, edge, user.location, state)
        elif isinstance(node, Chain):
            self._chain(node, value, user, index, state)
        else:
            self._defined(node, value, edge, user.location, state)

    def _defined(self, node: OpNode, value: Any, edge: str, location: Location, state: _State) -> None:
        op = value.defining_op
        if op is None or not accepts_opdef(node.ops, op.opdef):
            expected = operator_names(node.ops)
            state.wanted += least(node)
            state.differ("operator", f"{edge} is {source_of(value)}, not {one_of(expected)}", location, expected)
        elif value.index != node.result:
            state.wanted += least(node)
            state.differ(
                "result", f"{edge} is result {value.index} of {place_of(op)}, not result {node.result}", location
            )
        elif state.bound.get(id(node), op) is not op:
            state.differ(
                "same",
                f"{edge} is {place_of(op)}, and must be {place_of(state.bound[id(node)])} as elsewhere",
                location,
            )
        elif id(node) not in state.bound:
            self._op(node, op, state)

    def _placeholder(self, node: AnyValue, value: Value | None, edge: str, location: Location, state: _State) -> None:
        if value is None:
            state.captures.setdefault(node.name, None)
            return
        if node.where is not None:
            answer = _asked(fits_of, node, value)
            if answer is not True:
                failed = "it does not meet its condition" if answer is False else answer
                state.differ("value", f"{edge}, `{node.name}`, is {source_of(value)}: {failed}", location)
                return
            state.evidence += 1
        known = state.captures.get(node.name) if node.name else None
        if known is not None and known is not value:
            state.differ(
                "same", f"{edge} is {source_of(value)}, and `{node.name}` is {source_of(known)} elsewhere", location
            )
            return
        state.evidence += known is not None
        if node.name:
            state.captures[node.name] = value

    def _choice(self, node: AnyOf, value: Value | None, user: Operation, index: int, state: _State) -> None:
        """Go on with the alternative that fits best."""
        before, tried = len(state.differences), []
        for alternative in node.alternatives:
            other = state.copy()
            self._value(alternative, value, user, index, other)
            tried.append(other)
        best = max(tried, key=lambda other: (len(other.differences) == before, *other.rank))
        fresh = [other.differences[before:] for other in tried]
        if all(len(new) == 1 and new[0].kind == "operator" for new in fresh) and len(best.fits) == len(state.fits):
            expected = tuple(dict.fromkeys(name for new in fresh for name in new[0].expected))
            edge = f"{operand_name(user.opdef, index)} of {place_of(user)}"
            message = f"{edge} is {source_of(value)}, not {one_of(expected)}"
            best = min(tried, key=lambda other: other.wanted)
            best.differences[before:] = [Difference("operator", message, user.location, expected)]
        state.become(best)

    def _chain(self, node: Chain, value: Value | None, user: Operation, index: int, state: _State) -> None:
        """Go on with the length at which the rest fits best."""
        before, tried = len(state.differences), []
        current = state.copy()
        for length in range(node.maximum + 1):
            if length >= node.minimum:
                other = current.copy()
                self._value(node.inner, value, user, index, other)
                tried.append(other)
                if len(other.differences) == before:
                    break
            op = None if value is None else value.defining_op
            if op is None or not accepts_opdef(node.ops, op.opdef) or len(op.operand_values) != 1:
                if length < node.minimum:
                    self._value(OpNode(chain_ops(node)), value, user, index, current)
                    tried.append(current)
                break
            _add_fit(current, node, op)
            reason = None if node.where is None else _asked(refusal_of, node.where, op)
            if reason is not None:
                current.differ("condition", str(reason), op.location)
            value, user, index = op.operands[0], op, 0
        state.become(max(tried, key=lambda other: (len(other.differences) == before, *other.rank)))

    def _op(self, node: OpNode, op: Operation, state: _State) -> None:
        """Compare an operation that has the right operator."""
        state.bound[id(node)] = op
        _add_fit(state, node, op)
        before, tried = len(state.differences), []
        for order in orders(node):
            other = state.copy()
            self._operands(order, op, other)
            tried.append(other)
            if len(other.differences) == before:
                break
        state.become(max(tried, key=lambda other: (len(other.differences) == before, *other.rank)))
        if node.name:
            state.captures[node.name] = op

    def _operands(self, node: OpNode, op: Operation, state: _State) -> None:
        before = len(state.differences)
        grouped: Sequence[Any] = op.grouped_operands() if op.opdef.has_lists else op.operands
        for key, operand in node.operands:
            index = operand_index(node, key)
            given = grouped[index] if index < len(grouped) else None
            if not isinstance(operand, tuple):
                self._value(operand, given, op, index, state)
                continue
            items = given if isinstance(given, tuple) else ()
            for part, item in zip(operand, items, strict=False):
                self._value(part, item, op, index, state)
            if len(items) != len(operand):
                edge = f"{operand_name(op.opdef, index)} of {place_of(op)}"
                state.wanted += sum(map(least, operand[len(items) :]))
                state.differ("operand", f"{edge} has {len(items)} values, not {len(operand)}", op.location)
        for name, expected in node.attributes:
            reason = _asked(attribute_matcher(name, expected), op, state)
            if reason is not None:
                state.differ("attribute", str(reason), op.location)
            else:
                state.evidence += 1
        if node.where is not None and len(state.differences) == before:
            reason = _asked(refusal_of, node.where, op)
            if reason is not None:
                state.differ("condition", str(reason), op.location)
            else:
                state.evidence += 1


def _accepts(ops: Any, op: Operation) -> bool:
    return accepts_opdef(ops, op.opdef)


def _asked(function: Any, *given: Any) -> Any:
    """Return what a function of a rule answers: a text where it raises, since it may rely on what does not match."""
    try:
        return function(*given)
    except PatternError as error:  # it answered what is no answer
        return error.message
    except Exception as error:  # noqa: BLE001 - it is the rule's code, and the question is only how far it got
        return f"its condition raised {type(error).__name__}: {error}"


def _add_fit(state: _State, node: OpNode | Chain, op: Operation) -> None:
    state.wanted += 1
    if all(fit is not op for _, fit in state.fits):
        state.fits.append((one_of(operator_names(node.ops)), op))
