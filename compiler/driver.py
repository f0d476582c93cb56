"""`transform`: the whole way from a model to the module that replaces it."""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from typing_extensions import override

from compiler.capture.capture import capture
from compiler.capture.captured import Captured
from compiler.capture.inputs import has_example
from compiler.codegen import emit
from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.check import Check, reference_of
from compiler.equality.validate import validate_result
from compiler.equality.validate_rewrites import EachRewriteValidator
from compiler.explain.explain import explain
from compiler.explain.explanation import Explanation
from compiler.explain.replay import Replay
from compiler.lower.lower import lower
from compiler.page.compilation import compilation_page
from compiler.page.content import Page
from compiler.page.history import history_of
from compiler.page.view import Viewable
from compiler.planning import Plan
from compiler.prepare import ONE_AT_A_TIME, as_leaves, prepare, target_and_pipeline
from compiler.remarks import applied, approximated, kept, left_out
from compiler.reproducer import Reproducers
from compiler.runtime.deployable import Deployable
from compiler.savefiles import check_folder
from compiler.scopes import check_scopes, module_classes
from compiler.targets.target import Target
from ir.errors import InputError, VerificationError
from ir.paths import checked_path
from ir.program import Program, copy_program
from ir.verify import verify
from passes.manager.base import answering
from passes.manager.instruments import count_operations
from passes.manager.manager import Fixpoint, Instrument, Pass, PassContext, PassManager, PassResult
from passes.rewrite.bounds.reach import bounds_of
from passes.rewrite.bounds.tolerance import Approximation, Bounds, Tolerance, composed
from passes.rewrite.driver import RewriteLog
from passes.rewrite.pattern import Pattern
from passes.rewrite.remarks import MatchRecord, Remark

VALIDATE_MODES = ("off", "final", "each")

Progress = Callable[[str], None]
"""Called with the name of each stage when it begins: observe, capture, lower, canonicalize, …, verify, emit, check,
validate."""


@attrs.frozen
class StageTime:
    """Seconds that one stage took."""

    name: str
    seconds: float


@attrs.define(eq=False, repr=False)
class TransformResult(Deployable, Viewable):
    """What `transform` returns."""

    model: GraphModule
    """The emitted module."""
    matches: tuple[MatchRecord, ...]
    """The applied rewrites, in order."""
    remarks: tuple[Remark, ...]
    """What fired, which near misses did not, and what was not rewritten; each with the reason."""
    target: Target
    """The target, whose table says where a quantized model has integers."""
    program: Program
    """The IR; `print(result.program)` is its text form."""
    parameter_map: ParameterMap
    """New `state_dict` key -> original key(s); `parameter_map.convert(checkpoint)` converts a checkpoint."""
    stages: tuple[StageTime, ...]
    """Seconds of each stage, in order."""
    operations_before: Mapping[str, int]
    """Operators of the captured program and how often they occur."""
    operations_after: Mapping[str, int]
    """Operators of the emitted program; a fused region counts as one."""
    approximations: tuple[Approximation, ...]
    """Rules and passes that changed numbers on purpose, each with its bound, how often it did, and what it reaches."""
    bounds: Bounds | None
    """How far each result, and each buffer after a call, may differ on purpose; None where nothing does."""
    _replay: Replay = attrs.field(eq=False)

    @property
    def tolerance(self) -> Tolerance | None:
        """How far results may differ on purpose: the bounds of `approximations` together; None without any.

        A result that only some of them reach may differ less: `bounds` has each.
        """
        return composed(self.approximations)

    def explain(self, at: Any = None, *, rule: Any = None) -> Explanation:
        """Say what became of a place in the model, through which rules, and how far other rules got; `print` it.

        The pipeline runs again, on a copy of the captured program.

        Args:
            at: a module path or a glob (`"layer2.0.conv1"`, `"layer4.*"`), an operator (`"aten.gelu"`), a value of the
                printed program (`"%relu_2"`), a line (`"net.py:12"`), or a `Value` or `Operation` of `program`; by
                default all of the model.
            rule: the name or the class of a rule of the pipeline: how far it got there, however far that was.

        Raises:
            InputError: when the model has no such place, or the pipeline no such rule; the error names what is near.
        """
        with ONE_AT_A_TIME:
            return explain(self._replay, self.program, at, rule)

    def counts(self) -> dict[str, int]:
        """Return how often each pattern was applied, in order of first application."""
        return dict(Counter(match.pattern.__name__ for match in self.matches))

    @override
    def _page(self, title: str) -> Page:
        with ONE_AT_A_TIME:
            history = history_of(self._replay, [match.pattern.__name__ for match in self.matches])
        return compilation_page(title or self.program.name, history, self.remarks)

    def __repr__(self) -> str:
        before, after = (sum(counts.values()) for counts in (self.operations_before, self.operations_after))
        lines = [f"TransformResult: {type(self.model).__name__}, {before} operations before, {after} after"]
        for kind in ("conversion", "fusion", "rewrite"):
            counts = Counter(match.pattern.__name__ for match in self.matches if match.kind == kind)
            if counts:
                total = counts.total()
                names = ", ".join(f"{name} {count}" for name, count in counts.items())
                lines.append(f"  {total} {kind}{'s' if total > 1 else ''}: {names}")
        if not self.matches:
            lines.append("  no rewrites")
        lines.append("  result.model is the module, result.remarks says why, print(result.program) is the IR")
        return "\n".join(lines)


