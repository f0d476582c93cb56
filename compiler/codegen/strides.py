"""Strides of the results: a caller sees them, so a rewrite that changed them is made good at the very end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import fx
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from compiler.emitted.guard import InputGuard
from ir.fake import FakeContext
from ir.program import Program
from ir.types import Dim, ScalarType, TensorType, simplify_dim


def restore_output_strides(module: fx.GraphModule, program: Program) -> tuple[int, ...]:
    """Compare the strides of an emitted module's results with the original's, and restore those that differ.

    The module is run once on fake tensors: on contiguous inputs, as the strides of the results in the calling
    convention are those of the capture's example. Where the strides of a result differ, a copy in the original's
    layout is added before the return. It costs about as much as one capture, so `emit` leaves it to the caller.

    Args:
        module: the emitted module; changed in place.
        program: the program it was emitted from.

    Returns:
        The numbers of the output leaves that were restored. Dimensions of size 1 have no stride to compare; a result
        whose elements overlap (an expanded one) is left as it is.
    """
    expected = [leaf.strides for leaf in program.convention.outputs]
    arguments = _fake_arguments(program, context := FakeContext()) if any(expected) else None
    if arguments is None:
        return ()
    args, kwargs = arguments
    # without `static_shapes` the sizes of the weights would be symbols that no type of the program has
    state: dict[str, torch.Tensor] = {
        name: context.mode.from_tensor(tensor, static_shapes=True) for name, tensor in _tensors_of(module).items()
    }
    with _anywhere(module), context.mode, torch.no_grad(), torch.random.fork_rng(devices=[]):
        results = pytree.tree_leaves(torch.func.functional_call(module, state, args, kwargs))
    output = next(iter(reversed(module.graph.nodes)))
    nodes = pytree.tree_leaves(_result_of(output))
    if not len(nodes) == len(results) == len(expected):
        return ()
    restored: list[int] = []
    for number, (node, result, wanted) in enumerate(zip(nodes, results, expected, strict=True)):
        if not isinstance(node, fx.Node) or not isinstance(result, torch.Tensor) or wanted is None:
            continue
        shape = [context.dim(size) for size in result.shape]
        if _same(shape, [context.dim(s) for s in result.stride()], wanted):
            continue
        with module.graph.inserting_before(_first_use(output)):
            copy = _in_layout(module.graph, node, shape, wanted)
        if copy is not None:
            _replace_leaf(output, number, copy)
            restored.append(number)
    if restored:
        module.recompile()
    return tuple(restored)


@contextmanager
def _anywhere(module: torch.nn.Module) -> Iterator[None]:
    """Let the module run in surroundings and at sizes that it refuses: no result matters here, only its strides.

    Nor does it matter by how much a batch norm follows a batch; one without a momentum asks its counter, and the number
    in a fake tensor is not known.
    """
    guard = getattr(module, "_guard", None)
    changed: list[tuple[torch.nn.Module, str, object]] = []
    if isinstance(guard, InputGuard):
        changed += [(guard, "surroundings", {}), (guard, "ranges", ()), (guard, "relations", ())]
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.momentum is None]
    changed += [(norm, "momentum", 0.0) for norm in norms]
    saved = [getattr(owner, name) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changed, saved, strict=True):
            setattr(owner, name, value)


def _tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def _fake_arguments(program: Program, context: FakeContext) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return arguments of the input types, or None where a type is unknown."""
    values: list[Any] = []
    for value in program.graph.inputs:
        type_ = value.type
        if isinstance(type_, TensorType) and type_.is_known:
            values.append(context.tensor(type_))
        elif isinstance(type_, ScalarType) and type_.value is not None:
            values.append(context.size(type_.value))
        else:
            return None
    convention = program.convention
    if convention.in_spec is None:
        return tuple(values), {}
    leaves = [leaf.constant if leaf.value is None else values[leaf.value] for leaf in convention.inputs]
    args, kwargs = pytree.tree_unflatten(leaves, convention.in_spec)
    return args, kwargs


def _rebuilds(output: fx.Node) -> bool:
    result = output.args[0]
    return isinstance(result, fx.Node) and result.target is pytree.tree_unflatten


def _result_of(output: fx.Node) -> Any:
    """Return the structure that holds the results: it may be the argument of `tree_unflatten`."""
    result = output.args[0]
    return result.args[0] if _rebuilds(output) else result  # type: ignore[union-attr]


def _first_use(output: fx.Node) -> fx.Node:
    return output.args[0] if _rebuilds(output) else output  # type: ignore[return-value]


def _replace_leaf(output: fx.Node, number: int, node: fx.Node) -> None:
    leaves, spec = pytree.tree_flatten(_result_of(output))
    leaves[number] = node
    result = pytree.tree_unflatten(leaves, spec)
    if _rebuilds(output):
        user = _first_use(output)
        user.args = (result, *user.args[1:])
    else:
        output.args = (result,)


def _same(shape: Sequence[Dim], strides: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return len(strides) == len(wanted) and all(
        size == 1 or sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0
        for size, a, b in zip(shape, strides, wanted, strict=True)
    )


def _dense_strides(shape: Sequence[Dim], order: Sequence[int]) -> list[Dim]:
    """Return the strides of a dense tensor whose dimensions lie in memory in `order`, outermost first."""
    strides: list[Dim] = [1] * len(shape)
    stride: Dim = 1
    for dim in reversed(order):
        strides[dim] = stride
        stride = simplify_dim(stride * shape[dim])
    return strides


def _in_layout(graph: fx.Graph, node: fx.Node, shape: Sequence[Dim], wanted: Sequence[Dim]) -> fx.Node | None:
    """Add a copy of `node` whose strides are `wanted`, or return None where no dense tensor has them."""
    rank = len(shape)
    plain = list(range(rank))
    if _same(shape, _dense_strides(shape, plain), wanted):
        return graph.call_method("contiguous", (node,))
    for format_, format_rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        order = [0, *range(2, rank), 1]
        if rank == format_rank and _same(shape, _dense_strides(shape, order), wanted):
            return graph.call_method("contiguous", (node,), {"memory_format": format_})
    # sizes at their hints only have to be ordered: every symbol is at least 1, and strides are products of sizes
    sizes = {symbol: 3 for dim in (*shape, *wanted) if isinstance(dim, sympy.Expr) for symbol in dim.free_symbols}
    hints = [int(sympy.sympify(s).subs(sizes)) for s in wanted]
    extents = [int(sympy.sympify(s).subs(sizes)) for s in shape]
    order = sorted(plain, key=lambda d: (-hints[d], -extents[d], d))
    if not _same(shape, _dense_strides(shape, order), wanted):
        return None
    inner = graph.call_method("contiguous", (graph.call_method("permute", (node, *order)),))
    return graph.call_method("permute", (inner, *(order.index(d) for d in plain)))
