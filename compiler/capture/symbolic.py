"""Capture without example inputs: `torch.fx` traces the module, and the types of its inputs are unknown."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _assert_is_none

from compiler.capture.boundary.refusals import outside_change, tracing_left
from compiler.capture.boundary.surroundings import Surroundings
from compiler.capture.errors import state_change
from compiler.capture.functions import functions_inlined
from compiler.capture.opaque import mode_readers
from compiler.usercode.state import ModuleState, location_of_module, part_of, random_state_kept
from compiler.usercode.tensors import foreign_state
from ir.errors import CaptureError, InputError

_EXAMPLES = "pass example inputs: `transform(model, (x,))` captures it with torch.export"

ASKED_FOR_NONE = "graphwright_asked_for_none"
"""Mark of a placeholder: the code behaves differently if the argument is None, its default."""


class _Tracer(fx.Tracer):
    """Treats the given modules as leaves, and records the user's lines."""

    record_stack_traces = True
    proxy_buffer_attributes = True  # else values computed from buffers alone would be constants

    def __init__(self, kept: Collection[nn.Module]) -> None:
        super().__init__()
        self.kept = kept
        self._versions: dict[int, tuple[torch.Tensor, int]] = {}
        self._grad_mode = torch.is_grad_enabled()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return any(m is module for module in self.kept) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call_"):
            if torch.is_grad_enabled() != self._grad_mode:
                raise CaptureError("the graph would lose what forward says of gradients (`no_grad`)", remedy=_EXAMPLES)
            if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
                raise CaptureError("the graph would lose an autocast region of forward", remedy=_EXAMPLES)
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not a.is_inference():
            self._versions.setdefault(id(a), (a, a._version))
        return super().create_arg(a)

    def has_late_writes(self) -> bool:
        """Return whether the code mutated a tensor after an operator took it."""
        return any(tensor._version != version for tensor, version in self._versions.values())


def trace_symbolically(model: nn.Module, opaques: Collection[nn.Module]) -> fx.GraphModule:
    """Return the FX graph of a module, with all of its submodules.

    Args:
        model: a copy of the user's module.
        opaques: submodules to keep as calls, besides layers of PyTorch and modules whose code depends on the mode.

    Raises:
        InputError: when code of a module with parameters depends on `self.training`, of which a trace shows one value.
        CaptureError: when the module cannot be traced without example inputs.
    """
    readers = {path: module for path, module in mode_readers(model).items() if not _is_opaque(module, opaques)}
    small = [m for path, m in readers.items() if path and not any(True for _ in m.parameters())]
    large = [path for path, m in readers.items() if m not in small]
    if large:
        raise InputError(
            f"without example_inputs, the module is traced once, but the code of `{large[0] or 'the root module'}` "
            "depends on `self.training`",
            remedy=_EXAMPLES,
        )
    state, outside = ModuleState(model), Surroundings(model)
    tracer = _Tracer((*opaques, *small))
    names = set(model.__dict__)
    try:
        with random_state_kept():
            numbers = torch.random.get_rng_state(), foreign_state()
            with functions_inlined({}):
                graph = tracer.trace(model)
                _note_asked(model, graph, lambda: _Tracer((*opaques, *small)))
            _check_effects(model, state, tracer, numbers, graph)
            _make_anew(graph, [name for name in tracer.tensor_attrs.values() if "." not in name and name not in names])
            traced = fx.GraphModule(model, graph, type(model).__name__)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model cannot be traced without example_inputs: {type(error).__name__}: {error}", remedy=_EXAMPLES
        ) from error
    finally:
        left, moved = outside.remove_traces(), outside.changes()
        outside.restore()
        changed = [change for change in state.restore() if change[2] not in tracer.tensor_attrs.values()]
    if changed:
        raise state_change(changed)
    if left:
        raise tracing_left(left, model)
    if moved:
        raise outside_change(moved, model)
    _hide_constants(traced, model)
    _add_unused(traced, model)
    traced.training = model.training
    return traced


def _note_asked(model: nn.Module, graph: fx.Graph, make_tracer: Callable[[], fx.Tracer]) -> None:
    """Mark the arguments that change the trace if they are None.

    The question `mask is None` of a proxy leaves no trace itself.
    """
    optional = [node for node in graph.nodes if node.op == "placeholder" and node.args and node.args[0] is None]
    together = [optional] if len(optional) > 1 else []
    for absent in [*([node] for node in optional), *together]:
        try:
            other = make_tracer().trace(model, concrete_args={str(node.target): None for node in absent})
        except Exception:  # noqa: BLE001 - whatever the code does with None
            other = fx.Graph()
        if not _agree(graph, other, absent):
            for node in absent:
                node.meta[ASKED_FOR_NONE] = True


