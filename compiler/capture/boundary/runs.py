"""Real runs of a module on copies of its inputs, and their observable outcomes.

A run changes nothing for good: buffers are clones meanwhile, and mutated parameters and the random generators of
PyTorch, Python and numpy are restored.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from compiler.capture.patches import ParametersKept
from compiler.emitted.settings import inputs_in, surroundings
from compiler.usercode.containers import PLAIN, same_content
from compiler.usercode.state import random_state_kept
from compiler.usercode.tensors import foreign_state, meaningful_strides, storage_of

SEED = 0x5EED
"""The seed of every real run, so that all draw the same numbers."""


@attrs.define(eq=False)
class Outcome:
    """The observable outcome of one call: results, or an error."""

    results: Any = None
    """What the call returned, with detached copies of tensors."""
    looks: tuple[tuple[bool, tuple[int, ...]], ...] = ()
    """Of each tensor among the results: whether it requires a gradient, and its meaningful strides."""
    inputs: tuple[torch.Tensor, ...] = ()
    """The tensors among the arguments, after the call."""
    tracked: tuple[tuple[bool, bool], ...] = ()
    """Of each of them: whether it required a gradient before the call, and after it."""
    replaced: tuple[str, ...] = ()
    """Parameters whose `.data` the call assigned."""
    rearranged: bool = False
    """Whether the call changed a list or dict among the arguments."""
    buffers: dict[str, torch.Tensor] = attrs.field(factory=dict)
    """Buffers that the call changed, after it."""
    settings: tuple[str, ...] = ()
    """The surroundings of the call, names of `SETTINGS`."""
    rewritten: tuple[str, ...] = ()
    """Parameters that the call mutated; they have been restored."""
    attached: tuple[str, ...] = ()
    """The changed buffers that carry a gradient into the next call."""
    joined: tuple[frozenset[str], ...] = ()
    """Groups of buffers that share storage since the call."""
    tracking: tuple[str, ...] = ()
    """Buffers whose `requires_grad` the call changed."""
    assigned: tuple[str, ...] = ()
    """The changed buffers that the call replaced by a tensor with another storage."""
    error: Exception | None = None
    reseeded: bool = False
    """Whether the call seeded PyTorch's generator."""
    foreign: tuple[str, ...] = ()
    """Other generators that the call drew from: `random`, `numpy.random`."""


