"""Whether a model depends on the order of keys in the mappings among its arguments.

A graph has the order of the example for good. The operators that a real run applies, and the arguments that it applies
them to, show whether another order makes a difference. Numbers would show it only by chance.
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
_Order = Callable[[list[Any]], list[Any]]


def order_matters(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], variable: tuple[str, ...]) -> bool:
    """Return whether the model depends on the order of the mappings among its arguments; copies of it are run.

    `variable` are the keyword arguments that `**kwargs` takes.
    """
    if len(variable) < 2 and not any(len(mapping) > 1 for mapping in _mappings((args, kwargs))):
        return False
    first = _computed(model, args, kwargs)
    # one moves each key to another place, the other reverses each pair of keys
    orders: tuple[_Order, ...] = (lambda keys: [*keys[1:], *keys[:1]], lambda keys: keys[::-1])
    return first is None or any(
        _computed(model, *_reordered(args, kwargs, variable, order)) != first for order in orders
    )


def _mappings(tree: Any) -> Iterator[Mapping[Any, Any]]:
    if type(tree) in _MAPPINGS:
        yield tree
    if type(tree) in pytree.SUPPORTED_NODES or pytree.is_namedtuple_instance(tree):
        children, _ = pytree.tree_flatten(tree, is_leaf=lambda item: item is not tree)
        for child in children:
            yield from _mappings(child)


def _reordered(
    args: tuple[Any, ...], kwargs: dict[str, Any], variable: tuple[str, ...], order: _Order
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
    """Return the operators that a call runs, with their operands; None where the call fails."""
    args, kwargs = copy_of_inputs((args, kwargs))
    model = structural_copy(model)
    kept = ParametersKept(model)
    with Twin(model).own_buffers(), random_state_kept():
        log = _Log()
        # the path of an argument does not depend on the order of keys
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
    """Logs operators, and names tensors by their origin."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Any] = []
        self._names: Any = WeakIdKeyDictionary()
        self._others: list[torch.Tensor] = []

    def name(self, leaf: Any, name: str) -> None:
        if isinstance(leaf, torch.Tensor):
            self._names[leaf] = name

    def of(self, leaf: Any) -> Any:
        """Return the name of an operand or a result."""
        if not isinstance(leaf, torch.Tensor):
            return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else repr(leaf)
        name = self._names.get(leaf)
        if name is None:
            # a literal of the code goes by its value, a tensor that the module holds by its identity
            name = f"tensor {id(leaf)}"
            if leaf.device.type == "cpu" and leaf.layout is torch.strided and leaf.numel() <= _MAX_LITERAL:
                name = f"literal {leaf.dtype} {list(leaf.shape)} {leaf.detach().tolist()}"
            self._names[leaf] = name
            self._others.append(leaf)
        return name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Log the operator, and name its results."""
        given = [self.of(leaf) for leaf in pytree.tree_leaves((args, dict(kwargs or {})))]
        results = func(*args, **(kwargs or {}))
        number = len(self.steps)
        self.steps.append((str(func), given))
        for index, leaf in enumerate(pytree.tree_leaves(results)):
            if isinstance(leaf, torch.Tensor) and leaf not in self._names:
                self._names[leaf] = f"result {index} of {number}"
        return results
