"""Expressions of weights that become weights themselves: what they read, their data, how checkpoints reach them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import attrs
import sympy
import torch

from ir.attributes import Ref, iter_leaves
from ir.columns import Layout
from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.evaluate import evaluate_graph
from ir.memory.aliasing import aliases_output, is_written
from ir.opdef import Trait
from ir.program import CallingConvention, Derivation, Program, Weight, WeightKind, weight_of
from ir.types import TensorType, type_of_tensor, types_agree
from passes.rewrite.effects import is_foldable, is_mergeable, may_train

_REARRANGES = frozenset(Layout) - {Layout.DETACHED, Layout.EXPAND, Layout.STRIDED}
_SHOWN = 3


@attrs.frozen(eq=False)
class Expression:
    """The operations that compute a value from weights alone, operands first, and these weights."""

    value: Value
    ops: tuple[Operation, ...]
    weights: tuple[Weight, ...]

    @property
    def is_private(self) -> bool:
        """Whether nothing else reads what it reads: the weights, and the values on the way."""
        inside, ends = set(self.ops), {self.value}
        return all(is_read_inside(weight.value, inside, ends) for weight in self.weights)

    @property
    def moves_only(self) -> bool:
        """Whether each element of the value is one of a weight, and no element is there twice."""
        moved = (op.opdef.layout in _REARRANGES or op.name == "aten.cat" for op in self.ops)
        values = [*(weight.value for weight in self.weights), *(result for op in self.ops for result in op.results)]
        return all(moved) and all(sum(1 for _ in value.uses) <= 1 for value in values if value is not self.value)

    def data(self) -> torch.Tensor | None:
        """Return the value, of the weights' data; a meta tensor where one has none, None in a parsed program."""
        given = [weight.data for weight in self.weights]
        if any(tensor is None for tensor in given):
            return None
        if any(tensor is not None and tensor.is_meta for tensor in given):
            type_ = self.value.tensor_type
            return torch.empty([d for d in type_.shape or () if isinstance(d, int)], dtype=type_.dtype, device="meta")
        graph = Graph([(weight.name, weight.type) for weight in self.weights])
        _append(self.ops, self.value, graph, dict(zip([w.value for w in self.weights], graph.inputs, strict=True)))
        with torch.no_grad():
            (result,) = evaluate_graph(graph, [tensor.detach() for tensor in given if tensor is not None], {}, {})
        assert isinstance(result, torch.Tensor)
        return result

    def derivation(self) -> Derivation:
        """Return how the value is computed from weights of the original."""
        graph, sources, mapping = from_originals(self.weights)
        _append(self.ops, self.value, graph, mapping)
        return Derivation(sources, Program("derivation", graph, CallingConvention(None, None)))


def expression_of(value: Value) -> Expression | str:
    """Return what computes `value` from weights alone, or why there is no such expression.

    It must not depend on an input, a mode, random numbers, or on a weight that the model mutates.
    """
    ops: dict[Operation, None] = {}
    weights: dict[str, Weight] = {}
    stack: list[tuple[Value, bool]] = [(value, False)]
    while stack:
        current, expanded = stack.pop()
        op = current.defining_op
        if op is None:
            weight = weight_of(current)
            if weight is None:
                return f"it depends on the input `{current.name}`"
            if weight.is_mutated:
                return f"it reads `{weight.name}`, which the model mutates"
            weights[weight.name] = weight
        elif expanded:
            ops.setdefault(op)
        elif op not in ops:
            if not is_foldable(op):
                return f"{op.name} at `{op.location.where}` {_unlike_a_constant(op)}"
            if not has_literals(op):
                return f"{op.name} at `{op.location.where}` depends on a size of an input"
            stack.append((current, True))
            stack.extend((v, False) for v in reversed(op.operand_values))
    return Expression(value, tuple(ops), tuple(weights.values()))


def is_read_inside(value: Value, inside: Set[Operation], ends: Set[Value]) -> bool:
    """Return whether all that a value reaches, up to some ends, is computed by some operations."""
    pending = [value]
    seen: set[Value] = set()
    while pending:
        current = pending.pop()
        if current in ends or current in seen:
            continue
        seen.add(current)
        for user in current.users:
            if user not in inside:
                return False
            pending.extend(user.results)
    return True


def data_of(value: Value) -> torch.Tensor | None:
    """Return the data of an expression of weights; None where it is no such expression, or there is no data."""
    found = expression_of(value)
    data = None if isinstance(found, str) else found.data()
    return None if data is None or data.is_meta else data


def _unlike_a_constant(op: Operation) -> str:
    if op.opdef.has(Trait.OPAQUE):
        return "is an opaque call"
    if may_train(op):
        return "depends on the mode"
    if op.opdef.has(Trait.RANDOM):
        return "draws random numbers"
    return "reads what the model mutates" if is_mergeable(op) else "has an effect, or no defined result"


def has_literals(op: Operation) -> bool:
    """Return whether no attribute of an operation refers to a value or a symbolic size."""
    for value in op.attributes.values():
        for leaf in iter_leaves(value):
            if type(leaf) is Ref or isinstance(leaf, sympy.Expr):
                return False
    return True


