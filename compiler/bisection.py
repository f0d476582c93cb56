"""`bisect`: which rewrite of a pipeline makes its result wrong."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from compiler.codegen import emit
from compiler.equality.check import Check, reference_of
from compiler.equality.validate import validate_result
from compiler.planning import without_instruments
from compiler.prepare import ONE_AT_A_TIME, Prepared, prepare
from compiler.programfile import save_program
from compiler.savefiles import SaveError, check_folder
from compiler.steps import Step, Steps
from compiler.targets.target import Target
from ir.errors import GraphwrightError, InputError
from ir.paths import checked_path
from ir.program import Program, copy_program
from ir.text.printer import print_program
from ir.verify import verify
from passes.manager.base import answering
from passes.manager.instruments import diff_of
from passes.manager.manager import PassContext, PassManager
from passes.rewrite.bounds.reach import bounds_of
from passes.rewrite.bounds.tolerance import Bounds
from passes.rewrite.driver import RewriteLog
from passes.rewrite.pattern import Pattern
from passes.rewrite.scope import ModuleClasses

NEVER, BEFORE, FOUND = "never wrong", "wrong before the first step", "found"
"""The verdicts."""

Judge = Callable[[Program, Bounds | None], str | None]
"""Returns why a program is wrong, or None where it is right; told how far its steps changed numbers on purpose."""

Report = Callable[[str], None]
"""Told of each check."""


class UntestableError(Exception):
    """Of one program it cannot be told whether it is right."""


@attrs.frozen(eq=False, repr=False)
class Bisection:
    """What a bisection found; `print` shows it.

    Attributes:
        verdict: "found", "never wrong", or "wrong before the first step".
        steps: how many steps the whole pipeline takes: rewrites, and runs of passes.
        checks: how many programs were checked.
        reason: why the result is wrong.
        culprit: the step with which it becomes wrong.
        is_alone: whether the result is right when that step alone is left out; None where that cannot be told.
        untested: steps before the culprit of which it could not be told whether the result is wrong already.
        before: the program before the culprit.
        after: the program after it; no other step follows.
    """

    verdict: str
    steps: int
    checks: int
    reason: str = ""
    culprit: Step | None = None
    is_alone: bool | None = None
    untested: tuple[int, ...] = ()
    before: Program | None = None
    after: Program | None = None

    @property
    def diff(self) -> str:
        """The unified diff of the programs before and after the culprit; empty without one."""
        if self.before is None or self.after is None or self.culprit is None:
            return ""
        title = self.culprit.rule or self.culprit.pass_
        return diff_of(print_program(self.before), print_program(self.after), title)

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the programs before and after the culprit, and their diff; return the files.

        Raises:
            InputError: when there is no culprit, or the folder is a file.
            SaveError: when a file cannot be written.
        """
        if self.before is None or self.after is None:
            raise InputError(f"there is nothing to save: {self.verdict}")
        place = checked_path(folder, "the folder", "found")
        check_folder(place)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"cannot make the folder {place}: {error.strerror or error}") from error
        files = (place / "before.gw", place / "after.gw", place / "change.diff")
        for program, file in zip((self.before, self.after), files, strict=False):
            save_program(program, file, weights=has_data(program))
        files[2].write_text(self.diff, encoding="utf-8")
        return files

    def __str__(self) -> str:
        checked = f"{self.checks} checks, {self.steps} steps"
        if self.culprit is None:
            why = f": {self.reason}" if self.reason else ""
            return f"{self.verdict}{why} ({checked})"
        lines = [f"step {self.culprit.number} of {self.steps} makes it wrong: {self.culprit}"]
        for title, operations in (("before", self.culprit.replaced), ("after", self.culprit.created)):
            lines += [f"  {title}:", *(f"    {each}" for each in operations)] if operations else []
        lines.append(f"  wrong then: {self.reason}")
        if self.untested:
            lines.append(f"  or one of the steps {_listed(self.untested)}, which could not be tested")
        if self.is_alone is not None:
            lines.append(
                "  without this step alone the result is right"
                if self.is_alone
                else "  without this step alone the result is wrong as well: another step is at fault, too"
            )
        return "\n".join([*lines, f"  ({checked})"])

    __repr__ = __str__


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def has_data(program: Program) -> bool:
    """Return whether all weights of a program have numbers."""
    weights = program.weights.values()
    return bool(weights) and all(weight.data is not None and not weight.data.is_meta for weight in weights)


