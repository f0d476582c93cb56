"""Whether a model walks through the mappings among its arguments: then the order of their keys has a meaning.

A graph has the order of the example for good. What a real run computes, operator by operator, on which of its
arguments, says whether another order makes a difference; the numbers would say so by chance only.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from compiler.capture.boundary.runs import Twin, copy_of_inputs
from compiler.capture.patches import ParametersKept
from compiler.usercode.copies import structural_copy
from compiler.usercode.state import random_state_kept

_MAPPINGS = (dict, OrderedDict, defaultdict)
_MAX_LITERAL = 4096


def order_matters(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], variable: tuple[str, ...]) -> bool:
    """Return whether the model computes something else when mappings among its arguments come in another order.

    Args:
        model: a copy of the user's; copies of it are run.
        args: positional arguments of the example call.
        kwargs: its keyword arguments.
        variable: the keywords that `**kwargs` takes.
    """
    if len(variable) < 2 and not any(len(mapping) > 1 for mapping in _mappings((args, kwargs))):
        return False
    first = _computed(model, args, kwargs)
    # each key comes to another place in the one, and each pair of keys is the other way round in the other
    return first is None or any(
        _computed(model, *_reordered(args, kwargs, variable, order)) != first for order in (_rotated, _reversed)
    )


def _mappings(tree: Any) -> Iterator[Mapping[Any, Any]]:
    if type(tree) in _MAPPINGS:
        yield tree
    if type(tree) in pytree.SUPPORTED_NODES or pytree.is_namedtuple_instance(tree):
        children, _ = pytree.tree_flatten(tree, is_leaf=lambda item: item is not tree)
        for child in children:
            yield from _mappings(child)


def _rotated(keys: list[Any]) -> list[Any]:
    return [*keys[1:], *keys[:1]]


def _reversed(keys: list[Any]) -> list[Any]:
    return keys[::-1]


def _reordered(
    args: tuple[Any, ...], kwargs: dict[str, Any], variable: tuple[str, ...], order: Callable[[list[Any]], list[Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with the keys of all mappings in another order."""

    def visit(tree: Any) -> Any:
        if type(tree) in _MAPPINGS:
            made = tree.copy()
            made.clear()
            made.update((key, visit(tree[key])) for key in order(list(tree)))
            return made
        if type(tree) in pytree.SUPPORTED_NODES or pytree.is_namedtuple_instance(tree):
            children, spec = pytree.tree_flatten(tree, is_leaf=lambda item: item is not tree)
            return pytree.tree_unflatten([visit(child) for child in children], spec)
        return tree

    named = {key: visit(value) for key, value in kwargs.items() if key not in variable}
    return visit(args), {**named, **{key: visit(kwargs[key]) for key in order(list(variable))}}


def _computed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    """Return the operators that a call runs, with what they are applied to; None where the call fails."""
    args, kwargs = copy_of_inputs((args, kwargs))
    model = structural_copy(model)
    kept = ParametersKept(model)
    with Twin(model).own_buffers(), random_state_kept():
        log = _Log()
        # the path of an argument is the same in every order of the keys
        for path, leaf in pytree.tree_leaves_with_path((args, kwargs)):
            log.name(leaf, f"argument {pytree.keystr(path)}")
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            log.name(tensor, name)
        try:
            with kept, log, torch.enable_grad():
                results = model(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever the user's code raises
            return None
        finally:
            kept.restore()
        leaves, spec = pytree.tree_flatten(results)
        return [*log.steps, str(spec), [log.of(leaf) for leaf in leaves]]


class _Log(TorchDispatchMode):
    """Writes down the operators that are run, and names tensors by where they come from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Any] = []
        self._names: Any = WeakIdKeyDictionary()
        self._others: list[torch.Tensor] = []

    def name(self, leaf: Any, name: str) -> None:
        if isinstance(leaf, torch.Tensor):
            self._names[leaf] = name

    def of(self, leaf: Any) -> Any:
        """Return what stands for an argument of an operator, or for a result."""
        if not isinstance(leaf, torch.Tensor):
            return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else repr(leaf)
        name = self._names.get(leaf)
        if name is None:
            # a literal of the code, or a tensor that the module holds: what it is, or which object
            name = f"tensor {id(leaf)}"
            if leaf.device.type == "cpu" and leaf.layout is torch.strided and leaf.numel() <= _MAX_LITERAL:
                name = f"literal {leaf.dtype} {list(leaf.shape)} {leaf.detach().tolist()}"
            self._names[leaf] = name
            self._others.append(leaf)
        return name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Write the operator down, and name its results."""
        given = [self.of(leaf) for leaf in pytree.tree_leaves((args, dict(kwargs or {})))]
        results = func(*args, **(kwargs or {}))
        number = len(self.steps)
        self.steps.append((str(func), given))
        for index, leaf in enumerate(pytree.tree_leaves(results)):
            if isinstance(leaf, torch.Tensor) and leaf not in self._names:
                self._names[leaf] = f"result {index} of {number}"
        return results