@attrs.define(eq=False)
class _Stages(Instrument):
    """Times the stages, of which each pass of the pipeline is one, and tells the progress display of each."""

    progress: Progress | None
    passes: tuple[Pass, ...]
    times: list[StageTime] = attrs.field(factory=list)
    _running: Pass | None = None

    def run(self, name: str, function: Callable[[], Any]) -> Any:
        self._begin(name)
        start = time.perf_counter()
        result = function()
        self.times.append(StageTime(name, time.perf_counter() - start))
        return result

    def _begin(self, name: str) -> None:
        if self.progress is not None:
            self.progress(name)

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        if self._running is None and any(pass_ is each for each in self.passes):
            self._running = pass_
            self._begin(_stage_name(pass_))

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        if pass_ is self._running:
            self._running = None
            self.times.append(StageTime(_stage_name(pass_), result.seconds))


def _stage_name(pass_: Pass) -> str:
    return "+".join(inner.title for inner in pass_.passes) if type(pass_) is Fixpoint else pass_.title


def transform(
    model: nn.Module | ExportedProgram | GraphModule | Program,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target = "tensorrt",
    patterns: Sequence[type[Pattern] | Pattern] | None = None,
    pipeline: PassManager | None = None,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] | str | nn.Module | type[nn.Module] = (),
    training: bool | None = None,
    check: bool = True,
    validate: str = "off",
    progress: Progress | None = None,
    plan: Plan | None = None,
    strict: bool = False,
    reproducer_dir: str | os.PathLike[str] | None = None,
) -> TransformResult:
    """Compile a model and return the module that replaces it, with the reasons for all that was done.

    Args:
        model: an `nn.Module` (captured with `torch.export` in the modes its submodules are in), an `ExportedProgram`,
            an `fx.GraphModule`, or a `Program` (one that was loaded, edited or parsed, whose weights have data). The
            model is not changed; the result shares its weights' storage.
        example_inputs: the positional arguments of one call (a bare tensor is accepted). May be left out for an
            `ExportedProgram`, a `Program`, and for an `fx.GraphModule`, whose types then come from the metadata of
            `ShapeProp` or are unknown; an `nn.Module` without inputs is traced with torch.fx to such a graph.
        example_kwargs: the keyword arguments of that call.
        target: the runtime: "tensorrt", "onnxruntime", "openvino", or a `Target` of your own. It names the conversions
            and fusions, and where a quantized model has integers.
        patterns: pattern classes in place of the target's conversions and fusions; conversions are applied until none
            matches, then the others, longest first.
        pipeline: a PassManager to run in place of the target's; `patterns` is not given then.
        dynamic_shapes: as in `torch.export.export`.
        leaf_modules: submodules (as objects, classes or module paths) to keep as opaque calls; a single one may
            stand alone.
        training: the mode that an `ExportedProgram` was captured in, where no layer of its graph tells: without it,
            `train()` and `eval()` of the result raise then, if its code asks for the mode.
        check: whether the emitted module is called beside the original on the example inputs before it is returned: as
            it is, after a switch of its mode, and once more. With the runs in which the model is observed before the
            capture these are six forward passes; up to three more try other orders of the keys where an argument is a
            dict of several. Left out without example inputs, and on the meta device.
        validate: "off"; "final" compares original and result on random inputs; "each" also validates every rewrite.
            Without example inputs, "each" validates the rewrites only. Here and in the check, rules and passes that
            change numbers on purpose are held to the bounds that they state, in the results that they can reach; all
            else is held to rounding.
        progress: called with the name of each stage as it begins.
        plan: a plan of this model, made by `plan(...)`, to be followed: its rewrites are made, and no others. It has
            its target and its pipeline; neither is given then, nor `patterns`.
        strict: whether a rule that raises at a match is an error. By default the fault is reported, with a Python
            warning and a remark (`failed`), and the rule is skipped there unless it has edited the program before.
        reproducer_dir: a folder. Where a pass raises, the program as it was before is written to a folder in it, with
            the pass and what else runs it again: `graphwright opt --run-reproducer FOLDER`. The error names it.

    Raises:
        GraphwrightError: InputError for wrong arguments, and for another model than was planned; CaptureError when the
            model cannot be captured, PatternError and PassError for faulty patterns and passes, ValidationError when a
            check finds a difference.

    May be called from several threads: one call works at a time, since tracing patches PyTorch. Other threads must not
    run models meanwhile: `torch.export` takes their calls for those of the traced model.
    """
    if validate not in VALIDATE_MODES:
        raise InputError(f"validate={validate!r}", remedy=f"use one of {', '.join(map(repr, VALIDATE_MODES))}")
    if validate == "final" and not has_example(model, example_inputs, example_kwargs):
        raise InputError(f"validate={validate!r} needs example inputs", remedy="pass `example_inputs`")
    for option, given in (("check", check), ("strict", strict)):
        if not isinstance(given, bool):
            raise InputError(f"{option}={given!r}", remedy="give True or False")
    wanted, manager = target_and_pipeline(target, patterns, pipeline, plan)
    leaves = as_leaves(leaf_modules)
    if progress is not None and not callable(progress):
        raise InputError(
            f"progress={progress!r} is not a function", remedy="give a function of a stage's name: `progress=print`"
        )
    reproducers = None
    if reproducer_dir is not None:
        reproducers = checked_path(reproducer_dir, "the folder `reproducer_dir`", "faults")
        check_folder(reproducers)
    # in inference mode every tensor made here would be one that no backward pass may use
    with ONE_AT_A_TIME, torch.inference_mode(False):
        stages = _Stages(progress, manager.passes)
        captured = capture(
            model,
            example_inputs,
            example_kwargs,
            dynamic_shapes=dynamic_shapes,
            leaf_modules=leaves,
            training=training,
            run=stages.run,
        )
        return _compiled(
            model,
            captured,
            wanted,
            manager,
            stages,
            check=check,
            validate=validate,
            plan=plan,
            strict=strict,
            reproducers=reproducers,
        )


