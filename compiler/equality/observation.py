"""The observable behaviour of calls of a module.

The calls are real ones, on copies of the arguments. `state_kept` restores the module afterwards. So two calls in a row
can be observed, the second from the state that the first left, without a copy of the weights:

    with state_kept(module):
        first, second = (observe(module, args, kwargs) for _ in range(2))

`observation_differences` compares two observations.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.capture.patches import ParametersKept
from compiler.usercode.difference import is_plain, tensor_difference
from compiler.usercode.state import ModuleState
from compiler.usercode.tensors import foreign_state, map_tensors, meaningful_strides, storage_of

_SMALL = 1 << 20
"""Buffers of at most this many bytes are always copied, since kernels mutate statistics that their schemas do not name.
Larger ones are watched instead."""
_DEPTH = 6
"""Nesting depth to which objects of unknown classes are flattened."""


@attrs.frozen(eq=False)
class Look:
    """Everything observable about a result except its values."""

    facts: tuple[Any, ...]
    """Shape, dtype, meaningful strides, whether it requires a gradient, whether it is a Parameter."""
    inputs: tuple[int, ...]
    """Inputs that it shares storage with."""
    weights: frozenset[str]
    """Parameters and buffers that it shares storage with, under all their names."""
    results: tuple[int, ...]
    """Positions of the results that it shares storage with, its own among them."""


@attrs.frozen(eq=False)
class Observation:
    """What a caller can observe of one call; a call that raised has no results."""

    structure: Any
    """The tree structure of the results."""
    results: tuple[Any, ...]
    """The leaves: tensors and other objects."""
    looks: tuple[Look | None, ...]
    """One for each result; None for what is not a tensor."""
    inputs: tuple[Any, ...]
    """The leaves of the arguments after the call, each object once."""
    drawn: torch.Tensor
    """The state of PyTorch's random generator after the call."""
    state: Mapping[str, torch.Tensor]
    """Parameters and buffers after the call, under all their names; tied ones are one tensor."""
    written: frozenset[str]
    """Names of those that the call mutated or replaced."""
    attached: frozenset[str]
    """Names of those that carry gradients into the next call."""
    replaced: frozenset[str]
    """Names of those that the call replaced by a tensor with another storage."""
    slopes: Mapping[str, torch.Tensor | None]
    """Gradients of inputs ("input 0") and parameters; empty where they were not requested."""
    drawn_elsewhere: Any = None
    """The states of the random generators of Python and numpy after the call."""
    error: Exception | None = None
    """The exception that the call raised."""


# ---- running ----


@contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Restore buffers, parameters, attributes and modes of a module at the end.

    Weights are copied only when they are mutated. Small buffers that own their storage are replaced by clones.
    """
    state = ModuleState(module)
    tensors = {id(t): t for t in named_state(module).values()}
    holders = Counter(map(storage_of, tensors.values()))
    clones: dict[int, torch.Tensor] = {}
    replaced: list[tuple[nn.Module, str, torch.Tensor]] = []
    large: list[torch.Tensor] = []
    for each in module.modules():
        for name, buffer in each._buffers.items():
            if buffer is None:
                continue
            if _is_small(buffer) and holders[storage_of(buffer)] == 1:
                each._buffers[name] = clones.setdefault(id(buffer), _clone(buffer))
                replaced.append((each, name, buffer))
            else:
                large.append(buffer)
    kept = ParametersKept(module, large)
    try:
        with kept:
            yield
    finally:
        kept.restore()
        state.restore()
        for each, name, buffer in replaced:
            each._buffers[name] = buffer


def observe(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    gradients: bool = False,
    copies: bool = False,
    mode: AbstractContextManager[Any] | None = None,
) -> Observation:
    """Call a module on copies of its arguments, in the caller's grad mode, and return what is observable.

    Args:
        module: the module; its state stays as the call leaves it (see `state_kept`).
        args: positional arguments; not mutated.
        kwargs: keyword arguments; not mutated.
        seed: of the random generators, whose states are restored.
        gradients: whether to compute gradients of a random linear form in the results; `grad` of parameters stays.
        copies: whether to copy also state that the call did not change, since it will be mutated later.
        mode: a mode of PyTorch to call the module in.
    """
    args, kwargs = copied_arguments((tuple(args), dict(kwargs or {})))
    given = list({id(t): t for t in pytree.tree_leaves((args, kwargs))}.values())
    inputs = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
    if gradients:
        for tensor in inputs:
            tensor.requires_grad_(tensor.is_floating_point())
    before = _Before(module, copies=copies)
    error, out = None, None
    with seeded(seed), foreign_seeded(seed):
        try:
            with nullcontext() if mode is None else mode:
                out = module(*args, **kwargs)
        except Exception as raised:  # noqa: BLE001 - what both modules raise is equal
            error = raised
        drawn, elsewhere = torch.random.get_rng_state(), foreign_state()
    leaves, structure = flatten(out)
    state = named_state(module)
    looks = looks_of(leaves, inputs, state) if error is None else ()
    slopes: Mapping[str, torch.Tensor | None] = {}
    if gradients and error is None:
        sources = {f"input {i}": t for i, t in enumerate(inputs) if t.requires_grad and t.is_leaf}
        sources |= {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
        slopes = slopes_of(leaves, sources)
    written, after = before.compare(state)
    results = tuple(_clone(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    left = tuple(_clone(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in given)
    attached = frozenset(name for name in written if state[name].grad_fn is not None)
    replaced = frozenset(name for name, t in state.items() if storage_of(before.state.get(name, t)) != storage_of(t))
    return Observation(
        structure, results, looks, left, drawn, after, written, attached, replaced, slopes, elsewhere, error
    )


def copied_arguments(tree: Any) -> Any:
    """Return copies of arguments. One object stays one object, and one storage stays one storage."""
    tree = map_tensors(tree, lambda t: t if t.is_leaf else t.detach().requires_grad_(t.requires_grad))
    try:
        return copy.deepcopy(tree)
    except Exception:  # noqa: BLE001 - an object that cannot be copied is passed itself
        memo: dict[int, Any] = {}

        def copied(t: torch.Tensor) -> torch.Tensor:
            try:
                return copy.deepcopy(t, memo)
            except Exception:  # noqa: BLE001 - it may carry such an object
                return _clone(t).requires_grad_(t.requires_grad)

        return map_tensors(tree, copied)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random generators, and restore their states at the end.

    On the CPU alone this takes a hundredth of the time of `torch.random.fork_rng` and `torch.manual_seed`.
    """
    if torch.cuda.is_initialized():
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
        return
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def foreign_seeded(seed: int) -> Iterator[None]:
    """Seed the random generators of Python and numpy, and restore their states at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def named_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers under all their names; tied ones have several."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def flatten(tree: Any, depth: int = _DEPTH) -> tuple[list[Any], Any]:
    """Return leaves and structure of a result. Unlike a pytree, objects of unknown classes are flattened too."""
    leaves, spec = pytree.tree_flatten(tree)
    found: list[Any] = []
    inner: list[Any] = []
    for leaf in leaves:
        parts = None if is_plain(leaf) or callable(leaf) or depth == 0 else _attributes(leaf)
        if not parts:
            found.append(leaf)
            continue
        below, structure = flatten(parts, depth - 1)
        found.extend(below)
        inner.append((type(leaf), structure))
    return found, (spec, *inner) if inner else spec


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, in its dict and its slots."""
    try:
        state = value.__getstate__()
    except Exception:  # noqa: BLE001 - it cannot be told
        return {}
    states = state if isinstance(state, tuple) else (state,)
    return {key: item for each in states if isinstance(each, dict) for key, item in each.items()}


