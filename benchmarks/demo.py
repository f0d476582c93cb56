"""`make demo`: compiles ResNet-50, ConvNeXt-Tiny and ViT-B/16, and reports what changed and how exact the result is.

Then it quantizes ResNet-18, and checks the file in ONNX Runtime and OpenVINO.

The models are torchvision's at full size, with random weights and randomised BatchNorm statistics.
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks.models import example_input, real_model
from compiler.cli.progress import compile_and_report
from compiler.driver import transform
from compiler.pipeline import pipeline_of
from compiler.quant.quantize import quantize
from compiler.report import print_report
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from ir.errors import GraphwrightError

DEMO_MODELS = {"resnet50": "ResNet-50", "convnext_tiny": "ConvNeXt-Tiny", "vit_b_16": "ViT-B/16"}
"""Name for `real_model` -> title."""


def main() -> int:
    """Run the demo; return 0 when every emitted module is as exact as its original."""
    console = Console()
    exact = True
    for name, title in DEMO_MODELS.items():
        try:
            model = real_model(name)
            images = (example_input(batch=1),)
            _, report = compile_and_report(
                title, model, images, pipeline=pipeline_of(TENSORRT_PATTERNS), console=console
            )
        except GraphwrightError as error:
            console.print(f"{title}: {error}", style="red", markup=False)
            return 1
        print_report(report, console)
        exact &= report.accuracy is not None and report.accuracy.is_within_bound
    return 0 if exact and _quantized(console) else 1


def _quantized(console: Console) -> bool:
    """Quantize ResNet-18, print its report and the check; return whether it is exact, in integer kernels alone."""
    calibration = [example_input(batch=1, seed=seed) for seed in range(4)]
    try:
        result = transform(real_model("resnet18"), (calibration[0],), target="onnxruntime")
        assert result.target.table is not None
        q = quantize(result, calibration, table=result.target.table.without_vnni(), bias_correction="fast")
        check = q.check("onnxruntime", "openvino", threads=1)
    except GraphwrightError as error:
        console.print(f"ResNet-18, quantized: {error}", style="red", markup=False)
        return False
    console.print(q)
    console.print(str(check), markup=False, highlight=False)
    return check.is_exact and not any(each.in_float for each in check.engines.values())


if __name__ == "__main__":
    sys.exit(main())
