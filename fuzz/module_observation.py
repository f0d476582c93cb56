"""What can be seen of calls of a module, and how two modules differ in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.difference import RELATIVE_BOUND, tensor_difference
from compiler.parameter_map import ParameterMap
from fuzz.module_outside import plain_state
from fuzz.observation import (
    foreign_seeded,
    foreign_state,
    is_no_slope,
    meaningful_strides,
    own_error,
    rounding_limit,
    seeded,
)
from fuzz.rounding import Rounding


@attrs.frozen(eq=False)
class Look:
    """How a result looks to the caller, without its values."""

    facts: tuple[Any, ...]
    """Shape, dtype, strides that mean something, whether it requires a gradient, whether it is a Parameter."""
    inputs: tuple[int, ...]
    """The inputs that it shares memory with."""
    weights: frozenset[str]
    """The parameters and buffers that it shares memory with, by all their names."""
    results: tuple[int, ...]
    """The results that it shares memory with, by their places; itself among them."""


@attrs.frozen(eq=False)
class Seen:
    """What a caller sees of one call."""

    structure: Any
    """The tree that the results form."""
    results: tuple[Any, ...]
    looks: tuple[Look | None, ...]
    inputs: tuple[torch.Tensor, ...]
    """The inputs after the call."""
    drawn: torch.Tensor
    """The state of the random generator afterwards."""
    state: Mapping[str, torch.Tensor]
    """Parameters and buffers afterwards, by all their names; what is tied is one tensor."""
    written: frozenset[str]
    """The names of those that the call changed."""
    slopes: Mapping[str, torch.Tensor | None]
    """Gradients of inputs (by "input 0") and parameters; empty where they were not asked for."""
    drawn_elsewhere: Any = None
    """The states of Python's and numpy's random generators afterwards."""
    effects: bool = False
    """Whether the call changed numbers or the sizes of containers outside of the state; see `fuzz.module_outside`."""


def observe_module(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    gradients: bool = False,
    seed: int = 7,
    surroundings: Callable[[], AbstractContextManager[Any]] | None = None,
    outside: Any = None,
) -> Seen:
    """Call a module on copies of its arguments and return what can be seen of the call.

    Args:
        module: the module; what it writes to its buffers stays.
        args: positional arguments; not written.
        kwargs: keyword arguments; not written.
        gradients: whether to compute gradients of a random linear form in the results; parameters keep theirs.
        seed: seeds what is drawn.
        surroundings: what the call is made under; by default gradients are off unless they are asked for.
        outside: what `effects` are looked for in, beside the module; None to look for none.
    """
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    inputs = list({id(t): t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}.values())
    if gradients:
        for tensor in inputs:
            tensor.requires_grad_(tensor.is_floating_point())
    before = {name: t.detach().clone() for name, t in named_state(module).items()}
    around = partial(torch.set_grad_enabled, gradients) if surroundings is None else surroundings
    notes = None if outside is None else plain_state(module, outside)
    with around(), seeded(seed), foreign_seeded(seed):
        out = module(*args, **kwargs)
        drawn, elsewhere = torch.random.get_rng_state(), foreign_state()
    effects = notes is not None and plain_state(module, outside) != notes
    leaves, structure = pytree.tree_flatten(out)
    state = named_state(module)
    looks = _looks(leaves, inputs, state)
    kept = tuple(leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    slopes = _slopes(leaves, inputs, module) if gradients else {}
    clones: dict[int, torch.Tensor] = {}
    after = {name: clones.setdefault(id(t), t.detach().clone()) for name, t in state.items()}
    written = frozenset(n for n, t in after.items() if n not in before or not _same_bits(before[n], t))
    left = tuple(t.detach().clone() for t in inputs)
    return Seen(structure, kept, looks, left, drawn, after, written, slopes, elsewhere, effects)


def named_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by all their names: what is tied has several."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _looks(leaves: list[Any], inputs: list[torch.Tensor], state: Mapping[str, torch.Tensor]) -> tuple[Look | None, ...]:
    places = [_storage(leaf) if isinstance(leaf, torch.Tensor) and leaf.numel() else None for leaf in leaves]
    given = [_storage(t) for t in inputs]
    owned = {name: _storage(t) for name, t in state.items()}

    def look(index: int, t: Any) -> Look | None:
        if not isinstance(t, torch.Tensor):
            return None
        facts = (tuple(t.shape), t.dtype, meaningful_strides(t), t.requires_grad, isinstance(t, nn.Parameter))
        place = places[index]
        if place is None:
            return Look(facts, (), frozenset(), ())
        return Look(
            facts,
            tuple(i for i, other in enumerate(given) if other == place),
            frozenset(name for name, other in owned.items() if other == place),
            tuple(i for i, other in enumerate(places) if other == place),
        )

    return tuple(look(i, leaf) for i, leaf in enumerate(leaves))


def _slopes(leaves: list[Any], inputs: list[torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor | None]:
    # also where two results are one tensor object: whether they are is not compared, only that they share memory
    wanted = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in wanted]
    sources = {f"input {i}": t for i, t in enumerate(inputs) if t.requires_grad and t.is_leaf}
    sources |= {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    if not wanted or not sources:
        return dict.fromkeys(sources)
    slopes = torch.autograd.grad(wanted, list(sources.values()), directions, allow_unused=True)
    return dict(zip(sources, slopes, strict=True))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and tensor_difference(a, b, exact=True) is None


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# ---- comparison ----


@attrs.define(eq=False)
class Reference:
    """By how much a run may differ from the original's in values.

    Args:
        rounding: what rounding alone does to the original.
        other: runs the original in another precision; what it differs by is allowed twice.
        double: whether the runs to be compared are in float64.
    """

    rounding: Rounding[Seen] | None = None
    other: Callable[[], Seen] | None = None
    double: bool = True
    _seen: Seen | None = attrs.field(default=None, init=False)

    def difference(self, a: Any, b: Any, pick: Callable[[Seen], Any]) -> str | None:
        """Return how two tensors differ by more than is allowed, or None.

        Args:
            a: of the original.
            b: the one to judge.
            pick: takes the tensor out of what is seen of the original.
        """
        problem = tensor_difference(a, b, exact=False)
        if problem is None or not isinstance(a, torch.Tensor) or not a.is_floating_point() or not same_kind(a, b):
            return problem
        bound = 0.0
        if self.rounding is not None:
            bound = self.rounding.bound(a, pick, RELATIVE_BOUND if self.double else rounding_limit(a.dtype))
        if self.other is not None:
            self._seen = self._seen or self.other()
            bound = max(bound, own_error(a, pick(self._seen)))
        return tensor_difference(a, b, exact=False, bound=bound)


def same_kind(a: Any, b: Any) -> bool:
    """Return whether two things are tensors of one dtype and shape."""
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return tensors and a.dtype == b.dtype and a.shape == b.shape


def module_differences(a: Seen, b: Seen, names: ParameterMap, reference: Reference) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each property in which an observation differs from the original's.

    Args:
        a: of the original.
        b: of the emitted module, run on the same inputs in the same precision.
        names: the emitted module's.
        reference: by how much `b` may differ in values.
    """
    if a.structure != b.structure:
        yield "structure", f"{a.structure} became {b.structure}"
        return
    for i, (x, y) in enumerate(zip(a.results, b.results, strict=True)):
        problem = reference.difference(x, y, _result(i))
        if problem is not None:
            yield "values", f"result {i}: {problem}"
    for i, (x, y) in enumerate(zip(a.looks, b.looks, strict=True)):
        if x is not None and y is not None:
            yield from _unlike_looks(i, x, y, names)
    for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
        problem = reference.difference(x, y, _input(i))
        if problem is not None:
            yield "inputs", f"input {i} afterwards: {problem}"
    if not torch.equal(a.drawn, b.drawn):
        yield "random numbers", "another count is drawn"
    if a.drawn_elsewhere != b.drawn_elsewhere:
        yield "random numbers", "another count of Python's or numpy's is drawn"
    if a.effects != b.effects:
        yield "effects", f"outside of its state, the module {_changes(a)}, and now {_changes(b)}"
    yield from _unlike_state(a, b, names, reference)
    yield from _unlike_slopes(a, b, names, reference)


