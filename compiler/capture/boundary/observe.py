"""Real runs of a model before its capture, which show its effects beside its results.

It runs three times on copies of the example inputs: first, after a switch of its mode, and again as at first. The first
and the last run start from the same state and seed, so they must agree.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compiler.capture.boundary.fast_path import padding_tried, slow_path
from compiler.capture.boundary.modes import Modes, modes_after, modes_below, modes_of, set_modes
from compiler.capture.boundary.observed import Observed
from compiler.capture.boundary.outcomes import difference
from compiler.capture.boundary.outsiders import (
    check_hooks_of_all_modules,
    check_members,
    hooks_of_all_modules_watched,
)
from compiler.capture.boundary.questions import Record, Recorder, direct_calls
from compiler.capture.boundary.refusals import (
    check_resized,
    check_run,
    check_weights,
    fast_path_differs,
    kept_loss,
    outside_change,
    padded_to_zeros,
    written_elsewhere,
)
from compiler.capture.boundary.runs import Outcome, Twin, other_numbers
from compiler.capture.boundary.surroundings import Surroundings
from compiler.capture.errors import state_change
from compiler.capture.functions import FunctionCalls
from compiler.capture.opaque import CallRecord, recorded_calls
from compiler.capture.patches import ParametersKept
from compiler.emitted.settings import REMEDY, SETTINGS, settings_of
from compiler.usercode.copies import structural_copy
from compiler.usercode.locations import is_inside
from compiler.usercode.state import (
    Change,
    KeptState,
    ModuleState,
    attribute_of,
    is_list_of_parameters,
    location_of_module,
    random_state_kept,
)
from ir.errors import CaptureError


def observe(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wanted: Callable[[nn.Module], Mapping[str, Any]],
    kept: Sequence[str] = (),
    *,
    of_one_size: bool = True,
) -> Observed:
    """Run a copy of a model on copies of its inputs.

    Args:
        model: the model; it is not changed.
        args: positional arguments of the example call.
        kwargs: its keyword arguments.
        wanted: returns the modules of the copy whose calls are recorded, by path.
        kept: paths of the opaque modules, which may change their own state.
        of_one_size: whether inputs have the sizes of the example in all calls. Otherwise what a call keeps may depend
            on the sizes of earlier ones.

    Raises:
        CaptureError: when the model fails on the inputs, or has an effect that no graph can express: it changes Python
            state, seeds a random generator, draws numbers from other generators than PyTorch's, or depends on earlier
            calls.
    """
    return _Observation(model, args, kwargs, kept, of_one_size).run(wanted)


class _Observation:
    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Sequence[str], of_one_size: bool
    ) -> None:
        self.original = model
        self.kept = tuple(kept)
        self.of_one_size = of_one_size
        self.memos: frozenset[tuple[str, str]] = frozenset()
        self.args = args
        self.kwargs = kwargs
        self.work = structural_copy(model)
        self.start = KeptState(self.work, self.kept)
        """Initial state of the opaque modules, from which each call that must repeat the first one starts."""
        self.twin = Twin(self.work)
        self.recorder = Recorder(self.work, self.twin)
        self.functions = FunctionCalls()
        self.empty = [
            (path, module, name)
            for path, module in self.work.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is None
        ]
        """Buffers that are None: a graph has no place for what a call puts there."""
        self.buffers = {id(module): frozenset(_names(module)) for module in self.work.modules()}

    def run(self, wanted: Callable[[nn.Module], Mapping[str, Any]]) -> Observed:
        work, twin = self.work, self.twin
        modes = modes_of(work)
        before, outside, original = ModuleState(work), Surroundings(work), ModuleState(self.original)
        try:
            with twin.own_buffers():
                with hooks_of_all_modules_watched() as acting, recorded_calls(wanted(work)) as records:
                    twin.on_restart = lambda: _clear(records)
                    first, steps = self._call()
                    twin.on_restart = lambda: None
                check_run(first, steps, work, self.kept)
                check_hooks_of_all_modules(acting, work)
                check_members(steps, work, self.kept)
                check_resized(twin, self.kept)
                self._check_first_changes(before, first, modes)
                after = KeptState(work, self.kept)
                before.restore_tensors()
                after.restore_tensors()
                warm = ModuleState(work)
                found = Observed(work, first, records, steps, functions=self.functions.problems, memos=self.memos)
                self._other_mode(found, modes, warm)
                warm.restore()
                set_modes(work, modes)
                self._begin()
                self._repeat(found, warm)
                warm.restore()
                set_modes(work, modes)
                before.forget(self.memos)
                self._begin()
            if twin.written:
                raise written_elsewhere(twin.written[0], work)
        except CaptureError:
            outside.restore()
            raise
        finally:
            reached = original.restore()
        if reached:
            # by a hook that holds its handle, or by an object that cannot be copied
            raise state_change(reached)
        return found

    def _call(self) -> tuple[Outcome, Record]:
        with direct_calls(self.work), self.functions.recorded(), self.recorder.recording() as record:
            outcome = self.twin.call(self.args, self.kwargs)
        self.functions.compare()
        return outcome, record

    def _repeat(self, found: Observed, warm: ModuleState) -> None:
        """Run the model again from the same state, and in each of the surroundings that it asks about.

        Surroundings matter only if they make a difference.
        """
        if self._minds_padding(found.steps, warm):
            place = found.steps.questions["nested"]
            if "always nested" in found.steps.questions:
                raise padded_to_zeros(place)
            found.unlike["nested"] = found.first
        asked = settings_of(found.questions)
        together = [name for name in asked if not SETTINGS[name].changes_numbers]
        again = self._again(warm, together)
        if together and self._matter(found.first, again, together):
            for name in together:
                if len(together) > 1:
                    self._reset(warm)
                outcome = self._again(warm, [name]) if len(together) > 1 else again
                if self._matter(found.first, outcome, [name]):
                    found.unlike[name] = outcome
            self._reset(warm)
            again = self._again(warm)
        check_weights(found.first, again, self.work, self.kept)
        self._check_agreement(found.first, again, warm)
        for name in asked:
            if name not in together:
                self._reset(warm)
                try:
                    found.unlike[name] = self._again(warm, [name])
                except CaptureError as error:  # state from these surroundings is not part of a graph
                    found.unlike[name] = Outcome(error=error)

    def _minds_padding(self, steps: Record, state: ModuleState) -> bool:
        """Return whether the results of an nn.TransformerEncoder at padded positions are observable."""
        place = steps.questions.get("nested")
        if place is None or is_inside(place.module_path, self.kept):
            return False
        with padding_tried(zeros=False):
            plain = self._again(state)
        self._reset(state)
        with padding_tried(zeros=True):
            zeroed = self._again(state)
        self._reset(state)
        return difference(plain, zeroed) is not None

    def _matter(self, first: Outcome, outcome: Outcome, settings: Sequence[str]) -> bool:
        """Return whether surroundings may have made an observable difference."""
        if difference(first, outcome) is not None:
            return True
        # strides of results depend on the inputs in any case: the emitted module is compared in these surroundings
        return "layout" in settings or ("no_grad" in settings and any(gradient for gradient, _ in outcome.looks))

    def _reset(self, state: ModuleState) -> None:
        modes = modes_of(self.work)
        state.restore()
        set_modes(self.work, modes)
        self._begin()

    def _begin(self) -> None:
        """Restore the initial state of buffers and opaque modules."""
        self.start.restore()
        self.twin.reset()

    def _again(self, state: ModuleState, settings: Sequence[str] = ()) -> Outcome:
        outside = Surroundings(self.work)
        with direct_calls(self.work):
            found = self.twin.call(self.args, self.kwargs, settings)
        # calls on equal numbers keep equal state; a counter does not, even if nothing depends on it yet
        changed = [change for change in state.changes() if not self._is_fine(change) or self._is_memo(change)]
        if not settings:
            changed += [change for change in state.unlike_tensors() if self._is_memo(change)]
        if changed:
            raise state_change(changed)
        names = outside.changes()
        if names:
            outside.restore()
            raise outside_change(names, self.work)
        return found

    def _is_fine(self, change: Change) -> bool:
        return self._is_memo(change) or is_list_of_parameters(change) or is_inside(change[0], self.kept)

    def _is_memo(self, change: Change) -> bool:
        return (change[0], attribute_of(change[2])) in self.memos

    # ---- what no graph can express ----

    def _check_first_changes(self, before: ModuleState, first: Outcome, modes: Modes) -> None:
        """Refuse state that a first call changes, except flags, functions, and state that no other call depends on."""
        changed = [
            change
            for change in (*before.changes(), *before.assigned_tensors())
            if not self._is_fine(change) and not _is_switch(change[1].__dict__.get(change[2], self))
        ]
        losses = [change for change in changed if _is_loss(change)]
        if losses:
            raise kept_loss(losses[0])
        memos = {(path, attribute_of(name)) for path, _, name in changed}
        if changed and self.of_one_size and self._keep_apart(before, first, modes):
            self.memos = frozenset(memos)
            changed = []
        changed += [change for change in self.empty if change[1]._buffers.get(change[2]) is not None]
        changed += [
            (path, module, name)
            for path, module, _ in before.modules
            for name in _names(module)
            if name not in self.buffers[id(module)]
        ]
        if changed:
            raise state_change(changed)

    def _keep_apart(self, before: ModuleState, first: Outcome, modes: Modes) -> bool:
        """Return whether calls are independent: an earlier call on other numbers makes no observable difference."""
        warm = ModuleState(self.work)
        args, kwargs = other_numbers(self.args, self.kwargs)
        try:
            with self.twin.meanwhile():
                self._begin()
                second = self.twin.call(args, kwargs)
                before.restore()
                set_modes(self.work, modes)
                self._begin()
                alone = self.twin.call(args, kwargs)
                self._begin()
                after = self.twin.call(self.args, self.kwargs)
        finally:
            warm.restore()
            set_modes(self.work, modes)
        return second.error is None and difference(alone, second) is None and difference(first, after) is None

    def _check_agreement(self, first: Outcome, again: Outcome, state: ModuleState) -> None:
        problem = difference(first, again)
        if problem is not None:
            self._reset(state)
            with slow_path():
                if difference(first, self._again(state)) is None:
                    raise fast_path_differs(problem, self.work)
            raise CaptureError(
                f"two calls on the same inputs, from the same state and seed, differ: {problem}; the model depends on "
                "hidden state (a counter, a file, the time, a generator of its own)",
                location=location_of_module("", self.work),
                remedy="keep what changes from call to call in a buffer (register_buffer), or pass it in as an input",
            )

    # ---- the other mode ----

    def _other_mode(self, found: Observed, modes: Modes, warm: ModuleState) -> None:
        work, mode = self.work, self.work.training
        after: dict[str, Modes] = {}
        try:
            with self._switching(found) as kept:
                for name in ("eval", "train") if mode else ("train", "eval"):
                    with kept:
                        getattr(work, name)()
                    after[name] = modes_of(work)
                    if len(after) == 1:
                        found.other, found.other_steps = self._run_there(found)
                    elif after[name] != modes and not found.mode_problem:
                        self._begin()
                        found.back, found.back_steps = self._run_there(found)
                with kept:
                    found.modes_after = {**modes_after(work, "", after), **modes_below(work)}
        except CaptureError as error:
            found.mode_problem = error.message
        if found.mode_problem:
            found.modes_after = {}

    def _run_there(self, found: Observed) -> tuple[Outcome | None, Record | None]:
        outside, state = Surroundings(self.work), ModuleState(self.work)
        outcome, record = self._call()
        changed = [change for change in state.changes() if change[2] != "training" and not self._is_fine(change)]
        names = outside.changes()
        drawn = outcome.foreign or outcome.reseeded or record.seeded is not None or record.rewound is not None
        if changed or names:
            outside.restore()
            label = names[0] if names else f"`{changed[0][0]}.{changed[0][2]}`"
            found.mode_problem = f"the model changes {label} in the other mode"
        elif drawn:
            outside.restore()
            place = record.seeded or record.rewound or record.foreign
            what = f"draws random numbers from {outcome.foreign[0]}" if outcome.foreign else "sets a random generator"
            found.mode_problem = f"in the other mode the model {what}{f' at {place}' if place is not None else ''}"
        state.restore_attributes()
        if not found.mode_problem and outcome.error is None and self._minds_padding_there(record):
            found.mode_problem = (
                f"in the other mode an nn.TransformerEncoder ({record.questions['nested']}) returns zeros at padded "
                f"positions where no gradients are asked for; {REMEDY}"
            )
        asked = [name for name in settings_of(record.questions) if not SETTINGS[name].changes_numbers]
        if asked and not found.mode_problem and outcome.error is None:
            self._ask_there(found, outcome, record, asked)
        return outcome, record

    def _minds_padding_there(self, record: Record) -> bool:
        if "nested" not in record.questions:
            return False
        state = ModuleState(self.work)
        self.twin.reset()
        return self._minds_padding(record, state)

    def _ask_there(self, found: Observed, outcome: Outcome, record: Record, asked: Sequence[str]) -> None:
        """Lock the mode where the model depends on its surroundings in the other mode."""
        modes = modes_of(self.work)
        self._begin()
        with direct_calls(self.work):
            first = self.twin.call(self.args, self.kwargs)
            self._begin()
            other = self.twin.call(self.args, self.kwargs, asked)
        set_modes(self.work, modes)
        if difference(first, other) is not None:
            place = next(iter(record.questions.values()))
            found.mode_problem = f"in the other mode it depends on its surroundings, which it asks about at {place}"

    @contextmanager
    def _switching(self, found: Observed) -> Iterator[ParametersKept]:
        """Watch the user's own `train()` and `eval()`, which are called inside the yielded mode.

        Calls of the model stay outside: an opaque module may mutate its own parameters.
        """
        state, kept = ModuleState(self.work), ParametersKept(self.work)
        try:
            with random_state_kept():
                yield kept
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            found.mode_problem = f"train() or eval() of the model raises {type(error).__name__}: {error}"
        finally:
            written = kept.restore()
        changed = [change for change in state.changes() if change[2] != "training" and not self._is_memo(change)]
        if written and not found.mode_problem:
            found.mode_problem = "train() or eval() of the model mutates its parameters"
        elif changed and not found.mode_problem:
            path, module, name = changed[0]
            where = f"`{path}.{name}`" if path else f"`{name}`"
            found.mode_problem = f"train() or eval() of the model changes {where} of {type(module).__qualname__}"


def _clear(records: Mapping[str, list[CallRecord]]) -> None:
    for calls in records.values():
        calls.clear()


def _names(module: nn.Module) -> list[str]:
    """Return the names of a module's own buffers; a TorchScript module has no dict of them."""
    return [name for name, _ in module._buffers.items()]


def _is_switch(value: Any) -> bool:
    """Return whether a first call may set a value for good: it holds no number of that call."""
    return isinstance(value, (bool, str, type(None), type, types.FunctionType, types.MethodType))


def _is_loss(change: Change) -> bool:
    """Return whether an attribute keeps a number with a gradient, which is for training."""
    value = change[1].__dict__.get(change[2])
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.grad_fn is not None
