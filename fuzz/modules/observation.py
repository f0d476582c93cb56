"""The observable behaviour of calls of a module, and differences between two modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from torch import nn

from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.observation import Observation, observe
from compiler.equality.observation_differences import differences
from compiler.usercode.tensors import map_tensors
from fuzz.modules.outside import plain_state
from fuzz.programs.budget import Budget


@attrs.frozen(eq=False)
class Seen(Observation):
    """What a caller can observe of one call, effects outside included."""

    effects: bool = False
    """Whether the call changed numbers or sizes of containers outside of its state; see `fuzz.modules.outside`."""


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
    """Call a module on copies of its arguments and return what is observable; raise what it raises.

    Args:
        module: the module; its state stays as the call leaves it.
        args: positional arguments; not mutated.
        kwargs: keyword arguments; not mutated.
        gradients: whether to compute gradients of a random linear form in the results; `grad` of parameters stays.
        seed: of the random numbers.
        surroundings: of the call; by default gradients are off unless they are requested.
        outside: where to look for `effects` besides the module; None to look for none.
    """
    usual = torch.enable_grad if gradients else torch.no_grad
    around = (usual if surroundings is None else surroundings)()
    notes = None if outside is None else plain_state(module, outside)
    seen = observe(module, args, kwargs, seed=seed, gradients=gradients, copies=True, mode=around)
    if seen.error is not None:
        raise seen.error
    effects = notes is not None and plain_state(module, outside) != notes
    fields = {field.name: getattr(seen, field.name) for field in attrs.fields(Observation)}
    return Seen(**fields, effects=effects)


# ---- comparison ----


def module_differences(a: Seen, b: Seen, names: ParameterMap, budget: Budget[Seen]) -> Iterator[tuple[str, str]]:
    """Yield (property, message) for each difference of the emitted module from the original, within a budget."""
    yield from differences(a, b, judge=budget.difference, names=names, unwritten=True)
    if a.effects != b.effects:
        yield "effects", f"outside of its state, the module {_changes(a)}, and now {_changes(b)}"


def _changes(seen: Seen) -> str:
    return "changes something" if seen.effects else "changes nothing"


def is_computed(names: ParameterMap) -> bool:
    """Return whether tensors of the emitted module are computed and not trained, so that they do not follow a step."""
    return bool(names.untrained)


# ---- the module itself ----


def cast_tree(tree: Any, dtype: torch.dtype) -> Any:
    """Return arguments with floats of another dtype; one tensor stays one tensor."""
    return map_tensors(tree, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def snapshot(model: nn.Module) -> list[Any]:
    """Return a fingerprint of a module, its weights and their versions, which changes with any of them."""
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
