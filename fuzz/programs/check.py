"""The oracle: properties that must hold after a pass or a rule was applied to a program."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import torch

from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.observation import Observation
from compiler.equality.validate_rewrites import held_to_tolerance
from compiler.usercode.tensors import storage_of
from fuzz.calls.kernels import ends_the_process
from fuzz.programs.budget import Budget
from fuzz.programs.case import Case, Kept, Outcome, outcome_of
from fuzz.programs.definite import channels_last, has_definite_gradients, is_definite, is_standard, transposed
from fuzz.programs.emission import check_emitted_run
from fuzz.programs.kinds import other_points, other_than_its_kind
from fuzz.programs.later import (
    Later,
    put_in_training,
    trained_names,
    unlike_state,
    with_data,
    with_other_dtype,
    with_other_numbers,
    without_data,
)
from fuzz.programs.observation import (
    coarsest_dtype,
    differences,
    fixes_dtypes,
    has_coarse_derivative,
    observe,
    quiet,
    under_names,
    without_gradients,
)
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.programs.retyping import untrue_type, with_types_of
from fuzz.programs.rounding import Rounding
from ir.compare import programs_equal
from ir.errors import EvaluationError, GraphwrightError, InferenceError
from ir.program import Program, copy_program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify
from passes.manager.manager import Pass, PassContext, run_pass
from passes.rewrite.bounds.reach import bounds_of

_COPIES_CHECKED_ONE_IN = 8
_OTHER_WEIGHTS_ONE_IN = 4
"""How often a changed program without weights of its own runs on other ones."""
_WITHOUT_DATA_ONE_IN = 8
_EMITTED_ONE_IN = 16


def check_case(pass_: Pass, case: Case, properties: Properties, program: Program | None = None) -> Outcome:
    """Apply a pass to a case and check the properties. The program of the case, if it is built already, is changed.

    Raises:
        Finding: when a property does not hold.
        Unusable: when the original cannot be run. An unchanged program is not run.
    """
    text = case.program
    if program is None:
        program = case.build()
        text = print_program(program)
    try:
        types = with_types_of(program, case.inputs)
        if ends_the_process(types):
            raise Unusable
    except InferenceError as error:
        raise Unusable from error
    original, revision = copy_program(program), program.graph.revision
    context = PassContext()
    context.log.hook = held_to_tolerance
    kept = Kept(case)
    with quiet():
        try:
            _apply(pass_, program, context)
            after = print_program(program)
            outcome = outcome_of(context.log, after != text)
            _demand_kept(kept, "the pass")
            bounds = bounds_of(program, context.log.approximations.listed())
            if bounds is not None:
                properties = attrs.evolve(properties, bounds=bounds, exact=False, gradients=False)
            if not outcome.changed:
                _compare_with_original(pass_, case, properties, program)
                return outcome
            if program.graph.revision == revision:
                raise Finding("revision", "the program changed, and its revision says that it did not")
            _hold("verifier", lambda: verify(program))
            state = unlike_state(original, program)
            if state is not None:
                raise Finding("state", state)
            typed = _with_true_types(program, case.inputs)
        except Finding:
            _demand_that_it_runs(case)
            raise
        # rules copy too, so a fault in copying would be on both sides
        if zlib.crc32(text.encode()) % _COPIES_CHECKED_ONE_IN == 0 and print_program(original) != text:
            raise AssertionError("a copy of the program is another program: ir.copying is wrong")
        runs = _Runs(original, case, properties, typed=original if types is program else types)
        try:
            runs.compare(program, typed)
        finally:
            _demand_kept(kept, "a run")  # a mutation explains other findings
        other = other_than_its_kind(program, typed) or other_points(program, pass_)
        if other is not None:
            raise Finding("kind", other)
        if properties.emitted and zlib.crc32(case.program.encode()) % _EMITTED_ONE_IN == 0:
            check_emitted_run(program, case.inputs)
        copy = check_text(program, after) if properties.text else Case.of(program, case.inputs).build()
        _compare_with_original(pass_, case, properties, program)
        _compare_on_later_weights(pass_, original, copy, case, properties)
        if properties.modes:
            _compare_in_training(original, copy, case, properties)
        if properties.idempotent:
            _apply(pass_, program, PassContext())
            if print_program(program) != after:
                raise Finding("idempotence", "a second application changes the program again")
    return outcome


def _demand_kept(kept: Kept, who: str) -> None:
    name = kept.mutated()
    if name is not None:
        raise Finding("inputs and weights stay", f"{who} wrote to {name}")


def _with_true_types(program: Program, inputs: Sequence[Any]) -> Program:
    """Return a program with its types on these inputs; raise a `Finding` if it says other ones."""
    try:
        typed = with_types_of(program, inputs)
    except InferenceError as error:
        raise Finding("types", str(error)) from error
    untrue = untrue_type(program, typed)
    if untrue is not None:
        raise Finding("types", untrue)
    return typed


def _demand_that_it_runs(case: Case) -> None:
    """Raise `Unusable` if the case cannot be run: type inference accepts a few operands that kernels refuse."""
    try:
        observe(case.build(), case.inputs)
    except EvaluationError as error:
        raise Unusable from error


def _apply(pass_: Pass, program: Program, context: PassContext) -> None:
    _hold("no error", lambda: run_pass(pass_, program, context))


def _hold(property_: str, action: Any) -> None:
    try:
        action()
    except GraphwrightError as error:
        raise Finding(property_, f"{type(error).__name__}: {error}") from error


def check_text(program: Program, text: str) -> Program:
    """Return the program that a text parses to, with the weights of the program that was printed.

    Raises:
        Finding: when the program does not survive printing and parsing.
    """
    try:
        parsed = parse_program(text)
    except GraphwrightError as error:
        raise Finding("text", f"what was printed does not parse: {error}") from error
    unlike = programs_equal(program, parsed)
    if unlike is not None:
        raise Finding("text", f"what was printed parses to another program: {unlike}")
    for name, weight in parsed.weights.items():
        weight.data = program.weights[name].data
    return parsed


def _compare_with_original(pass_: Pass, case: Case, properties: Properties, program: Program) -> None:
    """Raise a `Finding` if a changed program differs from the program that is equal by construction."""
    if not case.original:
        return
    original = case.of_original()
    try:
        _Runs(original.build(), original, properties).compare(program)
    except Finding as finding:
        raise Finding("reverse application", f"{finding.property}: {finding.message}") from finding
    if properties.canonical and case.one_text:
        other = original.build()
        _apply(pass_, other, PassContext())
        unlike = programs_equal(program, other, locations=False)
        if unlike is not None:
            raise Finding("one text", f"what is equal by construction becomes another program: {unlike}")


def _compare_on_later_weights(
    pass_: Pass, original: Program, changed: Program, case: Case, properties: Properties
) -> None:
    """Raise a `Finding` if a changed program differs from the original when its weights are others."""
    made = any(w.derivation is not None or name not in original.weights for name, w in changed.weights.items())
    once = attrs.evolve(properties, strides=False, gradients=False)
    number = zlib.crc32(case.program.encode())
    if properties.weights and (made or number % _OTHER_WEIGHTS_ONE_IN == 0):
        _compare_later("other weights", once, lambda: with_other_numbers(original, changed, case))
    if properties.weights and number % _WITHOUT_DATA_ONE_IN == 1 and original.weights:
        bare = without_data(original)
        _apply(pass_, bare, PassContext())
        _compare_later("weights without data", once, lambda: with_data(original, bare, case))
    if properties.converted and made:
        once = attrs.evolve(once, sharing=False)  # two buffers that share storage do not share it any more
        _compare_later("conversion", once, lambda: with_other_dtype(original, changed, case))


def _compare_later(property_: str, properties: Properties, later: Callable[[], Later | None]) -> None:
    try:
        found = later()
        if found is not None:
            original, changed, case = found
            _Runs(original, case, properties).compare(changed, once=True)
    except (Unusable, InferenceError):
        return
    except Finding as finding:
        raise Finding(property_, f"{finding.property}: {finding.message}") from finding


def _compare_in_training(original: Program, changed: Program, case: Case, properties: Properties) -> None:
    """Raise a `Finding` if a changed program differs from the original after a call of `train()`.

    Both programs are put in training.
    """
    follow = [put_in_training(program.graph) for program in (original, changed)]
    if not any(follow):
        return
    once = attrs.evolve(properties, strides=False)  # strides were compared in the present mode
    try:
        runs = _Runs(original, case, once, together=True)
    except (Unusable, InferenceError):
        return  # batch norm refuses a single value per channel, dropout integers
    try:
        runs.compare(changed)
    except Unusable:
        return
    except Finding as finding:
        raise Finding("training mode", f"{finding.property}: {finding.message}") from finding


class _Runs:
    """Runs of a program before it is changed, to be compared with runs after.

    Exact rules are compared bit by bit, others in float64. If the program fixes dtypes of its own, no run is in float64
    throughout. Then runs in its own precision may differ by as much as they differ from float64.

    Args:
        program: the program.
        case: the case, for weights and inputs.
        properties: the properties to check.
        together: whether one run of the changed program shows both values and gradients, as one of the original
            does, where both are in float64.
        typed: the program with its types on the inputs, where these are known.
    """

    def __init__(
        self,
        program: Program,
        case: Case,
        properties: Properties,
        *,
        together: bool = False,
        typed: Program | None = None,
    ) -> None:
        self.program = program
        self.case = case
        self.properties = properties
        self.typed = typed or with_types_of(program, case.inputs)
        self.budgeted = fixes_dtypes(self.typed)
        self.double = not properties.exact and not self.budgeted
        self.layouts: list[tuple[Sequence[Any], Observation]] = []
        self.slopes: Observation | None = None
        self.names: ParameterMap | None = None
        self._seen: dict[Any, Observation] = {}
        if properties.gradients:
            with suppress(EvaluationError):  # some operators have no derivative
                self.slopes = self._before(case.inputs, double=not self.budgeted, gradients=True)
        self.together = together and self.double and self.slopes is not None
        if self.together:
            return
        try:
            shown = without_gradients(self.slopes) if self.double and self.slopes is not None else None
            self.layouts.append((case.inputs, shown or self._before(case.inputs, double=self.double)))
        except EvaluationError as error:
            raise Unusable from error
        for change in (transposed, channels_last) if properties.strides else ():
            others = [change(x) for x in case.inputs]
            if any(a is not b for a, b in zip(case.inputs, others, strict=True)):
                try:
                    self.layouts.append((others, self._before(others, double=self.double)))
                except EvaluationError:
                    continue  # a view may refuse strides

    def compare(self, program: Program, typed: Program | None = None, *, once: bool = False) -> None:
        """Raise a `Finding` for the first property that does not hold of a changed program, perhaps `typed` already.

        `once` says that a second run would show nothing new.
        """
        properties = self.properties
        old = self.program.weights  # a new weight may have the name of one that is gone
        new = [w for name, w in program.weights.items() if name not in old or w.derivation is not old[name].derivation]
        if new or fixes_dtypes(typed or with_types_of(program, self.case.inputs)):
            self.budgeted = True  # new weights have the precision of the old ones
        self.names = trained_names(self.program, new)
        if self.names is None:
            # for inference: gradients end at computed weights
            if self.together and self.slopes is not None:
                self.layouts.append((self.case.inputs, self.slopes))
            self.slopes = None
        first: Observation | None = None
        for inputs, before in self.layouts:
            if properties.exact:
                after = self._compare_bits(program, inputs, before)
            else:
                after = self._compare_rounded(program, inputs, before)
            first = first or after
        if not once and (self.slopes is None or self.budgeted):
            self._compare_second_run(program, first)  # else the run with gradients is a second one
        if self.slopes is not None:
            self._compare_rounded(program, self.case.inputs, self.slopes, gradients=True)

    def _compare_second_run(self, program: Program, first: Observation | None) -> None:
        """Raise a `Finding` if a second run of a changed program differs from the first."""
        double = self.double and not self.budgeted
        first = first or self._after(program, self.case.inputs, double=double)
        again = self._after(program, self.case.inputs, double=double)
        for name, message in differences(first, again):
            raise Finding("second run", f"{name}: {message}")

    def _compare_bits(self, program: Program, inputs: Sequence[Any], before: Observation) -> Observation:
        after = self._after(program, inputs)
        for name, message in differences(before, after):
            if name in ("values", "strides") and not is_definite(self.program, inputs):
                self._compare_rounded(program, inputs)
            elif self._counts(name, inputs):
                raise Finding(name, message)
        return after

    def _compare_rounded(
        self, program: Program, inputs: Sequence[Any], before: Observation | None = None, *, gradients: bool = False
    ) -> Observation:
        """Compare in float64, or in the program's own precision if it fixes dtypes. `before` is in float64."""
        run = partial(observe, self.program, inputs, gradients=gradients)
        double = partial(run, double=True)
        if self.budgeted or before is None:
            try:
                before = self._before(inputs, double=not self.budgeted, gradients=gradients)
            except EvaluationError as error:
                raise Unusable from error
        own = before
        budget = Budget(Rounding(double, exact=double))
        if self.budgeted:

            def exact() -> Observation:
                try:
                    return self._before(inputs, double=True, gradients=gradients)
                except EvaluationError:
                    return own  # fixed dtypes cannot be mixed with float64

            budget = Budget(Rounding(run, exact=double), exact, coarsest_dtype(self.typed), may_overflow=True)
        elif gradients and any(map(has_coarse_derivative, (self.program, program))):
            budget = Budget(budget.rounding, lambda: own, torch.float32)
        budget.values, budget.bounds = self.properties.values, self.properties.bounds
        after = self._after(program, inputs, double=not self.budgeted, gradients=gradients)
        for name, message in differences(before, after, budget, self.names):
            if not self._counts(name, inputs) or (name == "strides" and not is_definite(self.program, inputs)):
                continue
            if name == "gradients" and not has_definite_gradients(self.program, inputs):
                continue
            raise Finding(name, message)
        return after

    def _before(self, inputs: Sequence[Any], *, double: bool = False, gradients: bool = False) -> Observation:
        """Observe the original, once on inputs that are one object."""
        key = id(inputs), double, gradients
        if key not in self._seen:
            self._seen[key] = observe(self.program, inputs, double=double, gradients=gradients)
        return self._seen[key]

    def _after(
        self, program: Program, inputs: Sequence[Any], *, double: bool = False, gradients: bool = False
    ) -> Observation:
        """Observe a changed program; weights that are views of the original's have the names of those."""
        try:
            seen = observe(program, inputs, double=double, gradients=gradients)
        except EvaluationError as error:
            raise Finding("it still runs", str(error)) from error
        places = {storage_of(t): name for name, t in self.case.weights.items() if t.numel()}
        names: dict[str, str] = {}
        for name, weight in program.weights.items():
            if weight.data is not None and name not in self.case.weights:
                names[name] = places.get(storage_of(weight.data), name)
        return under_names(seen, names) if names else seen

    def _counts(self, name: str, inputs: Sequence[Any]) -> bool:
        """Return whether a difference in this property counts."""
        if (name == "strides" and not self.properties.strides) or (name == "sharing" and not self.properties.sharing):
            return False
        # rules assume contiguous or channels_last inputs; for others, sharing depends on strides too (`contiguous`
        # returns its operand or a copy)
        return name not in ("strides", "sharing") or self.properties.exact or all(map(is_standard, inputs))
