"""Rules applied in reverse: programs that are equal to a drawn one by construction.

A rule claims that its match equals its replacement. Here an instance of the pattern replaces an operation, or is put
behind a value, such that the rule alone restores the program. The result of a pass on the inflated program must then
equal the original, and canonicalization must give both the same text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import reject
from hypothesis import strategies as st

from fuzz.calls.source import Source, Unavailable
from fuzz.programs.case import Case
from fuzz.programs.strategy import programs
from fuzz.rules.growth import operators_with
from fuzz.rules.instances import expanded_pattern, fires_at, instances
from fuzz.rules.respelling import Respelling
from ir.compare import programs_equal
from ir.core import RETURN, Operation, Value
from ir.errors import GraphwrightError
from ir.opdef import OpDef, ParamKind, Trait
from ir.program import Program
from ir.text.printer import print_program
from ir.types import types_equal
from passes.canonicalize import CANONICALIZATION_RULES
from passes.canonicalize.identity import CatOfOne, Idempotent, Involution, NoArithmetic, NoCast, NoCopy, NoPad
from passes.cleanup.dce import eliminate_dead_code
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.language.nodes import Roots, Tree
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import AnyValue, AttrCapture, AttrWhere, Node, OpNode, Pattern
from passes.rewrite.rewriter import Rewriter

_ATTEMPTS, _INSTANCES = 4, 16
"""How many programs are verified, and how many instances are grown for each of them."""
_ROUNDS = 3
_HOSTS = 4
"""How many instances are drawn until the rule fires on one."""

REVERSIBLE: tuple[type[Pattern], ...] = CANONICALIZATION_RULES
"""The rules that are applied in reverse to whole programs: exact ones whose results are expressions of operators.

