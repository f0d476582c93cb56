"""A model beside what `transform` makes of it: everything that a caller can see must be the same."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from graphwright import TransformResult, transform
from graphwright.tensorrt import TENSORRT_CONVERSION_PATTERNS, TENSORRT_PATTERNS

RELATIVE = 1e-9


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
    args, named = (_double(tree) for tree in (args, dict(kwargs or {})))
    results = {}
    for way in ways:
        original = fx.symbolic_trace(model) if way in ("fx", "shapes") else model
        if way == "shapes":
            twin = copy.deepcopy(original)
            ShapeProp(twin).propagate(*copy.deepcopy(args))
            for node, other in zip(original.graph.nodes, twin.graph.nodes, strict=True):
                node.meta = other.meta
        before = _snapshot(original)
        random = torch.random.get_rng_state()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* skipped: ")
            patterns = TENSORRT_CONVERSION_PATTERNS if way == "conversions" else TENSORRT_PATTERNS
            inputs = (args, named or None) if way in ("export", "conversions") else (None, None)
            result = transform(original, *inputs, patterns=patterns, **options)
        assert torch.equal(random, torch.random.get_rng_state()), f"{way}: transform drew random numbers"
        assert before == _snapshot(original), f"{way}: the model was changed"
        results[way] = result
        _hold(way, original, result, args, named, gradients)
    return results


def assert_same_at(model: nn.Module, result: TransformResult, *args: Any) -> None:
    """Hold a result to its model on other arguments, without and with gradients."""
    args = _double(args)
    for gradients in (False, True):
        original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
        seen, other = (_observe(module, args, {}, gradients) for module in (original, emitted))
        _same(f"at {[getattr(a, 'shape', a) for a in args]}", seen, other, result.parameter_map)


def _hold(
    way: str, model: nn.Module, result: TransformResult, args: Any, kwargs: dict[str, Any], gradients: bool
) -> None:
    names = result.parameter_map
    original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
    for call in (1, 2):
        _same(f"{way}, call {call}", _observe(original, args, kwargs), _observe(emitted, args, kwargs), names)
    if gradients:
        original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
        _same(f"{way}, gradients", _observe(original, args, kwargs, True), _observe(emitted, args, kwargs, True), names)
    buffer = io.BytesIO()
    torch.save(result.model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    _same(f"{way}, pickled", _observe(copy.deepcopy(model), args, kwargs), _observe(loaded, args, kwargs), names)
    other, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
    generator = torch.Generator().manual_seed(3)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    emitted.load_state_dict(names.convert(other.state_dict()))
    _same(f"{way}, loaded", _observe(other, args, kwargs), _observe(emitted, args, kwargs), names)
    if not result.model._mode_locked:
        original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
        original.train(not model.training)
        emitted.train(not model.training)
        _same(f"{way}, other mode", _observe(original, args, kwargs), _observe(emitted, args, kwargs), names)


@attrs.define(eq=False)
class Observed:
    """What a caller sees of one call."""

    structure: Any
    leaves: list[Any]
    inputs: list[torch.Tensor]
    input_gradients: list[torch.Tensor | None]
    memory: list[Any]
    random: torch.Tensor
    state: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor | None]


def _observe(module: nn.Module, args: Any, kwargs: dict[str, Any], gradients: bool = False) -> Observed:
    args, kwargs = copy.deepcopy((args, kwargs))
    inputs = list({id(t): t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}.values())
    if gradients:
        for tensor in inputs:
            tensor.requires_grad_(tensor.is_floating_point())
    with torch.set_grad_enabled(gradients):
        torch.manual_seed(7)
        out = module(*args, **kwargs)
    random = torch.random.get_rng_state()
    leaves, structure = pytree.tree_flatten(out)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    weights = [*module.parameters(), *module.buffers()]
    memory = [
        (
            (t.shape, t.dtype, t.stride(), t.requires_grad, isinstance(t, nn.Parameter)),
            [i for i, other in enumerate(inputs) if _storage(other) == _storage(t)],
            any(_storage(w) == _storage(t) for w in weights),
            [i for i, other in enumerate(tensors) if _storage(other) == _storage(t)],
        )
        for t in tensors
    ]
    values = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    wanted = [t for t in tensors if t.requires_grad]
    if gradients and wanted:
        torch.autograd.backward([t.sum() if i % 2 else (t * 0.3).sum() for i, t in enumerate(wanted)])
    return Observed(
        structure,
        values,
        [t.detach().clone() for t in inputs],
        [t.grad for t in inputs],
        memory,
        random,
        {**dict(module.named_parameters()), **dict(module.named_buffers())},
        {name: p.grad for name, p in module.named_parameters()},
    )


def _same(what: str, a: Observed, b: Observed, names: Mapping[str, Sequence[str]]) -> None:
    assert a.structure == b.structure, f"{what}: {a.structure} became {b.structure}"
    assert a.memory == b.memory, f"{what}: shapes, dtypes, strides, memory: {a.memory} became {b.memory}"
    for i, (x, y) in enumerate(zip(a.leaves, b.leaves, strict=True)):
        _close(f"{what}, result {i}", x, y)
    for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
        _close(f"{what}, input {i} afterwards", x, y)
    for i, (x, y) in enumerate(zip(a.input_gradients, b.input_gradients, strict=True)):
        _close(f"{what}, gradient of input {i}", x, y)
    assert torch.equal(a.random, b.random), f"{what}: the random state afterwards"
    for mine, theirs, kind in ((b.state, a.state, "state"), (b.gradients, a.gradients, "gradient of")):
        for key, value in mine.items():
            (source,) = names.get(key, (key,))
            if source not in theirs:
                assert source == key, f"{what}: {key} comes from {source}, which is not in the original"
                continue  # a constant
            expected = theirs[source]
            reshaped = expected.reshape(value.shape) if value is not None and expected is not None else expected
            _close(f"{what}, {kind} {key}", reshaped, value)


def _close(what: str, a: Any, b: Any) -> None:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        assert type(a) is type(b), f"{what}: {a!r} became {b!r}"
        assert a == b, f"{what}: {a!r} became {b!r}"
        return
    assert a.shape == b.shape, what
    assert a.dtype == b.dtype, what
    a, b = a.detach(), b.detach()
    if not (a.is_floating_point() or a.is_complex()) or a.numel() == 0:
        assert torch.equal(a, b), what
        return
    assert torch.equal(a.isnan(), b.isnan()), f"{what}: NaN at other places"
    assert torch.equal(a.isinf(), b.isinf()), f"{what}: infinity at other places"
    finite = a.isfinite()
    if finite.any():
        error, scale = float((a - b)[finite].abs().max()), float(a[finite].abs().max())
        # a gradient that cancels to zero has no digits
        assert error <= RELATIVE * scale or error < 1e-15, f"{what}: differs by {error:.3g} of {scale:.3g}"


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _double(tree: Any) -> Any:
    memo: dict[int, torch.Tensor] = {}

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return memo.setdefault(id(leaf), leaf.double() if leaf.dtype is torch.float32 else leaf)

    return pytree.tree_map(convert, tree)


def _snapshot(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *((name, id(t), t.requires_grad, t._version, t.tolist() if t.numel() < 1000 else None) for name, t in tensors),
        *((path, m.training, _ids(m.__dict__)) for path, m in model.named_modules()),
    ]


def _ids(attributes: Mapping[str, Any]) -> list[Any]:
    return [
        (key, [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value))
        for key, value in attributes.items()
        if key not in ("_code", "_graph")
    ]
