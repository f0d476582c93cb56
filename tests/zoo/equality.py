"""How an emitted module is held to its original: design.md, section 6, and the state after a training step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.equality.accuracy import measure_accuracy
from graphwright import TransformResult

RELATIVE = 1e-9


def assert_equal_outputs(original: nn.Module, emitted: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Hold outputs to float64: 1e-9 relative in float64, twice the original's own error in float32; strides too."""
    accuracy = measure_accuracy(original, emitted, args, kwargs)
    assert accuracy.outputs
    for output in accuracy.outputs:
        assert output.same_nonfinite
        assert output.difference <= RELATIVE * output.scale, output
        assert output.is_within_bound, output
    assert accuracy.others_equal
    # nn.MultiheadAttention has a fast path with other strides, which it takes when no gradients are wanted
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        a, b = (pytree.tree_leaves(copy.deepcopy(m)(*args, **kwargs)) for m in (original, emitted))
    torch.backends.mha.set_fastpath_enabled(True)
    assert [(x.shape, x.dtype, x.stride()) for x in a] == [(x.shape, x.dtype, x.stride()) for x in b]


def assert_equal_training(result: TransformResult, original: nn.Module, *args: torch.Tensor) -> None:
    """Hold one training step in float64: outputs, gradients of all parameters and inputs, and the state after it."""
    twin, emitted = (copy.deepcopy(m).double().train() for m in (original, result.model))
    runs = []
    for module in (twin, emitted):
        inputs = [a.double().clone().requires_grad_() for a in args]
        torch.manual_seed(3)
        outputs = [o for o in pytree.tree_leaves(module(*inputs)) if o.is_floating_point()]
        weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype, device=o.device).reshape(o.shape) for o in outputs]
        sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()
        runs.append((outputs, inputs))
    for what, index in (("output", 0), ("input gradient", 1)):
        for a, b in zip(runs[0][index], runs[1][index], strict=True):
            close(what, a.grad if index else a, b.grad if index else b)
    gradients = {k: p.grad for k, p in twin.named_parameters(remove_duplicate=False)}
    new = {k: p.grad for k, p in emitted.named_parameters(remove_duplicate=False)}
    assert_state(result, gradients, new, "gradient of")
    assert_state(result, twin.state_dict(), emitted.state_dict(), "state after the step:")


def assert_state(result: TransformResult, original: Mapping[str, Any], emitted: Mapping[str, Any], what: str) -> None:
    """Hold named tensors of the emitted module to those of the original through the parameter map."""
    seen = set()
    for key, value in emitted.items():
        sources = result.parameter_map[key]
        assert len(sources) == 1, f"{key} comes from {sources}"
        seen.add(sources[0])
        expected = original[sources[0]]
        if expected is None or value is None:
            assert expected is value, f"{what} {key}: only one of the two is there"
            continue
        close(f"{what} {key}", expected.reshape(value.shape), value)
    aliased = {k for k, v in original.items() if any(v is original[s] for s in seen if v is not None)}
    missing = set(original) - seen - aliased
    assert not missing, f"{what} lost: {sorted(missing)}"


def close(what: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Hold two float64 tensors together, to 1e-9 of the largest magnitude; others exactly."""
    assert a.shape == b.shape, f"{what}: {a.shape} became {b.shape}"
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        assert torch.equal(a, b), what
        return
    scale = float(a.abs().max()) if a.numel() else 0.0
    error = float((a - b).abs().max()) if a.numel() else 0.0
    assert error <= RELATIVE * max(scale, 1e-30) or error < 1e-15, f"{what}: differs by {error:.3g} of {scale:.3g}"
