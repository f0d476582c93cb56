"""Lowering: from a captured model to a program."""

from __future__ import annotations

import inspect

from compiler.capture.boundary.observed import Observed
from compiler.capture.captured import Captured, Traced
from compiler.lower.export import ExportLowering
from compiler.lower.fx.graph import FxLowering
from compiler.lower.mode_steps import UndecidedError, follow_steps
from compiler.lower.modes import follow_modes, lock
from compiler.usercode.state import location_of_module
from ir.errors import CaptureError
from ir.parameters import parameters_of_signature
from ir.program import Program, copy_program


def lower(captured: Captured) -> Program:
    """Return the program of a captured model: typed, located, with weights, without in-place operators.

    Raises:
        CaptureError: when the graph cannot be expressed; it names the place in the user's code.
    """
    if captured.program is not None:
        return copy_program(captured.program)
    if captured.traced is None:
        if captured.graph_module is None:
            raise CaptureError("nothing was captured")
        program = FxLowering(captured.graph_module, captured.opaques, is_traced=captured.is_traced).lower()
        program.name = captured.graph_module._get_name()
        return program
    program = _lower_exported(captured, captured.traced)
    _check_sharing(captured, program)
    _check_joined(captured, program)
    _follow_modes(captured, program)
    return program


def _check_joined(captured: Captured, program: Program) -> None:
    """Refuse a model that joins two buffers into one tensor and mutates it: in a graph they stay two.

    Raises:
        CaptureError: naming the buffers.
    """
    seen = captured.observed
    written = {m.buffer for m in program.convention.mutations if m.buffer is not None and not m.is_assigned}
    for outcome in (seen.first, seen.other) if seen is not None else ():
        for group in outcome.joined if outcome is not None else ():
            weights = [w for w in program.weights.values() if not group.isdisjoint((w.name, *w.aliases))]
            others = [w for w in weights if len(weights) > 1 and not w.value.is_unused]
            if any(w.name in written and others not in ([], [w]) for w in weights):
                names = " and ".join(f"`{name}`" for name in sorted(group))
                raise CaptureError(
                    f"forward ties the buffers {names} and mutates them in place: the next call mutates both",
                    location=location_of_module("", captured.module) if captured.module is not None else None,
                    remedy="put a copy in the place of the other (`self.a = self.b.clone()`), or write out of place",
                )


def _follow_modes(captured: Captured, program: Program) -> None:
    """Decide what follows the mode where code other than a layer's own asks for it."""
    seen = captured.observed
    if seen is not None:
        program.modes_after = seen.modes_after
        if seen.mode_problem:
            lock(program, seen.mode_problem)
            return
    if captured.second is None or (not captured.irregular and (seen is None or seen.other is not None)):
        return
    if seen is not None and seen.other is not None and seen.other.error is None and seen.other_steps is not None:
        try:
            follow_steps(program, captured.irregular, captured.opaques, seen.steps, seen.other_steps)
        except UndecidedError:
            pass
        else:
            _follow_back(captured, program, seen)
            return
    if not captured.irregular:
        return
    if seen is not None and seen.back is not None:
        lock(program, "its modules were in several modes, and code of the model asks for them")
        return
    opposite = None
    if seen is not None and seen.other is not None and seen.other.error is not None:
        error = seen.other.error
        traced, problem = None, f"it raises {type(error).__name__}: {error}"
    else:
        traced, problem = captured.second()
    if traced is not None:
        try:
            opposite = _lower_exported(captured, traced)
        except CaptureError as error:
            problem = error.message
    follow_modes(program, opposite, problem, sorted(captured.irregular))


def _follow_back(captured: Captured, program: Program, seen: Observed) -> None:
    """Check what follows the mode against the run after the switch back, where modes may differ from the first run."""
    if seen.back is None or seen.back.error is not None or seen.back_steps is None or program.mode_locked:
        return
    try:
        follow_steps(program, captured.irregular, captured.opaques, seen.steps, seen.back_steps)
    except UndecidedError:
        lock(program, "its modules were in several modes, and what each of them decides was not seen")


def _lower_exported(captured: Captured, traced: Traced) -> Program:
    program = ExportLowering(captured, traced).lower()
    if captured.module is not None:
        program.name = type(captured.module).__qualname__
        program.convention.parameters = parameters_of_signature(inspect.signature(captured.module.forward))
        program.convention.keeps_order = captured.keeps_order
    return program


def _check_sharing(captured: Captured, program: Program) -> None:
    """Refuse a model that mutates an argument that aliases another one in the example.

    The graph has two tensors, so the other one would not change.
    """
    written = [m.input for m in program.convention.mutations if m.input is not None]
    names = [value.name for value in program.graph.inputs]
    for group in captured.sharing:
        found = [number for number in written if number in group]
        if found:
            others = ", ".join(f"`{names[number]}`" for number in sorted(group) if number != found[0])
            raise CaptureError(
                f"input `{names[found[0]]}` is mutated in forward, and shares its memory with {others} in the example",
                remedy="pass tensors with memory of their own (`.clone()`), also when calling the result",
            )
