"""The first operation at which a program differs from its original model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from compiler.capture.boundary.outcomes import value_difference
from compiler.capture.boundary.questions import Recorder
from compiler.capture.boundary.runs import SEED, Twin, copy_of_inputs
from compiler.usercode.state import random_state_kept
from ir.core import Operation
from ir.evaluate import evaluate
from ir.program import Program

_Key = tuple[str, str]
"""(module path, file:line)"""


class _Results(TorchFunctionMode):
    """Records the results of PyTorch's functions by their place in the user's code."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.found: dict[_Key, list[torch.Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call and keep copies of its results."""
        result = func(*args, **dict(kwargs or {}))
        place = self.recorder.place_of_user(sys._getframe(1))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.found.setdefault((place.module_path, place.source), []).append(leaf.detach().clone())
        return result


class _FoundError(Exception):
    """Ends the evaluation at the operation that differs."""


def first_parting(
    model: nn.Module, program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Operation | None:
    """Return the first operation whose results the model does not compute at that place, or None."""
    found: list[Operation] = []

    def watch(op: Operation, results: Sequence[Any]) -> None:
        if op.body is not None:
            return
        for place in op.location.parts:
            expected = recorded.get((place.module_path, place.source))
            if expected and not any(_is_among(result, expected) for result in results):
                found.append(op)
                raise _FoundError

    try:
        recorded = _recorded(model, args, kwargs)
        inputs = _inputs_of(program, args, kwargs)
        with random_state_kept(), torch.no_grad():
            torch.manual_seed(SEED)
            evaluate(program, inputs, watch=watch)
    except Exception:  # noqa: BLE001 - this adds to an error, and must not hide it
        pass
    return found[0] if found else None


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[_Key, list[torch.Tensor]]:
    recorder, twin = Recorder(model), Twin(model)
    results = _Results(recorder)
    with twin.own_buffers(), recorder.recording(), results:
        twin.call(args, kwargs)
    return results.found


def _is_among(result: Any, expected: Sequence[torch.Tensor]) -> bool:
    if not isinstance(result, torch.Tensor):
        return True
    alike = [other for other in expected if other.shape == result.shape and other.dtype == result.dtype]
    # results of another shape were spelled differently, which proves nothing
    return not alike or any(value_difference(other, result) is None for other in alike)


def _inputs_of(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    leaves = pytree.tree_leaves(copy_of_inputs((args, dict(kwargs))), is_leaf=lambda item: item is None)
    numbers = [leaf.value for leaf in program.convention.inputs]
    pairs = [(number, leaf) for number, leaf in zip(numbers, leaves, strict=True) if number is not None]
    return [leaf for _, leaf in sorted(pairs, key=lambda pair: pair[0])]
