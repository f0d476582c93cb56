"""From a model to a graph of PyTorch's: an exported program, or an FX graph as it is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from compiler.capture_errors import (
    example_fails,
    explain,
    location_of_error,
    partial_graphs_unprinted,
    state_change,
)
from compiler.capture_functions import (
    TracedFunctions,
    check_hooks,
    functions_refused,
    inference_mode_as_no_grad,
    mode_reads,
    stacks_of_leaves,
    with_parameters_kept,
)
from compiler.capture_inputs import (
    bind_inputs,
    check_inputs,
    check_names,
    fresh_copy,
    sharing,
    symbol_names,
    unshared,
)
from compiler.capture_opaque import (
    CallRecord,
    changes_with_mode,
    chosen_modules,
    mode_readers,
    opaque_calls,
    record_calls,
    structural_copy,
)
from compiler.capture_state import (
    Change,
    ModuleState,
    random_state_kept,
    run_with_copied_buffers,
    tracing_mode,
)
from compiler.capture_symbolic import trace_symbolically
from ir.errors import CaptureError, GraphwrightError, InputError


@attrs.frozen(eq=False)
class Captured:
    """What `lower` makes a program from."""

    module: nn.Module | None = None
    """The user's module: its tensors are the program's weights. None for an ExportedProgram."""
    exported: ExportedProgram | None = None
    graph_module: fx.GraphModule | None = None
    """An FX graph that is lowered as it is, without `torch.export`."""
    symbol_names: Mapping[str, str] = attrs.field(factory=dict)
    """Torch's name of a symbol -> the user's."""
    opaques: Mapping[str, nn.Module] = attrs.field(factory=dict)
    """Modules kept as they are: path -> a copy of the module with the same tensors."""
    writers: frozenset[str] = frozenset()
    """Paths of opaque modules that write to their arguments."""
    mode_readers: tuple[str, ...] = ()
    """Paths of the traced modules whose own Python code depends on `self.training`."""
    opposite: ExportedProgram | None = None
    """The model captured with those modules in the opposite mode."""
    opposite_error: str = ""
    """Why there is no `opposite` though there are mode readers."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    sharing: tuple[frozenset[int], ...] = ()
    """Groups of tensor arguments that overlapped in memory, by their numbers."""


def capture(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] = (),
) -> Captured:
    """Capture a model in the modes that its submodules are in; the model is left as it was, also on failure.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or an `fx.GraphModule`. An `nn.Module` without inputs is traced
            with torch.fx, and nothing is known of its inputs' types.
        example_inputs: the positional arguments of one call (a bare tensor is accepted).
        example_kwargs: its keyword arguments.
        dynamic_shapes: as in `torch.export.export`.
        leaf_modules: submodules (objects, classes, paths) that are kept as opaque calls.

    Raises:
        InputError: when an argument is wrong.
        CaptureError: when the model cannot be captured, or capturing it would change its meaning; the message names
            module path, file and line, the construct and the remedy.
    """
    if torch.is_autocast_enabled("cpu") or (torch.cuda.is_available() and torch.is_autocast_enabled("cuda")):
        raise CaptureError(
            "a model cannot be captured inside an autocast region", remedy="leave the `with torch.autocast(...)` block"
        )
    if dynamic_shapes is not None and not isinstance(dynamic_shapes, (dict, list, tuple)):
        raise InputError(
            f"dynamic_shapes must be a dict by parameter name or a tuple, not a {type(dynamic_shapes).__qualname__}",
            remedy='write {"x": {0: torch.export.Dim("batch")}}',
        )
    if isinstance(model, (nn.Module, ExportedProgram)):
        check_names(model)
    if isinstance(model, ExportedProgram):
        if dynamic_shapes is not None or leaf_modules:
            raise InputError("an ExportedProgram is captured already: it takes no dynamic_shapes= or leaf_modules=")
        check_inputs(example_inputs, example_kwargs)
        return Captured(exported=model)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"cannot capture a {type(model).__qualname__}",
            remedy="pass an nn.Module, an ExportedProgram or an fx.GraphModule",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module cannot be captured", remedy="pass the nn.Module it was made from")
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"`{lazy[0]}` is not initialized yet: it belongs to a lazy module",
            remedy="call the model once on an example before it is transformed",
        )
    args, kwargs = check_inputs(example_inputs, example_kwargs)
    if isinstance(model, fx.GraphModule) and example_inputs is None and example_kwargs is None:
        if dynamic_shapes is not None:
            raise InputError("dynamic_shapes= needs example inputs")
        return Captured(module=model, graph_module=model, opaques=chosen_modules(model, leaf_modules))
    if example_inputs is None and example_kwargs is None:
        if dynamic_shapes is not None:
            raise InputError("dynamic_shapes= needs example inputs")
        opaques = chosen_modules(model, leaf_modules)
        traced = trace_symbolically(model, opaques.values())
        return Captured(module=traced, graph_module=traced, opaques=opaques)
    bound = bind_inputs(model, args, kwargs, dynamic_shapes)
    groups = sharing((bound.args, bound.kwargs))
    args, kwargs = unshared((bound.args, bound.kwargs))
    captured = _Export(model, args, kwargs, bound.dynamic_shapes).capture(leaf_modules)
    return attrs.evolve(captured, sharing=groups)