Fusions build regions, and conversions and foldings new weights, which no drawn program contains.
"""


COPIES: tuple[type[Pattern], ...] = (NoCast, NoCopy, NoPad, CatOfOne, NoArithmetic, Idempotent, Involution)
"""The rules that keep an observable copy: which one of several stays depends on the order."""


@attrs.frozen(eq=False)
class Inflated:
    """A program, and another one that it equals by construction."""

    program: Program
    original: Program
    rules: tuple[str, ...]
    """The rules that were applied in reverse, in this order."""

    def case(self, inputs: Sequence[Any]) -> Case:
        """Return the case of this program on some inputs."""
        case = Case.of(self.program, inputs)
        one_text = not any(rule.__name__ in self.rules for rule in COPIES)
        return attrs.evolve(case, original=print_program(self.original), one_text=one_text)


@st.composite
def inflated(
    draw: st.DrawFn,
    base: st.SearchStrategy[Program] | None = None,
    *,
    rules: Sequence[type[Pattern] | Pattern] = REVERSIBLE,
) -> Inflated:
    """Return a strategy for programs to which rules have been applied in reverse.

    Args:
        draw: given by hypothesis.
        base: the strategy for the programs that are inflated; `programs()` by default.
        rules: the rules to choose from.
    """
    original = draw(programs() if base is None else base)
    program, names = original, []
    for _ in range(draw(st.integers(1, _ROUNDS))):
        given = draw(st.sampled_from(rules))
        rule = given() if isinstance(given, type) else given
        found = inflate(draw, program, rule)
        if found is not None:
            program = found
            names.append(rule.name)
    if not names:
        reject()
    return Inflated(program, original, tuple(names))


@st.composite
def hosts(draw: st.DrawFn, rule: Pattern) -> Program:
    """Return a strategy for programs that contain the results of a rule: instances to which it was applied."""
    strategy = instances(rule, near=False)
    program = draw(strategy).program
    for _ in range(_HOSTS - 1):
        if _apply(program, rule):
            break
        program = draw(strategy).program
    return program


def inflate(draw: st.DrawFn, program: Program, rule: Pattern) -> Program | None:
    """Return a program that a rule turns into `program`, or None after a few failed attempts."""
    reduced = _copy(program)
    try:
        _apply(reduced, rule)
        for _ in range(_ATTEMPTS):
            candidate = _copy(program)
            if not _Inverse(draw, candidate, rule).put():
                return None
            if programs_equal(candidate, program, locations=False) is None:
                continue  # it was there already
            back = _copy(candidate)
            if _apply(back, rule) and programs_equal(back, reduced, locations=False) is None:
                return candidate
    except GraphwrightError:
        return None  # other properties find a rule that raises
    return None


def _copy(program: Program) -> Program:
    return Case.of(program, ()).build()


def _apply(program: Program, rule: Pattern) -> int:
    """Apply a rule until it does not match; return how often it did."""
    count = run_worklist(program, RuleIndex((rule,)), RewriteLog())
    eliminate_dead_code(program)
    return count


class _Inverse:
    """One attempt to put an instance of a rule's pattern into a program."""

    def __init__(self, draw: st.DrawFn, program: Program, rule: Pattern) -> None:
        self.source = Source(draw)
        self.program = program
        self.rule = rule
        self.rewriter = Rewriter(program)
        self.model: Operation | None = None
        """The operation that the instance is to become."""
        self.leaves: list[Value] = []
        """Candidates for operands of the instance, the likely ones first."""
        self.near: list[Operation] = []
        """Operations whose operands and attributes an instance may take: the model, and those before it."""
        self.built: list[Operation] = []
        self.made: dict[int, Operation] = {}
        self.captures: dict[str, Any] = {}

    def put(self) -> bool:
        """Insert an instance that the rule matches; return whether one was found."""
        for _ in range(_INSTANCES):
            if self._put_one():
                return True
            self._clear()
        return False

    def _put_one(self) -> bool:
        source, graph = self.source, self.program.graph
        node = source.one_of(expanded_pattern(self.rule))
        if isinstance(node, Roots):
            return False  # it would become several operations at once
        ops = [op for op in graph.operations() if op.opdef is not RETURN and op.body is None]
        values = [v for v in (*graph.inputs, *(w.value for w in self.program.weights.values())) if v.num_uses]
        produced, share = results_of(self.rule)
        likely = [op for op in ops if op.name in produced]
        model: Operation | None = None
        if ops and source.integer(0, 7) < (share if likely or not produced else 1):
            model = source.one_of(likely if likely and source.integer(0, 7) else ops)
            self.rewriter.anchor = model
            targets = model.results
            self.leaves = list(model.operand_values)
            self.near = [model]
            for _ in range(2):  # a pattern may reach further back than one operation
                sources = [v.defining_op for v in self.leaves if v.defining_op is not None]
                self.leaves += [v for op in sources for v in op.operand_values if v not in self.leaves]
                self.near += [op for op in sources if op not in self.near and op.body is None]
        else:
            values += [v for op in ops for v in op.results if v.num_uses]
            if not values:
                return False
            # what the operator of the pattern's root gave is of a type that it gives
            kin = [v for v in values if v.defining_op is not None and v.defining_op.opdef in _operators(node)]
            value = source.one_of((kin if kin and source.flag() else values)[::-1])
            after = value.defining_op
            self.rewriter.anchor = (
                next(iter(graph.operations()), graph.return_op) if after is None else after.next or graph.return_op
            )
            targets = (value,)
            self.leaves = [value]
            earlier = itertools.takewhile(lambda op: op is not self.rewriter.anchor, graph.operations())
            self.near = [op for op in earlier if op.body is None][::-1]
        self.model = model
        try:
            root = self._operation(node)
        except (Unavailable, GraphwrightError):
            return False
        if len(root.results) != len(targets) or not fires_at(self.rule, root):
            return False
        if not all(types_equal(a.type, b.type) for a, b in zip(root.results, targets, strict=True)):
            return False
        self._connect(root, targets)
        return True

    def _clear(self) -> None:
        """Erase what was built."""
        for op in reversed(self.built):
            self.program.graph.erase(op)
        self.built.clear()
        self.made.clear()
        self.captures.clear()

    def _connect(self, root: Operation, targets: Sequence[Value]) -> None:
        """Let users of the targets use the results of the instance; all of them if it replaces a model."""
        graph = self.program.graph
        if self.model is not None:
            for old, new in zip(targets, root.results, strict=True):
                graph.replace_all_uses(old, new)
                new.name = old.name
            graph.erase(self.model)
            return
        (value,) = targets
        uses = [(op, index) for op, index in value.uses if op not in self.built]
        everywhere = not self.source.flag()
        chosen = self.source.integer(0, len(uses) - 1)
        for i, (op, index) in enumerate(uses):
            if everywhere or i == chosen or self.source.flag():
                op.set_operand(index, root.results[0])

    # ---- the instance ----

    def _value(self, node: Node, likely: Value | None) -> Value:
        if isinstance(node, AnyValue):
            return self._leaf(node, likely)
        if not isinstance(node, OpNode):
            raise Unavailable
        op = self.made.get(id(node))
        if op is None:
            op = self.made[id(node)] = self._operation(node, likely)
        if node.result >= len(op.results):
            raise Unavailable
        return op.results[node.result]

    def _leaf(self, node: AnyValue, likely: Value | None) -> Value:
        known = self.captures.get(node.name)
        if isinstance(known, Value):
            return known
        candidates = [v for v in (likely, *self.leaves) if v is not None]
        fitting = [v for v in candidates if node.where is None or node.where(v)]
        if not fitting:
            raise Unavailable
        value = fitting[0] if self.source.integer(0, 3) else self.source.one_of(fitting)
        if node.name:
            self.captures[node.name] = value
        return value

    def _alike(self, node: OpNode) -> Operation | None:
        """Return an operation that an instance of the node may be like: the model, one before it, or any earlier one.

        What a rule moves has its parameters from the model, and what it moves it over those of the operation before.
        """
        ops = _operators(node)
        return next((op for op in self.near if op.opdef in ops), None)

    def _namesake(self, name: str) -> Value | None:
        """Return the operand of this name of the nearest operation that has one: a scale where a scale is asked for."""
        found = (op.operand(name) for op in self.near if name in op.opdef.operand_index)
        return next((value for value in found if value is not None), None)

    def _operation(self, node: Node, likely_first: Value | None = None) -> Operation:
        if not isinstance(node, OpNode):
            raise Unavailable
        source, model = self.source, self.model
        alike = self._alike(node)
        opdef = self._operator(node, alike)
        if alike is not None and alike.opdef is opdef:
            model = alike
        parts = {key if isinstance(key, int) else opdef.operand_index.get(key, -1): part for key, part in node.operands}
        grouped = list(model.grouped_operands()) if model is not None else []
        if grouped and likely_first is not None and isinstance(grouped[0], Value):
            grouped[0] = likely_first
        arguments: dict[str, Any] = {}
        for place, param in enumerate(opdef.operand_params):
            given = grouped[place] if place < len(grouped) else None
            likely = given if isinstance(given, Value) else self._namesake(param.name) if place else None
            if place in parts:
                part = parts[place]
                if isinstance(part, tuple):
                    items = given if isinstance(given, tuple) and len(given) == len(part) else (likely,) * len(part)
                    arguments[param.name] = [self._value(*pair) for pair in zip(part, items, strict=True)]
                elif isinstance(part, AnyValue) and part.optional and given is None and source.integer(0, 3):
                    arguments[param.name] = None
                else:
                    arguments[param.name] = None if part is None else self._value(part, likely)
            elif param.kind is ParamKind.TENSOR:
                arguments[param.name] = self._leaf(AnyValue(), likely)
            elif param.kind is ParamKind.LIST:
                arguments[param.name] = list(given) if isinstance(given, tuple) else [self._leaf(AnyValue(), likely)]
            else:
                arguments[param.name] = given if isinstance(given, Value) else None
        first = next((v for a in arguments.values() for v in (a if isinstance(a, list) else (a,)) if v), None)
        spelling = Respelling(source, opdef, self.rule, model, first)
        demanded = dict(node.attributes)
        captured: dict[str, Any] = {}
        for param in opdef.params:
            if param.kind is not ParamKind.ATTRIBUTE:
                continue
            expected = demanded.get(param.name)
            if isinstance(expected, AttrCapture) and expected.name in self.captures:
                value = self.captures[expected.name]
            elif isinstance(expected, AttrWhere):
                value = spelling.attribute(param, expected.predicate)
            elif param.name in demanded and not isinstance(expected, AttrCapture):
                value = expected
            else:
                value = spelling.attribute(param)
            arguments[param.name] = value
            if isinstance(expected, AttrCapture):
                captured[expected.name] = value
        op = self.rewriter.op(opdef, **arguments)
        self.built.append(op)
        if node.where is not None and node.where(op) is not None:
            raise Unavailable
        self.captures |= captured
        return op

    def _operator(self, node: OpNode, alike: Operation | None) -> OpDef:
        ops = _operators(node)
        if alike is not None and self.source.integer(0, 3):
            return alike.opdef
        if self.model is not None and self.model.opdef in ops and self.source.integer(0, 3):
            return self.model.opdef
        return self.source.one_of(ops)


def _operators(node: Tree) -> tuple[OpDef, ...]:
    if not isinstance(node, OpNode):
        return ()
    return operators_with(node.ops) if isinstance(node.ops, Trait) else node.ops


def results_of(rule: Pattern) -> tuple[frozenset[str], int]:
    """Return the operators that a rule builds, and in how many of 8 cases to replace an operation and not a value.

    They are named by the code of its rewrite or by a table that it reads; if it changes attributes, by its pattern. A
    rule that builds nothing returns existing values.
    """
    rewrite = type(rule).rewrite
    names, literals = rewrite.__code__.co_names, list(rewrite.__code__.co_consts)
    for name in names:
        table = rewrite.__globals__.get(name)
        literals += table.values() if isinstance(table, dict) else ()
    named = {item for item in literals if isinstance(item, str) and item.startswith(("aten.", "quant."))}
    if "set_attribute" in names:
        for node in expanded_pattern(rule):
            named |= {opdef.name for opdef in _operators(node)}
    return frozenset(named), 7 if named else 6 if "op" in names else 2