def plan(
    model: nn.Module | ExportedProgram | GraphModule | Program,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target = "tensorrt",
    patterns: Sequence[type[Pattern] | Pattern] | None = None,
    pipeline: PassManager | None = None,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] | str | nn.Module | type[nn.Module] = (),
    training: bool | None = None,
    strict: bool = False,
) -> Plan:
    """List the rewrites that `transform` would make of a model, to switch some of them off; nothing is made.

    The arguments are those of `transform`, to which the plan is given: `transform(model, inputs, plan=plan)`.

    Raises:
        GraphwrightError: InputError for wrong arguments, CaptureError when the model cannot be captured, PatternError
            and PassError for faulty patterns and passes.
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
        made = Plan(prepared.target, prepared.manager, prepared.program, prepared.modules, strict)
        made.rewrites  # noqa: B018 - a faulty rule is to raise here
        return made


def _compiled(
    model: nn.Module | ExportedProgram | GraphModule | Program,
    captured: Captured,
    target: Target,
    manager: PassManager,
    stages: _Stages,
    *,
    check: bool,
    validate: str,
    plan: Plan | None,
    strict: bool,
    reproducers: Path | None,
) -> TransformResult:
    program: Program = stages.run("lower", lambda: lower(captured))
    before = count_operations(program)
    log = RewriteLog(modules=module_classes(captured), strict=strict)
    check_scopes(manager, program, log.modules)
    replay = Replay(copy_program(program), manager, log.modules, strict, copy.copy(plan))
    each = EachRewriteValidator() if validate == "each" else None
    log.hook = each
    following = log.veto = None if plan is None else plan.follow(log)
    instruments: tuple[Instrument, ...] = (stages,)
    if reproducers is not None:
        instruments += (Reproducers(reproducers, (manager,), log.modules, strict, validate),)
    context = PassContext(log=log, instruments=instruments, scope=manager.scope.bound(log.modules))
    try:
        with answering(manager, program, context):
            manager.run(program, context)
        if plan is not None and following is not None:
            plan.check(following.rewrites(), log.misses)
        stages.run("verify", lambda: verify(program))
    except VerificationError as error:
        raise replay.blamed(error) from error
    emitted = stages.run("emit", lambda: emit(program))
    approximations = log.approximations.listed()
    bounds = bounds_of(program, approximations)
    remarks = [*applied(log), *log.remarks, *kept(program, log, manager), *left_out(captured)]
    remarks += approximated(approximations, program)
    reference = reference_of(model, captured) if check or isinstance(model, Program) else None
    if check:
        if reference is None:
            remarks.append(
                Remark(
                    "unchecked",
                    "check",
                    program.location,
                    "the result was not compared with the original: "
                    "there are no example inputs, or they have no numbers",
                )
            )
        else:
            call = captured.args, captured.kwargs
            stages.run("check", lambda: Check(reference, program, emitted, *call, bounds).run())
    if validate != "off" and captured.has_example:
        args, kwargs = captured.args, captured.kwargs
        original, names = model, emitted.parameter_map
        if isinstance(original, Program):
            assert reference is not None
            original, names = reference.model, reference.names_in(emitted)
        stages.run(
            "validate",
            lambda: validate_result(original, emitted.module, args, kwargs, parameter_map=names, bounds=bounds),
        )
    if each is not None:
        remarks.extend(each.remarks())
    return TransformResult(
        model=emitted.module,
        matches=tuple(log.matches),
        remarks=tuple(remarks),
        target=target,
        program=program,
        parameter_map=emitted.parameter_map.with_extra_state(captured.module),
        stages=tuple(stages.times),
        operations_before=before,
        operations_after=count_operations(program),
        approximations=approximations,
        bounds=bounds,
        replay=replay,
    )
