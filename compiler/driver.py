"""`transform`: the whole way from a model to the module that replaces it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from compiler.lower.lower import lower
from compiler.page.compilation import compilation_page
from compiler.page.content import Page
from compiler.page.history import History, Recorder
from compiler.page.view import Viewable
from compiler.pipeline import pipeline_of
from compiler.planning import Plan
from compiler.runtime.deployable import Deployable
from compiler.scopes import check_scopes, class_names, module_classes
from compiler.targets import TARGETS, find_target
from compiler.targets.target import Target
from compiler.usercode.state import location_of_module
from ir.core import Operation
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program
from ir.verify import verify
from passes.manager.instruments import count_operations
from passes.manager.manager import Fixpoint, Instrument, Pass, PassContext, PassManager, PassResult
from passes.rewrite.driver import RewriteLog, is_computation
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.remarks import MatchRecord, Remark
from passes.rewrite.unfused import UnfusedReasons

VALIDATE_MODES = ("off", "final", "each")

_ONE_AT_A_TIME = threading.RLock()
"""Held while a model is compiled: `torch.export`, and what is recorded of runs, patch PyTorch."""

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
    history: History
    """The captured program, and what each pass made of its operations."""

    def counts(self) -> dict[str, int]:
        """Return how often each pattern was applied, in order of first application."""
        return dict(Counter(match.pattern.__name__ for match in self.matches))

    @override
    def _page(self, title: str) -> Page:
        return compilation_page(title or self.program.name, self.program, self.history, self.remarks)

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
            Without example inputs, "each" validates the rewrites only.
        progress: called with the name of each stage as it begins.
        plan: a plan of this model, made by `plan(...)`, to be followed: its rewrites are made, and no others. It has
            its target and its pipeline; neither is given then, nor `patterns`.
        strict: whether a rule that raises at a match is an error. By default the fault is reported, with a Python
            warning and a remark (`failed`), and the rule is skipped there unless it has edited the program before.

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
    wanted, manager = _pipeline(target, patterns, pipeline, plan)
    leaves = _leaves(leaf_modules)
    if progress is not None and not callable(progress):
        raise InputError(
            f"progress={progress!r} is not a function", remedy="give a function of a stage's name: `progress=print`"
        )
    # in inference mode every tensor made here would be one that no backward pass may use
    with _ONE_AT_A_TIME, torch.inference_mode(False):
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
            model, captured, wanted, manager, stages, check=check, validate=validate, plan=plan, strict=strict
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
    wanted, manager = _pipeline(target, patterns, pipeline, None)
    leaves = _leaves(leaf_modules)
    with _ONE_AT_A_TIME, torch.inference_mode(False):
        captured = capture(
            model,
            example_inputs,
            example_kwargs,
            dynamic_shapes=dynamic_shapes,
            leaf_modules=leaves,
            training=training,
            run=lambda _, function: function(),
        )
        program, modules = lower(captured), module_classes(captured)
        check_scopes(manager, program, modules)
        made = Plan(wanted, manager, program, modules, strict)
        made.rewrites  # noqa: B018 - a faulty rule is to raise here
        return made


def _pipeline(
    target: str | Target,
    patterns: Sequence[type[Pattern] | Pattern] | None,
    pipeline: PassManager | None,
    plan: Plan | None,
) -> tuple[Target, PassManager]:
    """Return target and pipeline of the arguments."""
    if plan is not None:
        if not isinstance(plan, Plan):
            raise InputError(f"plan={plan!r} is no plan", remedy="make one: `plan(model, example_inputs)`")
        if (
            patterns is not None
            or pipeline is not None
            or find_target(target) not in (plan.target, TARGETS["tensorrt"])
        ):
            raise InputError(
                "a plan has its target and its pipeline", remedy="give `plan=` alone, and the others to `plan(...)`"
            )
        return plan.target, plan.pipeline
    if pipeline is not None and not isinstance(pipeline, PassManager):
        raise InputError(f"pipeline={pipeline!r} is not a PassManager", remedy="write `pipeline=PassManager([...])`")
    wanted = find_target(target)
    if pipeline is not None and patterns is not None:
        raise InputError(
            "patterns= and pipeline= are both given, and a pipeline has its own patterns",
            remedy="leave out one: `pipeline_of(patterns)` makes the pipeline of a list of patterns, to be edited",
        )
    manager = pipeline if pipeline is not None else pipeline_of(wanted.patterns if patterns is None else patterns)
    if isinstance(manager, Fixpoint):
        manager = PassManager([manager])  # one stage, whose rounds are not told apart
    return wanted, manager


def _leaves(leaf_modules: Any) -> tuple[Any, ...]:
    # a single entry is accepted; the characters of a path are not paths
    return (leaf_modules,) if isinstance(leaf_modules, (str, nn.Module, type)) else _entries(leaf_modules)


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
) -> TransformResult:
    program: Program = stages.run("lower", lambda: lower(captured))
    before = count_operations(program)
    log = RewriteLog(modules=module_classes(captured), strict=strict)
    check_scopes(manager, program, log.modules)
    each = EachRewriteValidator() if validate == "each" else None
    log.hook = each
    following = log.veto = None if plan is None else plan.follow(log)
    recorder = Recorder(program, log)
    manager.run(program, PassContext(log=log, instruments=(stages, recorder), scope=manager.scope.bound(log.modules)))
    if plan is not None and following is not None:
        plan.check(following.rewrites(), log.misses)
    stages.run("verify", lambda: verify(program))
    emitted = stages.run("emit", lambda: emit(program))
    remarks = [*_applied(log), *log.remarks, *_kept(program, log, manager), *_left_out(captured)]
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
            stages.run("check", lambda: Check(reference, program, emitted, captured.args, captured.kwargs).run())
    if validate != "off" and captured.has_example:
        args, kwargs = captured.args, captured.kwargs
        original, names = model, emitted.parameter_map
        if isinstance(original, Program):
            assert reference is not None
            original, names = reference.model, reference.names_in(emitted)
        stages.run("validate", lambda: validate_result(original, emitted.module, args, kwargs, parameter_map=names))
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
        history=recorder.history(class_names(captured)),
    )


def _entries(leaf_modules: Any) -> tuple[Any, ...]:
    if not isinstance(leaf_modules, Iterable):
        raise InputError(
            f"leaf_modules={leaf_modules!r} is not a list",
            remedy="give submodules, their classes or their paths: `leaf_modules=['encoder.norm']`",
        )
    return tuple(leaf_modules)


def _left_out(captured: Captured) -> list[Remark]:
    """Say what forward keeps in attributes of the model, and the result does not."""
    return [
        Remark(
            "left out",
            "capture",
            location_of_module(path, captured.module.get_submodule(path)),
            f"what forward keeps in `{f'{path}.{name}'.lstrip('.')}` is computed in each call, and kept nowhere: no "
            "call depends on it",
        )
        for path, name in sorted(captured.observed.memos if captured.observed is not None else ())
        if captured.module is not None
    ]


def _applied(log: RewriteLog) -> list[Remark]:
    return [
        Remark(
            "applied",
            match.pattern.__name__,
            match.location,
            f"{', '.join(map(str, match.replaced))} became {', '.join(op.name for op in match.created) or 'nothing'}",
            match.replaced[-1].name if match.replaced else "",
        )
        for match in log.matches
    ]


def patterns_of(manager: PassManager) -> tuple[Pattern, ...]:
    """Return the patterns of all passes of a pipeline, in order."""
    found: list[Pattern] = []
    for pass_ in manager.passes:
        if isinstance(pass_, PassManager):
            found.extend(patterns_of(pass_))
        else:
            found.extend(instantiate(getattr(pass_, "patterns", ())))
    return tuple(found)


def _kept(program: Program, log: RewriteLog, manager: PassManager) -> list[Remark]:
    """Say of each computation outside of regions why it was not fused."""
    rules = tuple(rule for rule in patterns_of(manager) if rule.is_fusion)
    if not rules:
        return []

    reasons = UnfusedReasons(log, rules)

    def kept(op: Operation) -> Remark:
        opaque = op.opdef.has(Trait.OPAQUE)
        reason = "an opaque call is never moved or fused" if opaque else reasons.of(op)
        return Remark(
            "kept", "fuse", op.location, f"{op.name} at `{op.location.where}` stays: {reason}", op.name, reason
        )

    return [kept(op) for op in program.graph.operations() if op.body is None and is_computation(op)]