@attrs.frozen(eq=False)
class _Made:
    """What a pipeline makes of a program in some steps."""

    program: Program
    fault: str | None
    """Why it failed."""
    bounds: Bounds | None = None


@attrs.define(eq=False)
class Bisector:
    """Runs a pipeline on copies of a program, each time with another number of steps.

    Attributes:
        program: the program; it is not changed.
        manager: the pipeline.
        judge: says why a result is wrong.
        modules: the classes of the model's modules.
        strict: whether a rule that raises is an error.
        report: told of each check.
    """

    program: Program
    manager: PassManager = attrs.field(converter=without_instruments)
    judge: Judge
    modules: ModuleClasses = attrs.field(factory=dict)
    strict: bool = False
    report: Report | None = None
    checks: int = 0
    _total: int = 0

    def run(self) -> Bisection:
        """Bisect.

        Raises:
            GraphwrightError: when the program cannot be judged at all.
        """
        everything = self._steps()
        fault = self._judged(everything, "with all steps")
        self._total = total = everything.taken
        if fault is None:
            return Bisection(NEVER, total, self.checks)
        reasons = {total: fault}
        start = self._judged(self._steps(0), "with none")
        if start is not None:
            return Bisection(BEFORE, total, self.checks, start)
        right, wrong, unknown = 0, total, set[int]()
        while (middle := _middle(right, wrong, unknown)) is not None:
            try:
                found = self._judged(self._steps(middle), f"with {middle} of {total} steps")
            except UntestableError:
                unknown.add(middle)
                continue
            if found is None:
                right = middle
            else:
                wrong, reasons[middle] = middle, found
        return self._found(wrong, reasons[wrong], tuple(sorted(n for n in unknown if right < n < wrong)))

    def _found(self, number: int, reason: str, untested: tuple[int, ...]) -> Bisection:
        before, after = self._steps(number - 1), self._steps(number)
        programs = [self._program(steps).program for steps in (before, after)]
        step = after.described
        if step is None:
            raise GraphwrightError(
                f"step {number} of {self._total} makes the result wrong, and no such step was met again",
                remedy="the passes are not deterministic: let what they do depend on the program alone",
            )
        is_alone = None
        if number < self._total:
            try:
                is_alone = self._judged(Steps(without=number), f"without step {number} alone") is None
            except UntestableError:
                is_alone = None
        return Bisection(FOUND, self._total, self.checks, reason, step, is_alone, untested, *programs)

    def _steps(self, limit: int | None = None) -> Steps:
        return Steps(limit)

    def _program(self, steps: Steps) -> _Made:
        """Return what the pipeline makes of the program in some steps."""
        program = copy_program(self.program)
        log = RewriteLog(modules=self.modules, strict=self.strict, veto=steps.veto, hook=steps.hook)
        context = PassContext(log=log, instruments=(steps,), scope=self.manager.scope.bound(self.modules))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what rules say is said when the model is transformed
            try:
                with answering(self.manager, program, context):
                    self.manager.run(program, context)
                verify(program)
            except GraphwrightError as error:
                return _Made(program, str(error))
        return _Made(program, None, bounds_of(program, log.approximations.listed()))

    def _judged(self, steps: Steps, title: str) -> str | None:
        made = self._program(steps)
        self.checks += 1
        try:
            fault = self.judge(made.program, made.bounds) if made.fault is None else made.fault
        except UntestableError:
            self._say(f"{title}: it cannot be told")
            raise
        self._say(f"{title}: {'right' if fault is None else 'wrong'}")
        return fault

    def _say(self, text: str) -> None:
        if self.report is not None:
            self.report(text)


