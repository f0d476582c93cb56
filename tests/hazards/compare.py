"""A model beside what `transform` makes of it: everything that a caller can see must be the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fuzz.modules.hold import Arguments, Comparison
from fuzz.modules.observation import cast_tree, snapshot
from fuzz.programs.properties import Finding, Properties
from graphwright import TransformResult, transform
from graphwright.tensorrt import TENSORRT_CONVERSION_PATTERNS, TENSORRT_PATTERNS


def assert_same(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    ways: Sequence[str] = ("export",),
    gradients: bool = True,
    **options: Any,
) -> dict[str, TransformResult]:
    """Transform a model in several ways, and hold each result to the model.

    Compared are, in the mode the model is in and for two calls: structure, values, dtypes, strides, memory shared with
    inputs, weights and other results, what was written to inputs and buffers, the random state, gradients; the same for
    a pickled copy, for one with other weights through the parameter map, and after a change of the mode. The model
    must be as it was, and be traceable where `ways` has "fx" or "shapes".

    Args:
        model: the model; floats are converted to float64.
        *args: its positional arguments.
        kwargs: its keyword arguments.
        ways: "export" (all patterns), "conversions", "fx" (a traced graph without shapes), "shapes" (one with shapes).
        gradients: whether to compare gradients.
        **options: for `transform`.
    """
    model = model.double()
    args, named = cast_tree((args, dict(kwargs or {})), torch.float64)
    results = {}
    for way in ways:
        original = fx.symbolic_trace(model) if way in ("fx", "shapes") else model
        if way == "shapes":
            twin = copy.deepcopy(original)
            ShapeProp(twin).propagate(*copy.deepcopy(args))
            for node, other in zip(original.graph.nodes, twin.graph.nodes, strict=True):
                node.meta = other.meta
        before = snapshot(original)
        random = torch.random.get_rng_state()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* skipped: ")
            patterns = TENSORRT_CONVERSION_PATTERNS if way == "conversions" else TENSORRT_PATTERNS
            inputs = (args, named or None) if way in ("export", "conversions") else (None, None)
            result = transform(original, *inputs, patterns=patterns, **options)
        assert torch.equal(random, torch.random.get_rng_state()), f"{way}: transform drew random numbers"
        assert before == snapshot(original), f"{way}: the model was changed"
        results[way] = result
        _hold(way, original, result, (args, named), gradients)
    return results


def assert_same_at(model: nn.Module, result: TransformResult, *args: Any) -> None:
    """Hold a result to its model on other arguments, without and with gradients."""
    given = tuple(cast_tree(args, torch.float64))
    for gradients in (False, True):
        comparison = Comparison(model, result, (given, {}), Properties(gradients=gradients))
        comparison.hold("", comparison.run)


def _hold(way: str, model: nn.Module, result: TransformResult, arguments: Arguments, gradients: bool) -> None:
    comparison = Comparison(model, result, arguments, Properties(gradients=gradients))
    try:
        comparison.hold_calls()
        comparison.hold_saved()
        comparison.hold_with_other_weights(3)
        comparison.hold_in_the_other_mode()
    except Finding as finding:
        raise AssertionError(f"{way}: {finding}") from finding
