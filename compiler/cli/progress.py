"""A progress bar over the stages of a compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from passes.manager.manager import PassManager


def count_stages(pipeline: PassManager, *, validate: bool = False, measure: bool = False) -> int:
    """Return how many stages `transform` announces for a pipeline, and one more when errors are measured after it."""
    return len(("capture", "lower", "verify", "emit")) + len(pipeline.passes) + validate + measure


@contextmanager
def stage_progress(
    title: str, total: int, console: Console, *, transient: bool = False
) -> Iterator[Callable[[str], None]]:
    """Show a bar while the block runs; yield the function to call with the name of each stage as it begins.

    The bar is full when the block ends normally; a failure leaves it where it is. On a console that is no terminal
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