def computed_weight(program: Program, value: Value, name: str | None, *, inference: bool) -> Weight | str:
    """Return the weight that takes the place of an expression of weights, or why the expression must stay.

    It is trained where training it trains the weights that it is made of: the expression only moves their elements,
    each to one place, and nothing else reads them. Otherwise it is for inference.

    Args:
        program: the program.
        value: the expression.
        name: of the weight; by default that of the first weight in it.
        inference: whether it may become a weight that is not trained, though it is made of some that are.
    """
    found = expression_of(value)
    if isinstance(found, str):
        return found
    if not found.ops or not found.weights:
        return "it computes nothing from weights"
    if not (isinstance(value.type, TensorType) and value.type.is_static):
        return f"its type {value.type} is not known"
    if aliases_output(value) or is_written(value):
        return "each call returns or mutates a tensor of its own"
    trained = [weight for weight in found.weights if weight.requires_grad]
    untrained = _why_untrained(program, found) if trained else None
    if untrained is not None and not inference:
        return f"it would not train {names_shown([weight.name for weight in trained])}: {untrained}"
    data = found.data()
    if data is not None and not data.is_meta:
        if not types_agree(type_of_tensor(data), value.type):
            return f"it is {type_of_tensor(data)} when it is computed, and {value.type} in the program"
        if not _is_worth_it(data, found):
            return "it is a view of a weight, which costs nothing"
    kinds = {weight.kind for weight in found.weights}
    kind = next(kind for kind in WeightKind if kind in kinds)
    trains = bool(trained) and untrained is None
    if data is not None:
        is_parameter = kind is WeightKind.PARAMETER
        data = torch.nn.Parameter(data, requires_grad=trains) if is_parameter else data.requires_grad_(trains)
    return Weight(
        _name_of(program, found, name),
        kind,
        value.tensor_type,
        data,
        requires_grad=trains,
        persistent=any(w.persistent and w.kind is not WeightKind.CONSTANT for w in found.weights),
        derivation=found.derivation(),
    )


def _why_untrained(program: Program, found: Expression) -> str | None:
    """Return why training the value would not train the weights; None where it would."""
    if not found.is_private:
        return "something else reads what it reads"
    if not found.moves_only:
        return "it does more than move elements, each to one place"
    if not all(weight.requires_grad for weight in found.weights):
        return "not all of what it reads is trained"
    memory = {_memory_of(weight.data) for weight in found.weights} - {None}
    others = [weight.data for weight in program.weights.values() if weight not in found.weights]
    held = [
        p for opaque in program.opaques.values() if isinstance(opaque, torch.nn.Module) for p in opaque.parameters()
    ]
    if any(_memory_of(tensor) in memory for tensor in (*others, *held)):
        return "something else is in the same memory"
    return None


def _memory_of(data: torch.Tensor | None) -> int | None:
    if data is None or data.is_meta or data.layout is not torch.strided:
        return None
    return data.untyped_storage().data_ptr() or None


def _name_of(program: Program, found: Expression, name: str | None) -> str:
    """Return the name for a new weight: the wanted one, if its weight is in the expression and read nowhere else."""
    wanted = found.weights[0].name if name is None else name
    weight = program.weights.get(wanted)
    if weight is None:
        return program.unique_weight_name(wanted)  # a tied weight may have it as its second name
    is_read = not is_read_inside(weight.value, set(found.ops), {found.value})
    if weight in found.weights and not weight.aliases and not is_read:
        return wanted
    return program.unique_weight_name(f"{wanted}_folded")


def _is_worth_it(data: torch.Tensor, found: Expression) -> bool:
    """Return whether the data is in memory of its own, or all of a weight that nothing else reads."""
    shared = [w.data for w in found.weights if w.data is not None and _memory_of(w.data) == _memory_of(data)]
    if not shared or _memory_of(data) is None:
        return True
    is_expanded = any(size > 1 and stride == 0 for size, stride in zip(data.shape, data.stride(), strict=True))
    return found.is_private and not is_expanded and data.numel() == sum(tensor.numel() for tensor in shared)


def names_shown(names: Sequence[str]) -> str:
    """Return names for a message, the first few of many."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def from_originals(weights: Sequence[Weight]) -> tuple[Graph, tuple[str, ...], dict[Value, Value]]:
    """Return a graph that computes weights from original ones, its inputs by name, and the weights' values in it."""
    types: dict[str, Any] = {}
    for weight in weights:
        before = weight.derivation
        if before is None:
            types[weight.name] = weight.type
        else:
            types.update(zip(before.sources, [v.type for v in before.program.graph.inputs], strict=True))
    graph = Graph(list(types.items()))
    inputs = dict(zip(types, graph.inputs, strict=True))
    mapping: dict[Value, Value] = {}
    for weight in weights:
        before = weight.derivation
        if before is None:
            mapping[weight.value] = inputs[weight.name]
            continue
        inner = dict(zip(before.program.graph.inputs, [inputs[name] for name in before.sources], strict=True))
        for op in before.program.graph.operations():
            copy_into(op, graph, inner)
        (result,) = before.program.graph.outputs
        assert result is not None
        mapping[weight.value] = inner[result]
    return graph, tuple(types), mapping


def _append(ops: Sequence[Operation], value: Value, graph: Graph, mapping: dict[Value, Value]) -> None:
    """Append copies of operations to a graph, and let it return `value`."""
    for op in ops:
        copy_into(op, graph, mapping)
    graph.set_outputs([mapping[value]])
