"""`make demo`: compiles ResNet-50, ConvNeXt-Tiny and ViT-B/16, and reports what changed and how exact the result is.

The models are torchvision's at full size, with random weights and randomised BatchNorm statistics.
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.models import example_input, real_model
from compiler.cli.progress import count_stages, stage_progress
from compiler.driver import transform
from compiler.equality.accuracy import MeasurementError, measure_accuracy
from compiler.pipeline import pipeline_of
from compiler.report import Report, make_report, print_report
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from ir.errors import GraphwrightError

DEMO_MODELS = {"resnet50": "ResNet-50", "convnext_tiny": "ConvNeXt-Tiny", "vit_b_16": "ViT-B/16"}
"""Names as `real_model` takes them, and as people write them."""


def compile_and_report(name: str, title: str, console: Console) -> Report:
    """Compile one of `REAL_MODELS` with a progress bar and return the report, its error measured.

    Raises:
        GraphwrightError: when the model cannot be made or compiled.
    """
    model = real_model(name)
    images = example_input(batch=1)
    pipeline = pipeline_of(TENSORRT_PATTERNS)
    accuracy, note = None, ""
    with stage_progress(title, count_stages(pipeline, measure=True), console) as begin:
        result = transform(model, (images,), pipeline=pipeline, progress=begin)
        begin("measure")
        try:
            accuracy = measure_accuracy(model, result.model, (images,), parameter_map=result.parameter_map)
        except MeasurementError as error:
            note = error.message
    return make_report(result, model=title, accuracy=accuracy, accuracy_note=note)


def main() -> int:
    """Run the demo; return 0 when every emitted module is as exact as its original."""
    console = Console()
    exact = True
    for name, title in DEMO_MODELS.items():
        try:
            report = compile_and_report(name, title, console)
        except GraphwrightError as error:
            console.print(f"{title}: {error}", style="red", markup=False)
            return 1
        print_report(report, console)
        exact &= report.accuracy is not None and report.accuracy.is_within_bound
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
