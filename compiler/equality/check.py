"""The check of every result: original and emitted module must behave alike on the example inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram

from compiler.capture.boundary.modes import modes_of, set_modes
from compiler.capture.boundary.outcomes import Difference, differences
from compiler.capture.boundary.runs import Outcome, Twin, on_meta
from compiler.capture.captured import Captured
from compiler.capture.errors import exported_fails
from compiler.codegen import Emitted, emit
from compiler.emitted.graphmodule import EmittedModule
from compiler.emitted.parameter_map import ParameterMap
from compiler.emitted.settings import SETTINGS, answers_of
from compiler.equality.accuracy import MeasurementError, measure_accuracy, measure_effects
from compiler.equality.observation_differences import freezes
from compiler.equality.parting import first_parting
from compiler.lower.modes import lock
from compiler.usercode.containers import same_content
from compiler.usercode.state import KeptState
from ir.errors import ValidationError
from ir.locations import Location
from ir.program import Program, Surrounding
from passes.rewrite.bounds.tolerance import Bounds

_EXACT = (
    '`validate="each"` tells whether a rewrite did it; leaf_modules= keeps a module as is, '
    "check=False skips the check; please report it"
)
_APPROXIMATE = (
    '`validate="each"` tells whether a rule leaves its bound; if each keeps it, the model makes differences larger: '
    "state the bound of the whole, `PassManager([...], tolerance=Tolerance(...))`"
)


@attrs.frozen(eq=False)
class Reference:
    """The original module, and its behaviour in real runs."""

    model: nn.Module
    first: Outcome
    other: Outcome | None = None
    """After a switch of the mode, starting from the state that the first call left."""
    back: Outcome | None = None
    """After the switch back, where the modules were in mixed modes."""
    unlike: Mapping[str, Outcome] = attrs.field(factory=dict)
    """Surroundings in which the original may behave differently -> its behaviour there."""
    questions: Mapping[str, Location] = attrs.field(factory=dict)
    """Questions it asked about its surroundings -> where."""
    origin: Emitted | None = None
    """What the program was emitted as that was given in place of a model; `model` is its module."""
    program: Program | None = None

    def names_in(self, emitted: Emitted) -> ParameterMap:
        """Return where the parameters of a module come from in `model`."""
        if self.origin is None or self.program is None:
            return emitted.parameter_map
        own = {name: key for key, name in self.origin.module._weight_names.items()}
        constants = {n: w.data for n, w in self.program.weights.items() if n not in own and w.data is not None}
        return emitted.parameter_map.in_terms_of(own, emitted.module._weight_names, constants)


def reference_of(model: nn.Module | ExportedProgram | Program, captured: Captured) -> Reference | None:
    """Return the behaviour of the original, or None where it was not run.

    Raises:
        InputError: when the original is a program or an exported one, and fails on the example inputs.
    """
    if isinstance(model, Program):
        return _reference_of_program(model, captured) if captured.has_example else None
    seen = captured.observed
    if seen is not None:
        return Reference(seen.model, seen.first, seen.other, seen.back, seen.unlike, seen.questions)
    if not isinstance(model, ExportedProgram) or not captured.has_example:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about guards and classes of PyTorch itself
        module = model.module()
    if on_meta(module, captured.args, captured.kwargs):
        return None
    twin = Twin(module)
    with twin.own_buffers():
        first = twin.call(captured.args, captured.kwargs)
    if first.error is not None:
        raise exported_fails(first.error)
    return Reference(module, first)


def _reference_of_program(program: Program, captured: Captured) -> Reference | None:
    """Return the behaviour of the module of a program, in both of its modes."""
    emitted = emit(program)
    module, args, kwargs = emitted.module, captured.args, captured.kwargs
    if on_meta(module, args, kwargs):
        return None
    twin, start, modes = Twin(module), KeptState(module, emitted.kept), modes_of(module)
    other = None
    try:
        with twin.own_buffers():
            first = twin.call(args, kwargs)
            if first.error is not None:
                raise exported_fails(first.error)
            if not program.mode_locked:
                (module.eval if module.training else module.train)()
                other = twin.call(args, kwargs)
    finally:
        start.restore()
        set_modes(module, modes)
    return Reference(module, first, other, origin=emitted, program=program)


class Check:
    """The comparison of one emitted module with its original."""

    def __init__(
        self,
        reference: Reference,
        program: Program,
        emitted: Emitted,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        bounds: Bounds | None = None,
    ) -> None:
        self.bounds = bounds
        self.reference = reference
        self.program = program
        self.emitted: EmittedModule = emitted.module
        self.kept = emitted.kept
        self.start = KeptState(self.emitted, self.kept)
        """State of the opaque modules, which is the user's: the user's first call starts from it."""
        self.args = args
        self.kwargs = kwargs
        names = reference.names_in(emitted)
        # the runs of the original do not show state outside of its buffers
        known = dict(reference.model.named_buffers(remove_duplicate=False))
        self.first_names = {alias: group[0] for alias, group in names.aliases.items()}
        """Other names of tied tensors -> the first name, by which they are compared."""
        self.names = {
            key: self.first_names.get(names[key][0], names[key][0])
            for key in names
            if len(names[key]) == 1 and names[key][0] in known
        }
        # computed weights that are for inference are not trained, as the parameter map says
        self.is_folded = freezes(names, reference.model)
        self._judged: dict[bool, bool] = {}

    def run(self) -> None:
        """Compare three calls: the first, one after a switch of the mode, and one after the switch back.

        Where the module differs after the switch, its mode is locked. Where it differs in surroundings that the
        original asks about, it refuses these. Both are also noted in the program.

        Raises:
            ValidationError: when a call differs, or a common key of the `state_dict`s holds different values.
        """
        self._check_keys()
        reference, emitted, twin = self.reference, self.emitted, Twin(self.emitted)
        modes = modes_of(emitted)
        try:
            with twin.own_buffers():
                self._compare(twin, "")
                mode = emitted.training
                if reference.other is not None and not self.program.mode_locked:
                    self._switch(twin, not mode, reference.other)
                if reference.back is not None and not self.program.mode_locked:
                    self.start.restore()
                    twin.reset()
                    self._switch(twin, mode, reference.back)
                set_modes(emitted, modes)
                self.start.restore()
                twin.reset()
                self._compare(twin, "in a second call, ")
                self._guard(twin)
        finally:
            self.start.restore()
            set_modes(emitted, modes)

    def _compare(self, twin: Twin, when: str) -> None:
        found = twin.call(self.args, self.kwargs)
        for each in self._differences(self.reference.first, found):
            if not each.is_of_values or not self._is_rounding(twin, of_results=each.is_result):
                raise self._error(f"{when}{each.message}", _APPROXIMATE if each.is_bounded else _EXACT)
        pairs = zip(self.reference.first.looks, found.looks, strict=False)
        if not self.is_folded and any(expected and not actual for (expected, _), (actual, _) in pairs):
            raise self._error(f"{when}a result has no gradient, and the original's has one")

    def _difference(self, expected: Outcome, found: Outcome) -> str | None:
        """Return the first way in which a call differs from the original's, or None."""
        return next((each.message for each in self._differences(expected, found)), None)

    def _differences(self, expected: Outcome, found: Outcome) -> Iterator[Difference]:
        """Return the ways in which a call differs from the original's."""
        first = self._first
        buffers = dict(zip(first(expected.buffers), expected.buffers.values(), strict=True))
        attached = () if self.is_folded else first(expected.attached)
        expected = attrs.evolve(expected, buffers=buffers, attached=attached, assigned=first(expected.assigned))
        if self.is_folded:
            found = attrs.evolve(found, attached=())
        return differences(expected, found, self.names, self.bounds)

    def _is_rounding(self, twin: Twin, *, of_results: bool) -> bool:
        """Return whether differences of values are rounding, judged against float64: deep models amplify rounding.

        Results are judged together, and so are inputs and buffers after the call.
        """
        if of_results not in self._judged:
            now = KeptState(self.emitted, self.kept)
            self.start.restore()
            modules = self.reference.model, self.emitted
            written = self._first(self.reference.first.buffers)
            buffers = {key: name for key, name in self.names.items() if name in written}
            try:
                with twin.meanwhile():
                    if of_results:
                        accuracy = measure_accuracy(*modules, self.args, self.kwargs, tolerance=self.bounds)
                    else:
                        accuracy = measure_effects(*modules, self.args, self.kwargs, buffers, self.bounds)
                self._judged[of_results] = accuracy.is_within_bound
            except MeasurementError:
                self._judged[of_results] = False
            finally:
                now.restore()
        return self._judged[of_results]

    def _first(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names of the original's tensors, each the first of its tensor."""
        return tuple(self.first_names.get(name, name) for name in names)

    def _error(self, problem: str, remedy: str = _EXACT) -> ValidationError:
        place = first_parting(self.reference.model, self.program, self.args, self.kwargs)
        where = f"; they part at {place.name}" if place is not None else ""
        return ValidationError(
            f"the emitted module does not do what the original does: {problem}{where}",
            location=place.location if place is not None else None,
            remedy=remedy,
        )

    def _check_keys(self) -> None:
        theirs = self.reference.model.state_dict(keep_vars=True)
        for key, tensor in self.emitted.state_dict(keep_vars=True).items():
            other = theirs.get(key)
            if not isinstance(tensor, torch.Tensor) or not isinstance(other, torch.Tensor):
                continue
            if tensor.shape == other.shape and not _is_same(tensor.detach(), other.detach()):
                raise ValidationError(
                    f"the key {key!r} of the emitted module's state_dict holds other values than the original's",
                    remedy="please report it: a changed tensor has a key of its own",
                )

    # ---- other modes, other surroundings ----

    def _switch(self, twin: Twin, mode: bool, expected: Outcome) -> None:
        """Call the module after a switch of the mode, and lock its mode if it differs there."""
        (self.emitted.train if mode else self.emitted.eval)()
        problem = self._difference(expected, twin.call(self.args, self.kwargs))
        if problem is not None:
            name = "training" if mode else "eval"
            lock(self.program, f"in {name} mode it would differ from the original: {problem}")
            self.emitted.lock_mode(self.program.mode_locked)

    def _guard(self, twin: Twin) -> None:
        """Try the module in the surroundings that matter to the original; it refuses those where it differs."""
        tried = self.reference.unlike
        found = {name: known for name, known in self.program.surroundings.items() if name not in tried}
        for name, expected in self.reference.unlike.items():
            if not SETTINGS[name].is_decided:
                self.start.restore()
                twin.reset()
                outcome = twin.call(self.args, self.kwargs, [name])
                if self._difference(expected, outcome) is None and expected.looks == outcome.looks:
                    continue
            place = self.reference.questions.get(SETTINGS[name].question)
            found[name] = Surrounding(answers_of(name, (self.args, self.kwargs)), str(place or ""))
        self.program.surroundings = found
        self.emitted.refuse(found)


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.device != b.device:
        return False
    if a.is_meta or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
        return True
    return same_content(a, b)
