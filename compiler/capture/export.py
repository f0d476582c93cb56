"""The capture of an `nn.Module` by `torch.export`: a copy of it is run for real, and traced."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from compiler.capture.boundary.modes import modes_of, set_modes
from compiler.capture.boundary.observe import observe
from compiler.capture.boundary.observed import Observed
from compiler.capture.boundary.orders import order_matters
from compiler.capture.boundary.questions import direct_calls
from compiler.capture.boundary.refusals import tracing_left
from compiler.capture.boundary.runs import copy_of_inputs, on_meta, type_text
from compiler.capture.boundary.surroundings import Surroundings, holds_trace
from compiler.capture.captured import Captured, Traced
from compiler.capture.errors import example_fails, explain, location_of_error, partial_graphs_unprinted, state_change
from compiler.capture.functions import functions_inlined
from compiler.capture.inputs import symbol_names, variable_keywords
from compiler.capture.lean_tracing import tracing_mode
from compiler.capture.opaque import (
    CallRecord,
    changes_with_mode,
    chosen_modules,
    mode_readers,
    opaque_calls,
    recorded_calls,
    script_objects_hidden,
)
from compiler.capture.patches import (
    TracedFunctions,
    check_hooks,
    gradient_modes_refused,
    inference_mode_as_no_grad,
    mode_reads,
    patched,
    stacks_of_leaves,
    with_parameters_kept,
)
from compiler.emitted.graphmodule import assignments_seen
from compiler.usercode.copies import structural_copy
from compiler.usercode.locations import is_inside
from compiler.usercode.state import (
    Change,
    ModuleState,
    attribute_of,
    is_list_of_parameters,
    location_of_module,
    random_state_kept,
    run_with_copied_buffers,
)
from ir.errors import CaptureError, GraphwrightError


class Stage(Protocol):
    """Runs one stage of the work under a name."""

    def __call__(self, name: str, function: Callable[[], Any], /) -> Any:
        """Return the result of the function."""


class ExportCapture:
    """The capture of a model on example inputs."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> None:
        self.original = model
        if any(isinstance(leaf, torch.Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves((args, kwargs))):
            with torch.inference_mode(False):
                args, kwargs = copy_of_inputs((args, kwargs))
        self.args = args
        self.kwargs = kwargs
        self.dynamic_shapes = dynamic_shapes
        self.observed: Observed | None = None
        self.model = model
        """The copy that is traced."""
        self.opaques: dict[str, nn.Module] = {}
        self.records: Mapping[str, list[CallRecord]] = {}
        self.assigned: tuple[str, ...] = ()
        """Buffers that the last traced call replaced."""
        self.stride_guards: Mapping[ShapeEnv, Collection[int]] = {}
        """Numbers of the guards of the last trace on whether a fake tensor is contiguous."""

    def capture(self, leaf_modules: Sequence[Any], run: Stage) -> Captured:
        """Observe the model, and trace it; each stage is run under its name."""
        chosen_modules(self.original, leaf_modules)
        if on_meta(self.original, self.args, self.kwargs):
            self.model = structural_copy(self.original)
        else:
            self.observed = run("observe", lambda: self._observe(leaf_modules))
            assert self.observed is not None
            self.model = self.observed.model
        captured: Captured = run("capture", lambda: self._capture(leaf_modules))
        return captured

    def _observe(self, leaf_modules: Sequence[Any]) -> Observed:
        def wanted(model: nn.Module) -> dict[str, nn.Module]:
            chosen = chosen_modules(model, self._paths(leaf_modules))
            return {**chosen, **_candidates(model, chosen)}

        kept = self._paths(leaf_modules)
        return observe(self.original, self.args, self.kwargs, wanted, kept, of_one_size=self.dynamic_shapes is None)

    def _paths(self, leaf_modules: Sequence[Any]) -> list[str]:
        """Return the paths of the chosen modules, which are modules of the user's model and not of the copy."""
        return list(chosen_modules(self.original, leaf_modules))

    def _capture(self, leaf_modules: Sequence[Any]) -> Captured:
        model = self.model
        chosen = chosen_modules(model, self._paths(leaf_modules))
        self._choose(chosen, _candidates(model, chosen))
        check_hooks(model, self.opaques)
        with mode_reads() as read_of:
            traced = self._traced()
            if self._untie(traced.assigned):
                traced = self._traced()
        irregular = {path for path, module in model.named_modules() if id(module) in read_of}
        irregular |= set(mode_readers(model)) if self.observed is None else self.observed.irregular
        outside = frozenset(path for path in irregular if not is_inside(path, self.opaques))
        return Captured(
            module=model,
            traced=traced,
            symbol_names=symbol_names(traced.exported, model, self.args, self.kwargs, self.dynamic_shapes),
            opaques=self._kept_modules(chosen),
            writers=frozenset(p for p in self.opaques if any(record.writes for record in self.records.get(p, ()))),
            irregular=outside,
            second=lambda: self._second(outside),
            observed=self.observed,
            has_example=True,
            args=self.args,
            kwargs=self.kwargs,
            keeps_order=order_matters(model, self.args, self.kwargs, variable_keywords(model, self.kwargs)),
        )

    # ---- opaque modules ----

    def _choose(self, chosen: Mapping[str, nn.Module], candidates: Mapping[str, nn.Module]) -> None:
        """Decide which modules are opaque, by their behaviour in the observed runs."""
        wanted = {**chosen, **candidates}
        if not wanted:
            return
        self.records = self._records(wanted)
        with random_state_kept():
            opaque = dict(chosen) | {
                path: module for path, module in candidates.items() if self._changes_with_mode(path, module)
            }
        self.opaques = {p: module for p, module in opaque.items() if not is_inside(p.rpartition(".")[0], opaque)}

    def _kept_modules(self, chosen: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return copies of the opaque modules; those that the user chose have the state before any call."""
        user = structural_copy(self.original) if self.observed is not None and chosen else None
        return {
            path: user.get_submodule(path) if user is not None and path in chosen else structural_copy(module)
            for path, module in self.opaques.items()
        }

    def _records(self, wanted: Mapping[str, nn.Module]) -> Mapping[str, list[CallRecord]]:
        if self.observed is not None:
            return self.observed.records

        def run() -> Mapping[str, list[CallRecord]]:
            with recorded_calls(wanted) as records:
                self._run()
            return records

        with torch.no_grad():
            records: Mapping[str, list[CallRecord]] = self._guarded(run, may_change=True)
        return records

    def _changes_with_mode(self, path: str, module: nn.Module) -> bool:
        """Return whether a module calls other functions in the other mode."""
        records = self.records[path]
        seen = self.observed
        if seen is not None and seen.other is not None and seen.other.error is None and seen.other_steps is not None:
            calls = [
                [(step.name, step.location.source) for step in steps.steps if step.is_in(path)]
                for steps in (seen.steps, seen.other_steps)
            ]
            if calls[0] == calls[1] or not records:
                return False
        return bool(records) and changes_with_mode(module, records)

    # ---- tracing ----

    def _run(self) -> Any:
        args, kwargs = copy_of_inputs((self.args, self.kwargs))
        return with_parameters_kept(self.model, lambda: run_with_copied_buffers(self.model, args, kwargs))

    def _traced(self) -> Traced:
        """Trace the copy; values that tracing leaves outside of it are removed, and refused."""
        outside = Surroundings(self.model)
        exported: ExportedProgram | None = None
        try:
            with script_objects_hidden(self.opaques.values()):
                exported = self._guarded(self._export)
        finally:
            left = outside.remove_traces()
            left += _traces_in(self.original)
        if left:
            raise tracing_left(left, self.model)
        assert exported is not None
        return Traced(exported, self.assigned, self.stride_guards)

    def _untie(self, assigned: Collection[str]) -> bool:
        """Untie buffers that are assigned under one of their names, and return whether there were any.

        An assignment ends the tie.
        """
        places: dict[int, list[tuple[str, nn.Module, str]]] = {}
        for path, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                places.setdefault(id(buffer), []).append((f"{path}.{name}".lstrip("."), module, name))
        tied = [group for group in places.values() if len(group) > 1 and any(key in assigned for key, _, _ in group)]
        for group in tied:
            for _, module, name in group[1:]:
                buffer = module._buffers[name]
                assert buffer is not None
                module._buffers[name] = buffer.detach().clone().requires_grad_(buffer.requires_grad and buffer.is_leaf)
        return bool(tied)

    def _export(self) -> ExportedProgram:
        # a cumulative average reads its counter, which cannot be traced; the lowering restores None
        cumulative = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.momentum is None]
        for module in cumulative:
            module.momentum = 0.0
        try:
            with (
                opaque_calls(self.opaques, self.records),
                direct_calls(self.model),
                partial_graphs_unprinted(),
                inference_mode_as_no_grad(),
                TracedFunctions(),
                functions_inlined(self.observed.functions if self.observed is not None else {}),
                gradient_modes_refused(),
                stacks_of_leaves(self.model),
            ):
                return torch.export.export(self.model, self.args, self.kwargs, dynamic_shapes=self.dynamic_shapes)
        finally:
            for module in cumulative:
                module.momentum = None

    def _second(self, irregular: frozenset[str]) -> tuple[Traced | None, str]:
        """Capture in the opposite mode, as the user's own `train()` or `eval()` sets it."""
        model = self.model
        modes = modes_of(model)
        if self.observed is None:
            other = {path: (not mode if path in irregular else mode) for path, mode in modes.items()}
        else:
            after = self.observed.modes_after.get("eval" if model.training else "train", {})
            other = {path: after.get(path, not model.training) for path in modes}
        try:
            set_modes(model, other)
            return self._traced(), ""
        except GraphwrightError as error:
            return None, error.message
        finally:
            set_modes(model, modes)

    def _guarded(self, action: Callable[[], Any], *, may_change: bool = False) -> Any:
        """Run an action that calls the model; explain its failure, and restore the model."""
        model = self.model
        state = ModuleState(model)
        changed: list[Change] = []
        watched = model.forward

        def seen(call: Callable[[], Any]) -> Any:
            buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
            # torch.export knows only buffers of the root, and swaps even those wrongly
            hidden = patched(torch.nn.modules.module, _global_buffer_registration_hooks={})
            with hidden, assignments_seen():
                result = call()
            # compared here since torch.export restores attributes itself
            changed.extend(change for change in state.changes() if not (_is_average(change) or self._is_seen(change)))
            result, self.assigned = _with_assigned(model, buffers, result)
            return result

        @functools.wraps(watched)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return seen(lambda: watched(*args, **kwargs))

        failure: Exception | None = None
        result = None
        try:
            with (
                random_state_kept(),
                tracing_mode() as self.stride_guards,
                _interpreted(model, seen),
                warnings.catch_warnings(),
            ):
                warnings.filterwarnings("error", message=".*assigned during export")
                # torch.export reads gradients of tensors that functorch (torch.func.grad) made
                warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
                # a recurrent module of torch has a list of its parameters, which export parametrizes
                own = r"(self\.(\w+\.)*_flat_weights\[\d+\](, )?)+"
                warnings.filterwarnings(
                    "ignore", message=f"The tensor attributes? {own} w(as|ere) assigned during export"
                )
                if self.observed is not None and self.observed.memos:
                    names = (f"self.{path}.{name}".replace("..", ".") for path, name in self.observed.memos)
                    # a key of a cache may be any text; other assignments were seen in the real runs
                    memo = "|".join(map(re.escape, names))
                    warnings.filterwarnings(
                        "ignore", message=rf"(?s)The tensor attributes? .*({memo}).* assigned during"
                    )
                model.__dict__["forward"] = forward
                result = action()
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            failure = error
        finally:
            left = [change for change in state.restore() if change[2] != "forward"]
        if failure is not None:
            raise self._explained(failure) from failure
        changed = [change for change in changed or left if not (is_list_of_parameters(change) or self._is_seen(change))]
        if changed and not may_change:
            raise state_change(changed, self.opaques)
        return result

    def _is_seen(self, change: Change) -> bool:
        """Return whether real runs covered a change: of a mode, or of state that no other call depends on."""
        if self.observed is None:
            return False
        return change[2] == "training" or (change[0], attribute_of(change[2])) in self.observed.memos

    def _explained(self, failure: Exception) -> GraphwrightError:
        if isinstance(failure, GraphwrightError):
            if failure.location is None:
                location = location_of_error(failure, self.model)
                return type(failure)(failure.message, location=location, remedy=failure.remedy)
            return failure
        if self.observed is None:
            try:
                with random_state_kept():
                    self._run()
            except Exception as error:  # noqa: BLE001 - whatever the user's code raises
                return example_fails(error, self.model)
        return explain(failure, self.model)


def _candidates(model: nn.Module, chosen: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules without parameters and buffers, outside of chosen ones, whose code names their mode."""
    return {
        path: module
        for path, module in mode_readers(model).items()
        if path
        and not is_inside(path, chosen)
        and next(module.parameters(), None) is None
        and next(module.buffers(), None) is None
    }


@contextmanager
def _interpreted(model: nn.Module, seen: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Watch the call of a GraphModule: `torch.export` interprets its graph instead of calling `forward`."""
    original = fx.Interpreter.run

    @functools.wraps(original)
    def run(interpreter: fx.Interpreter, *args: Any, **kwargs: Any) -> Any:
        if interpreter.module.__dict__ is not model.__dict__:
            return original(interpreter, *args, **kwargs)
        return seen(lambda: original(interpreter, *args, **kwargs))

    if not isinstance(model, fx.GraphModule):
        yield
        return
    with patched(fx.Interpreter, run=run):
        yield


def _with_assigned(
    model: nn.Module, before: Sequence[tuple[nn.Module, Mapping[str, torch.Tensor | None]]], result: Any
) -> tuple[Any, tuple[str, ...]]:
    """Return the result of a call with the tensors that replaced buffers, and the names of these buffers.

    A graph has results and mutations, but no replaced buffers. The buffers are restored. Without replaced buffers, the
    result itself is returned.

    Raises:
        CaptureError: when the new tensor has another type than the buffer.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    assigned: dict[str, torch.Tensor] = {}
    for module, buffers in before:
        for name, old in buffers.items():
            new = module._buffers.get(name)
            if new is old:
                continue
            if old is None or new is None or new.shape != old.shape or new.dtype != old.dtype:
                raise CaptureError(
                    f"forward gives the buffer {name!r} another shape or dtype: "
                    f"{type_text(old)} became {type_text(new)}",
                    location=location_of_module(paths.get(id(module), ""), module),
                    remedy="let the buffer have the shape and dtype that it gets, from __init__ on",
                )
            module._buffers[name] = old
            assigned[f"{paths[id(module)]}.{name}".lstrip(".")] = new
    return (result, tuple(assigned.values())) if assigned else result, tuple(assigned)


def _traces_in(model: nn.Module) -> list[str]:
    """Return the attributes of the user's modules that hold values from tracing: some objects cannot be copied."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, value in module.__dict__.items()
        if name not in ("_parameters", "_buffers", "_modules") and holds_trace(value)
    ]


def _is_average(change: Change) -> bool:
    """Return whether a change is that of `_export` to a cumulative average."""
    _, module, name = change
    return isinstance(module, _BatchNorm) and name == "momentum"