class _Before:
    """The state of a module before a call."""

    def __init__(self, module: nn.Module, *, copies: bool) -> None:
        self.state = named_state(module)
        buffers = {id(b) for b in module.buffers()}
        self.marks = {
            id(t): _clone(t) if copies or (id(t) in buffers and _is_small(t)) else _version(t)
            for t in self.state.values()
        }

    def compare(self, state: Mapping[str, torch.Tensor]) -> tuple[frozenset[str], dict[str, torch.Tensor]]:
        """Return the names of what has changed, and the present state with at least that copied."""
        changed = {id(t) for name, t in state.items() if self._is_changed(name, t)}
        after: dict[int, torch.Tensor] = {}
        for t in state.values():
            if id(t) not in after:
                needed = id(t) in changed or isinstance(self.marks.get(id(t)), torch.Tensor)
                after[id(t)] = _clone(t) if needed else t.detach()
        written = frozenset(name for name, t in state.items() if id(t) in changed)
        return written, {name: after[id(t)] for name, t in state.items()}

    def _is_changed(self, name: str, tensor: torch.Tensor) -> bool:
        old = self.state.get(name)
        mark = None if old is None else self.marks[id(old)]
        if isinstance(mark, torch.Tensor):
            return not same_bits(mark, tensor)
        return old is not tensor or mark != _version(tensor)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors are equal in dtype, shape and every bit, any NaN equal to any NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and tensor_difference(a, b, exact=True) is None


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= _SMALL


def looks_of(
    leaves: Sequence[Any], inputs: Sequence[torch.Tensor], state: Mapping[str, torch.Tensor]
) -> tuple[Look | None, ...]:
    """Return the looks of results, given the inputs and weights that they may share storage with."""
    places = [storage_of(leaf) if isinstance(leaf, torch.Tensor) and leaf.numel() else None for leaf in leaves]
    given, owned, of_results = dict[Any, list[int]](), dict[Any, list[str]](), dict[Any, list[int]]()
    for i, place in enumerate(places):
        of_results.setdefault(place, []).append(i)
    for i, t in enumerate(inputs):
        place = storage_of(t)
        if place in of_results:
            given.setdefault(place, []).append(i)
    for name, t in state.items():
        place = storage_of(t)
        if place in of_results:
            owned.setdefault(place, []).append(name)

    def look(index: int, t: Any) -> Look | None:
        if not isinstance(t, torch.Tensor):
            return None
        is_parameter = type(t) is not torch.Tensor and isinstance(t, nn.Parameter)
        facts = (tuple(t.shape), t.dtype, meaningful_strides(t), t.requires_grad, is_parameter)
        place = places[index]
        if place is None:
            return Look(facts, (), frozenset(), ())
        return Look(
            facts,
            tuple(given.get(place, ())),
            frozenset(owned.get(place, ())),
            tuple(of_results[place]),
        )

    return tuple(look(i, leaf) for i, leaf in enumerate(leaves))


def slopes_of(leaves: Sequence[Any], sources: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Return the gradients of a random linear form in some results, None where no gradient flows."""
    # twice if two results are one tensor object: sharing of storage is compared, identity is not
    wanted = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in wanted]
    if not wanted or not sources:
        return dict.fromkeys(sources)
    # a buffer may carry this graph into the next call
    slopes = torch.autograd.grad(wanted, list(sources.values()), directions, allow_unused=True, retain_graph=True)
    return dict(zip(sources, slopes, strict=True))