def _changes(seen: Seen) -> str:
    return "changes something" if seen.effects else "changes nothing"


def _unlike_looks(index: int, a: Look, b: Look, names: ParameterMap) -> Iterator[tuple[str, str]]:
    for what, property_, x, y in zip(
        ("shape", "dtype", "strides", "requires_grad", "is a Parameter"),
        ("types", "types", "strides", "gradients", "structure"),
        a.facts,
        b.facts,
        strict=True,
    ):
        if x != y:
            yield property_, f"result {index}: {what}: {x} became {y}"
    for what, xs, ys in (("inputs", a.inputs, b.inputs), ("results", a.results, b.results)):
        if xs != ys:
            yield "sharing", f"result {index} shares memory with {what} {list(xs)}, and now with {list(ys)}"
    sources = frozenset(source for key in b.weights for source in names.get(key, (key,)))
    # a tied weight may have lost some of its names
    if bool(sources) != bool(a.weights) or not sources <= a.weights:
        yield (
            "sharing",
            f"result {index} shares memory with weights {sorted(a.weights)}, and now with {sorted(sources)}",
        )


def _unlike_state(a: Seen, b: Seen, names: ParameterMap, reference: Reference) -> Iterator[tuple[str, str]]:
    covered: set[str] = set()
    for key, value in b.state.items():
        sources = names.get(key, (key,))
        covered.update(sources)
        if not set(sources) <= set(a.state):
            if sources != (key,) or key in b.written:
                yield "state", f"{key} comes from {sources}, which are not in the original"
            continue  # a constant
        problem = reference.difference(_heir(names, key, a.state), value, _state(names, key))
        if problem is not None:
            yield "state", f"{key} afterwards: {problem}"
    kept = {id(a.state[name]) for name in covered & set(a.state)}  # what is tied may have lost some of its names
    for name in sorted(a.written - covered):
        if id(a.state[name]) not in kept:
            yield "state", f"{name} is written by the original, and gone"