def _agree(graph: fx.Graph, other: fx.Graph, absent: Collection[fx.Node]) -> bool:
    """Return whether two graphs are equal if the nodes `absent` of the first are None."""
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    others = [node for node in other.nodes if node.op != "placeholder" and node.target is not _assert_is_none]
    names, twins = (
        {node: f"%{node.target}" for node in each.nodes if node.op == "placeholder"} for each in (graph, other)
    )
    if len(nodes) != len(others):
        return False
    for number, (node, twin) in enumerate(zip(nodes, others, strict=True)):
        arguments = fx.map_arg((node.args, node.kwargs), lambda arg: None if arg in absent else names[arg])
        given = fx.map_arg((twin.args, twin.kwargs), lambda arg: twins[arg])
        if (node.op, node.target, str(arguments)) != (twin.op, twin.target, str(given)):
            return False
        names[node] = twins[twin] = f"%{number}"
    return True


def _check_effects(
    model: nn.Module, state: ModuleState, tracer: _Tracer, numbers: tuple[torch.Tensor, Any], graph: fx.Graph
) -> None:
    """Refuse effects of the code during tracing that the graph does not have.

    Raises:
        CaptureError: when it drew random numbers, or mutated tensors.
    """
    problem = None
    state_names = set(dict(model.named_parameters(remove_duplicate=False)))
    state_names |= set(dict(model.named_buffers(remove_duplicate=False)))
    if not torch.equal(numbers[0], torch.random.get_rng_state()) or numbers[1] != foreign_state():
        problem = "draws random numbers that do not depend on its inputs"
    elif (
        state.tensors_written()
        or tracer.has_late_writes()
        or any(_writes_constant(node, state_names) for node in graph.nodes)
    ):
        problem = "mutates a tensor that is not a buffer"
    if problem is not None:
        raise CaptureError(
            f"without example_inputs, the module is traced once, but its forward {problem}",
            location=location_of_module("", model),
            remedy=_EXAMPLES,
        )


def _make_anew(graph: fx.Graph, made: Collection[str]) -> None:
    """Copy the tensors that the code makes in each call, since callers may mutate them."""
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in made:
            readers.setdefault(node.target, []).append(node)
    for first, *others in readers.values():
        with graph.inserting_after(first):
            copy = graph.call_function(torch.clone, (first,))
        copy.meta.update(first.meta)
        copy.stack_trace = first.stack_trace
        first.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)  # type: ignore[misc]
        for other in others:
            other.replace_all_uses_with(copy)
            graph.erase_node(other)


def _writes_constant(node: fx.Node, own: Collection[str]) -> bool:
    """Return whether a node mutates a tensor that the tracer holds: the code goes on with the old values."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("setitem", "__setitem__")
    given = [*(node.args[:1] if in_place else ()), node.kwargs.get("out")]
    written = [leaf for each in given for leaf in (each if isinstance(each, (list, tuple)) else (each,))]
    return any(isinstance(arg, fx.Node) and arg.op == "get_attr" and arg.target not in own for arg in written)


def _is_opaque(module: nn.Module, opaques: Collection[nn.Module]) -> bool:
    return any(module is other for opaque in opaques for other in opaque.modules())


def _hide_constants(traced: fx.GraphModule, model: nn.Module) -> None:
    """Make plain attributes of the tensors that are not buffers of the model, which its `state_dict` does not have."""
    own = {path for path, _ in model.named_buffers(remove_duplicate=False)}
    for path, tensor in list(traced.named_buffers(remove_duplicate=False)):
        if path not in own:
            parent, _, name = path.rpartition(".")
            module = traced.get_submodule(parent)
            delattr(module, name)
            setattr(module, name, tensor)


def _add_unused(traced: fx.GraphModule, model: nn.Module) -> None:
    """Add modules and weights that forward does not use, in the order of the model, for the `state_dict`."""
    for path, module in model.named_modules():
        parent_path, _, name = path.rpartition(".")
        if path and part_of(traced, path) is None:
            traced.get_submodule(parent_path).add_module(name, module)
    for path, module in model.named_modules():
        made = traced.get_submodule(path)
        if made is module:
            continue
        made._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        for table in ("_parameters", "_buffers", "_modules"):
            tables = made.__dict__[table], module.__dict__[table]
            for name, held in tables[1].items():
                tables[0][name] = tables[0].pop(name, held)