def _middle(right: int, wrong: int, unknown: set[int]) -> int | None:
    """Return the number between two that is nearest to their middle and not unknown, or None where there is none."""
    middle = (right + wrong) // 2
    candidates = (number for number in range(right + 1, wrong) if number not in unknown)
    return min(candidates, key=lambda number: abs(number - middle), default=None)


def bisect(
    model: nn.Module | ExportedProgram | GraphModule | Program,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    check: Callable[[GraphModule], bool | None] | None = None,
    target: str | Target = "tensorrt",
    patterns: Sequence[type[Pattern] | Pattern] | None = None,
    pipeline: PassManager | None = None,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] | str | nn.Module | type[nn.Module] = (),
    training: bool | None = None,
    strict: bool = False,
    progress: Report | None = None,
) -> Bisection:
    """Find the rewrite that makes the result of `transform` wrong.

    The pipeline is run on copies of the model's program, each time with its first steps only: rewrites of rules, those
    of canonicalization included, and runs of passes. A binary search over their number finds one with which the result
    becomes wrong; a pass that raises makes it wrong, too. The arguments beside these are those of `transform`.

    Args:
        model: the model.
        example_inputs: as in `transform`.
        example_kwargs: as in `transform`.
        check: called with the emitted module, which is right where it returns None or True, wrong where it returns
            False or raises. By default, the module is compared with the original on the example inputs and, as by
            `validate="final"`, on random ones.
        target: as in `transform`.
        patterns: as in `transform`.
        pipeline: as in `transform`.
        dynamic_shapes: as in `transform`.
        leaf_modules: as in `transform`.
        training: as in `transform`.
        strict: whether a rule that raises is an error.
        progress: called with a line about each check.

    Raises:
        GraphwrightError: InputError for wrong arguments, and without example inputs where there is no `check`;
            CaptureError when the model cannot be captured.
    """
    with ONE_AT_A_TIME, torch.inference_mode(False):
        prepared = prepare(
            model,
            example_inputs,
            example_kwargs,
            target=target,
            patterns=patterns,
            pipeline=pipeline,
            dynamic_shapes=dynamic_shapes,
            leaf_modules=leaf_modules,
            training=training,
        )
        judge = _comparison(model, prepared) if check is None else _asking(check)
        return Bisector(prepared.program, prepared.manager, judge, prepared.modules, strict, progress).run()


def _asking(check: Callable[[GraphModule], bool | None]) -> Judge:
    if not callable(check):
        raise InputError(f"check={check!r} is not a function", remedy="give a function of the emitted module")

    def judge(program: Program, _: Bounds | None) -> str | None:
        try:
            answer = check(emit(program).module)
        except UntestableError:
            raise
        except Exception as error:  # noqa: BLE001 - that it raises is the answer
            return f"{type(error).__name__}: {error}"
        if isinstance(answer, np.bool_) or (isinstance(answer, torch.Tensor) and answer.numel() == 1):
            answer = bool(answer)  # of a comparison of arrays
        if answer is not None and not isinstance(answer, bool):
            raise InputError(
                f"the check returned {answer!r}",
                remedy="return True or None for a right module, and False for a wrong one",
            )
        return None if answer is None or answer else "the check returned False"

    return judge


def _comparison(model: Any, prepared: Prepared) -> Judge:
    """Return what compares the module of a program with the original."""
    captured = prepared.captured
    reference = reference_of(model, captured)
    if reference is None:
        raise InputError(
            "there is nothing to compare results with: no example inputs, or they have no numbers",
            remedy="pass `example_inputs`, or a function that tells whether a module is right: `check=`",
        )

    def judge(program: Program, bounds: Bounds | None) -> str | None:
        try:
            emitted = emit(program)
            Check(reference, program, emitted, captured.args, captured.kwargs, bounds).run()
            validate_result(
                reference.model if isinstance(model, Program) else model,
                emitted.module,
                captured.args,
                captured.kwargs,
                parameter_map=reference.names_in(emitted) if isinstance(model, Program) else emitted.parameter_map,
                bounds=bounds,
            )
        except GraphwrightError as error:
            return error.message
        return None

    return judge
