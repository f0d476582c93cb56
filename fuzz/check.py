"""The oracles: what must hold when a pass or a rule has been applied to a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch

from fuzz.case import Case
from fuzz.observation import (
    Observation,
    differences,
    has_casts,
    is_definite,
    observe,
    quiet,
    tensor_difference,
)
from ir.compare import programs_equal
from ir.errors import EvaluationError, GraphwrightError
from ir.parser import parse_program
from ir.printer import print_program
from ir.program import Program
from ir.verify import verify
from passes.driver import RewriteLog, run_sweep, run_worklist
from passes.manager import Pass, PassContext, run_pass
from passes.matching import RuleIndex
from passes.pattern import Pattern


class Finding(AssertionError):  # noqa: N818 - what was found, not what failed
    """A property that does not hold: its name, and how."""

    def __init__(self, property_: str, message: str) -> None:
        self.property = property_
        self.message = message
        super().__init__(f"{property_}: {message}")


class Unusable(Exception):  # noqa: N818 - control flow: nothing is wrong with the rule
    """The program does not run on these inputs as it is, so there is nothing to compare."""


@attrs.frozen
class ApplyRules(Pass):
    """Applies rules alone: fusions in a sweep, others until none matches."""

    name: ClassVar[str] = "apply"
    rules: tuple[Pattern, ...] = ()

    def run(self, program: Program, context: PassContext) -> None:
        """Apply the rules and record what they did."""
        index = RuleIndex(self.rules)
        if all(rule.is_fusion for rule in self.rules):
            run_sweep(program, index, context.log)
        else:
            run_worklist(program, index, context.log, record=True, report_misses=True)


@attrs.frozen
class Outcome:
    """What applying a pass to one program did."""

    fired: Counter[str]
    """Rewrites by rule."""
    refused: Counter[tuple[str, str]]
    """(rule, reason) of the matches that were refused."""
    variants: Counter[tuple[str, int]]
    """(rule, number of the alternative of its pattern) -> rewrites."""
    changed: bool
    """Whether the program is another one."""


@attrs.frozen
class Properties:
    """Which properties are demanded."""

    exact: bool = False
    """Whether results must have the same bits; else they may differ by rounding, measured in float64."""
    strides: bool = True
    """Whether the strides of results and which tensors share memory must stay."""
    gradients: bool = True
    """Whether gradients of inputs and weights must stay, measured in float64."""
    idempotent: bool = False
    """Whether a second application must change nothing."""
    text: bool = True
    """Whether the changed program must survive printing and parsing."""


def check_case(pass_: Pass, case: Case, properties: Properties, program: Program | None = None) -> Outcome:
    """Apply a pass to a case and hold the result to the properties.

    Args:
        pass_: the pass.
        case: what it is applied to.
        properties: what must hold.
        program: the program of the case where it exists already; it is changed.

    Returns:
        What the pass did.

    Raises:
        Finding: when a property does not hold.
        Unusable: when the program as it is cannot be run.
    """
    program = case.build() if program is None else program
    runs = _Runs(program, case.inputs, properties)
    context = PassContext()
    text = print_program(program)
    with quiet():
        _apply(pass_, program, context)
        changed = print_program(program) != text
        outcome = _outcome(context.log, changed)
        if not changed:
            return outcome
        _hold("verifier", lambda: verify(program))
        runs.compare(program, case)
        if properties.text:
            _check_text(program)
        if properties.idempotent:
            after = print_program(program)
            _apply(pass_, program, PassContext())
            if print_program(program) != after:
                raise Finding("idempotence", "a second application changes the program again")
    return outcome


def _outcome(log: RewriteLog, changed: bool) -> Outcome:
    fired = Counter({name: count for name, count in log.counts.items() if not name.endswith(" refused")})
    refused = Counter((remark.rule, remark.message) for remark in log.remarks)
    return Outcome(fired, refused, log.variants, changed)


def _apply(pass_: Pass, program: Program, context: PassContext) -> None:
    _hold("no error", lambda: run_pass(pass_, program, context))


def _hold(property_: str, action: Any) -> None:
    try:
        action()
    except GraphwrightError as error:
        raise Finding(property_, f"{type(error).__name__}: {error}") from error


def _check_text(program: Program) -> None:
    text = print_program(program)
    try:
        parsed = parse_program(text)
    except GraphwrightError as error:
        raise Finding("text", f"what was printed does not parse: {error}") from error
    unlike = programs_equal(program, parsed)
    if unlike is not None:
        raise Finding("text", f"what was printed parses to another program: {unlike}")


class _Runs:
    """The runs of a program before it is changed, to be compared with those after."""

    def __init__(self, program: Program, inputs: Sequence[Any], properties: Properties) -> None:
        self.properties = properties
        self.layouts: list[tuple[Sequence[Any], Observation]] = []
        self.inputs = inputs
        exact = properties.exact
        try:
            self.layouts.append((inputs, observe(program, inputs, double=not exact)))
        except EvaluationError as error:
            raise Unusable from error
        for change in (transposed, channels_last) if properties.strides else ():
            others = [change(x) for x in inputs]
            if any(a is not b for a, b in zip(inputs, others, strict=True)):
                try:
                    self.layouts.append((others, observe(program, others, double=not exact)))
                except EvaluationError:
                    continue  # a view may refuse strides
        self.bound: tuple[float, ...] | None = None
        if not exact and has_casts(program):
            self.bound = _own_errors(self.layouts[0][1], observe(program, inputs))
        self.slopes: Observation | None = None
        if properties.gradients:
            try:
                self.slopes = observe(program, inputs, double=True, gradients=True)
            except EvaluationError:
                self.slopes = None  # some operators have no derivative

    def compare(self, program: Program, case: Case) -> None:
        """Raise a `Finding` for the first property that a changed program does not have."""
        properties = self.properties
        for inputs, before in self.layouts:
            after = _observe(program, inputs, double=not properties.exact)
            if self.bound is not None:
                problem = _within(before, after, self.bound)
                if problem is not None:
                    raise Finding("values", problem)
                continue
            for name, message in differences(before, after, exact=properties.exact):
                if name in ("strides", "sharing") and not properties.strides:
                    continue
                if name in ("values", "strides") and not is_definite(case.build(), inputs):
                    self._compare_doubles(program, case, inputs)
                    continue
                raise Finding(name, message)
        if self.slopes is not None and self.bound is None:
            after = _observe(program, self.inputs, double=True, gradients=True)
            for name, message in differences(self.slopes, after, exact=False):
                if name in ("values", "gradients"):
                    raise Finding("gradients" if name == "gradients" else "values in float64", message)

    def _compare_doubles(self, program: Program, case: Case, inputs: Sequence[Any]) -> None:
        before, after = observe(case.build(), inputs, double=True), _observe(program, inputs, double=True)
        for name, message in differences(before, after, exact=False):
            if name == "values":
                raise Finding("values in float64", message)


def _observe(program: Program, inputs: Sequence[Any], **options: Any) -> Observation:
    try:
        return observe(program, inputs, **options)
    except EvaluationError as error:
        raise Finding("it still runs", str(error)) from error


def _own_errors(exact: Observation, own: Observation) -> tuple[float, ...]:
    """Return for each result how far the program's own precision is from float64."""
    errors = []
    for a, b in zip(exact.results, own.results, strict=True):
        error = 0.0
        if isinstance(a, torch.Tensor) and a.is_floating_point() and a.numel():
            gap = (a.double() - b.double()).abs()
            finite = gap[gap.isfinite()]
            scale = a[a.isfinite()].abs()
            error = 2 * float(finite.max()) if finite.numel() else 0.0
            error += 1e-6 * float(scale.max()) if scale.numel() else 0.0
        errors.append(error)
    return tuple(errors)


def _within(before: Observation, after: Observation, bounds: Sequence[float]) -> str | None:
    for i, (a, b, bound) in enumerate(zip(before.results, after.results, bounds, strict=True)):
        problem = tensor_difference(a, b, exact=False, bound=bound)
        if problem is not None:
            return f"result {i}: {problem}, of which {bound:.3g} is allowed"
    return None


def transposed(x: Any) -> Any:
    """Return an equal tensor whose memory runs through the dimensions in the reverse order."""
    if not isinstance(x, torch.Tensor) or x.dim() < 2:
        return x
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channels_last(x: Any) -> Any:
    """Return an equal tensor in channels_last, where it has four dimensions."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last)
