"""The progress bar, and the demo, which shows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.export import ExportedProgram

from benchmarks import demo
from compiler.cli import progress
from compiler.pipeline import pipeline_of

_EXPORTED = torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),))


@pytest.mark.parametrize(
    ("module", "args", "validate"),
    [
        (nn.Linear(2, 3), (torch.ones(1, 2),), "off"),
        (nn.Linear(2, 3), (torch.ones(1, 2),), "each"),
        (nn.Linear(2, 3), None, "each"),
        (nn.Linear(2, 3, device="meta"), (torch.ones(1, 2, device="meta"),), "off"),
        (_EXPORTED, None, "final"),
    ],
)
def test_the_bar_counts_the_stages_that_begin(
    monkeypatch: pytest.MonkeyPatch,
    module: nn.Module | ExportedProgram,
    args: tuple[torch.Tensor, ...] | None,
    validate: str,
) -> None:
    begun: list[str] = []
    totals: list[int] = []

    @contextmanager
    def shown(title: str, total: int, console: Console, *, transient: bool = False) -> Iterator[Callable[[str], None]]:
        totals.append(total)
        yield begun.append

    monkeypatch.setattr(progress, "stage_progress", shown)
    progress.compile_and_report(
        "", module, args, pipeline=pipeline_of(()), console=Console(), unmeasured="not asked", validate=validate
    )
    assert totals == [len(begun)], begun


def test_the_demo_reports_each_model_and_tells_whether_all_are_exact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(demo.DEMO_MODELS) == ["resnet50", "convnext_tiny", "vit_b_16"]
    monkeypatch.setattr(demo, "DEMO_MODELS", {"resnet18": "ResNet-18"})
    monkeypatch.setattr(demo, "_quantized", lambda console: True)  # the tests of the check run it on small nets
    monkeypatch.setenv("COLUMNS", "140")
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "10/10 " in out and "done" in out  # the progress bar
    assert re.search(r"1\s+StemConvBNActMaxPoolPattern", out)
    assert re.search(r"8\s+ConvBNAddActPattern", out)
    assert "as exact as the original" in out
