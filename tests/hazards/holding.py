"""What the hazards of the module around the graph share: a model beside its result, in calls and modes."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from graphwright import GraphwrightError, InputError, TransformResult, transform

X = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
FLAT = X[:, :, 0, 0].contiguous()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def run(module: nn.Module, *args: Any, seed: int = 3, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def hold(model: nn.Module, *args: Any, calls: int = 2, kwargs: dict[str, Any] | None = None) -> TransformResult:
    """Transform a model; hold calls, modes (where they may be switched) and buffers of the result to the original."""
    named = kwargs or {}
    result = transform(model, args, named or None)
    original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
    for switch in (None, "train", "eval", "train"):
        if switch is not None:
            try:
                getattr(emitted, switch)()
            except InputError:
                continue
            getattr(original, switch)()
        for _ in range(calls):
            same(run(emitted, *args, **named), run(original, *args, **named))
        ours = dict(emitted.named_buffers(remove_duplicate=False))
        for key, names in result.parameter_map.items():
            if key in ours and len(names) == 1:
                same(ours[key], original.get_buffer(names[0]))
    return result


def follows(result: TransformResult) -> bool:
    return not result.program.mode_locked


def line_of(code: Any, text: str) -> str:
    """Return the place of the first line with a text in the source of a class or function, as messages give it."""
    lines, first = inspect.getsourcelines(code)
    return f"{inspect.getsourcefile(code)}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def refused(model: Any, *args: Any, message: str, place: str = "") -> GraphwrightError:
    """Hold that a model is refused with a place and a remedy, and never with a plea to report it."""
    with pytest.raises(GraphwrightError, match=message) as caught:
        transform(model, args or None)
    assert caught.value.remedy and "report" not in caught.value.remedy
    assert place in str(caught.value)
    return caught.value
