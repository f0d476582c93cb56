"""A compilation under a progress bar, and its report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torch.export import ExportedProgram

from compiler.capture.boundary.runs import on_meta
from compiler.capture.inputs import has_example
from compiler.driver import TransformResult, transform
from compiler.equality.accuracy import Accuracy, MeasurementError, measure_accuracy
from compiler.report import Report, make_report
from passes.manager.manager import Fixpoint, PassManager
from passes.manager.timing import Timing


def compile_and_report(
    title: str,
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None = None,
    *,
    pipeline: PassManager,
    console: Console,
    unmeasured: str = "",
    transient: bool = False,
    timing: Timing | None = None,
    **options: Any,
) -> tuple[TransformResult, Report]:
    """Compile a model under a progress bar, and report it with its error, unless `unmeasured` says why not.

    Arguments and options are those of `transform`; a `transient` bar goes away at the end; `timing` measures all.
    """
    total = _count_stages(module, args, kwargs, pipeline, **options) + (not unmeasured)
    accuracy: Accuracy | None = None
    if timing is not None:
        pipeline = pipeline.with_instruments(timing)
    with stage_progress(title, total, console, transient=transient) as bar:

        def begin(stage: str) -> None:
            bar(stage)
            if timing is not None:
                timing.stage(stage)

        result = transform(module, args, kwargs, pipeline=pipeline, progress=begin, **options)
        if not unmeasured:
            begin("measure")
            try:
                accuracy = measure_accuracy(
                    module,
                    result.model,
                    args or (),
                    kwargs,
                    parameter_map=result.parameter_map,
                    tolerance=result.bounds,
                )
            except MeasurementError as error:
                unmeasured = error.message
    return result, make_report(result, model=title, accuracy=accuracy, accuracy_note=unmeasured)


def _count_stages(
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    pipeline: PassManager,
    *,
    check: bool = True,
    validate: str = "off",
    **_: Any,
) -> int:
    """Return how many stages `transform` begins with these arguments."""
    own = ["capture", "lower", "verify", "emit"]
    if has_example(module, args, kwargs):
        if not on_meta(module, args or (), kwargs or {}):
            own += ["observe"] * isinstance(module, nn.Module) + ["check"] * check
        own += ["validate"] * (validate != "off")
    return len(own) + (1 if isinstance(pipeline, Fixpoint) else len(pipeline.passes))


@contextmanager
def shown(timing: Timing | None, *, tree: bool, trace: Path | None) -> Iterator[None]:
    """Print the tree of a timing to standard error after the block, and write its trace, when the block fails too."""
    try:
        yield
    finally:
        if timing is not None:
            timing.stage("")
            if tree:
                sys.stderr.write(f"{timing}\n")
            if trace is not None:
                timing.save_trace(trace)


@contextmanager
def stage_progress(
    title: str, total: int, console: Console, *, transient: bool = False
) -> Iterator[Callable[[str], None]]:
    """Show a bar while the block runs; yield the function to call with the name of each stage as it begins.

    The bar is full when the block ends normally; a failure leaves it where it is. On a console that is not a terminal
    only its last state is printed, and with `transient` nothing.
    """
    columns = (
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=transient, disable=transient and not console.is_terminal) as bar:
        task = bar.add_task("", total=total, title=title)
        begun = 0

        def begin(stage: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=stage)
            begun += 1

        yield begin
        bar.update(task, completed=total, description="done")