class Twin:
    """A module that is run on clones of its buffers; it may share tensors with the user's module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._places = [(each, name) for each in module.modules() for name, b in each._buffers.items() if b is not None]
        self._given = [each._buffers[name] for each, name in self._places]
        self.inputs: list[Any] = []
        """The arguments of the current call, flat."""
        self.written: list[str] = []
        """Buffers that a run changed other than through the module; they have been restored."""
        self.on_restart: Callable[[], None] = lambda: None
        """Called when a call is repeated because its backward pass needs saved tensors."""

    @contextmanager
    def own_buffers(self) -> Iterator[None]:
        """Give the module clones of its buffers inside the `with` block."""
        paths = {id(module): path for path, module in self.module.named_modules()}
        copies = [None if given is None or given.is_meta else given.detach().clone() for given in self._given]
        data = [(name, parameter, parameter.data) for name, parameter in self.module.named_parameters()]
        try:
            self.reset()
            yield
        finally:
            for (each, name), given, copied in zip(self._places, self._given, copies, strict=True):
                each._buffers[name] = given
                if given is not None and copied is not None and not same_content(given.detach(), copied):
                    given.detach().copy_(copied)
                    self.written.append(f"{paths[id(each)]}.{name}".lstrip("."))
            _put_back(data)

    def resized(self) -> Iterator[tuple[str, nn.Module, torch.Tensor, torch.Tensor | None]]:
        """Yield the buffers that changed shape or dtype, or are gone: name, module, tensor before, tensor now."""
        for (each, name), given in zip(self._places, self._given, strict=True):
            now = each._buffers.get(name)
            if given is not None and (now is None or now.shape != given.shape or now.dtype != given.dtype):
                yield name, each, given, now

    def reset(self) -> None:
        """Start again with fresh clones of the buffers."""
        clones: dict[int, torch.Tensor] = {}
        for (each, name), given in zip(self._places, self._given, strict=True):
            assert given is not None
            if id(given) not in clones:
                # without the history of earlier calls
                clones[id(given)] = given.detach().clone().requires_grad_(given.requires_grad and given.is_leaf)
            each._buffers[name] = clones[id(given)]

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Start again inside the `with` block, and restore the present buffers at its end."""
        now = [each._buffers.get(name) for each, name in self._places]
        self.reset()
        try:
            yield
        finally:
            for (each, name), buffer in zip(self._places, now, strict=True):
                each._buffers[name] = buffer

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], settings: Sequence[str] = ()) -> Outcome:
        """Call the module once on copies of the arguments; its changes of buffers stay.

        `settings` are the surroundings of the call, names of `SETTINGS`; those of an ordinary call by default.
        """
        args, kwargs = inputs_in(settings, args, kwargs)
        before = [
            (each, name, b, b.detach().clone())
            for each in self.module.modules()
            for name, b in each._buffers.items()
            if b is not None
        ]
        # tensors for the backward pass are dropped, so that a run needs no more memory than one without gradients
        with torch.autograd.graph.saved_tensors_hooks(lambda _: None, _missing):
            outcome = self._call(args, kwargs, settings)
        if isinstance(outcome.error, _NeedsGradientsError) or _is_about_hooks(outcome.error):
            self.on_restart()
            for each, name, buffer, copy_ in before:
                each._buffers[name] = buffer
                buffer.detach().copy_(copy_)
            outcome = self._call(args, kwargs, settings)
        outcome.joined = _joined({(id(each), name): buffer for each, name, buffer, _ in before}, self.module)
        copies = {(id(each), name): (buffer, copy_) for each, name, buffer, copy_ in before}
        for path, each in self.module.named_modules(remove_duplicate=False):
            for name, now in each._buffers.items():
                old = copies.get((id(each), name))
                if now is not None and _was_changed(old[1] if old else None, now):
                    key = f"{path}.{name}" if path else name
                    if old is None or storage_of(now) != storage_of(old[0]):
                        outcome.assigned += (key,)
                    outcome.buffers[key] = now.detach().clone()
                    if now.grad_fn is not None:
                        outcome.attached += (key,)
        return outcome

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], settings: Sequence[str]) -> Outcome:
        with torch.inference_mode(False):
            args, kwargs = copy_of_inputs((args, dict(kwargs)))
        leaves, structure = pytree.tree_flatten((args, kwargs))
        outcome = Outcome(settings=tuple(settings))
        tracked = [leaf.requires_grad for leaf in leaves if isinstance(leaf, torch.Tensor)]
        buffers = [(name, b, b.requires_grad) for name, b in self.module.named_buffers() if b.is_leaf]
        with random_state_kept(), warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")  # the user's own calls warn
            torch.manual_seed(SEED)
            foreign = foreign_state()
            data = [(name, parameter, parameter.data) for name, parameter in self.module.named_parameters()]
            kept = ParametersKept(self.module)
            try:
                self.inputs = leaves
                with kept, surroundings(settings):
                    results = self.module(*args, **kwargs)
                outcome.looks = _looks(results)
                # a later call may mutate them
                outcome.results = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), results)
            except Exception as error:  # noqa: BLE001 - whatever the user's code raises
                outcome.error = error
            finally:
                self.inputs = []
                written = kept.written()
                kept.restore()
            outcome.replaced = _put_back(data)
            outcome.rewritten = tuple(
                name for name, p in self.module.named_parameters() if written and storage_of(p) in written
            )
            outcome.reseeded = torch.initial_seed() != SEED
            drawn = foreign_state()
            moved = {"random": drawn[0] != foreign[0], "numpy.random": drawn[1:] != foreign[1:]}
            outcome.foreign = tuple(name for name, has_moved in moved.items() if has_moved)
        outcome.tracking = tuple(name for name, b, flag in buffers if b.is_leaf and b.requires_grad is not flag)
        after, now = pytree.tree_flatten((args, kwargs))
        outcome.rearranged = now != structure or any(
            a is not b for a, b in zip(leaves, after, strict=True) if isinstance(a, torch.Tensor)
        )
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        outcome.tracked = tuple(
            zip(
                tracked,
                [t.requires_grad if t.is_leaf else was for t, was in zip(tensors, tracked, strict=True)],
                strict=True,
            )
        )
        outcome.inputs = tuple(t.detach().clone() if t.is_inference() else t.detach() for t in tensors)
        return outcome


