"""Validation of single rewrites: a match and its replacement compared at the boundary of the region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import sympy
import torch

from compiler.equality.accuracy import compare_output
from compiler.equality.observation import copied_arguments, seeded
from compiler.equality.widened import Precision, is_float, mark_constant, precision_of, widened
from compiler.usercode.difference import scale_of, tensor_difference
from compiler.usercode.error_text import first_lines
from ir.copying import copy_into, copy_operation
from ir.core import Graph, Operation, Value
from ir.errors import GraphwrightError, ValidationError
from ir.evaluate import evaluate, evaluate_graph
from ir.locations import UNKNOWN_LOCATION
from ir.opdef import Trait
from ir.program import Program, WeightKind, weight_of
from ir.types import TensorType, symbols_of
from passes.rewrite.driver import Replacements
from passes.rewrite.pattern import Match, Pattern
from passes.rewrite.remarks import Remark

_MAX_WIDENING = 256
"""How many operations a region is widened by, so that match and replacement start from the same values."""


@attrs.define(eq=False)
class EachRewriteValidator:
    """The hook of `validate="each"`: compares every match with its replacement on random tensors.

    Exact rules must agree bit for bit, numeric ones to 1e-9 in float64, where casts to float32 are ignored, and those
    that change numbers on purpose within their tolerance. `checked` counts the rewrites that were compared. `skipped`
    lists the others (unknown types, weights without data, opaque calls) with the reason. `remarks` has both.
    """

    checked: int = 0
    skipped: list[str] = attrs.field(factory=list)

    def remarks(self) -> tuple[Remark, ...]:
        """Return how many rewrites were compared, and why each of the others was not."""
        total = self.checked + len(self.skipped)
        message = f"{self.checked} of {total} rewrites were compared with what they replaced"
        summary = Remark("validated", "validate", UNKNOWN_LOCATION, message)
        return (summary, *(Remark("unvalidated", "validate", UNKNOWN_LOCATION, reason) for reason in self.skipped))

    def __call__(self, rule: Pattern, match: Match, program: Program) -> Callable[[Replacements], None]:
        """Copy the matched region before it is rewritten; the returned function compares."""
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
        if not pairs:  # attributes or operands were set in place
            edited = dict.fromkeys(op for op in match.ops or [match.root] if op.graph is not None)
            pairs = [(result, result) for op in edited for result in op.results if result in before.results]
            existing = existing - edited.keys()
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
        symbols = _choose_symbols(program, boundary)
        return _Regions(rule, match, program, boundary, old_graph, new_graph, symbols).check()


def held_to_tolerance(rule: Pattern, match: Match, program: Program) -> Callable[[Replacements], None] | None:
    """Return what compares a rewrite with what it replaced, if its rule states a tolerance."""
    return None if rule.tolerance is None else EachRewriteValidator()(rule, match, program)


class _Snapshot:
    """Copies of operations whose originals may be erased, with their original operands."""

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
    """Return the new operations that `values` depend on, operands first."""
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
        The leaves in a fixed order, and the operations between leaves and region in graph order.
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
        # only pure operations may run twice
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


@attrs.frozen(eq=False)
class _Regions:
    """A matched region and its replacement, as graphs over the same boundary."""

    rule: Pattern
    match: Match
    program: Program
    boundary: Sequence[Value]
    old: Graph
    new: Graph
    symbols: Mapping[sympy.Symbol, int]

    def check(self) -> str | None:
        """Compare both on random tensors; return why that is not possible, or None.

        Raises:
            ValidationError: when they differ.
        """
        for graph in (self.old, self.new):
            for op in graph.operations():
                if op.opdef.has(Trait.OPAQUE):
                    return f"it contains {op.name}"
        vacuous = False
        for positive in (False, True):
            tensors = _random_tensors(self.boundary, self.symbols, positive=positive)
            if isinstance(tensors, str):
                return tensors
            results = self._results(self.old, tensors)
            if isinstance(results, Exception):
                return f"it does not run on random tensors: {type(results).__name__}: {first_lines(results, 1)}"
            self._compare(tensors, results)
            vacuous = not any(map(_has_numbers, results))
            if not vacuous:
                break  # else these are not operands for it: logarithms of negative numbers, say
        return "its results are NaN or infinite throughout" if vacuous else None

    def _compare(self, tensors: list[torch.Tensor], own: list[Any]) -> None:
        if self.rule.exact:
            self._judge(own, self._results(self.new, tensors), [0.0] * len(own), exact=True)
            return
        for precision, *modes in precision_of(tensors).attempts():
            wide = self._widened(tensors, precision)
            before = self._results(self.old, wide, modes[0])
            if not isinstance(before, Exception):
                break
        else:  # a kernel that has no float64
            self._judge(own, self._results(self.new, tensors), [_HALF_OF_THE_DIGITS] * len(own), exact=False)
            return
        after = self._results(self.new, wide, modes[1])
        bounds = [0.0] * len(before)
        if any(mode.has_kept for mode in modes):  # rounding on purpose may tip a number near a tie over
            bounds = [_error(exact, narrow) for exact, narrow in zip(before, own, strict=True)]
        self._judge(before, after, bounds, exact=False)

    def _intended(self, result: Any) -> float:
        """Return the difference that the rule makes of a result on purpose."""
        tolerance = self.rule.tolerance
        if tolerance is None or not isinstance(result, torch.Tensor) or not is_float(result.dtype):
            return 0.0
        return tolerance.allows(scale_of(result))

    def _results(
        self, graph: Graph, tensors: Sequence[torch.Tensor], mode: AbstractContextManager[Any] | None = None
    ) -> list[Any] | Exception:
        given = copied_arguments(list(tensors))
        try:
            with torch.no_grad(), seeded(0), nullcontext() if mode is None else mode:
                return evaluate_graph(graph, given, {}, self.symbols, opaques=self.program.opaques)
        except (GraphwrightError, RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            return error

    def _widened(self, tensors: Sequence[torch.Tensor], precision: Precision) -> list[torch.Tensor]:
        """Return the tensors in float64; derived weights are computed anew."""
        wide: list[torch.Tensor] = widened(list(tensors))
        for i, (value, tensor) in enumerate(zip(self.boundary, tensors, strict=True)):
            weight = weight_of(value)
            if weight is None:
                continue
            if weight.kind is WeightKind.CONSTANT:
                mark_constant(wide[i], tensor.dtype)
            data = [self.program.weights.get(name) for name in weight.derivation.sources] if weight.derivation else []
            sources = [w.data for w in data if w is not None and w is not weight and w.data is not None]
            if weight.derivation is not None and len(sources) == len(weight.derivation.sources):
                with torch.no_grad(), precision.mode():
                    (wide[i],) = evaluate(weight.derivation.program, widened([t.detach() for t in sources]))
        return wide

    def _judge(self, before: list[Any], after: list[Any] | Exception, bounds: Sequence[float], *, exact: bool) -> None:
        if isinstance(after, Exception):
            problem: str | None = f"it does not run any more: {type(after).__name__}: {first_lines(after, 1)}"
        else:
            bounds = [bound + self._intended(result) for bound, result in zip(bounds, before, strict=True)]
            rows = zip(before, after, bounds, strict=True)
            problem = next(filter(None, (tensor_difference(a, b, exact=exact, bound=c) for a, b, c in rows)), None)
        if problem is not None:
            stated = "" if self.rule.tolerance is None else f", and it states {self.rule.tolerance}"
            raise ValidationError(
                f"{self.rule.name} changes the result: {problem}{stated}\n  equation: {self.rule.equation}",
                location=self.match.root.location,
                remedy="the rule is wrong for this match: its check must refuse it, or its rewrite be corrected",
            )


_HALF_OF_THE_DIGITS = 3.5e-4


def _error(exact: Any, own: Any) -> float:
    """Return the difference that is allowed in float64 where values are rounded on purpose."""
    if not isinstance(exact, torch.Tensor) or not is_float(exact.dtype) or exact.shape != own.shape:
        return 0.0
    return compare_output(exact, own, own, exact).allowed


def _has_numbers(result: Any) -> bool:
    """Return whether a result has a finite number."""
    if not isinstance(result, torch.Tensor) or not is_float(result.dtype):
        return True
    return not result.numel() or bool(result.isfinite().any())


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


def _random_tensors(
    boundary: Sequence[Value], symbols: Mapping[sympy.Symbol, int], *, positive: bool
) -> list[torch.Tensor] | str:
    """Return a random tensor for each boundary value of a region, or why that is not possible."""
    generator = torch.Generator().manual_seed(len(boundary))
    tensors = []
    for value in boundary:
        tensor = _random_tensor(value, symbols, generator, positive=positive)
        if isinstance(tensor, str):
            return tensor
        tensors.append(tensor)
    return tensors


def _random_tensor(
    value: Value, symbols: Mapping[sympy.Symbol, int], generator: torch.Generator, *, positive: bool
) -> torch.Tensor | str:
    weight = weight_of(value)
    if weight is not None:
        if weight.data is None or weight.data.is_meta:
            return f"weight {weight.name!r} has no data"
        return weight.data.detach()
    type_ = value.type
    if not isinstance(type_, TensorType) or not type_.is_known:
        return f"the type {type_} of a value at its boundary is not known"
    assert type_.shape is not None and type_.dtype is not None
    if type_.device is not None and type_.device.type == "meta":
        return "a value at its boundary is on the meta device"
    sizes = [d if isinstance(d, int) else int(d.subs(symbols)) for d in type_.shape if d is not None]
    if is_float(type_.dtype):
        drawn = torch.randn(sizes, generator=generator)
        made = (drawn.abs() + 0.1 if positive else drawn).to(type_.dtype)
    else:
        made = torch.randint(0, 2, sizes, generator=generator).to(type_.dtype)
    return made.to(type_.device)
