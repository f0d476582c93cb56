"""Validation of single rewrites: each match and its replacement at the boundary of its region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch

from compiler.difference import tensor_difference
from ir.copying import copy_into, copy_operation
from ir.core import Graph, Operation, Value
from ir.errors import ValidationError
from ir.evaluate import evaluate_graph
from ir.opdef import Trait
from ir.program import Program, Weight
from ir.types import TensorType, symbols_of
from passes.driver import Replacements
from passes.pattern import Match, Pattern

# How far a region is widened backwards so that the match and its replacement start from the same values.
_MAX_WIDENING = 256


@attrs.define(eq=False)
class EachRewriteValidator:
    """The hook of `validate="each"`: evaluates every match and its replacement on random tensors and compares them.

    Exact rules must agree bit for bit, numeric ones to 1e-9 in float64. `checked` counts the rewrites that were
    compared, `skipped` those that could not be (unknown types, weights without data, opaque calls), with the reason.
    """

    checked: int = 0
    skipped: list[str] = attrs.field(factory=list)

    def __call__(self, rule: Pattern, match: Match, program: Program) -> Callable[[Replacements], None]:
        """Remember the matched region before it is rewritten; the returned function compares."""
        before = _Snapshot(match.ops or [match.root])
        existing = set(program.graph.operations())

        def compare(replacements: Replacements) -> None:
            reason = self._compare(rule, match, program, before, replacements, existing)
            if reason is None:
                self.checked += 1
            else:
                self.skipped.append(f"{rule.name} at {match.root.location.where}: {reason}")

        return compare

    def _compare(
        self,
        rule: Pattern,
        match: Match,
        program: Program,
        before: _Snapshot,
        replacements: Replacements,
        existing: set[Operation],
    ) -> str | None:
        pairs = [(old, new) for old, new in replacements if old in before.results]
        if not pairs:
            return "it replaced no value"
        new_ops = _created_behind([new for _, new in pairs], existing)
        leaves = _leaves_of(before.ops_operands(), before.results) | _leaves_of(
            [v for op in new_ops for v in op.operand_values], {r for op in new_ops for r in op.results}
        )
        leaves |= {new for _, new in pairs if new.defining_op not in new_ops}
        widened = _common_leaves(leaves)
        if widened is None:
            return "its region could not be cut out"
        boundary, shared = widened
        old_graph, new_graph = Graph(), Graph()
        names = {}
        for graph in (old_graph, new_graph):
            names[graph] = {value: graph.add_input(value.type, f"v{i}") for i, value in enumerate(boundary)}
            for op in shared:
                copy_into(op, graph, names[graph])
        before.copy_into(old_graph, names[old_graph])
        for op in new_ops:
            copy_into(op, new_graph, names[new_graph])
        old_graph.set_outputs([names[old_graph][before.results[old]] for old, _ in pairs])
        new_graph.set_outputs([names[new_graph][new] for _, new in pairs])
        return _run_both(rule, match, program, boundary, old_graph, new_graph)


class _Snapshot:
    """A copy of operations whose originals may be erased: their operands are kept as they were."""

    def __init__(self, ops: Sequence[Operation]) -> None:
        self.copies: list[Operation] = []
        self.results: dict[Value, Value] = {}
        for op in ops:
            copy = copy_operation(op, op.operands)
            # the copy must not count as a user
            for value in op.operand_values:
                value._drop_use(copy)
            self.copies.append(copy)
            self.results.update(zip(op.results, copy.results, strict=True))

    def ops_operands(self) -> list[Value]:
        return [value for copy in self.copies for value in copy.operand_values]

    def copy_into(self, graph: Graph, mapping: dict[Value, Value]) -> None:
        for copy in self.copies:
            copy_into(copy, graph, mapping)
            for old, mine in self.results.items():
                if mine in mapping:
                    mapping[old] = mapping[mine]


def _created_behind(values: Sequence[Value], existing: set[Operation]) -> list[Operation]:
    """Return the operations that are new and that `values` depend on, operands first."""
    order: dict[Operation, None] = {}
    stack = [(op, False) for v in reversed(values) if (op := v.defining_op) is not None]
    while stack:
        op, expanded = stack.pop()
        if op in order or op in existing:
            continue
        if expanded:
            order[op] = None
            continue
        stack.append((op, True))
        stack.extend((d, False) for v in op.operand_values if (d := v.defining_op) is not None)
    return list(order)


def _leaves_of(operands: Sequence[Value], inner: Any) -> set[Value]:
    return {value for value in operands if value not in inner}


def _common_leaves(leaves: set[Value]) -> tuple[list[Value], list[Operation]] | None:
    """Widen the region backwards until no leaf depends on another one.

    Returns:
        The leaves in a fixed order, and the operations between them and the region, in graph order.
    """
    shared: dict[Operation, None] = {}
    current = set(leaves)
    for leaf in sorted(leaves, key=_order_key, reverse=True):
        # walk back from the leaf: does it reach another leaf within a few operations?
        seen: set[Operation] = set()
        stack = [leaf]
        reached = False
        inside: list[Operation] = []
        while stack and len(seen) < _MAX_WIDENING:
            op = stack.pop().defining_op
            if op is None or op in seen:
                continue
            seen.add(op)
            inside.append(op)
            for value in op.operand_values:
                if value in leaves and value is not leaf:
                    reached = True
                else:
                    stack.append(value)
        if not reached:
            continue
        if stack:
            return None
        # only layout and other pure operations may be run twice
        if not all(op.is_pure for op in inside):
            return None
        current.discard(leaf)
        for op in inside:
            shared[op] = None
            current.update(v for v in op.operand_values if v.defining_op is None)
    defined = {r for op in shared for r in op.results}
    boundary = sorted(current - defined, key=_order_key)
    ordered = sorted(shared, key=_op_key)
    return boundary, ordered


def _op_key(op: Operation) -> int:
    assert op.graph is not None
    op.graph._ensure_order()
    return op._order


def _order_key(value: Value) -> tuple[int, int, int, str]:
    op = value.defining_op
    if op is not None and op.graph is not None:
        return 2, _op_key(op), value.index, ""
    return (1 if value.is_input else 0), 0, value.index, value.name


def _run_both(
    rule: Pattern, match: Match, program: Program, boundary: Sequence[Value], old: Graph, new: Graph
) -> str | None:
    for graph in (old, new):
        for op in graph.operations():
            if op.opdef.has(Trait.OPAQUE):
                return f"it contains {op.name}"
    symbols = _choose_symbols(program, boundary)
    double = not rule.exact
    tensors: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(len(boundary))
    for value in boundary:
        tensor = _random_tensor(value, symbols, generator)
        if isinstance(tensor, str):
            return tensor
        tensors.append(tensor.double() if double and tensor.is_floating_point() else tensor)
    results = []
    for graph in (old, new):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            results.append(evaluate_graph(graph, [t.clone() for t in tensors], {}, symbols, opaques=program.opaques))
    for before, after in zip(*results, strict=True):
        problem = tensor_difference(before, after, exact=rule.exact)
        if problem is not None:
            raise ValidationError(
                f"{rule.name} changes the result: {problem}\n  equation: {rule.equation}",
                location=match.root.location,
                remedy="the rule is wrong for this match: its check must refuse it, or its rewrite be corrected",
            )
    return None


def _choose_symbols(program: Program, boundary: Sequence[Value]) -> dict[sympy.Symbol, int]:
    symbols: dict[sympy.Symbol, int] = {}
    dims = [d for v in boundary if isinstance(v.type, TensorType) for d in v.type.shape or ()]
    for i, symbol in enumerate(symbols_of([*dims, *program.symbols])):
        bounds = program.symbols.get(symbol)
        size = (2, 3, 5, 7)[i % 4]
        if bounds is not None:
            size = max(size, bounds.lower)
            size = size if bounds.upper is None else min(size, bounds.upper)
        symbols[symbol] = size
    return symbols


def _random_tensor(value: Value, symbols: Mapping[sympy.Symbol, int], generator: torch.Generator) -> torch.Tensor | str:
    owner = value.owner
    if isinstance(owner, Weight):
        if owner.data is None or owner.data.is_meta:
            return f"weight {owner.name!r} has no data"
        return owner.data.detach()
    type_ = value.type
    if not isinstance(type_, TensorType) or not type_.is_known:
        return f"the type {type_} of a value at its boundary is not known"
    assert type_.shape is not None and type_.dtype is not None
    sizes = [d if isinstance(d, int) else int(d.subs(symbols)) for d in type_.shape if d is not None]
    if type_.dtype.is_floating_point or type_.dtype.is_complex:
        return torch.randn(sizes, generator=generator).to(type_.dtype)
    if type_.dtype == torch.bool:
        return torch.randint(0, 2, sizes, generator=generator).bool()
    return torch.randint(0, 2, sizes, generator=generator).to(type_.dtype)