class _NeedsGradientsError(Exception):
    """A backward pass inside the model needs a tensor that was dropped."""


def _is_about_hooks(error: Exception | None) -> bool:
    """Return whether a call failed because functorch (torch.func.grad) does not take our hooks of saved tensors."""
    return isinstance(error, RuntimeError) and "saved tensor hooks" in str(error)


def _missing(_: Any) -> torch.Tensor:
    raise _NeedsGradientsError


def copy_of_inputs(tree: Any) -> Any:
    """Return arguments with every tensor cloned; one object stays one object."""
    made: dict[int, Any] = {}

    def clone(leaf: Any) -> Any:
        if isinstance(leaf, PLAIN):
            return leaf
        if id(leaf) not in made:
            if isinstance(leaf, torch.Tensor):
                made[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
            else:
                made[id(leaf)] = _copied(leaf)
        return made[id(leaf)]

    return pytree.tree_map(clone, tree)


def other_numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return arguments of the same types with other numbers: reversed, and scaled.

    Integers stay close to those that occur, since they may be indices.
    """

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dtype == torch.bool or leaf.layout is not torch.strided:
            return leaf
        turned = leaf.detach().flip(tuple(range(leaf.dim())))
        if leaf.is_floating_point() or leaf.is_complex():
            turned = turned * 0.75 + 0.25
        elif torch.equal(turned, leaf):
            turned = torch.where(leaf > 0, leaf - 1, leaf + 1)
        return turned.to(leaf.dtype).requires_grad_(leaf.requires_grad)

    return pytree.tree_map(change, (args, dict(kwargs)))


def _copied(leaf: Any) -> Any:
    try:
        return copy.deepcopy(leaf)
    except Exception:  # noqa: BLE001 - whatever an object of the user's raises
        return leaf


def _looks(results: Any) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    tensors = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
    return tuple((t.requires_grad, tuple(meaningful_strides(t))) for t in tensors)


def _was_changed(copied: torch.Tensor | None, now: torch.Tensor) -> bool:
    """Return whether a buffer differs from a copy made before."""
    if copied is None or now.shape != copied.shape or now.dtype != copied.dtype:
        return True
    return not same_content(now, copied)


def _joined(before: Mapping[tuple[int, str], torch.Tensor], module: nn.Module) -> tuple[frozenset[str], ...]:
    """Return the groups of buffers that share storage now, and did not before."""
    groups: dict[int, dict[str, int | None]] = {}
    for path, each in module.named_modules():
        for name, now in each._buffers.items():
            if now is not None and now.numel() and not now.is_meta:
                old = before.get((id(each), name))
                groups.setdefault(storage_of(now), {})[f"{path}.{name}".lstrip(".")] = (
                    None if old is None else storage_of(old)
                )
    return tuple(frozenset(group) for group in groups.values() if len(group) > 1 and len(set(group.values())) > 1)


def _put_back(data: Sequence[tuple[str, torch.Tensor, torch.Tensor]]) -> tuple[str, ...]:
    """Restore the storage of parameters; return the names of those that had another one."""
    replaced = [(name, p, saved) for name, p, saved in data if not p.is_meta and p.data_ptr() != saved.data_ptr()]
    for _, parameter, saved in replaced:
        parameter.data = saved
    return tuple(name for name, _, _ in replaced)


def type_text(tensor: torch.Tensor | None) -> str:
    """Return dtype and shape of a tensor for a message."""
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def on_meta(model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether some tensor has no values, so that real runs show nothing."""
    tensors = (*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, dict(kwargs))))
    return any(isinstance(t, torch.Tensor) and (t.is_meta or type(t).__name__ == "FakeTensor") for t in tensors)
