"""What comes before the passes: the arguments of `transform`, the capture, the program."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from compiler.capture.capture import capture
from compiler.capture.captured import Captured
from compiler.lower.lower import lower
from compiler.pipeline import pipeline_of
from compiler.planning import Plan
from compiler.scopes import check_scopes, module_classes
from compiler.targets import TARGETS, find_target
from compiler.targets.target import Target
from ir.errors import InputError
from ir.program import Program
from passes.manager.manager import Fixpoint, PassManager
from passes.rewrite.pattern import Pattern
from passes.rewrite.scope import ModuleClasses

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is compiled: `torch.export`, and what is recorded of runs, patch PyTorch."""


@attrs.frozen(eq=False)
class Prepared:
    """A model as the first pass finds it.

    Attributes:
        target: the target.
        manager: the pipeline.
        captured: the captured model.
        program: its program.
        modules: the classes of its modules.
    """

    target: Target
    manager: PassManager
    captured: Captured
    program: Program
    modules: ModuleClasses


def prepare(
    model: nn.Module | ExportedProgram | GraphModule | Program,
    example_inputs: tuple[Any, ...] | Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target,
    patterns: Sequence[type[Pattern] | Pattern] | None,
    pipeline: PassManager | None,
    dynamic_shapes: Any,
    leaf_modules: Any,
    training: bool | None,
) -> Prepared:
    """Capture and lower a model; the arguments are those of `transform`. The caller holds `ONE_AT_A_TIME`.

    Raises:
        GraphwrightError: InputError for wrong arguments, CaptureError when the model cannot be captured.
    """
    wanted, manager = target_and_pipeline(target, patterns, pipeline, None)
    captured = capture(
        model,
        example_inputs,
        example_kwargs,
        dynamic_shapes=dynamic_shapes,
        leaf_modules=as_leaves(leaf_modules),
        training=training,
        run=lambda _, function: function(),
    )
    program, modules = lower(captured), module_classes(captured)
    check_scopes(manager, program, modules)
    return Prepared(wanted, manager, captured, program, modules)


def target_and_pipeline(
    target: str | Target,
    patterns: Sequence[type[Pattern] | Pattern] | None,
    pipeline: PassManager | None,
    plan: Plan | None,
) -> tuple[Target, PassManager]:
    """Return target and pipeline of the arguments of `transform`.

    Raises:
        InputError: when they contradict each other, or are none.
    """
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


def as_leaves(leaf_modules: Any) -> tuple[Any, ...]:
    """Return the argument `leaf_modules` as a tuple.

    Raises:
        InputError: when it is no list.
    """
    # a single entry is accepted; the characters of a path are not paths
    return (leaf_modules,) if isinstance(leaf_modules, (str, nn.Module, type)) else _entries(leaf_modules)


def _entries(leaf_modules: Any) -> tuple[Any, ...]:
    if not isinstance(leaf_modules, Iterable):
        raise InputError(
            f"leaf_modules={leaf_modules!r} is not a list",
            remedy="give submodules, their classes or their paths: `leaf_modules=['encoder.norm']`",
        )
    return tuple(leaf_modules)