class _Export:
    """One capture through `torch.export`."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.dynamic_shapes = dynamic_shapes
        self.opaques: dict[str, nn.Module] = {}
        self.records: dict[str, list[CallRecord]] = {}
        self._cumulative = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.momentum is None]

    def capture(self, leaf_modules: Sequence[Any]) -> Captured:
        model = self.model
        chosen = chosen_modules(model, leaf_modules)
        readers = mode_readers(model)
        candidates = {
            path: module
            for path, module in readers.items()
            if path and next(module.parameters(), None) is None and next(module.buffers(), None) is None
        }
        self._choose(chosen, candidates)
        check_hooks(model, self.opaques)
        with mode_reads() as read_of:
            exported = self._guarded(self._export)
        readers |= {path: module for path, module in model.named_modules() if id(module) in read_of}
        inside = tuple(f"{path}." for path in self.opaques)
        traced = {
            path: module for path, module in readers.items() if path not in self.opaques and not path.startswith(inside)
        }
        opposite, problem = self._opposite(traced) if traced else (None, "")
        return Captured(
            module=model,
            exported=exported,
            symbol_names=symbol_names(exported, model, self.args, self.kwargs, self.dynamic_shapes),
            opaques={path: structural_copy(module) for path, module in self.opaques.items()},
            writers=frozenset(p for p in self.opaques if any(record.writes for record in self.records.get(p, ()))),
            mode_readers=tuple(traced),
            opposite=opposite,
            opposite_error=problem,
            args=self.args,
            kwargs=self.kwargs,
        )

    def _choose(self, chosen: dict[str, nn.Module], candidates: dict[str, nn.Module]) -> None:
        """Decide which modules are opaque, with a real run where any may be."""
        inside = tuple(f"{path}." for path in chosen)
        candidates = {
            path: module for path, module in candidates.items() if path not in chosen and not path.startswith(inside)
        }
        wanted = {**chosen, **candidates}
        if not wanted:
            return
        self.records = self._guarded(lambda: record_calls(wanted, self._run), may_change=True)
        with random_state_kept():
            opaque = chosen | {
                path: module
                for path, module in candidates.items()
                if self.records[path] and changes_with_mode(module, self.records[path])
            }
        paths = tuple(opaque)
        self.opaques = {
            path: module for path, module in opaque.items() if not any(path.startswith(f"{other}.") for other in paths)
        }

    def _run(self) -> Any:
        args, kwargs = fresh_copy((self.args, self.kwargs))
        return with_parameters_kept(self.model, lambda: run_with_copied_buffers(self.model, args, kwargs))

    def _export(self) -> ExportedProgram:
        for module in self._cumulative:
            # a cumulative average reads its counter, which tracing cannot; the lowering puts None back
            module.momentum = 0.0
        try:
            with (
                opaque_calls(self.opaques, self.records),
                partial_graphs_unprinted(),
                inference_mode_as_no_grad(),
                TracedFunctions(),
                functions_refused(),
                stacks_of_leaves(self.model),
            ):
                return torch.export.export(self.model, self.args, self.kwargs, dynamic_shapes=self.dynamic_shapes)
        finally:
            for module in self._cumulative:
                module.momentum = None

    def _opposite(self, traced: Mapping[str, nn.Module]) -> tuple[ExportedProgram | None, str]:
        """Capture with the modules whose code reads their mode in the other one."""
        modes = {path: module.training for path, module in traced.items()}
        try:
            for path, module in traced.items():
                module.training = not modes[path]
            return self._guarded(self._export), ""
        except GraphwrightError as error:
            return None, error.message
        finally:
            for path, module in traced.items():
                module.training = modes[path]

    def _guarded(self, action: Callable[[], Any], *, may_change: bool = False) -> Any:
        """Run an action that calls the model; explain its failure and leave the model as it was."""
        model = self.model
        state = ModuleState(model)
        changed: list[Change] = []
        replaced = [(module, "momentum") for module in self._cumulative]
        watched = model.forward

        @functools.wraps(watched)
        def forward(*args: Any, **kwargs: Any) -> Any:
            # torch.export puts attributes back itself, so they are compared before it does
            result = watched(*args, **kwargs)
            changed.extend(change for change in state.changes() if change[1:] not in replaced)
            return result

        failure: Exception | None = None
        result = None
        try:
            with random_state_kept(), tracing_mode(), warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*assigned during export")
                # a recurrent module of torch keeps its own list of its parameters, which export parametrizes
                own = r"(self\.(\w+\.)*_flat_weights\[\d+\](, )?)+"
                warnings.filterwarnings(
                    "ignore", message=f"The tensor attributes? {own} w(as|ere) assigned during export"
                )
                model.__dict__["forward"] = forward
                result = action()
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            failure = error
        finally:
            left = [change for change in state.restore() if change[2] != "forward"]
        if failure is not None:
            raise self._explained(failure) from failure
        changed = [change for change in changed or left if not _is_list_of_parameters(change)]
        if changed and not may_change:
            raise state_change(changed)
        return result

    def _explained(self, failure: Exception) -> GraphwrightError:
        if isinstance(failure, GraphwrightError):
            if failure.location is None:
                location = location_of_error(failure, self.model)
                return type(failure)(failure.message, location=location, remedy=failure.remedy)
            return failure
        state = ModuleState(self.model)
        try:
            with random_state_kept(), torch.no_grad():
                self._run()
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            return example_fails(error, self.model)
        finally:
            state.restore()
        return explain(failure, self.model)


def _is_list_of_parameters(change: Change) -> bool:
    """Whether it is the list that a recurrent module of torch keeps of its own parameters."""
    _, module, name = change
    return isinstance(module, nn.RNNBase) and name.startswith("_flat_weight")