def _unlike_slopes(a: Seen, b: Seen, names: ParameterMap, reference: Reference) -> Iterator[tuple[str, str]]:
    for key, value in b.slopes.items():
        sources = (key,) if key.startswith("input ") else names.get(key, (key,))
        if len(sources) > 1:
            continue  # computed of several, for inference
        (source,) = sources
        if source not in a.slopes:
            if not is_no_slope(value):
                yield "gradients", f"of {key}, which the original has not"
            continue
        if is_no_slope(a.slopes[source]) and is_no_slope(value):
            continue
        if a.slopes[source] is None or value is None:
            if a.slopes[source] is not value:
                yield "gradients", f"of {key}: there is {'none now' if value is None else 'one now, and none before'}"
            continue
        expected = _heir(names, key, a.slopes)
        finite = expected.isfinite()  # see `observation._finite`
        if expected.shape == value.shape:
            expected, value = expected[finite], value[finite]
        problem = reference.difference(expected, value, _slope(names, key, finite))
        if problem is not None:
            yield "gradients", f"of {key}: {problem}"


def is_computed(names: ParameterMap) -> bool:
    """Return whether tensors of the emitted module are computed of several: these do not follow the weights."""
    return any(len(sources) > 1 for sources in names.values())


def _heir(names: ParameterMap, key: str, tensors: Mapping[str, torch.Tensor | None]) -> Any:
    """Return what a tensor of the emitted module should be: a weight may have been transposed or reshaped."""
    sources = names.get(key, (key,))
    if key not in names or any(tensors.get(source) is None for source in sources):
        return tensors.get(sources[0])
    return names.heir(key, tensors)


def _result(index: int) -> Callable[[Seen], Any]:
    return lambda seen: seen.results[index]


def _input(index: int) -> Callable[[Seen], Any]:
    return lambda seen: seen.inputs[index]


def _state(names: ParameterMap, key: str) -> Callable[[Seen], Any]:
    return lambda seen: _heir(names, key, seen.state)


def _slope(names: ParameterMap, key: str, finite: torch.Tensor) -> Callable[[Seen], Any]:
    def pick(seen: Seen) -> Any:
        slope = _heir(names, key, seen.slopes)
        return None if slope is None or slope.shape != finite.shape else slope[finite]

    return pick


# ---- the module itself ----


def cast_tree(tree: Any, dtype: torch.dtype) -> Any:
    """Return arguments with floats of another dtype; one object stays one object."""
    memo: dict[int, torch.Tensor] = {}

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        return memo.setdefault(id(leaf), leaf.to(dtype))

    return pytree.tree_map(convert, tree)


def snapshot(model: nn.Module) -> list[Any]:
    """Return what identifies a module, its weights and their versions: equal as long as nobody changes it."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *((name, id(t), t.requires_grad, t._version, _values(t)) for name, t in tensors),
        *((path, m.training, _ids(m.__dict__)) for path, m in model.named_modules()),
    ]


def _values(tensor: torch.Tensor) -> Any:
    return repr(tensor.tolist()) if tensor.numel() < 1000 else None  # as text, NaN equals NaN


def _ids(attributes: Mapping[str, Any]) -> list[Any]:
    return [
        (key, [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value))
        for key, value in attributes.items()
        if key not in ("_code", "_graph")
    ]
