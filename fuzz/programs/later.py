"""What becomes of a program later: `train()`, other weights from a checkpoint or a call, `.to(dtype)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from compiler.emitted.parameter_map import Entry, ParameterMap
from compiler.equality.widened import widened
from compiler.usercode.tensors import storage_of
from fuzz.programs.case import Case
from ir.core import Graph, Value
from ir.evaluate import evaluate
from ir.opdef import Trait
from ir.program import Program, Weight, WeightKind, copy_program, weight_of

Later = tuple[Program, Program, Case]
"""The original, the changed program and the case, with the weights of a later call."""
_SCALE = 0.75


def with_other_numbers(original: Program, changed: Program, case: Case) -> Later | None:
    """Return the programs with other numbers in the weights that can get some; None where there are none.

    A checkpoint and training give numbers to parameters and persistent buffers, and weights of the changed program are
    derived from these anew. Calls give numbers to what the program mutates, and then nothing is derived anew.
    """
    kept = {name: w.data for name, w in original.weights.items() if w.data is not None}
    memory: dict[Any, torch.Tensor] = {}
    other = {name: _other_numbers(data, memory) for name, data in kept.items() if _gets_numbers(original.weights[name])}
    if not other:
        return None
    loaded = {name: kept[name] if original.weights[name].is_mutated else other.get(name, kept[name]) for name in kept}

    def later(name: str, weight: Weight) -> torch.Tensor | None:
        return other.get(name, weight.data) if weight.derivation is None else _derived(weight, loaded)

    return _with_weights(original, changed, attrs.evolve(case, weights={**kept, **other}), later)


def without_data(program: Program) -> Program:
    """Return the program of the same model on the meta device."""
    bare = copy_program(program)
    for weight in bare.weights.values():
        weight.data = None if weight.data is None else weight.data.to("meta")
    return bare


def with_data(original: Program, changed: Program, case: Case) -> Later:
    """Return the programs where the changed one, whose weights had no data, has got it."""
    kept = {name: w.data for name, w in original.weights.items() if w.data is not None}

    def later(name: str, weight: Weight) -> torch.Tensor | None:
        return kept.get(name, weight.data) if weight.derivation is None else _derived(weight, kept)

    return _with_weights(original, changed, case, later)


def unlike_state(original: Program, changed: Program) -> str | None:
    """Return how the names of weights, or what trains, differ from the original; None if they do not."""
    names = {alias for weight in changed.weights.values() for alias in (weight.name, *weight.aliases)}
    for weight in original.weights.values():
        for name in (weight.name, *weight.aliases):
            if name not in names and weight.kind is not WeightKind.CONSTANT and not weight.is_folded:
                return f"nothing has the name {name} of a {weight.kind.value} any more"
    for name, weight in changed.weights.items():
        if name not in original.weights and weight.derivation is None and not weight.is_folded:
            return f"{name} is neither a weight of the model nor folded nor derived"
        if name not in original.weights and weight.is_folded and weight.persistent:
            return f"{name} is folded, and would be missing from a checkpoint of the model"
        if weight.data is not None and weight.data.requires_grad and not weight.requires_grad:
            return f"the tensor of {name} requires a gradient, and the weight does not"
    return None


def with_other_dtype(original: Program, changed: Program, case: Case) -> Later:
    """Return the programs as they are after `.to(torch.float64)`, on inputs in float64.

    Parameters and buffers are converted; literals of the code (`WeightKind.CONSTANT`) are not.
    """
    memo: dict[int, torch.Tensor] = {}

    def later(_: str, weight: Weight) -> torch.Tensor | None:
        data = weight.data
        if data is None or weight.kind is WeightKind.CONSTANT:
            return data
        return memo.setdefault(id(data), widened(data))  # one tensor stays one tensor

    weights = {name: later(name, w) for name, w in original.weights.items()}
    held = {name: data for name, data in weights.items() if data is not None}
    inputs = tuple(widened(list(case.inputs)))
    return _with_weights(original, changed, attrs.evolve(case, weights=held, inputs=inputs), later)


def _derived(weight: Weight, sources: Mapping[str, torch.Tensor]) -> torch.Tensor:
    assert weight.derivation is not None
    with torch.no_grad():
        (derived,) = evaluate(weight.derivation.program, [sources[name] for name in weight.derivation.sources])
    assert isinstance(derived, torch.Tensor)
    return derived


def trained_names(original: Program, new: Sequence[Weight]) -> ParameterMap | None:
    """Return which trained weights the new ones are computed from; None where one is not trained any more."""
    entries: dict[str, Entry] = {}
    for weight in new:
        if weight.derivation is None:
            continue
        if weight.requires_grad:
            entries[weight.name] = Entry(weight.derivation.sources, weight.derivation)
        elif any(original.weights[name].requires_grad for name in weight.derivation.sources):
            return None
    return ParameterMap(entries)


def _gets_numbers(weight: Weight) -> bool:
    return weight.is_mutated or (weight.persistent and weight.kind is not WeightKind.CONSTANT)


def _other_numbers(data: torch.Tensor, memory: dict[Any, torch.Tensor]) -> torch.Tensor:
    """Return a tensor like another one, with its numbers in reverse and smaller: they stay in their range and sign.

    What shares storage still does; `memory` has the new storages.
    """
    place = storage_of(data), data.dtype
    if place not in memory:
        flat = torch.empty(0, dtype=data.dtype).set_(data.untyped_storage())
        flat = flat.flip(0)
        memory[place] = flat * _SCALE if flat.is_floating_point() else flat
    return memory[place].as_strided(data.shape, data.stride(), data.storage_offset())


def _with_weights(
    original: Program, changed: Program, case: Case, later: Callable[[str, Weight], torch.Tensor | None]
) -> Later:
    copies = []
    for program in (original, changed):
        twin = copy_program(program)
        for name, weight in twin.weights.items():
            weight.data = later(name, weight)
            if weight.data is not None and weight.data.dtype != weight.type.dtype:
                weight.type = weight.value.type = attrs.evolve(weight.type, dtype=weight.data.dtype)
        copies.append(twin)
    return copies[0], copies[1], case


def put_in_training(graph: Graph, outside: Mapping[Value, Value] | None = None) -> int:
    """Put the operations of a graph that follow the mode in training; return how many changed.

    In the body of a region, `outside` maps its inputs to the operands of the region.
    """
    outside, count = outside or {}, 0
    for op in graph.operations():
        if op.body is not None:
            values = [outside.get(value, value) if value is not None else None for value in op.operands]
            inner = {a: b for a, b in zip(op.body.inputs, values, strict=True) if b is not None}
            count += put_in_training(op.body, inner)
            continue
        flag, attributes = op.opdef.training, op.attributes
        if flag is None or op.in_training:
            continue
        if "train_dropout_p" in attributes:
            attributes[flag] = attributes["train_dropout_p"]
        elif attributes.get("follows_mode", op.name == "nn.multihead_attention"):
            statistics = [
                op.operand(name) for name in ("running_mean", "running_var") if name in op.opdef.operand_index
            ]
            weights = [weight_of(_behind_views(value, outside)) for value in statistics if value is not None]
            for weight in weights:
                if weight is not None:
                    weight.is_mutated = True
            attributes[flag] = True
        count += op.in_training
    return count


def _behind_views(value: Value, outside: Mapping[Value, Value]) -> Value:
    """Return the value that owns the storage of a view."""
    while True:
        value = outside.get(value, value)
        op = value.defining_op
        if op is None or not op.opdef.has(Trait.VIEW) or op.operands[0] is None:
            return value
        value = op.operands[0]
